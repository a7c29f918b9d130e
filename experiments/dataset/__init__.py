"""Datasets on the command line: describing them. Run directories are datasets too."""

from experiments.dataset.describe import run_describe

__all__ = ["run_describe"]
