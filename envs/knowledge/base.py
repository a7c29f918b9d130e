"""What is known of a task, before it is joined with an environment's shapes into an :class:`~envs.spec.EnvSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from envs.spec import Angle, KnownFunction, QuadraticCost


@dataclass(frozen=True)
class Knowledge:
    """Known pieces of one task; see :class:`envs.spec.EnvSpec` for their meaning."""

    layout: Mapping[str, slice] = field(default_factory=dict)
    params: Mapping[str, float] = field(default_factory=dict)
    angles: tuple[Angle, ...] = ()
    reward_terms: Mapping[str, KnownFunction] = field(default_factory=dict)
    reward_complete: bool = False
    termination: KnownFunction | None = None
    costs: Mapping[str, KnownFunction] = field(default_factory=dict)
    quadratic: QuadraticCost | None = None
