"""Environments: what they are, what is known of them, and the edge of the platform around them."""

from envs.boundary import BoundaryEnv
from envs.check import CheckReport, check_env
from envs.errors import UserError
from envs.pool import EnvPool, PoolStep
from envs.registry import env_spec, list_envs, make_env, make_physics, register_own, register_scheme
from envs.spec import EnvSpec

register_own()

from envs.tasks import TaskSequence  # noqa: E402 (sequences are named like environments, which are known only now)

__all__ = [
    "BoundaryEnv",
    "CheckReport",
    "EnvPool",
    "EnvSpec",
    "PoolStep",
    "TaskSequence",
    "UserError",
    "check_env",
    "env_spec",
    "list_envs",
    "make_env",
    "make_physics",
    "register_scheme",
]
