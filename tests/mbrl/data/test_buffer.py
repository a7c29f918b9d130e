"""The replay buffer: ids, weights, windows, and what it writes to disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.data.buffer import ReplayBuffer, sample_mix
from mbrl.data.transitions import Transitions


def rows(number: Tensor, episode: Tensor | int = 0, step: Tensor | None = None, **optional: Any) -> Transitions:
    """Transitions whose every entry tells the row's ``number``."""
    number = torch.as_tensor(number)
    value, never = number.float(), torch.zeros(len(number), dtype=torch.bool)
    return Transitions(
        obs=torch.stack([value, -value], -1),
        action=value[:, None] / 1000,
        reward=value * 2,
        next_obs=torch.stack([value + 1, -value - 1], -1),
        terminated=number % 2 == 0,
        truncated=never,
        episode=torch.as_tensor(episode).expand(len(number)),
        step=number if step is None else step,
        policy_version=number // 3,
        **optional,
    )


def numbered(count: int, capacity: int | None = None, chunk: int = 3, **options: Any) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity or count, **options)
    for start in range(0, count, chunk):
        buffer.extend(rows(torch.arange(start, min(start + chunk, count))))
    return buffer


def numbers(batch: Transitions) -> list[int]:
    """Which rows these are, after checking that no column was mixed with another row's."""
    value = batch.obs[..., 0]
    assert torch.equal(batch.obs[..., 1], -value)
    assert torch.equal(batch.action[..., 0], value / 1000)
    assert torch.equal(batch.reward, value * 2)
    assert torch.equal(batch.next_obs[..., 0], value + 1)
    assert torch.equal(batch.terminated, value.long() % 2 == 0)
    assert torch.equal(batch.policy_version, value.long() // 3)
    found: list[int] = value.long().flatten().tolist()
    return found


# -- the ring ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 5, 7, 30])
def test_the_newest_rows_stay_under_their_ids(chunk: int) -> None:
    buffer = numbered(30, capacity=7, chunk=chunk)
    assert len(buffer) == 7
    assert buffer.ids.tolist() == list(range(23, 30))
    assert numbers(buffer.all()) == list(range(23, 30))
    assert numbers(buffer[torch.tensor([[29, 23], [25, 25]])]) == [29, 23, 25, 25]


def test_more_rows_than_fit_keeps_the_last() -> None:
    buffer = ReplayBuffer(4)
    buffer.extend(rows(torch.arange(11)))
    assert numbers(buffer.all()) == [7, 8, 9, 10]
    buffer.extend(rows(torch.arange(11, 13)))
    assert numbers(buffer.all()) == [9, 10, 11, 12]


@pytest.mark.parametrize("id", [22, 30, -1])
def test_ids_that_are_gone_or_never_were_raise(id: int) -> None:
    buffer = numbered(30, capacity=7)
    for ask in (buffer.__getitem__, buffer.weights):
        with pytest.raises(IndexError, match=r"23\.\.29"):
            ask(torch.tensor([25, id]))


def test_sampling_finds_every_live_row_and_no_other(generator: Generator) -> None:
    buffer = numbered(30, capacity=7)
    seen = numbers(buffer.sample(700, generator))
    counts = np.bincount(seen, minlength=30)
    assert counts[:23].sum() == 0
    assert counts[23:].min() > 60


def test_the_same_generator_samples_the_same_rows() -> None:
    buffer = numbered(30)
    one, same, other = (numbers(buffer.sample(8, torch.Generator().manual_seed(seed))) for seed in (1, 1, 2))
    assert one == same != other


def test_an_empty_buffer_says_so(generator: Generator) -> None:
    for ask in (lambda b: b.sample(1, generator), lambda b: b.windows(1, 1, generator), ReplayBuffer.all):
        with pytest.raises(UserError, match="add transitions"):
            ask(ReplayBuffer(3))
    with pytest.raises(UserError, match="a replay buffer holds 1 to"):
        ReplayBuffer(0)


# -- weights -------------------------------------------------------------------------------------------------------


def test_rows_are_drawn_as_often_as_they_weigh(generator: Generator) -> None:
    buffer = numbered(12, capacity=5)  # holds 7..11
    weight = torch.tensor([0.0, 1.0, 3.0, 0.0, 6.0])
    buffer.set_weights(buffer.ids, weight)
    n = 20_000
    counts = np.bincount(numbers(buffer.sample(n, generator, weighted=True)), minlength=12)[7:]
    expected = (weight / weight.sum()).numpy() * n
    assert counts[expected == 0].sum() == 0
    np.testing.assert_allclose(counts, expected, atol=4 * np.sqrt(n) / 2)
    plain = np.bincount(numbers(buffer.sample(n, generator)), minlength=12)[7:]  # the control: weights off
    np.testing.assert_allclose(plain, n / 5, atol=4 * np.sqrt(n) / 2)


def test_weights_belong_to_ids_not_places() -> None:
    buffer = numbered(5, capacity=5)
    buffer.set_weights(torch.arange(5), torch.arange(5.0) + 10)
    buffer.extend(rows(torch.arange(5, 7)))  # overwrites 0 and 1: new rows weigh 1
    assert buffer.weights(buffer.ids).tolist() == [12, 13, 14, 1, 1]
    buffer.set_weights(torch.tensor([0, 1, 2]), torch.tensor([99.0, 99.0, 7.0]))  # 0 and 1 are gone: ignored
    assert buffer.weights(buffer.ids).tolist() == [7, 13, 14, 1, 1]


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_bad_weights_are_refused_and_change_nothing(bad: float) -> None:
    buffer = numbered(3)
    with pytest.raises(UserError, match="finite and not negative"):
        buffer.set_weights(torch.arange(3), torch.tensor([5.0, bad, 5.0]))
    assert buffer.weights(buffer.ids).tolist() == [1, 1, 1]


def test_weights_of_rows_that_never_were_are_refused() -> None:
    buffer = numbered(3, capacity=5)
    with pytest.raises(UserError, match="newest row has id 2"):
        buffer.set_weights(torch.tensor([3]), torch.tensor([1.0]))


def test_all_weights_zero_is_refused_not_sampled(generator: Generator) -> None:
    buffer = numbered(3)
    buffer.set_weights(buffer.ids, torch.zeros(3))
    with pytest.raises(UserError, match="weight 0"):
        buffer.sample(2, generator, weighted=True)


# -- windows -------------------------------------------------------------------------------------------------------


def interleaved(seed: int, capacity: int, tasks: bool = False) -> ReplayBuffer:
    """Three environments side by side whose episodes end at random, one row each a round."""
    random = np.random.default_rng(seed)
    buffer = ReplayBuffer(capacity)
    episode, step, next_episode = np.arange(3), np.zeros(3, dtype=np.int64), 3
    for round in range(40):
        number = torch.arange(3) + 3 * round
        extra = {"task": torch.from_numpy(episode * 10 + step // 4)} if tasks else {}
        buffer.extend(rows(number, torch.from_numpy(episode.copy()), torch.from_numpy(step.copy()), **extra))
        step += 1
        for slot in (random.random(3) < 0.15).nonzero()[0]:
            episode[slot], step[slot], next_episode = next_episode, 0, next_episode + 1
    return buffer


def crossings(batch: Transitions) -> int:
    """Windows in which two neighbours are not successive steps of one episode and task."""
    broken = (batch.episode.diff(dim=1) != 0) | (batch.step.diff(dim=1) != 1)
    if batch.task is not None:
        broken |= batch.task.diff(dim=1) != 0
    return int(broken.any(1).sum())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("capacity", [17, 50, 200])
@pytest.mark.parametrize("tasks", [False, True])
def test_windows_never_cross_an_end(seed: int, capacity: int, tasks: bool, generator: Generator) -> None:
    buffer = interleaved(seed, capacity, tasks)
    for length in (1, 2, 3):
        batch = buffer.windows(400, length, generator)
        assert batch.obs.shape == (400, length, 2)
        numbers(batch)
        assert crossings(batch) == 0
        valid = brute_force_windows(buffer, length)
        assert set(map(tuple, batch.obs[..., 0].long().tolist())) <= valid
        if len(valid) < 40:  # all of them are drawn, also across the place where the ring wraps
            assert set(map(tuple, batch.obs[..., 0].long().tolist())) == valid


def brute_force_windows(buffer: ReplayBuffer, length: int) -> set[tuple[int, ...]]:
    held = buffer.all()
    task = held.step * 0 if held.task is None else held.task
    at = {(int(e), int(s)): (int(n), int(t)) for e, s, n, t in zip(held.episode, held.step, held.obs[:, 0], task)}  # noqa: B905
    found = set()
    for episode, step in at:
        chain = [at.get((episode, step + i)) for i in range(length)]
        if all(row is not None and row[1] == at[episode, step][1] for row in chain):
            found.add(tuple(row[0] for row in chain if row is not None))
    return found


def test_neighbouring_rows_are_no_windows(generator: Generator) -> None:
    """The control: rows taken as they lie in memory do cross."""
    buffer = interleaved(0, 50)
    start = torch.randint(48, (400,), generator=generator)
    assert crossings(buffer[buffer.ids[0] + start[:, None] + torch.arange(3)]) > 350


def test_steps_that_fit_together_do_not_join_two_episodes(generator: Generator) -> None:
    """Episode 1's beginning was overwritten: its oldest row is step 3, where episode 0 had got to step 2."""
    buffer = ReplayBuffer(6)
    buffer.extend(rows(torch.arange(6), torch.tensor([0, 0, 0, 1, 1, 1])))
    assert set(map(tuple, buffer.windows(200, 2, generator).obs[..., 0].tolist())) == {(0, 1), (1, 2), (3, 4), (4, 5)}
    with pytest.raises(UserError, match="that many steps"):
        buffer.windows(1, 4, generator)


def test_windows_do_not_jump_a_missing_step(generator: Generator) -> None:
    """One episode whose step 3 was never stored (filtered away, say)."""
    buffer = ReplayBuffer(10)
    buffer.extend(rows(torch.arange(6), step=torch.tensor([0, 1, 2, 4, 5, 6])))
    assert set(map(tuple, buffer.windows(200, 2, generator).obs[..., 0].tolist())) == {(0, 1), (1, 2), (3, 4), (4, 5)}
    with pytest.raises(UserError, match="that many steps"):
        buffer.windows(1, 4, generator)


def test_new_rows_make_new_windows(generator: Generator) -> None:
    buffer = ReplayBuffer(10)
    buffer.extend(rows(torch.arange(3)))
    with pytest.raises(UserError, match="that many steps"):
        buffer.windows(1, 4, generator)
    buffer.extend(rows(torch.arange(3, 4)))
    assert numbers(buffer.windows(1, 4, generator)) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="window length"):
        buffer.windows(1, 0, generator)


# -- columns -------------------------------------------------------------------------------------------------------


def test_declared_columns_survive_everything(tmp_path: Path, generator: Generator) -> None:
    buffer = ReplayBuffer(10, extra={"member": (), "params": (2,)})
    number = torch.arange(14)
    extra = {"member": number + 0.5, "params": torch.stack([number, number], -1) * 1.0}
    buffer.extend(rows(number, sim_state=number[:, None].double() / 3, task=number * 0 + 4, extra=extra))
    buffer.save(tmp_path / "b")
    for held in (buffer, ReplayBuffer.load(tmp_path / "b"), ReplayBuffer.open(tmp_path / "b")):
        for batch in (held.sample(5, generator), held.windows(3, 2, generator), held.all()):
            value = batch.obs[..., 0]
            assert torch.equal(batch.extra["member"], value + 0.5)
            assert torch.equal(batch.extra["params"], torch.stack([value, value], -1))
            assert batch.sim_state is not None
            assert batch.task is not None
            assert torch.equal(batch.sim_state[..., 0], value.double() / 3)  # float64 stays float64
            assert batch.task.dtype == torch.int64


@pytest.mark.parametrize(
    ("declared", "brought"),
    [({}, {"cost": ()}), ({"cost": ()}, {}), ({"cost": ()}, {"coast": ()}), ({"cost": ()}, {"cost": (2,)})],
)
def test_other_columns_than_declared_are_refused(declared: Any, brought: Any) -> None:
    buffer = ReplayBuffer(5, extra=declared)
    with pytest.raises(UserError, match="cost"):
        buffer.extend(rows(torch.arange(3), extra={name: torch.zeros(3, *shape) for name, shape in brought.items()}))
    assert len(buffer) == 0


def test_rows_of_another_form_are_refused() -> None:
    buffer = numbered(3, capacity=9)
    wide = rows(torch.arange(3))
    wide.obs = torch.zeros(3, 5)
    for bad in (wide, rows(torch.arange(3), task=torch.zeros(3)), rows(torch.arange(3), sim_state=torch.zeros(3, 1))):
        with pytest.raises(UserError):
            buffer.extend(bad)
    assert numbers(buffer.all()) == [0, 1, 2]


def test_parallel_environments_as_the_loop_feeds_them(generator: Generator) -> None:
    """One row a slot and round, columns straight from numpy, the way the online loop does it."""
    buffer = ReplayBuffer(1000, extra={"plan_value": ()})
    for step in range(6):
        value = np.full(4, step, dtype=np.float32)
        columns = {
            "obs": np.stack([value, np.arange(4, dtype=np.float32)], -1),
            "reward": value,
            "next_obs": np.stack([value + 1, np.arange(4, dtype=np.float32)], -1),
            "terminated": np.zeros(4, dtype=bool),
            "truncated": np.full(4, step == 5),
            "episode": np.arange(4),
            "step": np.full(4, step),
        }
        buffer.extend(
            Transitions(
                **{name: torch.from_numpy(column) for name, column in columns.items()},
                action=torch.zeros(4, 1),
                policy_version=torch.full((4,), 7),
                extra={"plan_value": torch.full((4,), torch.nan)},
            )
        )
    assert len(buffer) == buffer.total_added == 24
    batch = buffer.windows(50, 6, generator)  # a slot's whole episode
    assert torch.equal(batch.obs[..., 0], torch.arange(6.0).expand(50, 6))
    assert set(batch.episode.flatten().tolist()) == {0, 1, 2, 3}
    assert torch.equal(batch.next_obs[:, :-1], batch.obs[:, 1:])


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_memory_lies_on_the_device(device: str) -> None:
    buffer = numbered(5, device=device)
    assert {column.device.type for column in buffer.columns.values()} == {device}
    assert buffer.sample(3, torch.Generator(device).manual_seed(0)).obs.device.type == device


@pytest.mark.slow  # torch imports its shape rules for it
def test_the_device_is_honoured_without_one() -> None:
    buffer = ReplayBuffer(5, device="meta")
    buffer.extend(rows(torch.arange(3)).to("meta"))
    assert {column.device.type for column in buffer.columns.values()} == {"meta"}
    assert buffer.ids.device.type == "meta"


# -- disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 4, 7, 30])
def test_save_and_load(count: int, tmp_path: Path) -> None:
    buffer = numbered(count, capacity=7)
    if count:
        buffer.set_weights(buffer.ids[:1], torch.tensor([4.0]))
    buffer.save(tmp_path / "b")
    read = ReplayBuffer.load(tmp_path / "b")
    assert (read.total_added, len(read), read.capacity) == (count, len(buffer), 7)
    assert torch.equal(read.ids, buffer.ids)
    if count:
        assert torch.equal(read.weights(read.ids), buffer.weights(buffer.ids))
    for each in (buffer, read):  # and both go on alike
        each.extend(rows(torch.arange(count, count + 2)))
    assert numbers(read.all()) == numbers(buffer.all())


def test_mapped_rows_are_those_saved_and_the_files_stay(tmp_path: Path, generator: Generator) -> None:
    buffer = numbered(30, capacity=7)
    buffer.save(tmp_path / "b")
    before = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    mapped = ReplayBuffer.open(tmp_path / "b")
    assert numbers(mapped.all()) == list(range(23, 30))
    assert set(numbers(mapped.windows(50, 2, generator))) == set(range(23, 30))
    mapped.set_weights(mapped.ids, torch.arange(7.0))
    assert 23 not in numbers(mapped.sample(50, generator, weighted=True))
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == before


def _delete(folder: Path) -> None:
    (folder / "reward.npy").unlink()


def _cut(folder: Path) -> None:
    (folder / "obs.npy").write_bytes((folder / "obs.npy").read_bytes()[:-9])


def _empty(folder: Path) -> None:
    (folder / "obs.npy").write_bytes(b"")


def _noise(folder: Path) -> None:
    (folder / "obs.npy").write_bytes(b"PK\x03\x04 no zip file either")


def _fewer_rows(folder: Path) -> None:
    np.save(folder / "reward.npy", np.zeros(3, dtype=np.float32))


def _pickled(folder: Path) -> None:
    np.save(folder / "reward.npy", np.array([Bomb()] * 7, dtype=object), allow_pickle=True)


def _bare_pickle(folder: Path) -> None:
    import pickle

    (folder / "reward.npy").write_bytes(pickle.dumps(Bomb()))


def _about(**change: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        about = json.loads((folder / "buffer.json").read_text())
        for name, value in change.items():
            about.pop(name) if value is None else about.update({name: value})
        (folder / "buffer.json").write_text(json.dumps(about))

    return apply


def _about_text(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "buffer.json").write_text(text) and None


class Bomb:
    """Unpickling it leaves a mark."""

    mark = Path()

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


DAMAGES = {
    "no such folder": shutil.rmtree,
    "a column is gone": _delete,
    "a column is cut": _cut,
    "a column is empty": _empty,
    "a column is noise": _noise,
    "a column has fewer rows": _fewer_rows,
    "a column is pickled objects": _pickled,
    "a column is a pickle": _bare_pickle,
    "no json": lambda folder: (folder / "buffer.json").unlink(),
    "half a json": _about_text('{"capacity": 7, "tot'),
    "another json": _about_text("[1, 2]"),
    "no capacity": _about(capacity=None),
    "no extra": _about(extra=None),
    "strange extra": _about(extra=["a"]),
    "no rows counted": _about(total_added="many"),
    "more rows counted": _about(capacity=9),
    "fewer columns": _about(columns=["obs", "weight"]),
    "unknown columns": _about(columns=["obs", "os.system"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("read", [ReplayBuffer.load, ReplayBuffer.open])
def test_a_damaged_folder_is_one_clear_error(damage: str, read: Any, tmp_path: Path) -> None:
    folder, Bomb.mark = tmp_path / "b", tmp_path / "exploded"
    numbered(30, capacity=7).save(folder)
    assert len(read(folder)) == 7
    DAMAGES[damage](folder)
    with pytest.raises(UserError, match=str(folder)):
        read(folder)
    assert not Bomb.mark.exists()


def test_the_bomb_explodes_where_pickles_are_run(tmp_path: Path) -> None:
    """The control of the test above."""
    Bomb.mark = tmp_path / "exploded"
    _pickled(tmp_path)
    np.load(tmp_path / "reward.npy", allow_pickle=True)
    assert Bomb.mark.exists()


def test_an_empty_buffer_cannot_be_mapped(tmp_path: Path) -> None:
    ReplayBuffer(3).save(tmp_path / "b")
    with pytest.raises(UserError, match="nothing to map"):
        ReplayBuffer.open(tmp_path / "b")


# -- several sources -----------------------------------------------------------------------------------------------


def test_sources_are_mixed_by_their_shares(generator: Generator) -> None:
    low, high = numbered(10), ReplayBuffer(10)
    high.extend(rows(torch.arange(100, 110)))
    for n, share, want in ((10, 0.3, 3), (7, 0.5, 4), (5, 0.0, 0), (5, 1.0, 5), (1000, 0.123, 123)):
        batch = sample_mix({"low": (low, share), "high": (high, 1 - share)}, n, generator)
        found = numbers(batch)
        assert len(found) == n
        assert sum(value < 100 for value in found) == want
        assert found == sorted(found, key=lambda value: value >= 100)


@pytest.mark.parametrize("shares", [(0.5, 0.6), (1.2, -0.2), (0.0, 0.0)])
def test_shares_that_are_none_are_refused(shares: tuple[float, float], generator: Generator) -> None:
    sources = {str(i): (numbered(4), share) for i, share in enumerate(shares)}
    with pytest.raises(UserError, match="sum to 1"):
        sample_mix(sources, 4, generator)


def test_sources_of_other_columns_are_not_mixed(generator: Generator) -> None:
    model = ReplayBuffer(4, extra={"is_fake": ()})
    model.extend(rows(torch.arange(4), extra={"is_fake": torch.ones(4)}))
    for order in (
        {"real": (numbered(4), 0.5), "model": (model, 0.5)},
        {"model": (model, 0.5), "real": (numbered(4), 0.5)},
    ):
        with pytest.raises(UserError, match="is_fake"):
            sample_mix(order, 4, generator)
