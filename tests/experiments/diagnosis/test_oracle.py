"""``mbrl diagnose RUN --oracle``: who is to blame, with agents whose faults are known; the twin; what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from agents.actor_critic import ActorCritic
from agents.offline.model_based import OfflineDynaAgent
from agents.offline.reach import Box
from envs.errors import UserError
from envs.registry import env_spec
from experiments.cli import main
from experiments.config import resolve
from experiments.diagnosis.building import build
from experiments.diagnosis.oracle import twin as oracle_twin
from experiments.diagnosis.oracle.evidence import Evidence, measure
from experiments.diagnosis.oracle.paths import imagined, same_actions, same_states, true_starts
from experiments.diagnosis.oracle.sections import sections
from experiments.diagnosis.oracle.subject import Training, open_run, whole_returns
from experiments.diagnosis.oracle.twin import plan_twin, train_twin, twin_config
from experiments.diagnosis.oracle.values import steps_for, worth
from experiments.diagnosis.oracle.verdict import Case, model_off, verdict
from experiments.diagnosis.verdict import Finding
from experiments.loops.offline import OfflineLoop
from experiments.metrics import comparable, read_records
from experiments.pages.parts import Notice
from experiments.report.comparison import load
from experiments.run import RunDirectory
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.offline import About, save_folder
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.imagination.filters import UncertaintyPenalty
from mbrl.models.base import State, Step
from mbrl.models.simulator import Simulator
from tests.mbrl.data.made import play

SPEC = env_spec("Pendulum-v1")
HORIZON, SLOW = 3, 1.0
NO_TRAINING = Training([], {}, [], None)


@pytest.fixture(scope="module")
def rows() -> Transitions:
    return play("Pendulum-v1", episodes=12, limit=25)


def buffer(rows: Transitions) -> ReplayBuffer:
    made = ReplayBuffer(len(rows))
    made.extend(rows)
    return made


def make(rows: Transitions, model: Any = Simulator, **changes: Any) -> OfflineDynaAgent:
    """An untrained agent that starts from slow states; with ``learned`` its model counts as one that was fitted."""
    learned = changes.pop("learned", False)
    learner = partial(ActorCritic, hidden=8, gamma=0.8, alpha=0.1, learn_alpha=False)
    agent = OfflineDynaAgent(SPEC, learner, model=model, horizon=HORIZON, starts=300, batch_size=20, **changes)
    agent.fitter = Fitter() if learned else None
    agent.load(buffer(rows[rows.obs[:, 2].abs() < SLOW]))
    return agent


def told(agent: OfflineDynaAgent, more: Callable[[Tensor], Tensor] | None = None) -> OfflineDynaAgent:
    """The agent with critics that say the truth, and ``more`` at some states."""
    simulator, learner, luck = Simulator(SPEC), agent.learner, Generator().manual_seed(5)

    def value(obs: Tensor, generator: Generator | None = None) -> Tensor:
        true = torch.stack([worth(simulator, learner, simulator.encode(obs), luck).total for _ in range(4)]).mean(0)
        return true.float() + (0.0 if more is None else more(obs))

    learner.value = value  # type: ignore[method-assign]
    return agent


def judge(agent: OfflineDynaAgent) -> Evidence:
    return measure(agent, Simulator(agent.spec))


def fast(obs: Tensor) -> Tensor:
    """Made up where only rollouts get."""
    return 40.0 * (obs[:, 2].abs() - SLOW).clamp(min=0.0)


def alone(found: Evidence, training: Training = NO_TRAINING) -> Case:
    """A run under the true dynamics, which is its own twin."""
    return Case("run", SPEC.id, found, training, found, training)


def answer(case: Case, place: int) -> Finding:
    return verdict(case).findings[place]


# -- the edge --------------------------------------------------------------------------------------------------------


def test_critics_inflated_at_the_edge_are_found_and_true_ones_are_not(rows: Transitions) -> None:
    bad, good = judge(told(make(rows), fast)), judge(told(make(rows)))
    assert verdict(alone(bad)).hurts == "edge of reach"
    assert "grows by" in answer(alone(bad), 1).sentence
    assert answer(alone(bad), 0).answer == "no"
    over = [at.over.mean for at in bad.true.values]
    assert over == sorted(over)
    assert abs(over[0]) < bad.true.spread
    assert verdict(alone(good)).hurts == "neither"
    assert answer(alone(good), 1).answer == "no"
    for at in good.true.values:
        assert abs(at.over.mean) < 3.0 * at.over.error + 1e-9


def test_values_above_the_attainable_are_found_without_a_look_at_depth(rows: Transitions) -> None:
    """Inflated alike everywhere and growing while it learned."""
    found = judge(told(make(rows), lambda obs: torch.full((len(obs),), 200.0)))
    assert found.value_range is not None
    assert found.value_range[1] < 1.0
    grew = Training([], {HORIZON: [(u, 100.0 * u) for u in range(9)]}, [], found.value_range)
    assert answer(alone(found, grew), 1).answer == "yes"
    assert answer(alone(found), 1).answer == "partly"
    still = replace(grew, depths={HORIZON: [(u, 200.0) for u in range(9)]})
    assert answer(alone(found, still), 1).answer == "partly"


def test_without_a_twin_nothing_is_settled(rows: Transitions) -> None:
    agent = told(make(rows, learned=True), fast)
    case = Case("run", SPEC.id, judge(agent), NO_TRAINING)
    assert verdict(case).hurts == "unknown"
    assert [answer(case, i).answer for i in (0, 1)] == ["unlikely", "suspected"]
    assert "edge of reach" in verdict(case).sentence
    assert any(isinstance(part, Notice) and "no finished twin" in part.text for part in sections(case)[0].parts)


def test_how_much_hangs_on_the_edge(rows: Transitions) -> None:
    found = judge(make(rows))
    assert found.true.edge.share == pytest.approx(1 / HORIZON)
    assert found.true.edge.of_batch == pytest.approx(0.95 / HORIZON)
    assert 0.0 < found.true.edge.outside < 1.0
    assert found.true.values[0].outside == 0.0
    agent = make(rows)
    agent._box = Box(torch.tensor([[-2.0, -2.0, -99.0], [2.0, 2.0, 99.0]]))
    assert judge(agent).true.edge.outside == 0.0


# -- the model -------------------------------------------------------------------------------------------------------


class Biased(Simulator):
    """The truth, but for its rewards."""

    bias = 1.0

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        step = super().step(state, action, generator)
        return replace(step, reward=step.reward + self.bias)


class Sleepy(Simulator):
    """Nothing ever moves."""

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        return replace(super().step(state, action, generator), state=state)


def test_a_biased_reward_is_found_and_the_truth_as_a_model_is_not(rows: Transitions) -> None:
    biased, true = judge(make(rows, Biased, learned=True)), judge(make(rows, learned=True))
    for step in biased.steps:
        assert step.bias.mean == pytest.approx(Biased.bias, abs=1e-4)
        assert step.path == pytest.approx(0.0, abs=1e-5)
    assert [each.split(" by")[0] for each in model_off(biased)] == ["rewards too high"]
    assert model_off(true) == []
    assert max(abs(step.bias.mean) + step.step + step.path for step in true.steps) < 1e-4
    sleepy = judge(make(rows, Sleepy, learned=True))
    assert [each.split(" by")[0] for each in model_off(sleepy)][-1] == "states off"
    assert sleepy.steps[0].path < sleepy.steps[-1].path


def test_rewards_are_compared_before_penalties(rows: Transitions) -> None:
    class Unsure(Simulator):
        def uncertainty(self, state: State, action: Tensor, kind: str) -> Tensor:
            return torch.ones(len(action))

        predict = uncertainty

    agent = make(rows, Unsure, learned=True, filters=[UncertaintyPenalty("largest_std", 2.0)])
    agent.filters = [UncertaintyPenalty("largest_std", 2.0), *agent.filters[-1:]]
    found = imagined(agent, agent.model.__class__(SPEC), true_starts(Simulator(SPEC), agent.data.all()[:20]), 0)
    assert found.extra["predicted_reward"].equal(found.reward)  # the true dynamics are not penalised
    steps = judge(agent).steps
    assert all(abs(step.bias.mean) < 1e-4 for step in steps)


def training(mean: float, episodes: int = 5) -> Training:
    """Evaluations of episodes that differ, by nearly the same in every run."""
    returns = [mean + 50.0 * i + 0.01 * mean * i for i in range(episodes)]
    return Training([(u, returns) for u in (100, 200)], {}, [], None)


@pytest.mark.parametrize(
    ("model", "run", "twin", "hurts", "said"),
    [
        (Biased, -900.0, -300.0, "model error", "yes"),
        (Simulator, -900.0, -300.0, "unknown", "unknown"),
        (Biased, -300.0, -301.0, "neither", "no"),
    ],
)
def test_the_models_error_hurts_where_predictions_are_off_and_the_twin_is_better(
    rows: Transitions, model: Any, run: float, twin: float, hurts: str, said: str
) -> None:
    found, clean = judge(make(rows, model, learned=True)), judge(told(make(rows)))
    case = Case("run", SPEC.id, found, training(run), clean, training(twin))
    assert answer(case, 0).answer == said
    assert verdict(case).hurts == hurts


def test_what_differs_while_both_still_learn_counts_for_nothing(rows: Transitions) -> None:
    """Equal in the last evaluation, far apart in the one before."""
    slow, quick = training(-900.0), training(-300.0)
    slow = replace(slow, evaluations=[slow.evaluations[0], (200, quick.evaluations[1][1])])
    found = judge(make(rows, Biased, learned=True))
    case = Case("run", SPEC.id, found, slow, judge(told(make(rows))), quick)
    assert answer(case, 0).answer == "no"
    assert answer(replace(case, training=training(-900.0)), 0).answer == "yes"


def test_both_and_a_twin_that_collapses(rows: Transitions) -> None:
    found, inflated = judge(make(rows, Biased, learned=True)), judge(told(make(rows), fast))
    assert verdict(Case("run", SPEC.id, found, training(-900.0), inflated, training(-300.0))).hurts == "both"
    clean = judge(told(make(rows)))
    collapsed = Case("run", SPEC.id, found, training(-300.0), clean, training(-900.0))
    assert answer(collapsed, 1).answer == "unknown"
    assert "learner" in answer(collapsed, 1).sentence
    case = Case("run", SPEC.id, found, training(-300.0), inflated, training(-900.0))
    assert "clearly worse than the run's" in answer(case, 1).sentence


def test_data_of_other_dynamics_is_told(rows: Transitions) -> None:
    def warned(changed: Transitions) -> bool:
        parts = sections(alone(judge(make(changed))))[0].parts
        return any(isinstance(part, Notice) and "not from these dynamics" in part.text for part in parts)

    assert not warned(rows)
    assert warned(replace(rows, reward=rows.reward + 1.0))
    assert warned(replace(rows, next_obs=rows.next_obs.roll(1, 0)))


# -- what states are worth -------------------------------------------------------------------------------------------


def test_a_return_is_the_policys_in_the_true_dynamics(rows: Transitions) -> None:
    """By a loop of a few lines over the environment's own formula, with a deterministic policy."""
    learner, simulator = ActorCritic(SPEC, policy="deterministic", hidden=8, gamma=0.8), Simulator(SPEC)
    obs = rows.obs[:4]
    found = worth(simulator, learner, simulator.encode(obs), Generator())
    theta, speed = torch.atan2(obs[:, 1], obs[:, 0]).double(), obs[:, 2].double()
    total = torch.zeros(4, dtype=torch.float64)
    for t in range(steps_for(0.8)):
        seen = torch.stack([theta.cos(), theta.sin(), speed], -1).float()
        torque = 2.0 * learner.act(seen, None)[:, 0].double()
        folded = torch.remainder(theta + math.pi, 2 * math.pi) - math.pi
        total -= 0.8**t * (folded**2 + 0.1 * speed**2 + 0.001 * torque**2)
        speed = (speed + 0.05 * (15.0 * theta.sin() + 3.0 * torque)).clamp(-8.0, 8.0)
        theta = theta + 0.05 * speed
    assert torch.allclose(found.total, total, rtol=1e-4)
    assert found.entropy.abs().max() == 0.0


