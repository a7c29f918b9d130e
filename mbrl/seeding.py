"""Where every random number comes from: named streams derived from one run seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(run_seed: int, *stream: str | int) -> int:
    """A seed for one named stream of a run, e.g. ``derive_seed(7, "env", slot, episode)``; 31 bits, stable for ever."""
    text = "/".join(str(part) for part in (run_seed, *stream))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % (2**31)


def generator(run_seed: int, *stream: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one named stream of a run."""
    return torch.Generator(device).manual_seed(derive_seed(run_seed, *stream))


@contextmanager
def seeded(source: torch.Generator) -> Iterator[None]:
    """Run library code that only knows the global random states from ``source``; they are restored afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.cuda.get_rng_state_all()
    seed = int(torch.randint(2**31, (1,), generator=source, device=source.device))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        torch.cuda.set_rng_state_all(before[3])
