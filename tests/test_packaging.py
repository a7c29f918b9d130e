"""The wheel: what is in it, and that it works where the repository is not."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("envs", "mbrl", "agents", "experiments")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def files(folder: str, pattern: str) -> set[str]:
    """Names, from the root of the repository, of the files in ``folder`` that match."""
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)}


def run(*command: str | Path, cwd: Path, **environ: str) -> str:
    """Standard output of a command that must succeed, in an environment without our own Python settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=cwd, env=kept | environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_tested_versions_lie_in_the_ranges() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    ranges = itertools.chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for wanted in map(Requirement, ranges):
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), wanted


def test_constraints_name_releases_that_any_index_has() -> None:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[0-9][\w.]*", line), line


def test_installed_metadata() -> None:
    installed = metadata.metadata("mbrl-platform")
    assert installed["Version"] == PROJECT["version"]
    assert "cannot share an environment with the old package" in installed["Summary"]
    (script,) = metadata.distribution("mbrl-platform").entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("mbrl", "experiments.cli:main")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the working tree with the build backend that is installed here."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {*PACKAGES, f"mbrl_platform-{PROJECT['version']}.dist-info"}
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    for package in PACKAGES:
        assert files(package, "*.py") <= names
    recipes = files("experiments/recipes", "*.yaml")
    assert recipes
    assert recipes <= names
    scenes = files("envs/assets", "*.xml")
    assert scenes
    assert scenes <= names
    assert not any(name.startswith("experiments/results/") for name in names)


def test_wheel_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"mbrl_platform-{PROJECT['version']}.dist-info"
    headers = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
    assert headers["Requires-Python"] == ">=3.11"
    assert {"dmc", "dev"} <= set(headers.get_all("Provides-Extra", []))
    assert any("LICENSE" in name for name in archive.namelist())
    assert not any("file:" in line or "+cpu" in line for line in headers.get_all("Requires-Dist", []))


@pytest.mark.timeout(300)
def test_wheel_works_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """Installed without the repository; the dependencies are borrowed from the environment that runs this test."""
    home, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=empty)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=empty).strip())
    # A line in a .pth adds the folder but does not read the .pth files in it, so the editable install stays out.
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")

    where = "import envs.spec, mbrl.data, agents, experiments.cli as c; print(c.__file__)"
    assert Path(run(python, "-c", where, cwd=empty).strip()).is_relative_to(home)
    assert "train" in run(home / "bin" / "mbrl", "--help", cwd=empty, COLUMNS="120")
    assert "Pendulum-v1" in run(home / "bin" / "mbrl", "list", "envs", cwd=empty, COLUMNS="120")
    assert list(empty.iterdir()) == []
