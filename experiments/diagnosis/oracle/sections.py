"""Which hurts an offline Dyna run, model error or the edge of reach: the verdict, and the figures behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from experiments.diagnosis.oracle import verdict as judged
from experiments.diagnosis.oracle.evidence import Estimate, Evidence, ValuesAt, World
from experiments.diagnosis.oracle.subject import Training
from experiments.diagnosis.oracle.verdict import Case, verdict
from experiments.diagnosis.sections import _drawing as drawing
from experiments.pages.cells import shown
from experiments.pages.parts import Figure, Fold, Notice, Part, Section, Table, Text

RUN, TWIN, TRUTH, OTHER = drawing.BLUE, drawing.ORANGE, drawing.VERMILION, drawing.GREEN


def sections(case: Case) -> list[Section]:
    """The page in order."""
    made = [_verdict(case), _values(case), _training(case), _model(case), _reach(case), _measured(case)]
    return [section for section in made if section is not None]


def _verdict(case: Case) -> Section:
    found = verdict(case)
    rows = [(each.question, each.answer, each.sentence) for each in found.findings]
    parts: list[Part] = [Notice(found.sentence), *_warnings(case)]
    lead = f"What hurts: {found.hurts}."
    return Section("verdict", "Verdict", lead, [*parts, Table("verdict", ("question", "answer", "why"), rows)])


def _warnings(case: Case) -> list[Part]:
    run, told = case.run, []
    if max(run.data_reward_error, run.data_step_error) > judged.DATA_OFF:
        told.append(
            f"The data is not from these dynamics: its rewards differ by {shown(run.data_reward_error, 2)} of their"
            f" standard deviations, its steps by {shown(run.data_step_error, 2)} of those of a step. What is called"
            " true below is the environment's, not the data's."
        )
    if case.twin is None:
        told.append(
            "There is no finished twin under the true dynamics, so nothing is settled. Leave out --oracle-updates, or"
            " give a number above 0; the same command goes on where it was."
        )
    return [Notice(text, "warning") for text in told]


# -- values by depth -------------------------------------------------------------------------------------------------


def _values(case: Case) -> Section:
    lead = (
        "What the critics say of states after that many imagined steps, and what these are truly worth: discounted"
        " returns of the same policy in the true dynamics. Depth 0 are the data's own states; those at the last depth"
        " stand in targets alone, nothing is learned about them."
    )
    who = "run" if case.own_twin else "twin"
    figures: list[Part] = [] if case.own_twin else [_value_figure("values-run", "The run", case.run)]
    tables: list[Part] = [] if case.own_twin else [_value_table("values-of-run", case.run)]
    if case.twin is not None:
        figures.append(_value_figure(f"values-{who}-true", f"The {who}, without model error", case.twin))
        tables.append(_value_table(f"values-of-{who}-true", case.twin))
    figures.append(_over_figure(case))
    return Section("values", "Values by imagined depth", lead, [*figures, Fold("Numbers", tables)])


def _value_figure(name: str, who: str, found: Evidence) -> Figure:
    figure, axes = drawing.plot(xlabel="depth, imagined steps", ylabel="value")
    lines = [("critics, true dynamics", found.true, OTHER, "critic", "-")]
    lines += [("truth, true dynamics", found.true, TRUTH, "truth", "-")]
    if found.model is not None:
        lines = [
            ("critics, learned model", found.model, RUN, "critic", "--"),
            *lines,
            ("truth of the model's states", found.model, drawing.PURPLE, "truth", ":"),
        ]
    for label, world, colour, kind, dash in lines:
        _line(axes, world.values, kind, label, colour, dash)
    drawing.whole_numbers(axes.xaxis)
    drawing.legend(axes)
    caption = f"{who}; bands are two standard errors of the sampled returns."
    return Figure(name, figure, caption, _value_alt(who, found.true))


def _over_figure(case: Case) -> Figure:
    figure, axes = drawing.plot(xlabel="depth, imagined steps", ylabel="critic minus truth")
    axes.axhline(0.0, color=drawing.MUTED, linewidth=1.2)
    twin = [] if case.own_twin or case.twin is None else [("twin", case.twin.true, TWIN, "over", "--")]
    said = []
    for label, world, colour, kind, dash in [("run", case.run.true, RUN, "over", "-"), *twin]:
        _line(axes, world.values, kind, label, colour, dash)
        said += [] if world.at_edge is None else [f"{label}: {shown(world.at_edge.over.mean, 3)} at the edge"]
    drawing.whole_numbers(axes.xaxis)
    drawing.legend(axes)
    caption = "Under the true dynamics, state by state, with two standard errors; above 0 the critics promise too much."
    return Figure("critic-minus-truth", figure, caption, "; ".join(said))


def _line(axes: Any, values: Sequence[ValuesAt], kind: str, label: str, colour: str, dash: str) -> None:
    means: list[tuple[int, Estimate]] = [(each.depth, getattr(each, kind)) for each in values]
    known = [(depth, each) for depth, each in means if math.isfinite(each.mean)]
    if not known:
        return
    depths = [depth for depth, _ in known]
    axes.plot(depths, [each.mean for _, each in known], dash, color=colour, label=label, marker="o", markersize=3)
    if kind != "critic":
        around = [judged.CLEAR * (each.error if math.isfinite(each.error) else 0.0) for _, each in known]
        low, high = ([each.mean + side * a for (_, each), a in zip(known, around, strict=True)] for side in (-1, 1))
        axes.fill_between(depths, low, high, color=colour, alpha=0.2, linewidth=0)


def _value_alt(who: str, world: World) -> str:
    edge = world.at_edge
    if edge is None:
        return f"{who}: no rollout under the true dynamics gets to its last step."
    return f"{who}: critics say {shown(edge.critic.mean, 3)} at the edge, truth {shown(edge.truth.mean, 3)}."


def _value_table(name: str, found: Evidence) -> Table:
    columns = ("under", "depth", "states", "critics", "truth", "of it entropy", "critic - truth", "± 2 s.e.", "outside")
    rows: list[tuple[str | float | None, ...]] = []
    for label, world in (("learned model", found.model), ("true dynamics", found.true)):
        for at in [] if world is None else world.values:
            numbers = (at.critic.mean, at.truth.mean, at.entropy, at.over.mean, judged.CLEAR * at.over.error)
            rows.append((label, at.depth, at.states, *(_cell(x) for x in numbers), _cell(at.outside)))
    caption = (
        f"{found.starts:,} start states, horizon {found.horizon}, discount {found.gamma}; returns are followed for"
        f" {found.return_steps:,} steps. Outside: share of states outside the range of the data's observations."
    )
    return Table(name, columns, rows, caption, digits=3)


def _cell(x: float) -> float | None:
    return x if math.isfinite(x) else None


# -- along training --------------------------------------------------------------------------------------------------


def _training(case: Case) -> Section | None:
    runs = [("run", case.training, RUN)]
    if case.twin_training is not None and not case.own_twin:
        runs.append(("twin", case.twin_training, TWIN))
    figures: list[Part] = [_evaluations(case, runs)] if any(each.evaluations for _, each, _ in runs) else []
    figures += [_edge_values(runs)] if any(each.edge for _, each, _ in runs) else []
    if not figures:
        return None
    lead = "The run beside its twin: the same recipe, data and seed under the true dynamics, with nothing to doubt."
    return Section("training", "While they learned", lead, [*figures, _violations(runs)])


def _evaluations(case: Case, runs: Sequence[tuple[str, Training, str]]) -> Figure:
    figure, axes = drawing.plot(xlabel="updates", ylabel="return")
    said = []
    for name, training, colour in runs:
        points = [(u, Estimate.of(_tensor(returns))) for u, returns in training.evaluations]
        if not points:
            continue
        updates, means = [u for u, _ in points], [each.mean for _, each in points]
        axes.errorbar(
            updates,
            means,
            [judged.CLEAR * (each.error if math.isfinite(each.error) else 0.0) for _, each in points],
            color=colour,
            label=name,
            marker="o",
            markersize=3,
            capsize=2,
            linestyle="-" if name == "run" else "--",
        )
        said.append(f"{name}: {shown(means[-1], 4)} at the end")
    if case.data_returns:
        mean = sum(case.data_returns) / len(case.data_returns)
        axes.axhline(mean, color=drawing.MUTED, linestyle=":", linewidth=1.4, label="mean of the data's episodes")
    drawing.legend(axes)
    return Figure("evaluations", figure, "Evaluations, with two standard errors over episodes.", "; ".join(said))


def _tensor(values: Sequence[float]) -> Any:
    import torch

    return torch.tensor(values, dtype=torch.float64)


def _edge_values(runs: Sequence[tuple[str, Training, str]]) -> Figure:
    figure, axes = drawing.plot(xlabel="updates", ylabel="mean value")
    said, seen, bounds = [], [], [training.range for _, training, _ in runs if training.range is not None]
    for name, training, colour in runs:
        for depth, dash, what in (
            (0, ":", "at the data's states"),
            (max(training.depths, default=0), "-", "at the edge"),
        ):
            points = training.depths.get(depth, [])
            if points:
                axes.plot(*zip(*points, strict=True), dash, color=colour, label=f"{name}, {what}")
                seen += [value for _, value in points]
                said.append(f"{name} {what}: {shown(points[-1][1], 3)} at the end")
    for bound in bounds[0] if bounds else ():
        if seen and min(seen) - _width(seen) < bound < max(seen) + _width(seen):  # a far bound would hide the curves
            axes.axhline(bound, color=drawing.MUTED, linestyle="--", linewidth=1.2)
            said.append(f"the attainable range ends at {shown(bound, 3)}")
    drawing.legend(axes)
    caption = "What critics say of imagined states while they learn."
    if any("attainable" in each for each in said):
        caption += " The grey line is the end of the range that the data's rewards allow."
    return Figure("edge-values", figure, caption, "; ".join(said))


def _width(values: Sequence[float]) -> float:
    return max(max(values) - min(values), 1e-9)


def _violations(runs: Sequence[tuple[str, Training, str]]) -> Table:
    rows: list[tuple[str | float | None, ...]] = []
    for name, training, _ in runs:
        low, high = training.range or (math.nan, math.nan)
        sides = [side for _, side in training.sides]
        last = training.edge[-1][1] if training.edge else math.nan
        late = _cell(training.late_share(1))
        rows.append(
            (name, _cell(low), _cell(high), len(sides), sides.count(1), sides.count(-1), late, _cell(last)),
        )
    columns = (
        "",
        "value_low",
        "value_high",
        "records",
        "above",
        "below",
        "above, last third",
        "last value at the edge",
    )
    caption = "Records of updates whose mean value lies outside the range of returns that the data's rewards allow."
    return Table("range", columns, rows, caption)


# -- the model's steps -----------------------------------------------------------------------------------------------


def _model(case: Case) -> Section | None:
    if not case.run.steps:
        return None
    lead = (
        "The model's steps along the run's own rollouts. Rewards are compared with the true ones of the same state and"
        " action; states with where one true step, and the same actions from the start, truly lead."
    )
    parts: list[Part] = [_reward_figure(case.run), _error_figure(case.run), Fold("Numbers", [_step_table(case.run)])]
    if any(step.bias.n == 0 for step in case.run.steps):
        text = (
            "Observations do not determine the true state here: rewards, single steps and ends are compared at the"
            " first step alone, which starts from the data."
        )
        parts.append(Text(text))
    return Section("model", "The model's rewards and steps", lead, parts)


def _reward_figure(found: Evidence) -> Figure:
    figure, axes = drawing.plot(xlabel="imagined step", ylabel="mean reward")
    numbers = [step.depth + 1 for step in found.steps]
    lines = [("predicted", "predicted", RUN, "-"), ("true, same state and action", "true", TRUTH, "--")]
    if any(step.predicted != step.learned_from for step in found.steps):
        lines.append(("learned from, after penalties", "learned_from", drawing.SLATE, ":"))
    for label, name, colour, dash in lines:
        means = [getattr(step, name) for step in found.steps]
        axes.plot(numbers, means, dash, color=colour, label=label, marker="o", markersize=3)
    drawing.whole_numbers(axes.xaxis)
    drawing.legend(axes)
    worst = max(found.steps, key=lambda step: abs(step.bias.mean) if step.bias.n else -1.0)
    alt = f"The largest difference is {shown(worst.bias.mean, 3)} at step {worst.depth + 1}."
    return Figure("rewards", figure, "Mean rewards along the model's rollouts.", alt)


def _error_figure(found: Evidence) -> Figure:
    figure, axes = drawing.plot(xlabel="imagined step", ylabel="error, standard deviations")
    numbers = [step.depth + 1 for step in found.steps]
    for label, name, colour, dash in (
        ("path, same actions", "path", RUN, "-"),
        ("one step, same state and action", "step", OTHER, "--"),
    ):
        axes.plot(numbers, [getattr(s, name) for s in found.steps], dash, color=colour, label=label, marker="o", ms=3)
    axes.axhline(judged.STATE_OFF, color=drawing.MUTED, linestyle=":", linewidth=1.4)
    axes.set_ylim(bottom=0.0)
    drawing.whole_numbers(axes.xaxis)
    drawing.legend(axes)
    alt = f"After {numbers[-1]} steps the path is off by {shown(found.steps[-1].path, 2)} standard deviations."
    caption = "Error of predicted observations; above the dotted line a path counts as off."
    return Figure("state-errors", figure, caption, alt)


def _step_table(found: Evidence) -> Table:
    rows: list[tuple[str | float | None, ...]] = [
        (
            s.depth + 1,
            s.rows,
            *(_cell(x) for x in (s.predicted, s.learned_from, s.true, s.bias.mean, judged.CLEAR * s.bias.error)),
            *(_cell(x) for x in (s.reward_error, s.step, s.path, s.ends, s.true_ends)),
            s.missed,
            s.invented,
        )
        for s in found.steps
    ]
    columns = (
        *("step", "rows", "reward", "after penalties", "true reward", "error", "± 2 s.e.", "reward, rms"),
        *("one step", "path", "share that ends", "truly", "missed", "invented"),
    )
    return Table("steps", columns, rows, "Errors of observations in standard deviations of the data's.", digits=3)


# -- the edge --------------------------------------------------------------------------------------------------------


def _reach(case: Case) -> Section:
    lead = "Of which imagined rows the target asks for the value of a state that nothing is learned about."
    worlds = [("run, learned model", case.run.model), ("run, true dynamics", case.run.true)]
    if case.twin is not None and not case.own_twin:
        worlds.append(("twin", case.twin.true))
    rows: list[tuple[str | float | None, ...]] = []
    for name, world in worlds:
        if world is not None:
            edge = world.edge
            rows.append((name, *(_cell(x) for x in (edge.share, edge.of_batch, edge.outside, edge.new))))
    columns = (
        "rollouts",
        "share of imagined rows",
        "of a batch",
        "outside the data's range",
        "far from what is learned",
    )
    caption = (
        "Outside and far are shares of the states at the edge. Far: the nearest state that is learned about is farther"
        " than it is for 95 % of those themselves, so 0.05 says that the edge is like all others."
    )
    return Section("edge", "The edge of reach", lead, [Table("edge", columns, rows, caption, digits=3)])


def _measured(case: Case) -> Section:
    run = case.run
    lead = "What counts as clear, and what these numbers cannot say."
    high = "" if run.value_range is None else f" The data's rewards allow {_range(run.value_range)}."
    texts = [
        f"The model's error hurts where the run's policy returns less than the twin's by more than {judged.CLEAR:.0f}"
        f" standard errors and {100 * judged.LOST:.0f} % (last {judged.LAST} common evaluations, and the very last"
        f" alone, paired by episode), and predictions are off: mean rewards by {judged.REWARD_OFF} standard deviations,"
        f" states by {judged.STATE_OFF} after the last step, or {100 * judged.ENDS_OFF:.0f} % of ends.",
        f"The edge hurts where, without model error, critics exceed the truth there by {judged.CLEAR:.0f} standard"
        f" errors and {judged.OVER} standard deviations of true values, or what is attainable, and this grows with"
        f" depth or updates, or the policy is clearly worse than the run's or the data's.{high}",
        "A value of the critics is the one the actor sees, of the policy's mode. Its truth takes that action first and"
        " then samples the policy, as the critics' targets do, with the entropy that those add; penalties are no part"
        " of it, so a pessimistic critic lies below. Time limits do not end a return, since critics look past them.",
        "A run and its twin are one seed each, and the twin loses the model's penalties with its errors: a pessimism"
        " that guarded against both is gone with either. Repeat with other seeds before you rest on it.",
    ]
    return Section("how", "How it was measured", lead, [Text(text) for text in texts])


def _range(bounds: tuple[float, float]) -> str:
    return f"{shown(bounds[0], 4)} to {shown(bounds[1], 4)}"
