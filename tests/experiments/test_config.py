"""Recipes, overlays, overrides: one resolved configuration that repeats the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs.errors import UserError
from experiments.config import list_recipes, overlay_of, resolve
from experiments.names import short_names
from experiments.tree import merge, parse_value, set_path


@pytest.mark.parametrize("recipe", list_recipes())
def test_every_recipe_resolves_and_its_dump_reads_back_to_the_same(recipe: str, tmp_path: Path) -> None:
    resolved = resolve(recipe, env="Pendulum-v1")
    path = tmp_path / "config.yaml"
    path.write_text(resolved.text)
    assert resolve(str(path)).text == resolved.text


def test_every_overlay_resolves_over_its_recipe() -> None:
    for recipe in list_recipes():
        for overlay in overlay_of(Path(f"experiments/recipes/{recipe}.yaml"), "x").parent.glob("*.yaml"):
            env = overlay.stem.replace("mbrl-", "mbrl/")
            assert overlay.resolve() in [path.resolve() for path in resolve(recipe, env=env).sources]


def test_order_is_recipe_then_overlay_then_command_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("agent: RandomAgent\nsteps: 1\nseed: 1\nnum_envs: 1\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mbrl-CartPoleSwingUp-v0.yaml").write_text("seed: 2\nnum_envs: 2\n")
    config = resolve(str(tmp_path / "mine.yaml"), [("num_envs", 3)], env="mbrl/CartPoleSwingUp-v0").config
    assert (config.steps, config.seed, config.num_envs) == (1, 2, 3)
    assert resolve(str(tmp_path / "mine.yaml"), env="Pendulum-v1").config.seed == 1


def test_an_environment_named_as_a_key_gets_its_overlay_too() -> None:
    short, long = resolve("pets", env="Pendulum-v1"), resolve("pets", [("env.id", "Pendulum-v1")])
    assert len(long.sources) == 2
    assert (long.text, long.sources) == (short.text, short.sources)


def test_short_names_are_found_without_importing() -> None:
    assert short_names()["RandomAgent"] == "agents.random_agent.RandomAgent"
    assert "Agent" in short_names()


def test_another_class_drops_the_arguments_of_the_old_one() -> None:
    tree = {"part": {"class_path": "A", "init_args": {"x": 1}}}
    over = {"part": {"class_path": "B"}}
    assert merge(tree, over) == {"part": {"class_path": "B"}}
    set_path(tree, "part.init_args.x", 2)
    assert tree == {"part": {"class_path": "A", "init_args": {"x": 2}}}
    set_path(tree, "part", "B")
    assert tree == {"part": {"class_path": "B"}}


def test_list_items_are_set_by_position() -> None:
    tree = {"terms": [{"x": 1}, {"x": 2}]}
    set_path(tree, "terms.1.x", 5)
    assert tree == {"terms": [{"x": 1}, {"x": 5}]}
    with pytest.raises(UserError, match="position from 0 to 1"):
        set_path(tree, "terms.2.x", 5)


def test_arguments_of_parts_may_be_named_without_init_args() -> None:
    short = [
        ("agent.model.hidden", 16),
        ("agent.warmup_steps", 7),
        ("agent.planner", "MPPI"),
        ("agent.planner.horizon", 4),
    ]
    long = [(key.replace("agent.", "agent.init_args."), value) for key, value in short]
    long = [(key.replace("model.", "model.init_args.").replace("r.h", "r.init_args.h"), value) for key, value in long]
    assert resolve("pets", short, env="Pendulum-v1").text == resolve("pets", long, env="Pendulum-v1").text
    assert "hidden: 16" in resolve("pets", short, env="Pendulum-v1").text
    with pytest.raises(UserError, match=r"agent\.init_args\.model\.init_args\.hiden.*'hidden'"):
        resolve("pets", [("agent.model.hiden", 16)], env="Pendulum-v1")


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("3E5", 3e5), ("5", 5), ("0.5", 0.5), ("[1, 2]", [1, 2])])
def test_numbers_are_read_as_people_write_them(text: str, value: object) -> None:
    assert parse_value("--x", text) == value


def test_an_error_names_the_innermost_place() -> None:
    with pytest.raises(UserError, match=r"agent\.init_args\.planner\.init_args\.horizn.*'horizon'"):
        resolve("pets", [("agent.init_args.planner.init_args.horizn", 3)], env="Pendulum-v1")
    with pytest.raises(UserError, match=r"model\.init_args\.members: 'five': expected a whole number"):
        resolve("pets", [("agent.init_args.model.init_args.members", "five")], env="Pendulum-v1")
    with pytest.raises(UserError, match=r"agent\.init_args\.planner\.class_path.*no Planner"):
        resolve("pets", [("agent.init_args.planner", "MPCAgent")], env="Pendulum-v1")