def test_entropy_counts_where_the_target_has_it() -> None:
    with_it, without = (
        ActorCritic(SPEC, hidden=8, gamma=0.8, alpha=0.1, backup_entropy=each) for each in (True, False)
    )
    simulator, obs = Simulator(SPEC), torch.tensor([[-1.0, 0.0, 0.0]]).repeat(400, 1)
    found = worth(simulator, with_it, simulator.encode(obs), Generator().manual_seed(0))
    # of a fresh policy: nearly N(0, 1) squashed, alike in all states, from the second action on
    bonus = with_it.act_softly(obs, Generator().manual_seed(1))[1].mean()
    series = sum(0.8**t for t in range(1, steps_for(0.8)))
    assert float(found.entropy.mean()) == pytest.approx(series * float(bonus), rel=0.3)
    assert worth(simulator, without, simulator.encode(obs), Generator()).entropy.abs().max() == 0.0


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_soft_actions_are_those_that_the_soft_value_is_of(env: str) -> None:
    spec = env_spec(env)
    learner = ActorCritic(spec, hidden=8, alpha=0.3)
    obs = torch.randn(50, spec.obs_size, generator=Generator().manual_seed(0))
    action, bonus = learner.act_softly(obs, Generator().manual_seed(1))
    value = learner.value(obs, Generator().manual_seed(1))
    if spec.action.discrete:
        assert bool((action.sum(-1) == 1.0).all())
        assert 0.0 < float(bonus.min()) <= float(bonus.max()) <= 0.3 * math.log(2.0) + 1e-6
    else:
        assert torch.allclose(value, learner.q_values(obs, action).amin(0) + bonus, atol=1e-5)


