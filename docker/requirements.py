"""Print what pyproject.toml asks for, a requirement a line, with Ray's dashboard and jobs beside it.

``python docker/requirements.py pyproject.toml``: a layer of the image that stays while only our code changes.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(project_file: Path) -> list[str]:
    """The run-time dependencies, and ``ray[default]``: without it a cluster has no dashboard and takes no jobs."""
    project = tomllib.loads(project_file.read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], "ray[default]"]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(Path(sys.argv[1]))) + "\n")
