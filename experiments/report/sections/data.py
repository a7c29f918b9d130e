"""What was learned from data: scores by dataset, what continuing online added, and values against what they can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from experiments.pages.cells import shown
from experiments.pages.parts import Code, Notice, Part, Section, Table, Text
from experiments.report._settings import same_agent
from experiments.report.comparison import Comparison, Run
from experiments.report.sections._shared import finished, listing, number, plural
from experiments.report.sections._values import Learner, value_parts, worrying

Cell = str | float | int | bool | None
ORACLE = "mbrl diagnose {} --oracle"


def data(comparison: Comparison) -> Section | None:
    """Scores, continuations and values; None when no run learned from a dataset that is known."""
    runs = [run for run in comparison.runs if run.data is not None and run.start_from is None]
    if not runs:
        return None
    names = short_names(run.data.path for run in runs if run.data is not None)
    lead = (
        "Agents that learned from a fixed dataset: gradient steps alone, no env step but those of evaluations. All"
        " numbers are of the last evaluation, nothing is picked; ± is the standard deviation over seeds."
    )
    parts: list[Part] = [*_changed(runs, names), *_by_dataset(comparison, runs, names), *_continued(comparison, names)]
    return Section("data", "Learning from data", lead, [*parts, *_values(comparison, runs, names)])


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """What a dataset is called: an id as it is, a path by its last two parts where these are no other path's."""
    found = list(dict.fromkeys(paths))
    ends = {path: "/".join(path.rstrip("/").split("/")[-2:]) if path.startswith("/") else path for path in found}
    return {path: end if [*ends.values()].count(end) == 1 else path for path, end in ends.items()}


def _changed(runs: Sequence[Run], names: Mapping[str, str]) -> list[Part]:
    """A warning where one place held different rows for different runs."""
    seen: dict[str, set[str]] = {}
    for run in runs:
        if run.data is not None and run.data.digest is not None:
            seen.setdefault(run.data.path, set()).add(run.data.digest)
    odd = [names[path] for path, digests in seen.items() if len(digests) > 1]
    text = (
        f"The rows of {listing(odd)} were changed between runs: these did not learn from the same data." if odd else ""
    )
    return [Notice(text, "warning")] if odd else []


# ---- scores


def _by_dataset(comparison: Comparison, runs: Sequence[Run], names: Mapping[str, str]) -> list[Part]:
    """Agents x datasets, as in Fu et al., "D4RL: datasets for deep data-driven reinforcement learning", 2020."""
    columns = _columns(comparison, runs)
    found: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        if run.data is not None:
            row = found.setdefault((run.env, names[run.data.path]), {})
            row.setdefault(columns[run.agent], []).append(run)
    agents = list(dict.fromkeys(columns.values()))
    scored = any(run.evaluations and run.evaluations[-1].score is not None for run in runs)
    text = "Score: 0 is the mean return of a random policy and 100 that of an expert, as each dataset has them."
    tables: list[Part] = [Text(text), _table("scores", found, agents)] if scored else []
    return [*tables, _table("returns", found, agents)]


def _columns(comparison: Comparison, runs: Sequence[Run]) -> dict[str, str]:
    """The column of each agent: agents that differ in their dataset alone share one, named after their recipe."""
    groups: list[list[str]] = []
    for agent in [agent for agent in comparison.agents if any(run.agent == agent for run in runs)]:
        group = next((group for group in groups if _same_method(group[0], agent, runs)), None)
        if group is None:
            groups.append(group := [])
        group.append(agent)
    wanted = [_recipe(group, runs) or group[0] for group in groups]
    names = [name if wanted.count(name) == 1 else group[0] for name, group in zip(wanted, groups, strict=True)]
    return {agent: name for name, group in zip(names, groups, strict=True) for agent in group}


def _same_method(one: str, other: str, runs: Sequence[Run]) -> bool:
    """Whether two agents have the same configuration on some environment, but for the dataset."""
    bare = {
        (run.agent, run.env): {key: value for key, value in run.config.items() if key != "data"}
        for run in runs
        if run.agent in (one, other) and run.config
    }
    envs = [env for agent, env in bare if agent == one and (other, env) in bare]
    return any(same_agent(bare[one, env], bare[other, env]) for env in envs)


def _recipe(group: Sequence[str], runs: Sequence[Run]) -> str | None:
    """The recipe of several agents; a single one is called by its label."""
    if len(group) == 1:
        return None
    sources = [run.versions.get("sources") for run in runs if run.agent in group]
    firsts = {source[0] for source in sources if isinstance(source, list) and source and isinstance(source[0], str)}
    return next(iter(firsts)).rpartition("/")[2].partition(".")[0] if len(firsts) == 1 else None


