"""A dataset in main memory and a learner on a GPU: indices are drawn where the generator lies, batches go there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.imagination.model_buffer import mixed_batches

COUNT = 30
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def numbered(device: str = "cpu") -> ReplayBuffer:
    """A row's observation is its number."""
    number = torch.arange(COUNT)
    value, no = number[:, None].float(), torch.zeros(COUNT, dtype=torch.bool)
    rows = Transitions(value, value, value[:, 0], value + 1, no, no, number * 0, number, number * 0)
    buffer = ReplayBuffer(COUNT, device=device)
    buffer.extend(rows)
    return buffer


class Elsewhere:
    """Stands for a generator on another device than the rows: draws there are recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device, self.own, self.drawn = torch.device("cuda", 7), Generator().manual_seed(0), list[torch.device]()
        for name in ("randint", "rand"):
            monkeypatch.setattr(torch, name, self.watched(getattr(torch, name)))

    def watched(self, draw: Any) -> Any:
        def watching(*shape: Any, generator: Any, device: Any, **kwargs: Any) -> Tensor:
            assert generator is self
            self.drawn.append(torch.device(device))
            found = draw(*shape, generator=self.own, **kwargs)
            assert isinstance(found, Tensor)
            return found

        return watching


@pytest.mark.parametrize("what", ["ids", "weighted", "windows"])
def test_indices_are_drawn_on_the_generators_device(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch refuses any other, which only shows where there are two devices."""
    buffer, elsewhere = numbered(), Elsewhere(monkeypatch)
    generator: Any = elsewhere
    if what == "windows":
        assert buffer.windows(4, 3, generator).obs.device == buffer.device
    else:
        assert buffer.sample_ids(4, generator, what == "weighted").device == buffer.device
    assert elsewhere.drawn == [elsewhere.device]


def test_the_same_generator_on_the_cpu_draws_what_it_always_did() -> None:
    """Committed numbers rest on these draws."""
    buffer = numbered()
    found = mixed_batches(buffer, buffer, 0.25, 2, 8, Generator().manual_seed(5)).obs[..., 0]
    again = Generator().manual_seed(5)
    wanted = [torch.randint(COUNT, (2 * n,), generator=again).view(2, n).float() for n in (2, 6)]
    assert torch.equal(found, torch.cat(wanted, 1))


@needs_cuda
@pytest.mark.parametrize("where", [("cpu", "cpu"), ("cpu", "cuda"), ("cuda", "cpu")])
def test_batches_lie_with_the_generator(where: tuple[str, str]) -> None:
    real, imagined = (numbered(device) for device in where)
    generator = Generator("cuda").manual_seed(0)
    for other in (None, imagined):
        batches = mixed_batches(real, other, 0.5, 3, 8, generator)
        assert batches.obs.device.type == "cuda"
        assert torch.equal(batches.next_obs, batches.obs + 1)
    assert real.sample(4, generator, weighted=True).obs.device.type == where[0]
    assert real.windows(4, 3, generator).obs.device.type == where[0]


@needs_cuda
def test_an_agent_on_the_gpu_learns_from_rows_in_main_memory() -> None:
    from agents.offline.base import OfflineAgent
    from agents.offline.cloning import Cloning
    from envs.registry import env_spec
    from mbrl.clock import Clock

    spec = env_spec("Pendulum-v1")
    agent = OfflineAgent(spec, Cloning, batch_size=8, round_updates=2, log_every=2, device="cuda")
    agent.seed(0)
    rows = numbered().all()
    rows.obs, rows.next_obs, rows.action = rows.obs.expand(-1, 3), rows.next_obs.expand(-1, 3), rows.action / COUNT
    data = ReplayBuffer(COUNT)
    data.extend(rows)
    agent.load(data)
    assert "update" in agent.update(Clock())
