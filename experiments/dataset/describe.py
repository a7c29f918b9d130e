"""``mbrl dataset describe``: a page that says what is in a dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from experiments.dataset.findings import Finding, findings
from experiments.dataset.measure import Coverage, Description, describe
from experiments.diagnosis.sections import _drawing as drawing
from experiments.pages.parts import Code, Figure, Fold, Notice, Page, Part, Section, Table, Text
from experiments.pages.render import write_page
from mbrl.data import offline

NUMBERS, SUMMARY = "description.json", "summary.txt"
PAGES = Path("dataset-pages")
BINS = 40
WORDS = {
    "pairs": "rows whose next step is there too",
    "follow": "of them, next_obs is the next row's obs",
    "ends": "last rows that are followed by another episode",
    "ends_reset": "of them, next_obs is that episode's first obs",
    "ends_inside": "rows flagged as an end inside an episode",
    "gaps": "places where steps are missing",
    "repeated_steps": "rows with the episode and step of another",
    "both_flags": "rows both terminated and truncated",
    "duplicates": "rows that repeat an earlier one",
    "without_action": "rows without an action (has_action is 0)",
}


def run_describe(where: str, out: Path | None = None, env: Mapping[str, Any] | str | None = None) -> Path:
    """Read a dataset once and write the page that says what is in it; the page's path.

    Args:
        where: as for :func:`mbrl.data.offline.open_dataset`.
        out: folder of the page (default: ``dataset-pages/NAME``).
        env: the environment, where the dataset does not say it or it is another.

    Beside ``index.html`` lie its figures and tables, ``description.json`` and ``summary.txt``.

    Raises:
        UserError: no such dataset, a damaged one, or a folder that holds something else.
    """
    from experiments.diagnosis import dataset  # noqa: F401 (run directories are datasets once it is imported)

    found = describe(offline.open_dataset(where, env))
    files = {
        NUMBERS: (json.dumps(numbers(found), indent=1, allow_nan=False) + "\n").encode(),
        SUMMARY: (summary(found) + "\n").encode(),
    }
    name = Path(where).name.removesuffix(".hdf5") or "dataset"
    return write_page(page(found), PAGES / name if out is None else out, files)


def page(found: Description) -> Page:
    """The page, not yet written."""
    env = (found.about.env or {}).get("id", "environment not known")
    sections = [_overview(found), _returns(found), _ends(found), _obs(found), _actions(found), _rows(found)]
    return Page("What is in this dataset?", f"{found.path} · {env}", sections)


def summary(found: Description) -> str:
    """A few lines to show."""
    episodes, env = found.episodes, (found.about.env or {}).get("id", "an environment that is not named")
    lines = [f"{found.count:,} transitions in {len(episodes.returns):,} episodes of {env}, {found.kind}"]
    if (returns := _whole(found)).size:
        lines.append(f"returns {returns.min():.4g} to {returns.max():.4g}, mean {returns.mean():.4g}{_percent(found)}")
    lines.append(f"{int(episodes.terminated.sum()):,} terminated, {int(episodes.truncated.sum()):,} truncated")
    return "\n".join([*lines, *(f"{f.kind}: {f.sentence}" for f in findings(found))])


def _whole(found: Description) -> NDArray[np.float64]:
    returns = found.episodes.returns[found.episodes.whole]
    return np.asarray(returns[np.isfinite(returns)])


def _percent(found: Description) -> str:
    if found.about.references is None:
        return ""
    low, high = found.about.references
    return f" ({100 * (_whole(found).mean() - low) / (high - low):.1f} % of the way from random to expert)"


def _overview(found: Description) -> Section:
    lead = f"{found.count:,} transitions in {len(found.episodes.returns):,} episodes; {found.kind}."
    said = findings(found) or [Finding("note", "Nothing here would surprise a learner.")]
    about = [Code(json.dumps(found.about.to_json(), indent=1, default=str))]
    return Section("overview", "Overview", lead, [*(Notice(f.sentence, f.kind) for f in said), Fold("Origin", about)])


def _histogram(values: NDArray[Any], label: str, colour: str) -> tuple[Drawing, Any]:
    figure, axes = drawing.plot(xlabel=label, ylabel="episodes")
    axes.hist(values, bins=min(BINS, max(5, len(values))), color=colour, alpha=0.8)
    drawing.whole_numbers(axes.yaxis)
    return figure, axes


def _returns(found: Description) -> Section:
    returns = _whole(found)
    lead = "Undiscounted returns of whole episodes: how good the policies were that made the data."
    if not returns.size:
        return Section("returns", "Returns", lead, [Text("No episode is whole, so no return is known.")])
    figure, axes = _histogram(returns, "return", drawing.BLUE)
    for value, label in zip(found.about.references or (), ("random", "expert"), strict=False):
        axes.axvline(value, color=drawing.MUTED, linestyle="--" if label == "random" else ":", label=label)
    if found.about.references:
        drawing.legend(axes)
    mean = f"Mean {returns.mean():.4g}, standard deviation {returns.std():.4g}{_percent(found)}."
    shown = Figure("returns", figure, mean, f"From {returns.min():.4g} to {returns.max():.4g}. {mean}")
    return Section("returns", "Returns", lead, [shown, _quantiles(found, returns)])


def _quantiles(found: Description, returns: NDArray[np.float64]) -> Table:
    rows = []
    for share in (0, 5, 25, 50, 75, 95, 100):
        value = float(np.percentile(returns, share))
        score = None
        if found.about.references is not None:
            low, high = found.about.references
            score = 100 * (value - low) / (high - low)
        rows.append((f"{share} %", value, score))
    return Table("returns-quantiles", ("share below", "return", "normalised score"), rows, "Returns of whole episodes.")


def _ends(found: Description) -> Section:
    episodes = found.episodes
    lead = "Only terminated cuts a bootstrap; truncated is a time limit or where collecting stopped."
    ended = [
        ("terminated only", int((episodes.terminated & ~episodes.truncated).sum())),
        ("truncated only", int((episodes.truncated & ~episodes.terminated).sum())),
        ("both", int((episodes.terminated & episodes.truncated).sum())),
        ("neither: cut off", int((~episodes.terminated & ~episodes.truncated).sum())),
    ]
    figure, _ = _histogram(episodes.lengths, "rows", drawing.GREEN)
    spread = f"{episodes.lengths.min():,} to {episodes.lengths.max():,} rows, mean {episodes.lengths.mean():.4g}."
    parts: list[Part] = [Figure("lengths", figure, f"Lengths of episodes: {spread}", spread)]
    parts += [Table("ends", ("last row", "episodes"), ended, "How episodes end.")]
    return Section("ends", "Lengths and ends", lead, parts)


def _spans(found: Coverage, names: list[str]) -> list[tuple[str | float | bool, ...]]:
    columns = (found.low, found.high, found.mean, found.std)
    return [(name, *(float(column[i]) for column in columns), bool(found.constant[i])) for i, name in enumerate(names)]


def _obs(found: Description) -> Section:
    lead = "Where in the space of observations there is data. A model knows nothing outside."
    rows = [*_spans(found.obs, found.names), *_spans(found.reward, ["reward"])]
    columns = ("entry", "lowest", "highest", "mean", "standard deviation", "constant")
    return Section("coverage", "Coverage", lead, [Table("coverage", columns, rows, "Finite values only.")])


def _actions(found: Description) -> Section:
    names = [f"action[{i}]" for i in range(len(found.saturated))]
    if found.discrete:
        rows = [(name, float(share)) for name, share in zip(names, found.saturated, strict=True)]
        table = Table("actions", ("choice", "share of rows"), rows, "How often each was taken.")
        return Section("actions", "Actions", "Which choices the data holds.", [table])
    spans = _spans(found.action, names)
    rows_of = [(*span[:-1], float(share)) for span, share in zip(spans, found.saturated, strict=True)]
    columns = ("entry", "lowest", "highest", "mean", "standard deviation", "share at a bound")
    caption = "In the platform's units: -1 and 1 are the bounds of the environment."
    lead = "How much of the action's range was tried, and how often its bounds."
    return Section("actions", "Actions", lead, [Table("actions", columns, rows_of, caption)])


def _rows(found: Description) -> Section:
    lead = "Whether rows are what they seem: finite, each once, and with the true successor, at the ends too."
    rows = [(words, int(getattr(found.rows, name))) for name, words in WORDS.items()]
    rows += [(f"rows with NaN or infinity in {name}", count) for name, count in found.rows.nonfinite.items()]
    rows += [("policy versions", found.policy_versions)]
    parts: list[Part] = [Table("rows", ("what", "count"), rows, "Counts.")]
    if found.extra:
        parts.append(Text(f"Further columns: {', '.join(found.extra)}."))
    return Section("rows", "Rows", lead, parts)


def numbers(found: Description) -> dict[str, Any]:
    """Everything measured, as JSON holds it; what is not finite is null."""
    returns, episodes = _whole(found), found.episodes
    return {
        "path": found.path,
        "kind": found.kind,
        "about": found.about.to_json(),
        "rows": {"count": found.count, **vars(found.rows)},
        "episodes": {
            "count": len(episodes.returns),
            "whole": int(episodes.whole.sum()),
            "terminated": int(episodes.terminated.sum()),
            "truncated": int(episodes.truncated.sum()),
            "length_mean": float(episodes.lengths.mean()),
        },
        "returns": {"mean": _number(returns.mean()), "std": _number(returns.std())} if returns.size else None,
        "obs": _coverage_numbers(found.obs, found.names),
        "action": _coverage_numbers(found.action, [f"action[{i}]" for i in range(len(found.saturated))]),
        "reward": _coverage_numbers(found.reward, ["reward"]),
        "action_at_bound": [_number(share) for share in found.saturated],
        "findings": [vars(finding) for finding in findings(found)],
    }


def _coverage_numbers(found: Coverage, names: list[str]) -> dict[str, dict[str, float | None]]:
    columns = {"low": found.low, "high": found.high, "mean": found.mean, "std": found.std}
    return {name: {key: _number(column[i]) for key, column in columns.items()} for i, name in enumerate(names)}


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
