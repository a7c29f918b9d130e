"""Where workers land: Ray is told of four GPUs that are not there, and gives them out as asked."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch

from envs.errors import UserError
from mbrl.distributed.cluster import assigned_device, check_resources
from mbrl.distributed.fitting import FitWorkers

GPUS = 4


@pytest.fixture(scope="module", autouse=True)
def four_gpus() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=GPUS,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100_000_000,
    )
    yield
    ray.shutdown()


def asked(kind: type[Any], *num_gpus: float) -> list[Any]:
    """What actors with so many GPUs, alive at the same time, say of where they are."""
    actor = ray.remote(kind)
    actors: list[Any] = [actor.options(num_cpus=0, num_gpus=size).remote() for size in num_gpus]
    try:
        return ray.get([each.place.remote() for each in actors], timeout=90)
    finally:
        for each in actors:
            ray.kill(each)


def test_fractions_land_as_asked() -> None:
    """A whole GPU, two halves, a quarter, and none."""

    class Worker:  # in here, so that its process need not import this file
        def place(self) -> tuple[list[Any], str, str]:
            there, torch.cuda.is_available = torch.cuda.is_available, lambda: True  # as on a machine with GPUs
            try:
                device = str(assigned_device())
            finally:
                torch.cuda.is_available = there
            return ray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES", ""), device

    *placed, none = asked(Worker, 1.0, 0.5, 0.5, 0.25, 0.0)
    for gpus, visible, device in placed:
        assert len(gpus) == 1
        assert int(gpus[0]) in range(GPUS)
        assert visible == str(gpus[0])  # it sees its own GPU alone, and torch calls that the first
        assert device == "cuda:0"
    whole, *shared = (int(gpus[0]) for gpus, _, _ in placed)
    assert whole not in shared
    assert none == ([], none[1], "cpu")
    assert none[1] in ("", os.environ.get("CUDA_VISIBLE_DEVICES"))


def test_as_many_workers_share_a_gpu_as_its_fraction_allows() -> None:
    """Eight halves fill four GPUs, and none lies across two."""

    class Worker:  # starts faster without torch
        def place(self) -> list[Any]:
            return ray.get_gpu_ids()

    check_resources(8, 0, 0.5, "workers")
    gpus = asked(Worker, *[0.5] * 8)
    assert all(len(each) == 1 for each in gpus)
    assert Counter(int(each[0]) for each in gpus) == dict.fromkeys(range(GPUS), 2)


@pytest.mark.parametrize(
    ("count", "cpus", "gpus", "room"),
    [(5, 0.0, 1.0, "room for 4 "), (9, 0.0, 0.5, "room for 8 "), (5, 0.0, 0.7, "room for 4 "), (3, 1.0, 0.0, "for 2 ")],
)
def test_more_than_there_is_is_refused(count: int, cpus: float, gpus: float, room: str) -> None:
    """Also where the sum would do: five of 0.7 are 3.5 GPUs, but each needs most of one."""
    with pytest.raises(UserError, match=room):
        check_resources(count, cpus, gpus, "fit workers")
    with pytest.raises(UserError, match=room):
        FitWorkers(count, num_cpus=cpus, num_gpus=gpus)
    check_resources(count - 1, cpus, gpus, "fit workers")  # the control: one less has room


def test_a_gpu_that_torch_does_not_find_is_named() -> None:
    """Ray was told of GPUs; where torch has none, fitting on them is refused when the worker starts."""
    if torch.cuda.is_available():
        pytest.skip("there are GPUs here")
    workers = FitWorkers(1, num_cpus=0, num_gpus=0.5)
    with pytest.raises(UserError, match="torch finds none"):
        workers.start(1)
    workers.close()
