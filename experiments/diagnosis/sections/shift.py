"""Whether the model notices what is far from its data."""

from __future__ import annotations

import torch

from experiments.diagnosis.evidence import Evidence
from experiments.diagnosis.sections import _drawing as drawing
from experiments.pages.parts import Choice, Figure, Section, Table, Text
from mbrl.diagnostics.shift import ShiftTest


def section(found: Evidence) -> Section:
    """AUROC of every estimator for every shift, and the histograms of each estimator."""
    lead = (
        "The same rows are shown as they came and shifted: with random actions, with another row's action, or with the"
        " state moved away from the data's mean. An uncertainty is of use if it is higher for what is shifted."
    )
    if not found.shifts:
        return Section("shift", "Far from the data", lead, [Text("This model offers no uncertainty.")])
    by: dict[str, list[ShiftTest]] = {}
    for test in found.shifts:
        by.setdefault(test.estimator, []).append(test)
    options = {estimator: [_histogram(estimator, tests)] for estimator, tests in by.items()}
    note = (
        "Random and shuffled actions are no shift where the data's own actions are random, and hardly one where actions"
        " matter little; 0.5 is right there."
    )
    return Section(
        "shift", "Far from the data", lead, [_table(by), Text(note), Choice("shift-by", "estimator", options)]
    )


def _table(by: dict[str, list[ShiftTest]]) -> Table:
    shifts = [test.shift for test in max(by.values(), key=len)]
    rows = []
    for shift in shifts:
        areas = [{test.shift: round(test.auroc, 3) for test in tests}.get(shift) for tests in by.values()]
        rows.append((shift, *areas))
    caption = "AUROC: probability that a shifted row is called less sure than one as it came. 0.5 is chance."
    return Table("shift", ("shift", *by), rows, caption, digits=3)


def _histogram(estimator: str, tests: list[ShiftTest]) -> Figure:
    shown = [test for test in tests if "1 std" not in test.shift and "4 std" not in test.shift]
    figure, axes = drawing.plot(6.4, 3.4, xlabel=f"{estimator}, log scale", ylabel="share of rows")
    samples = {"as they came": tests[0].plain} | {test.shift: test.shifted for test in shown}
    logs = {name: value.clamp(min=1e-12).log10() for name, value in samples.items()}
    everything = torch.cat(list(logs.values()))
    bins = torch.linspace(float(everything.min()), float(everything.max()) + 1e-9, 41)
    colours = (drawing.BLUE, drawing.GREEN, drawing.PURPLE, drawing.VERMILION)
    for (name, value), colour in zip(logs.items(), colours, strict=False):
        share = torch.histogram(value.float(), bins).hist / len(value)
        axes.stairs(share, 10 ** bins.double(), color=colour, label=name, fill=name == "as they came", alpha=0.8)
    axes.set_xscale("log")
    drawing.legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    alt = "; ".join(f"{test.shift}: AUROC {test.auroc:.2f}" for test in tests)
    caption = "The further right of the filled histogram, the surer the model notices. In standardised outputs."
    return Figure(f"shift-{estimator}", figure, caption, alt)
