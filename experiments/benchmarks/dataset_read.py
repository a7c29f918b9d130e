"""``mbrl bench dataset-read``: rows a second out of and into every format of datasets, files in the page cache."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from experiments.benchmarks._timing import Seconds, make_parser, one_thread, parse, publish, table, take_turns
from mbrl.data.d4rl import write_d4rl
from mbrl.data.minari import write_minari
from mbrl.data.offline import Dataset, open_dataset, save_folder
from mbrl.data.transitions import Transitions


@dataclass(frozen=True)
class Sizes:
    """Of HalfCheetah, in episodes of ``length`` rows."""

    rows: int = 200_000
    length: int = 1000
    obs: int = 17
    action: int = 6
    batch: int = 256


QUICK = Sizes(rows=300, length=100)


def make_rows(sizes: Sizes, seed: int) -> Transitions:
    """Paths of noise whose rows follow on from each other."""
    luck = torch.Generator().manual_seed(seed)
    episodes = sizes.rows // sizes.length
    path = torch.randn(episodes, sizes.length + 1, sizes.obs, generator=luck)
    number = torch.arange(episodes * sizes.length)
    step = number % sizes.length
    return Transitions(
        obs=path[:, :-1].reshape(-1, sizes.obs),
        action=torch.rand(len(number), sizes.action, generator=luck) * 2 - 1,
        reward=torch.randn(len(number), generator=luck),
        next_obs=path[:, 1:].reshape(-1, sizes.obs),
        terminated=torch.zeros(len(number), dtype=torch.bool),
        truncated=step == sizes.length - 1,
        episode=number // sizes.length,
        step=step,
        policy_version=torch.zeros_like(number),
    )


def write(rows: Transitions, name: str, root: Path) -> Path:
    """One more dataset of that format in ``root``."""
    number = len(list(root.iterdir()))
    if name.startswith("Minari"):
        return write_minari(rows, f"set-v{number}", data_format=name.split()[-1].lower(), root=root)
    if name.startswith("D4RL"):
        return write_d4rl(rows, root / f"{number}.hdf5")
    save_folder([rows], len(rows), root / str(number))
    return root / str(number)


FORMATS = ("Minari HDF5", "Minari Arrow", "D4RL HDF5", "mapped folder")


def make_cases(rows: Transitions, root: Path, sizes: Sizes) -> dict[str, Callable[[], object]]:
    """Reading all rows in order and checked; writing them; and random batches of a mapped folder."""
    opened = {name: open_dataset(write(rows, name, root)) for name in FORMATS}
    cases: dict[str, Callable[[], object]] = {}
    for name, dataset in opened.items():
        cases[f"read {name}"] = lambda dataset=dataset: _read(dataset)  # type: ignore[misc]
        cases[f"write {name}"] = lambda name=name: write(rows, name, root)  # type: ignore[misc]
    buffers = {"mapped folder": opened["mapped folder"].mapped(root), "memory": opened["mapped folder"].buffer()}
    for name, buffer in buffers.items():
        luck, draws = torch.Generator().manual_seed(0), max(1, sizes.rows // sizes.batch)
        cases[f"sample {name}"] = lambda buffer=buffer, luck=luck, draws=draws: [  # type: ignore[misc]
            buffer.sample(sizes.batch, luck) for _ in range(draws)
        ]
    return cases


def _read(dataset: Dataset) -> int:
    return sum(len(batch) for batch in dataset.stream())


def judge(seconds: Seconds, rows: int) -> tuple[list[str], dict[str, float]]:
    """The table, and rows a second."""
    found = {name: rows / statistics.median(turns) for name, turns in seconds.items()}
    return table([["what", "rows a second"], *([name, f"{rate:,.0f}"] for name, rate in found.items())]), found


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; see ``mbrl bench dataset-read --help``."""
    options = parse(make_parser("dataset-read", __doc__ or "", repeats=5), argv)
    sizes = QUICK if options.quick else Sizes()
    with tempfile.TemporaryDirectory() as folder, one_thread():
        rows = make_rows(sizes, options.seed)
        seconds = take_turns(make_cases(rows, Path(folder), sizes), options.repeats)
    lines, found = judge(seconds, len(rows))
    publish("dataset-read", argv, options, asdict(sizes), lines, {"rows_per_second": found, "seconds": seconds})
    return 0
