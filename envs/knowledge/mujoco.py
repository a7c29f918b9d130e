"""What is known of Gymnasium's MuJoCo v5 tasks (gymnasium 1.2).

A reward term carries the name of the ``info`` entry in which the environment reports it, so that it can be checked
one by one. Left out, because they are no exact functions of ``(obs, action, next_obs)``:

* forward rewards of HalfCheetah, Hopper, Walker2d and Swimmer while the x position is excluded from the observation
  (the mean velocity over the frame skip is not the velocity at its end); with the position included they are exact;
* forward rewards of Ant and Humanoid: they read body positions, which MuJoCo last evaluated inside its final
  substep, not at the ``qpos`` that is observed;
* everything in InvertedDoublePendulum, for the same reason: its tip is read from that earlier evaluation (the
  reward is off by up to 2e-4), and its velocities are clipped at 10 in the observation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.humanoid_v5 import HumanoidEnv
from gymnasium.envs.mujoco.humanoidstandup_v5 import HumanoidStandupEnv
from gymnasium.envs.mujoco.inverted_double_pendulum_v5 import InvertedDoublePendulumEnv
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.envs.mujoco.pusher_v5 import PusherEnv
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from torch import Tensor

from envs.knowledge.base import Knowledge
from envs.knowledge.terms import (
    Constant,
    ContactCost,
    ControlCost,
    ForwardVelocity,
    HealthyReward,
    Inside,
    NegativeDistance,
    Proportional,
    Range,
    Unhealthy,
)
from envs.spec import Angle, KnownFunction, never


@dataclass(frozen=True)
class PoleFallen:
    """InvertedPendulum: the pole beyond ``limit`` radians or a non-finite observation, ``[B]`` bool."""

    limit: float = 0.2

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return (next_obs[..., 1].abs() > self.limit) | ~next_obs.isfinite().all(-1)


def pole_upright(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """InvertedPendulum's reward: 1, and 0 on the terminating step, ``[B]``."""
    return (~PoleFallen()(obs, action, next_obs)).to(next_obs.dtype)


def inverted_pendulum(env: InvertedPendulumEnv) -> Knowledge:
    return Knowledge(
        layout=_split(qpos=2, qvel=2),
        angles=(Angle(raw=1),),
        reward_terms={"reward_survive": pole_upright},
        reward_complete=True,
        termination=PoleFallen(),
    )


def inverted_double_pendulum(env: InvertedDoublePendulumEnv) -> Knowledge:
    return Knowledge(
        layout=_split(position=1, sin=2, cos=2, qvel=3, constraint_force=1),
        angles=(Angle(cos=3, sin=1), Angle(cos=4, sin=2)),
    )


def reacher(env: ReacherEnv) -> Knowledge:
    # The distance has a z part too, which is always 0: arm and target move in one plane.
    return Knowledge(
        layout=_split(cos=2, sin=2, target=2, qvel=2, offset=2),
        angles=(Angle(cos=0, sin=2), Angle(cos=1, sin=3)),
        reward_terms={
            "reward_dist": NegativeDistance(float(env._reward_dist_weight), (8, 10)),
            "reward_ctrl": ControlCost(float(env._reward_control_weight)),
        },
        reward_complete=True,
        termination=never,
    )


def pusher(env: PusherEnv) -> Knowledge:
    hand, thing, goal = (14, 17), (17, 20), (20, 23)
    return Knowledge(
        layout=_split(qpos=7, qvel=7, hand=3, object=3, goal=3),
        reward_terms={
            "reward_near": NegativeDistance(float(env._reward_near_weight), thing, hand),
            "reward_dist": NegativeDistance(float(env._reward_dist_weight), thing, goal),
            "reward_ctrl": ControlCost(float(env._reward_control_weight)),
        },
        reward_complete=True,
        termination=never,
    )


def swimmer(env: SwimmerEnv) -> Knowledge:
    return _runner(env, hidden=2, turning=2)


def half_cheetah(env: HalfCheetahEnv) -> Knowledge:
    return _runner(env, hidden=1, turning=2)


def hopper(env: HopperEnv) -> Knowledge:
    # The environment compares unclipped velocities with the healthy state range, the observation shows them clipped
    # at 10: a range wider than that (100 by default) is never seen to be left through a velocity. Exact otherwise.
    skipped = _skipped(env, 1)
    start, end = 2 - skipped, sum(_sizes(env).values())
    box = Inside(
        bounds=((1 - skipped, _range(env._healthy_z_range)), (2 - skipped, _range(env._healthy_angle_range))),
        every=((start, end), _range(env._healthy_state_range)),
    )
    return _runner(env, hidden=1, turning=2, box=box)


def walker2d(env: Walker2dEnv) -> Knowledge:
    skipped = _skipped(env, 1)
    z, angle = _range(env._healthy_z_range), _range(env._healthy_angle_range)
    return _runner(env, hidden=1, turning=2, box=Inside(bounds=((1 - skipped, z), (2 - skipped, angle))))


