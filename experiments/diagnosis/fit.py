"""``mbrl fit``: fit a model alone, on real transitions, with whole episodes held out."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from envs.errors import UserError
from experiments.config import Resolved, resolve
from experiments.diagnosis.building import build, fitter_of, model_of
from experiments.diagnosis.dataset import JudgedRows, Split, need_fit, of_episodes, read_dataset, split_episodes
from experiments.run import free_path, versions
from experiments.storage import make_folder
from mbrl import seeding
from mbrl.data.buffer import ReplayBuffer
from mbrl.diagnostics.judge import judge
from mbrl.models.base import DynamicsModel

FORMAT = 1
MODEL, RECORD, SUMMARY = "model.pt", "fit.json", "summary.txt"


def run_fit(
    recipe: str,
    data: Path,
    out: str | None,
    overrides: Sequence[tuple[str, Any]],
    trust: Sequence[str],
    seed: int = 0,
    heldout: float = 0.2,
) -> Path:
    """Fit the model of ``recipe`` by its own fitter on the transitions at ``data``; the folder that holds the result.

    Args:
        recipe: name or file of a recipe whose agent has a model and a fitter, or a run directory.
        data: a run directory or a folder written by ``ReplayBuffer.save``. A run's environment is the model's, unless
            ``overrides`` name another; for a saved buffer, the recipe or ``env.id`` must say.
        out: folder to be made (default: ``fits/RECIPE-ENV-n``).
        overrides: dotted keys and values, as typed.
        trust: modules that the user named on this command line; no other outside ones are imported.
        seed: of the split, the networks and the fit.
        heldout: share of the episodes that are held out.

    The folder gets ``model.pt`` (tensors), ``config.yaml``, ``fit.json`` (data, split, metrics) and ``summary.txt``
    (a few lines to show), all at once or none.

    Raises:
        UserError: a bad recipe, override, folder or data; nothing is written then.
    """
    named = dict(overrides).get("env.id")
    found = read_dataset(data, env=None if named is None else {"id": named})
    resolved = _resolve(recipe, found, [*overrides, ("seed", seed)], trust)
    split = split_episodes(found.buffer.all().episode, heldout, seed)
    path = _place(out, f"{resolved.name}-{resolved.config.env.id}")
    agent = build(resolved)
    model, fitter = model_of(agent, recipe), fitter_of(agent, recipe)
    need_fit(found, model.spec)
    train, held = of_episodes(found.buffer, split.train), of_episodes(found.buffer, split.heldout)
    luck = seeding.generator(seed, "fit", device=agent.device)
    report = fitter.fit(model, train.all().to(agent.device), luck)
    scores = {name: _scores(model, rows, seed) for name, rows in (("train", train), ("heldout", held))}
    record = _record(found, split, heldout, seed) | {"fit": report} | scores
    text = "\n".join([*stranger(found, model), _summary(path, model, train, held, record)])
    _write(path, resolved, model, record | {"summary": text}, text)
    return path


def stranger(data: JudgedRows, model: DynamicsModel) -> list[str]:
    """A sentence when the data comes from another environment than the model; shapes alone do not show it."""
    env = (data.env or {}).get("id")
    return [f"The data comes from {env}, the model is of {model.spec.id}."] if env not in (None, model.spec.id) else []


def _resolve(recipe: str, data: JudgedRows, overrides: Sequence[tuple[str, Any]], trust: Sequence[str]) -> Resolved:
    """The recipe's configuration in the data's environment; what the user typed comes last and wins."""
    given = Path(recipe) / "config.yaml"
    own = recipe if not given.is_file() else str(given)
    env = dict(data.env or {})
    told = [(f"env.{key}", value) for key, value in env.items() if key != "id"]
    named = any(key == "env.id" for key, _ in overrides)
    return resolve(own, [*([] if named else told), *overrides], None if named else env.get("id"), trust)


def _place(out: str | None, name: str) -> Path:
    if out is not None:
        return free_path(out, name)
    plain = name.replace("/", "-").replace(":", "-")
    return next(path for n in range(1, 10**6) if not (path := Path("fits") / f"{plain}-{n}").exists())


def _scores(model: DynamicsModel, rows: ReplayBuffer, seed: int) -> dict[str, float]:
    """Errors by depth and calibration on those rows."""
    return judge(model, rows, len(rows), seeding.generator(seed, "judge"))


def _record(data: JudgedRows, split: Split, heldout: float, seed: int) -> dict[str, Any]:
    source = {"path": str(data.path.resolve()), "total_added": data.buffer.total_added, "rows": len(data.buffer)}
    about = {"format": FORMAT, "data": source | {"digest": data.digest(), "env": data.env}}
    return about | {"split": {"seed": seed, "heldout": heldout, **asdict(split)}}


def _summary(
    path: Path, model: DynamicsModel, train: ReplayBuffer, held: ReplayBuffer, record: Mapping[str, Any]
) -> str:
    split, scores = record["split"], record["heldout"]
    lines = [f"{type(model).__name__} of {model.spec.id}, {record['fit']['gradient_steps']:,.0f} gradient steps"]
    lines += [f"fitted on {len(train):,} transitions of {len(split['train'])} episodes"]
    errors = [f"{scores[name]:.4g} after {name.removeprefix('error_at_')}" for name in scores if "error_at" in name]
    lines += [f"held out: {len(held):,} transitions of {len(split['heldout'])} episodes"]
    lines += [f"error there, in standard deviations: {', '.join(errors)} steps"]
    if "coverage_90" in scores:
        lines += [f"its 90 % intervals hold {100 * scores['coverage_90']:.0f} % of what came"]
    return "\n".join([*lines, f"next: mbrl diagnose {path}"])


def _write(path: Path, resolved: Resolved, model: DynamicsModel, record: Mapping[str, Any], summary: str) -> None:
    """Everything in one rename."""
    weights = io.BytesIO()
    torch.save({"format": FORMAT, "model": model.state_dict()}, weights)
    files = {
        MODEL: weights.getvalue(),
        "config.yaml": resolved.text.encode(),
        RECORD: (json.dumps(plain(dict(record)), indent=1) + "\n").encode(),
        "versions.json": (json.dumps(versions(), indent=1) + "\n").encode(),
        SUMMARY: (summary + "\n").encode(),
    }
    make_folder(path, files)


def plain(value: Any) -> Any:
    """As JSON holds it: tensors as lists, what is not finite as null."""
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_record(path: Path) -> dict[str, Any]:
    """What ``fit.json`` says; raises ``UserError`` when it is damaged."""
    try:
        record: dict[str, Any] = json.loads((path / RECORD).read_text())
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}, this version reads {FORMAT}")
        for key in ("path", "total_added", "digest"):
            record["data"][key]
        Split(record["split"]["train"], record["split"]["heldout"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(str(path / RECORD), f"{type(error).__name__}: {error}", "fit the model anew") from error
    return record


def load_weights(path: Path, model: DynamicsModel) -> None:
    """Give ``model`` the weights in ``path/model.pt``. No code in the file is run."""
    try:
        state = torch.load(path / MODEL, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
    except Exception as error:  # torch raises many kinds for what is not a plain tensor file
        fix = "it is damaged, or belongs to another configuration; fit the model anew"
        raise UserError(str(path / MODEL), type(error).__name__, fix) from error
