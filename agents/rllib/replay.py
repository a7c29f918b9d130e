"""The rows of RLlib's replay buffers in the platform's memory: what a checkpoint writes, and where they come back from.

RLlib's own checkpoints leave its replay buffers out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from envs.spec import EnvSpec
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.imagination.model_env import spaces_of


class Recorder:
    """Writes the pieces of episodes that an RLlib buffer is given into ``ring``, in the order in which they come."""

    def __init__(self, ring: ReplayBuffer, spec: EnvSpec) -> None:
        self.ring, self.spec = ring, spec
        self.version = 0
        """of the policy that acts"""
        self._next = int(ring.columns["episode"].max()) + 1 if len(ring) else 0
        self._numbers: dict[str, int] = {}
        """of the episodes that are under way, by RLlib's names"""

    def attach(self, replay: Any) -> None:
        """From now on see what this buffer of RLlib is given."""
        add = replay.add

        def recorded(episodes: Any, *args: Any, **kwargs: Any) -> Any:
            for episode in episodes if isinstance(episodes, list) else [episodes]:
                if len(episode):
                    self.ring.extend(self._rows(episode))
            return add(episodes, *args, **kwargs)

        replay.add = recorded

    def _rows(self, episode: Any) -> Transitions:
        n, first = len(episode), int(episode.t_started)
        number = self._numbers.pop(episode.id_, self._next)
        self._next = max(self._next, number + 1)
        if not episode.is_done:
            self._numbers[episode.id_] = number
        obs = torch.as_tensor(np.asarray(episode.get_observations(slice(0, n + 1)), dtype=np.float32))
        action = torch.as_tensor(np.asarray(episode.get_actions(slice(0, n))))
        reward = torch.as_tensor(np.asarray(episode.get_rewards(slice(0, n)), dtype=np.float32))
        last = torch.arange(n) == n - 1
        return Transitions(
            obs=obs[:-1],
            action=self.spec.action.from_env(action) if self.spec.action.discrete else action.float(),
            reward=reward,
            next_obs=obs[1:],
            terminated=last & bool(episode.is_terminated),
            truncated=last & bool(episode.is_truncated),
            episode=torch.full((n,), number),
            step=torch.arange(first, first + n),
            policy_version=torch.full((n,), self.version),
        )


def episodes_of(ring: ReplayBuffer, spec: EnvSpec) -> Iterator[Any]:
    """The rows of ``ring`` as RLlib's episodes, oldest first; those that were under way stay unfinished."""
    rows = ring.all()
    order = torch.argsort(rows.episode, stable=True)
    rows = rows[order]
    _, counts = rows.episode.unique_consecutive(return_counts=True)
    begin = 0
    for count in counts.tolist():
        yield _episode(rows[torch.arange(begin, begin + count)], spec)
        begin += count


def _episode(rows: Transitions, spec: EnvSpec) -> Any:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    obs_space, action_space = spaces_of(spec)
    action = spec.action.to_env(rows.action) if spec.action.discrete else rows.action
    return SingleAgentEpisode(
        observation_space=obs_space,
        action_space=action_space,
        observations=_items([*rows.obs, rows.next_obs[-1]]),
        actions=_items(action),
        rewards=rows.reward.tolist(),
        terminated=bool(rows.terminated[-1]),
        truncated=bool(rows.truncated[-1]),
        t_started=int(rows.step[0]),
        len_lookback_buffer=0,
    ).to_numpy()


def _items(rows: Iterable[torch.Tensor]) -> list[Any]:
    return [row.numpy() for row in rows]
