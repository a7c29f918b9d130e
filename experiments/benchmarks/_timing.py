"""Side-by-side timing on one thread, and what every benchmark prints and writes.

Cases take turns, and only ratios of neighbours in time are claims: what else the machine does falls on all alike. The
clock is the process's own processor time, which on one thread is wall-clock time minus what other processes took.
"""

from __future__ import annotations

import json
import platform
import shlex
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from envs.errors import UserError
from experiments.cli import Parser
from experiments.run import versions
from experiments.storage import disk_errors, write_atomically

Seconds = dict[str, list[float]]
"""Seconds of every repeat, by case."""

BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")


def make_parser(name: str, about: str, repeats: int) -> Parser:
    """The options that every benchmark has."""
    parser = Parser(prog=f"mbrl bench {name}", description=about, allow_abbrev=False)
    parser.add_argument("--out", metavar="DIR", help=f"write DIR/{name}.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=repeats, help="turns of each timed case")
    parser.add_argument("--no-compile", action="store_true", help="leave out what torch.compile makes")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    return parser


def parse(parser: Parser, argv: Sequence[str]) -> Namespace:
    options = parser.parse_args([*argv])
    if options.repeats < 1:
        raise UserError("--repeats", options.repeats, "give 1 or more")
    return options


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch works on one thread inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def take_turns(cases: Mapping[str, Callable[[], object]], repeats: int) -> Seconds:
    """Processor seconds of ``repeats`` turns of each case, after one turn each that warms up and compiles."""
    for work in cases.values():
        work()
    seconds: Seconds = {name: [] for name in cases}
    for _ in range(repeats):
        for name, work in cases.items():
            began = time.process_time()
            work()
            seconds[name].append(time.process_time() - began)
    return seconds


def ratio(seconds: Seconds, above: str, below: str) -> float:
    """Median over the turns of (time of ``above``) / (time of ``below``)."""
    pairs = zip(seconds[above], seconds[below], strict=True)
    return statistics.median(a / b for a, b in pairs)


def machine() -> dict[str, Any]:
    """CPU model, cores, and the instruction sets that decide how fast matrix products are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = sorted(f for f in fields.get("flags", "").split() if f.startswith(("avx", "amx", "fma")))
    cores = sum(line.startswith("processor") for line in lines)
    return {"cpu": fields.get("model name", platform.processor()), "cores": cores, "flags": flags, "threads_used": 1}


def bfloat16_note() -> str:
    """Whether this machine computes in bfloat16."""
    have = [flag for flag in BFLOAT16_FLAGS if flag in machine()["flags"]]
    return f"bfloat16 instructions: {', '.join(have) or 'none on this machine, so bfloat16 is emulated and slow'}"


def table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a table whose first row is the head; numbers to the right."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]


def publish(
    name: str, argv: Sequence[str], options: Namespace, config: object, lines: Sequence[str], found: object
) -> None:
    """Print the lines; with ``--out`` write what was found beside everything needed to judge and repeat it."""
    quick = " --quick: sizes that show that it runs; the figures mean nothing" if options.quick else ""
    print("\n".join([f"mbrl bench {name}{quick}", *lines]), flush=True)
    if options.out is None:
        return
    command = shlex.join(["mbrl", "bench", name, *argv])
    about = {"benchmark": name, "command": command, "config": config, "machine": machine(), "versions": versions()}
    path = Path(options.out) / f"{name}.json"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps({**about, "found": found}, indent=1) + "\n").encode())
    print(f"written: {path}", flush=True)
