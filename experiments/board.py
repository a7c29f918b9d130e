"""TensorBoard: every number of every record, and how the run went as pictures."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from experiments.config import Unit
from experiments.run import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAW_EVERY_SECONDS = 60.0
"""A picture takes about 40 ms, two of them a tenth of a second: as good as nothing once a minute, but not after each of
many short evaluations. What is skipped is in the next picture, and the last one is always drawn."""
MOST_POINTS = 1000
"""Points of a curve; of more, every n-th is drawn."""
COLOURS = ("#2563eb", "#9ca3af", "#d97706", "#059669", "#7c3aed", "#b91c1c")

Points = list[tuple[int, float]]


class TensorBoard:
    """Numbers as ``event/name`` over the run's steps; curves of the whole run as ``figures/NAME``.

    Args:
        run: the run directory.
        resumed_at: steps of the checkpoint that a run goes on from; what was written beyond them is purged.
        past: the records up to there, which pictures show as well.
        unit: what the run's steps are.
    """

    def __init__(
        self,
        run: RunDirectory,
        resumed_at: int | None,
        past: Iterable[Mapping[str, Any]] = (),
        unit: Unit = "env_steps",
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import; only runs need it

        purge = None if resumed_at is None else resumed_at + 1
        self._writer: Any = SummaryWriter(str(run.tensorboard), purge_step=purge)
        self._unit, self._curves = unit, Curves(unit)
        for record in past:
            self._curves.add(record)
        self._next_drawing = time.perf_counter() + DRAW_EVERY_SECONDS
        self._undrawn: int | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        skip, steps = (self._unit, "event", "seconds"), record[self._unit]
        for name, value in record.items():
            if name not in skip and isinstance(value, int | float):
                self._writer.add_scalar(f"{record['event']}/{name}", value, steps)
        if self._curves.add(record):
            self._undrawn = steps
        if record["event"] == "evaluation" and time.perf_counter() >= self._next_drawing:
            self.draw()

    def draw(self) -> None:
        """Add a picture of every curve as it is now, if anything is new."""
        if self._undrawn is None:
            return
        for name, figure in self._curves.figures():
            self._writer.add_image(f"figures/{name}", pixels(figure), self._undrawn, dataformats="HWC")
        self._undrawn = None
        self._next_drawing = time.perf_counter() + DRAW_EVERY_SECONDS

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self.draw()
        self._writer.close()


class Curves:
    """What the pictures of a run are drawn from."""

    def __init__(self, unit: Unit = "env_steps") -> None:
        self._unit: Unit = unit
        self.episodes: Points = []
        self.evaluations: Points = []
        self.errors: dict[str, Points] = defaultdict(list)

    def add(self, record: Mapping[str, Any]) -> bool:
        """Take what a record adds; whether it adds anything. Numbers that were not finite are null, and left out."""
        event, steps = record["event"], int(record[self._unit])
        found = {"episode": record.get("return"), "evaluation": record.get("return_mean")}.get(event)
        if found is not None:
            (self.episodes if event == "episode" else self.evaluations).append((steps, float(found)))
        errors = {name: value for name, value in record.items() if name.startswith("error_at_") and value is not None}
        for name, value in errors.items():
            self.errors[name.removeprefix("error_at_")].append((steps, float(value)))
        return found is not None or bool(errors)

    def figures(self) -> Iterable[tuple[str, Figure]]:
        """``learning_curve``, and ``model_error`` of an agent that judges its model."""
        if self.episodes or self.evaluations:
            curves = {"evaluation": self.evaluations, "training episode": self.episodes}
            yield "learning_curve", _figure(curves, "return", "Return", self._unit)
        if self.errors:
            curves = {f"after {depth} steps": points for depth, points in sorted(self.errors.items(), key=_depth)}
            label, title = "error, in standard deviations", "Error of the model"
            yield "model_error", _figure(curves, label, title, self._unit, positive=True)


def _depth(entry: tuple[str, Points]) -> int:
    return int(entry[0]) if entry[0].isdigit() else 0


def in_words(unit: Unit) -> str:
    """As people read it: ``env steps``, ``updates``."""
    return unit.replace("_", " ")


def _figure(curves: Mapping[str, Points], ylabel: str, title: str, unit: Unit, positive: bool = False) -> Figure:
    from matplotlib.figure import Figure  # half a second to import; only the end of a run needs it

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel=in_words(unit), ylabel=ylabel, title=title)
    for place, (label, points) in enumerate(curves.items()):
        if points:
            steps, values = zip(*_thinned(points), strict=True)
            axes.plot(steps, values, marker=".", color=COLOURS[place % len(COLOURS)], label=label, zorder=3 - place)
    if positive and all(value > 0 for points in curves.values() for _, value in points):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _thinned(points: Points) -> Sequence[tuple[int, float]]:
    """At most ``MOST_POINTS`` of them, the last one always."""
    step = -(-len(points) // MOST_POINTS)
    return points[::-step][::-1]


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """The figure as ``[height, width, 3]``, drawn without a window or any global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
