"""Draws docs/tasks.png: ``python docs/draw_tasks.py`` (needs a GL backend, for instance ``MUJOCO_GL=egl``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from envs.door import door_expert
from envs.pushing import push_expert
from envs.tasks import Task, make_tasks

Expert = Callable[[Any], Any]
ROWS: tuple[tuple[str, tuple[int, ...], Expert | None, int], ...] = (
    ("push-density", (0, 1, 2, 4), push_expert, 8),
    ("door-handles", (0, 2, 3, 4), door_expert, 26),
    ("halfcheetah-bodies", (0, 1, 2, 4), None, 0),
    ("reacher-links", (0, 3, 6, 7), None, 0),
    ("cartpole-lengths", (2, 0, 4, 9), None, 0),
)
"""Sequence, ids of the tasks shown, who acts, steps before the frame."""


def frame(task: Task, expert: Expert | None, steps: int) -> Any:
    """What a task looks like after ``steps``."""
    env = task.make(render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    for _ in range(steps):
        obs, *_ = env.step(expert(obs) if expert else np.zeros(task.spec.action.size))
    image = env.render()
    env.close()
    return image


def draw(path: Path) -> None:
    figure = Figure(figsize=(9.0, 10.5), layout="constrained")
    axes = figure.subplots(len(ROWS), 4)
    for row, (name, ids, expert, steps) in zip(axes, ROWS, strict=True):
        for axis, id in zip(row, ids, strict=True):
            task = make_tasks(name).task(id)
            axis.imshow(frame(task, expert, steps))
            axis.set(xticks=[], yticks=[])
            axis.set_title(task.name, fontsize=9)
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(name, fontsize=10)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    draw(Path(__file__).with_name("tasks.png"))