def test_a_return_ends_where_the_episode_truly_does() -> None:
    """A reward of 1 a step: an inverted pendulum that is about to fall earns little, and nothing later."""
    spec = env_spec("InvertedPendulum-v5")
    learner, simulator = ActorCritic(spec, policy="deterministic", hidden=8, gamma=0.8), Simulator(spec)
    obs = torch.tensor([[0.0, 0.19, 0.0, 5.0], [0.0, 0.0, 0.0, 0.0]])
    found = worth(simulator, learner, simulator.encode(obs), Generator()).total
    assert float(found[0]) == 0.0
    assert float(found[1]) > 1.0


def test_beyond_a_true_end_there_is_no_truth_to_compare_with() -> None:
    class Blind(Simulator):
        def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
            step = super().step(state, action, generator)
            return replace(step, terminated=torch.zeros_like(step.terminated))

    spec = env_spec("InvertedPendulum-v5")
    rows = play("InvertedPendulum-v5", episodes=6, limit=25)
    learner = partial(ActorCritic, hidden=8, gamma=0.8)
    agent = OfflineDynaAgent(spec, learner, model=Blind, horizon=4, starts=100)
    agent.fitter = Fitter()
    agent.load(buffer(rows))
    found, simulator = judge(agent), Simulator(spec)
    missed = sum(step.missed for step in found.steps)
    assert missed > 0
    assert sum(step.invented for step in found.steps) == 0
    start = true_starts(simulator, agent.data.all())
    made = imagined(agent, agent.model, start, 0)
    along = same_actions(simulator, start, made, 4)
    assert bool(along.exists[made.step == 0].all())
    assert not bool(along.exists.all())
    here = same_states(simulator, made, along)
    assert bool(here.exists.all())