def ant(env: AntEnv) -> Knowledge:
    skipped = _skipped(env, 2)
    sizes = _sizes(env)
    moving = sizes["qpos"] + sizes["qvel"]
    box = Inside(bounds=((2 - skipped, _range(env._healthy_z_range)),), closed=True, finite=moving)
    terms: dict[str, KnownFunction] = {
        "reward_ctrl": ControlCost(float(env._ctrl_cost_weight)),
        "reward_survive": HealthyReward(float(env._healthy_reward), box),
    }
    if env._include_cfrc_ext_in_observation:
        # Forces are clipped the same way in reward and observation; the world's row, not observed, is always 0.
        terms["reward_contact"] = ContactCost(float(env._contact_cost_weight), moving)
    return Knowledge(layout=_split(**sizes), reward_terms=terms, termination=_ends(env, box))


def humanoid(env: HumanoidEnv) -> Knowledge:
    skipped, sizes = _skipped(env, 2), _sizes(env)
    box = Inside(bounds=((2 - skipped, _range(env._healthy_z_range)),))
    terms: dict[str, KnownFunction] = {
        "reward_ctrl": ControlCost(float(env._ctrl_cost_weight)),
        "reward_survive": HealthyReward(float(env._healthy_reward), box),
    }
    if sizes.get("cfrc_ext"):
        start = sum(sizes.values()) - sizes["cfrc_ext"]
        weight, limits = float(env._contact_cost_weight), _range(env._contact_cost_range)
        terms["reward_contact"] = ContactCost(weight, start, limits)
    return Knowledge(layout=_split(**sizes), reward_terms=terms, termination=_ends(env, box))


def humanoid_standup(env: HumanoidStandupEnv) -> Knowledge:
    skipped, sizes = _skipped(env, 2), _sizes(env)
    # The environment takes an ``uph_cost_weight`` and never uses it.
    terms: dict[str, KnownFunction] = {
        "reward_linup": Proportional(1.0 / float(env.model.opt.timestep), 2 - skipped),
        "reward_quadctrl": ControlCost(float(env._ctrl_cost_weight)),
    }
    contacts = bool(sizes.get("cfrc_ext"))
    if contacts:
        terms["constant"] = Constant(1.0)
        start = sum(sizes.values()) - sizes["cfrc_ext"]
        weight, limits = float(env._impact_cost_weight), _range(env._impact_cost_range)
        terms["reward_impact"] = ContactCost(weight, start, limits)
    return Knowledge(layout=_split(**sizes), reward_terms=terms, reward_complete=contacts, termination=never)


def _runner(env: Any, hidden: int, turning: int, box: Inside | None = None) -> Knowledge:
    """Planar runners: ``hidden`` leading positions may be excluded, ``turning`` is the root angle within ``qpos``."""
    skipped = _skipped(env, hidden)
    terms: dict[str, KnownFunction] = {"reward_ctrl": ControlCost(float(env._ctrl_cost_weight))}
    if skipped == 0:
        terms["reward_forward"] = ForwardVelocity(float(env._forward_reward_weight), 0, float(env.dt))
    if box is not None:
        terms["reward_survive"] = HealthyReward(float(env._healthy_reward), box)
    return Knowledge(
        layout=_split(**_sizes(env)),
        angles=(Angle(raw=turning - skipped),),
        reward_terms=terms,
        reward_complete=skipped == 0,
        termination=never if box is None else _ends(env, box),
    )


def _ends(env: Any, box: Inside) -> KnownFunction:
    return Unhealthy(box) if env._terminate_when_unhealthy else never


def _skipped(env: Any, hidden: int) -> int:
    return hidden if env._exclude_current_positions_from_observation else 0


def _sizes(env: Any) -> dict[str, int]:
    """Observation blocks in order, as the environment declares them."""
    return {name: int(size) for name, size in env.observation_structure.items() if size and name != "skipped_qpos"}


def _split(**sizes: int) -> dict[str, slice]:
    layout, start = {}, 0
    for name, size in sizes.items():
        layout[name] = slice(start, start + size)
        start += size
    return layout


def _range(limits: Any) -> Range:
    return float(limits[0]), float(limits[1])


TABLE: dict[type, Callable[[Any], Knowledge]] = {
    InvertedPendulumEnv: inverted_pendulum,
    InvertedDoublePendulumEnv: inverted_double_pendulum,
    ReacherEnv: reacher,
    PusherEnv: pusher,
    SwimmerEnv: swimmer,
    HalfCheetahEnv: half_cheetah,
    HopperEnv: hopper,
    Walker2dEnv: walker2d,
    AntEnv: ant,
    HumanoidEnv: humanoid,
    HumanoidStandupEnv: humanoid_standup,
}
