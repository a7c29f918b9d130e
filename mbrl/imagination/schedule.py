"""How long imagined rollouts are, as a run goes on."""

from __future__ import annotations

from envs.errors import UserError


class HorizonSchedule:
    """Horizon ``k(t) = floor(k0 + clip((t - t0) / (t1 - t0), 0, 1) * (k1 - k0))`` at env step ``t``.

    Janner, Fu, Zhang, Levine, "When to Trust Your Model: Model-Based Policy Optimization", 2019. It is published in
    epochs of 1,000 env steps and changes at their starts; by default it changes here at the env step itself. Published
    epochs begin when the random exploration of ``n0`` steps has ended, while warm-up steps count here: the published
    schedule has ``t0 = n0 + 1000 e0``, ``t1 = n0 + 1000 e1`` and ``every`` 1,000. Without ``n0`` and ``every`` a
    horizon comes up to ``n0`` steps and an epoch earlier.

    Args:
        start_step: ``t0`` in env steps.
        end_step: ``t1`` in env steps; equal to ``t0`` the horizon jumps there.
        start_horizon: ``k0``.
        end_horizon: ``k1``.
        every: env steps between changes, counted from ``t0``.
    """

    def __init__(
        self,
        start_step: int = 20_000,
        end_step: int = 150_000,
        start_horizon: int = 1,
        end_horizon: int = 1,
        every: int = 1,
    ) -> None:
        if not 0 <= start_step <= end_step:
            raise UserError("start_step, end_step", (start_step, end_step), "0 <= start_step <= end_step")
        if start_horizon < 1 or end_horizon < 1:
            raise UserError("start_horizon, end_horizon", (start_horizon, end_horizon), "each is at least 1")
        if every < 1:
            raise UserError("every", every, "give a whole number of at least 1")
        self.start_step, self.end_step, self.every = start_step, end_step, every
        self.start_horizon, self.end_horizon = start_horizon, end_horizon

    def __call__(self, env_steps: int) -> int:
        """Steps of a rollout that is made after ``env_steps`` env steps."""
        if env_steps >= self.end_step:
            return self.end_horizon
        if env_steps <= self.start_step:
            return self.start_horizon
        passed, span = env_steps - self.start_step, self.end_step - self.start_step
        passed -= passed % self.every
        # In whole numbers: rounding of a quotient can miss the very step at which k grows.
        return self.start_horizon + passed * (self.end_horizon - self.start_horizon) // span
