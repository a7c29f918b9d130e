"""In which settings configurations differ, by the dotted names that the command line takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

NOT_COMPARED = ("seed", "env.id")
OF_THE_RECORD = ("evaluation", "checkpoint", "video", "threads")
"""Settings that do not make another agent of one."""
FREE = ("kwargs", "env_kwargs", "params", "weight", "target")
"""Arguments whose mappings have no fixed keys: one value each. Elsewhere only an older version leaves a key out."""


@dataclass(frozen=True)
class Setting:
    """A value, and the dotted name of the part whose argument it is ('' at the top)."""

    value: Any
    part: str


def flatten(config: Mapping[str, Any]) -> dict[str, Setting]:
    """``{"agent": class, "agent.learner": class, "agent.learner.hidden": 128, ...}``."""
    return dict(_flatten(config, (), ""))


def _flatten(node: Any, way: tuple[str, ...], part: str) -> Iterator[tuple[str, Setting]]:
    path = ".".join(way)
    if isinstance(node, Mapping) and "class_path" in node:
        yield path, Setting(node["class_path"], part)
        yield from _flatten(node.get("init_args") or {}, way, path)
    elif isinstance(node, Mapping) and way[-1:] not in [(name,) for name in FREE]:
        for key, value in node.items():
            yield from _flatten(value, (*way, str(key)), part)
    elif isinstance(node, list) and any(isinstance(item, Mapping) for item in node):
        for position, item in enumerate(node):
            yield from _flatten(item, (*way, str(position)), part)
    else:
        yield path, Setting(node, part)


def differing(configs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Settings in which agents differ on the same environment, as ``{key: {agent: value}}``.

    Arguments are compared between agents whose part is of the same class; of different classes the class alone is
    listed. An agent without the setting has no entry: its parts do not have it, or the version that made it did not.
    A value that an agent changes from environment to environment is a text that names them.

    Args:
        configs: ``{env: {agent: configuration}}``.
    """
    flat = {env: {agent: flatten(config) for agent, config in own.items()} for env, own in configs.items()}
    keys = dict.fromkeys(key for own in flat.values() for settings in own.values() for key in settings)
    agents = dict.fromkeys(agent for own in flat.values() for agent in own)
    wanted = [
        key for key in keys if key not in NOT_COMPARED and any(_differs(key, own.values()) for own in flat.values())
    ]
    return {key: {agent: value for agent in agents for value in _values(key, agent, flat)} for key in wanted}


def same_agent(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configurations can be repetitions of one run with different seeds."""
    ours, theirs = flatten(one), flatten(other)
    shared = [key for key in ours if key in theirs and key != "seed" and key.partition(".")[0] not in OF_THE_RECORD]
    return all(_repeats(key, ours[key].value, theirs[key].value) for key in shared)


def _repeats(key: str, one: Any, other: Any) -> bool:
    """A run that continues another one continues a run of its own seed."""
    if key == "start_from":
        return (one is None) == (other is None)
    return _text(one) == _text(other)


def _differs(key: str, agents: Iterable[Mapping[str, Setting]]) -> bool:
    values: dict[str, set[str]] = {}
    for settings in (settings for settings in agents if key in settings):
        part = settings[key].part
        owner = f"{part} {settings[part].value}" if part else ""
        values.setdefault(owner, set()).add(_text(settings[key].value))
    return any(len(given) > 1 for given in values.values())


def _values(key: str, agent: str, flat: Mapping[str, Mapping[str, Mapping[str, Setting]]]) -> list[Any]:
    """The value that an agent has for ``key``, in a list; an empty one when it has none."""
    found = {env: own[agent][key].value for env, own in flat.items() if agent in own and key in own[agent]}
    if len({_text(value) for value in found.values()}) <= 1:
        return list(found.values())[:1]
    return ["; ".join(f"{env}: {_text(value)}" for env, value in found.items())]


def _text(value: Any) -> str:
    return json.dumps(value, default=str)