def test_walkers_states_cannot_be_had_from_observations() -> None:
    rows = play("Walker2d-v5", episodes=1, limit=5)
    simulator = Simulator(env_spec("Walker2d-v5"))
    with pytest.raises(UserError, match="sim_state"):
        true_starts(simulator, rows)
    unknown = torch.full((len(rows), simulator.physics.state_size), math.nan, dtype=torch.float64)
    with pytest.raises(UserError, match="sim_state"):
        true_starts(simulator, replace(rows, sim_state=unknown))
    known = replace(rows, sim_state=torch.zeros_like(unknown))
    assert true_starts(simulator, known).physics.shape == unknown.shape


def test_whole_episodes_alone_count_for_the_datas_return(rows: Transitions) -> None:
    returns = [float(rows.reward[rows.episode == e].double().sum()) for e in range(12)]
    assert whole_returns(buffer(rows)) == pytest.approx(returns)
    assert whole_returns(buffer(rows[1:-1])) == pytest.approx(returns[1:-1])


# -- the command -----------------------------------------------------------------------------------------------------

TINY = [
    "--agent.model.members=2",
    "--agent.model.elites=2",
    "--agent.model.hidden=8",
    "--agent.fitter.max_epochs=2",
    "--agent.learner.hidden=8",
    "--agent.learner.gamma=0.8",
    "--agent.starts=40",
    "--agent.horizon=3",
    "--agent.batch_size=16",
    "--agent.round_updates=10",
    "--agent.refresh_every=20",
    "--agent.log_every=20",
    "--steps=60",
    "--evaluation.every=30",
    "--evaluation.episodes=2",
    "--evaluation.num_envs=2",
    "--checkpoint.every=20",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, rows: Transitions) -> Path:
    place = tmp_path_factory.mktemp("oracle")
    save_folder([rows], len(rows), place / "set", About(env={"id": "Pendulum-v1", "max_episode_steps": 25}))
    assert main(["train", "mopo", f"--data={place / 'set'}", f"--out={place / 'run'}", "--quiet", *TINY]) == 0
    return place


