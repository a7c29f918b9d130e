"""A run directory: what was asked, with which code, what happened, and where to continue."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import envs
from envs.errors import UserError
from experiments.storage import disk_errors, make_folder

PACKAGES = ("mbrl-platform", "torch", "numpy", "gymnasium", "mujoco", "jsonargparse", "stable-baselines3", "ray")


class RunDirectory:
    """Paths of one run: ``config.yaml``, ``versions.json``, ``metrics.jsonl``, ``checkpoints/``, ``videos/``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.videos = path / "videos"

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run; raises ``UserError`` when this is none."""
        if (path / "fit.json").is_file():
            raise UserError("RUN", str(path), "this is a fit of a model alone; look at it with `mbrl diagnose`")
        if not (path / "config.yaml").is_file():
            raise UserError("RUN", str(path), "not a run directory (it has no config.yaml)", _neighbours(path))
        return cls(path)

    @classmethod
    def create(cls, path: Path, config: str, origin: dict[str, Any]) -> RunDirectory:
        """Make ``path`` with ``config.yaml`` and ``versions.json`` in it, in one rename."""
        told = json.dumps(versions() | origin, indent=1) + "\n"
        make_folder(path, {"config.yaml": config.encode(), "versions.json": told.encode()})
        return cls(path)


def free_path(out: str | None, name: str) -> Path:
    """``out``, or the first free ``runs/NAME-<n>``. Raises ``UserError`` when ``out`` is taken."""
    if out is None:
        return next(path for n in range(1, 10**6) if not (path := Path("runs") / f"{name}-{n}").exists())
    with disk_errors(Path("--out")):
        return _free(out)


def _free(out: str) -> Path:
    if not out.strip() or "\0" in out:
        raise UserError("--out", out, "name a directory that will be made")
    path = Path(os.path.realpath(out)) if Path(out).is_symlink() else Path(out)
    if Path.cwd().is_relative_to(os.path.realpath(path)):
        raise UserError("--out", out, "this is where you stand; name a directory that will be made")
    if path.is_dir() and not any(path.iterdir()):
        return path
    if (path / "fit.json").is_file():
        raise UserError("--out", out, "there is a fit already; name another place")
    if (path / "config.yaml").is_file():
        raise UserError(
            "--out", out, f"there is a run already; continue it with `mbrl resume {out}` or name another place"
        )
    if path.exists():
        raise UserError("--out", out, "it exists and is not empty; name another place")
    return path


def _neighbours(path: Path) -> list[str]:
    parent = path.parent
    return [str(found.parent) for found in parent.glob("*/config.yaml")] if parent.is_dir() else []


def versions() -> dict[str, Any]:
    """Versions of Python, of the packages that decide results, and the git state of this code."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_state(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, Any] | None:
    """Commit of this code and whether files differ from it; None where it is not a git checkout."""
    root = Path(next(iter(envs.__path__))).resolve().parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "changed": _git(root, "status", "--porcelain", "--untracked-files=no") != ""}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
