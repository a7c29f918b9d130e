"""Runs that learned from data, that went on from there, and that only acted: folders made by hand, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ENV = "Pole-v1"
REFERENCES = [0.0, 200.0]
ROWS = 5000


def write(folder: Path, config: dict[str, Any], versions: dict[str, Any], records: Sequence[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "versions.json").write_text(json.dumps(versions))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def record(event: str, env_steps: int, updates: int, **values: Any) -> dict[str, Any]:
    return {"event": event, "env_steps": env_steps, "updates": updates, "seconds": (env_steps + updates) / 10, **values}


def evaluation(env_steps: int, updates: int, level: float, **values: Any) -> dict[str, Any]:
    returns = [level - 1.0, level + 1.0]
    return record("evaluation", env_steps, updates, returns=returns, evaluation_seconds=0.0, **values)


def config(agent: str, seed: int, steps: int, env: str, **more: Any) -> dict[str, Any]:
    learner = {"class_path": "agents.ActorCritic", "init_args": {"gamma": 0.99}}
    of = {"class_path": f"agents.{agent}", "init_args": {"learner": learner}}
    return {"agent": of, "env": {"id": env}, "steps": steps, "seed": seed, "data": None, "start_from": None, **more}


def offline(
    root: Path,
    seed: int,
    level: float,
    *,
    label: str = "mobile",
    env: str = ENV,
    data: str = "/data/Pole-v1/medium-v0",
    q: Sequence[float | None] = (20.0, 40.0),
    depths: Sequence[float] = (40.0, 41.0),
    digest: str = "0a",
) -> Path:
    """20,000 gradient steps; rewards from 0 to 1 give values from 0 to 100."""
    records: list[dict[str, Any]] = []
    for number, value in enumerate(q, start=1):
        updates = 20_000 * number // len(q)
        outside = value is None or not 0.0 <= value <= 100.0
        seen = {"q": value, "value_low": 0.0, "value_high": 100.0, "q_outside": outside}
        records.append(record("update", 0, updates, **seen))
        at = {f"q_at_depth_{5 * place}": depth for place, depth in enumerate(depths)}
        records.append(record("imagine", 0, updates, edge_share=0.2, **at))
        records.append(evaluation(0, updates, level, score=100.0 * (level - REFERENCES[0]) / REFERENCES[1]))
    told = {"sources": ["recipes/mobile.yaml"], "data": {"rows": ROWS, "digest": digest, "references": REFERENCES}}
    return write(root / env / label / f"seed{seed}", config("Mobile", seed, 20_000, env, data=data), told, records)


def online(
    root: Path, label: str, seed: int, levels: Sequence[float], *, env: str = ENV, start_from: Path | None = None
) -> Path:
    """1000 env steps an evaluation, five updates each."""
    records = [evaluation(1000 * n, 5000 * n, level) for n, level in enumerate(levels, start=1)]
    more = {} if start_from is None else {"start_from": str(start_from)}
    made = config(label, seed, 1000 * len(levels), env, **more)
    return write(root / env / label / f"seed{seed}", made, {"sources": [f"recipes/{label}.yaml"]}, records)


def mixed(root: Path, seeds: int = 2, **learner: Any) -> Path:
    """Every kind: ``mobile`` from data, ``continued`` from there, ``sac`` and ``mbpo`` without data."""
    for seed in range(seeds):
        run = offline(root, seed, 100.0 + 20.0 * seed, **learner)
        online(root, "continued", seed, (140.0, 180.0), start_from=run)
        online(root, "sac", seed, (20.0, 60.0 + seed))
        online(root, "mbpo", seed, (30.0, 90.0 + seed))
    return root