@pytest.fixture
def workplace(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def plain_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without figures, which take most of a command's time here."""
    monkeypatch.setattr("experiments.diagnosis.oracle.sections.sections", lambda case: [])


def records(run: Path) -> list[dict[str, Any]]:
    return [comparable(record) for record in read_records(run / "metrics.jsonl")]


@pytest.mark.usefixtures("plain_page")
def test_the_twin_goes_on_after_a_stop_and_is_read_again_when_it_is_finished(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dying(loop: OfflineLoop) -> None:
        if loop.clock.updates == 50:
            raise KeyboardInterrupt
        advance(loop)

    advance, command = OfflineLoop.advance, ["diagnose", "run", "--oracle"]
    with monkeypatch.context() as patch:
        patch.setattr(OfflineLoop, "advance", dying)
        assert main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    told = json.loads(Path("run/oracle/oracle.json").read_text())
    assert (told["hurts"], told["twin"]) == ("unknown", None)
    begun: list[OfflineLoop] = []
    with monkeypatch.context() as patch:
        patch.setattr(OfflineLoop, "begin", begun.append)
        assert main(command) == 0
    assert begun == []  # it went on from a checkpoint
    subject = open_run(Path("run"), [])
    train_twin(plan_twin(subject, Path("whole"), 60, []), [], quiet=True)
    assert records(Path("run/oracle/twin")) == records(Path("whole"))
    assert records(Path("whole")) != records(Path("run"))

    with monkeypatch.context() as patch:
        patch.setattr(OfflineLoop, "run", None)  # training again would fail
        again = train_twin(plan_twin(subject, Path("run/oracle/twin"), 60, []), [], quiet=True)
    assert again.agent.learner.updates == 60
    told = json.loads(Path("run/oracle/oracle.json").read_text())
    assert told["hurts"] in ("model error", "edge of reach", "both", "neither", "unknown")
    assert [at["depth"] for at in told["twin"]["measured"]["true"]["values"]] == [0, 1, 2, 3]
    assert len(load(workplace / "run").runs) == 1  # a report takes no twin for a run


@pytest.mark.usefixtures("plain_page")
def test_other_numbers_of_updates(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "run", "--oracle", "--oracle-updates=0"]) == 0
    assert "cannot be told" in capsys.readouterr().out
    assert not Path("run/oracle/twin").exists()
    subject, place = open_run(Path("run"), []), Path("run/oracle/twin")
    assert train_twin(plan_twin(subject, place, 30, []), [], quiet=True).training.evaluations[-1][0] == 30
    capsys.readouterr()
    assert main(["diagnose", "run", "--oracle"]) == 2
    assert "--oracle-updates 30" in capsys.readouterr().err
    assert main(["diagnose", "run", "--oracle", "--oracle-out=run"]) == 2
    assert "another run is there" in capsys.readouterr().err


def test_a_run_under_the_true_dynamics_is_its_own_twin(workplace: Path) -> None:
    true = ["--agent.model.class_path=Simulator", "--agent.fitter=null"]
    settings = [each for each in TINY if "model" not in each and "fitter" not in each]
    assert main(["train", "mopo", "--data=set", "--out=true", "--quiet", *true, *settings]) == 0
    assert main(["diagnose", "true", "--oracle"]) == 0
    told = json.loads(Path("true/oracle/oracle.json").read_text())
    assert told["findings"][0]["answer"] == "no"
    assert told["run"]["measured"]["model"] is None
    assert not Path("true/oracle/twin").exists()
    assert "What hurts" in Path("true/oracle/index.html").read_text()
    assert Path("true/oracle/critic-minus-truth.png").is_file()


@pytest.mark.parametrize("recipe", ["mopo", "mobile", "combo", "ravl", "rambo", "morec-mopo", "morec-mobile"])
def test_a_twin_has_the_true_dynamics_and_everything_else_alike(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = resolve(recipe, [("data", "some"), ("seed", 3), ("steps", 70)], env="Pendulum-v1")
    run = RunDirectory.create(tmp_path / "run", asked.text, {})
    agent = build(resolve(str(run.config)))
    assert isinstance(agent, OfflineDynaAgent)

    class Opened:
        pass

    subject: Any = Opened()
    subject.run, subject.resolved, subject.agent = run, asked, agent
    made = twin_config(subject, 50, [])
    twin = build(made)
    assert isinstance(twin, OfflineDynaAgent)
    assert isinstance(twin.model, Simulator)
    assert not twin.learned
    assert (made.config.steps, made.config.seed, made.config.data) == (50, 3, "some")
    for name in ("horizon", "starts", "refresh_every", "retain", "real_ratio", "batch_size", "guard"):
        assert getattr(twin, name) == getattr(agent, name)
    assert twin.learner.state_dict()["vectors"]["critic"].equal(agent.learner.state_dict()["vectors"]["critic"])
    assert resolve(str(RunDirectory.create(tmp_path / "twin", made.text, {}).config)).text == made.text
    assert oracle_twin._need_same(tmp_path / "twin", made)


@pytest.mark.parametrize(
    ("recipe", "settings", "said"),
    [
        ("offline-mpc", {"data": "some"}, "plans in it"),
        ("iql", {"data": "some"}, "without a dynamics model"),
        ("sb3-sac", {}, "another library"),
        ("pets", {}, "by acting"),
        ("mopo", {"data": "some"}, "has not learned yet"),
    ],
)
def test_other_runs_are_refused_by_what_they_are(
    recipe: str, settings: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = resolve(recipe, list(settings.items()), env="Pendulum-v1")
    run = RunDirectory.create(tmp_path / "run", asked.text, {}).path
    with pytest.raises(UserError, match=said):
        open_run(run, [])
    assert main(["diagnose", str(run), "--oracle"]) == 2
    assert capsys.readouterr().err.count("error:") == 1
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "versions.json"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--oracle-updates=5"], "belongs to --oracle"),
        (["--oracle-out=x"], "belongs to --oracle"),
        (["--oracle", "--data=x"], "leave it out"),
        (["--oracle", "--oracle-updates=-1"], "whole number"),
        (["--oracle", "--oracle-updates=many"], "whole number"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "nowhere", *words]) == 2
    assert said in capsys.readouterr().err