def _table(kind: str, found: Mapping[tuple[str, str], Mapping[str, list[Run]]], agents: Sequence[str]) -> Table:
    rows: list[list[Cell]] = []
    for (env, dataset), own in found.items():
        known = [run.data.rows for runs in own.values() for run in runs if run.data is not None]
        cells: list[Cell] = [_cell(kind, own.get(agent, [])) for agent in agents]
        count = next((one for one in known if one is not None), None)
        rows.append([dataset, env, count, *cells])
    if len(rows) > 1 and kind == "scores":
        rows.append(["average", "", None, *(_average(agent, found) for agent in agents)])
    caption = "Score by dataset, in per cent" if kind == "scores" else "Return by dataset"
    caption = f"{caption}: mean ± standard deviation over seeds, last evaluation"
    return Table(f"data-{kind}", ["dataset", "environment", "rows", *agents], rows, caption)


def _measured(kind: str, runs: Iterable[Run]) -> list[float]:
    done = [run.evaluations[-1] for run in runs if run.state == "done" and run.evaluations]
    values = [end.score if kind == "scores" else end.mean for end in done]
    return [value for value in values if value is not None]


def _cell(kind: str, runs: Sequence[Run]) -> str | None:
    values = _measured(kind, runs)
    if not values:
        return None
    said = f"{number(fmean(values), 1)}" + (f" ± {number(stdev(values), 1)}" if len(values) > 1 else "")
    return said if len(values) == len(runs) else f"{said} ({len(values)} of {plural(len(runs), 'seed')})"


def _average(agent: str, found: Mapping[tuple[str, str], Mapping[str, list[Run]]]) -> str | None:
    """Over all datasets; None where one of them has no score."""
    means = [_measured("scores", own.get(agent, [])) for own in found.values()]
    return number(fmean(fmean(values) for values in means), 1) if all(means) else None


# ---- and then online


def _continued(comparison: Comparison, names: Mapping[str, str]) -> list[Part]:
    """What agents that continue a run began with, and what acting added."""
    rows: list[list[Cell]] = []
    for env in comparison.envs:
        for agent in comparison.agents:
            runs = [run for run in finished(comparison, agent, env) if run.inherited is not None]
            if runs:
                rows.append(_continuation(env, agent, runs, names))
    columns = ["environment", "agent", "goes on from", "dataset", "rows of data", "return at env step 0", "env steps"]
    columns += ["last return", "gain", "each seed"]
    caption = (
        "And then online: means over finished seeds; the return at env step 0 is the earlier run's last evaluation"
    )
    return [Table("data-continued", columns, rows, caption)] if rows else []


def _continuation(env: str, agent: str, runs: Sequence[Run], names: Mapping[str, str]) -> list[Cell]:
    pairs = [(run.inherited.mean, run.evaluations[-1].mean) for run in runs if run.inherited is not None]
    first, last = (fmean(values) for values in zip(*pairs, strict=True))
    learned_from = runs[0].data
    dataset = None if learned_from is None else names.get(learned_from.path, learned_from.path)
    each = ", ".join(f"{shown(begin, 4)} to {shown(end, 4)}" for begin, end in pairs)
    rows = None if learned_from is None else learned_from.rows
    steps = runs[0].evaluations[-1].env_steps
    return [env, agent, runs[0].earlier, dataset, rows, first, steps, last, last - first, each]


# ---- values


def _values(comparison: Comparison, runs: Sequence[Run], names: Mapping[str, str]) -> list[Part]:
    """Values against their range and along rollouts, what is wrong with them in words, and where to look next."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if run.values is not None and run.data is not None:
            found.setdefault((run.env, names[run.data.path], run.agent), []).append(run)
    learners = [Learner(*key, tuple(own)) for key, own in found.items()]
    if not learners:
        return []
    odd = worrying(learners)
    next_step = odd[0] if odd else next((learner for learner in learners if learner.imagines), None)
    parts: list[Part] = [_verdict(learners, odd)]
    if next_step is not None and next_step.imagines:
        folder = next_step.worst.folder
        place = folder.relative_to(comparison.root) if folder.is_relative_to(comparison.root) else folder
        asked = "Whether the model's error or the edge of its rollouts is to blame"
        text = (
            f"{asked if odd else 'How far its model and the edge of its rollouts can be trusted'} is told by the same"
            " agent under the true dynamics; in the folder of the runs, for one of them:"
        )
        parts += [Text(text), Code(ORACLE.format(place))]
    return [*parts, *value_parts(comparison, learners)]


def _verdict(learners: Sequence[Learner], odd: Sequence[Learner]) -> Part:
    several = len({(learner.env, learner.dataset) for learner in learners}) > 1
    said = [learner.outside(several) for learner in odd if learner.records_outside]
    said += [learner.growing(several) for learner in odd if learner.grows]
    if said:
        return Notice(f"{' '.join(said)} Such values are made up, whatever the returns say.", "warning")
    text = "No agent's mean value left the range that returns of its data's rewards can have"
    if any(learner.imagines for learner in learners):
        text += ", and none grows towards the edge of the imagined rollouts by more than these rewards account for"
    return Text(f"{text}. Values inside it can still be wrong.")
