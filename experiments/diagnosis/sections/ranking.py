"""Whether the model is unsure where it is wrong."""

from __future__ import annotations

import torch

from experiments.diagnosis.evidence import Evidence
from experiments.diagnosis.sections import _drawing as drawing
from experiments.diagnosis.verdict import best_ranking
from experiments.pages.parts import Figure, Section, Table, Text
from mbrl.diagnostics.ranking import Ranking

COLOURS = (drawing.BLUE, drawing.GREEN, drawing.PURPLE, drawing.BROWN)


def section(found: Evidence) -> Section:
    """Risk-coverage curves and rank correlations of every estimator that the model offers."""
    lead = (
        f"Rows are put in the order of the model's uncertainty ({found.steps:,} rows, one step ahead)."
        " A useful order keeps the error low while the most uncertain rows are left out."
    )
    if not found.rankings:
        text = "This model offers no uncertainty, or one that is the same everywhere."
        return Section("ranking", "Uncertainty against error", lead, [Text(text)])
    return Section("ranking", "Uncertainty against error", lead, [_curves(found.rankings), _table(found)])


def _curves(rankings: list[Ranking]) -> Figure:
    figure, axes = drawing.plot(6.4, 3.6, xlabel="share of rows kept, surest first", ylabel="mean error of those kept")
    count = len(rankings[0].curve)
    picked = torch.linspace(max(0, count // 50 - 1), count - 1, min(200, count)).long().unique()
    kept = (picked + 1) / count
    for i, ranking in enumerate(rankings):
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": drawing.DASHES[i % len(drawing.DASHES)]}
        axes.plot(kept, ranking.curve[picked], label=ranking.estimator, **style)
    axes.plot(kept, rankings[0].oracle[picked], color=drawing.MUTED, linewidth=1, label="by the error itself (oracle)")
    axes.axhline(rankings[0].random_area, color=drawing.MUTED, linewidth=1, linestyle=":", label="in random order")
    axes.set_ylim(bottom=0)
    drawing.legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    caption = "Errors in standard deviations of one step's change. The closer to the oracle, the better the order."
    alt = "; ".join(f"{r.estimator}: {100 * r.gain:.0f} % of what the oracle gains" for r in rankings)
    return Figure("risk-coverage", figure, caption, alt)


def _table(found: Evidence) -> Table:
    best = best_ranking(found)
    rows = [
        (
            r.estimator + (" (best)" if r is best else ""),
            r.spearman,
            r.area,
            r.random_area,
            float(r.oracle.mean()),
            r.gain,
        )
        for r in found.rankings
    ]
    names = ("estimator", "rank correlation", "area", "area, random", "area, oracle", "share of the oracle's gain")
    caption = (
        "Spearman's rank correlation of uncertainty and error; area under the risk-coverage curve, lower is better."
    )
    return Table("ranking", names, rows, caption, digits=3)
