"""``mbrl bench koopman-speed``: what a diagonal Koopman model costs beside an unrolled network with as many parameters.

Prediction without decoding on the way, training steps over long windows, and which way of following the modes is
fastest at which length.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from envs.registry import env_spec
from envs.spec import EnvSpec
from experiments.benchmarks._koopman_baseline import UnrolledMLP, librating
from experiments.benchmarks._timing import make_parser, one_thread, parse, publish, ratio, table, take_turns
from mbrl import seeding
from mbrl.data.buffer import consecutive
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel
from mbrl.models.koopman.deep import Losses
from mbrl.models.koopman.diagonal import DiagonalKoopman
from mbrl.models.koopman.parallel import PATHS, Path, discretise, faster_path, follow

MLP = "MLP"
TWO, STILL = "two losses", "target held still"
VARIANTS = {TWO: Losses(reconstruction=0.0), STILL: Losses(reconstruction=0.0, detach_target=True)}
"""By the loop: without reconstruction, which the diagonal model's paper does not name; and with a constant target. The
cases named by their path have all three losses, the library's default."""
GOALS = {"prediction": 5.0, "training_of_mlp": 0.75}


@dataclass(frozen=True)
class Sizes:
    """``training`` holds (window, batch); ``lengths`` and ``rows`` span the comparison of paths."""

    modes: int = 64
    hidden: int = 128
    horizon: int = 100
    batches: tuple[int, ...] = (64, 256)
    training: tuple[tuple[int, int], ...] = ((50, 64), (100, 256))
    lengths: tuple[int, ...] = (10, 50, 100, 400)
    rows: tuple[int, ...] = (1, 4, 8, 16, 64)


QUICK = Sizes(4, 8, 10, (4,), ((5, 4), (8, 4)), (5, 20), (1, 4))


def koopman(
    sizes: Sizes, spec: EnvSpec, window: int, path: Path | None = None, losses: Losses | None = None
) -> DiagonalKoopman:
    shape: dict[str, Any] = {"modes": sizes.modes, "window": window, "hidden": sizes.hidden, "layers": 1}
    return DiagonalKoopman(spec, **shape, action_net="linear", path=path, losses=losses, reencode_every=0)


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def equal_mlp(sizes: Sizes, spec: EnvSpec, window: int) -> UnrolledMLP:
    """The widest network of two hidden layers that has no more parameters than the Koopman model."""
    most, hidden = parameters(koopman(sizes, spec, window)), 1
    while parameters(UnrolledMLP(spec, window, hidden + 1)) <= most:
        hidden += 1
    return UnrolledMLP(spec, window, hidden, residual=True)


# -- prediction ----------------------------------------------------------------------------------------------------


def prediction(sizes: Sizes, spec: EnvSpec, batch: int, repeats: int) -> dict[str, Any]:
    """Seconds for the observation ``horizon`` steps ahead, from observation and actions."""
    luck = torch.Generator().manual_seed(batch)
    obs = torch.randn(batch, spec.obs_size, generator=luck)
    actions = torch.rand(sizes.horizon, batch, spec.action.size, generator=luck) * 2 - 1
    deep, flat = koopman(sizes, spec, sizes.horizon), equal_mlp(sizes, spec, sizes.horizon)

    @torch.no_grad()
    def ours() -> Tensor:
        return deep.read(deep.latent_after(deep.lift(obs), actions))

    @torch.no_grad()
    def all_steps() -> Tensor:
        return deep.read(deep.rollout_latent(deep.lift(obs), actions)[-1])

    @torch.no_grad()
    def theirs() -> Tensor:
        return flat.open_loop(obs, actions)[-1]

    seconds = take_turns({"Koopman": ours, "Koopman, every latent": all_steps, MLP: theirs}, repeats)
    sizes_seen = {"Koopman": parameters(deep), MLP: parameters(flat)}
    found = {"batch": batch, "seconds": seconds, "parameters": sizes_seen}
    every = ratio(seconds, MLP, "Koopman, every latent")
    return found | {"mlp_of_koopman": ratio(seconds, MLP, "Koopman"), "mlp_of_every_latent": every}


# -- training ------------------------------------------------------------------------------------------------------


def training(sizes: Sizes, spec: EnvSpec, window: int, batch: int, rows: Transitions, repeats: int) -> dict[str, Any]:
    """Seconds of one step of loss, gradient and Adam on one and the same batch of windows."""
    models: dict[str, DynamicsModel] = {path: koopman(sizes, spec, window, path) for path in PATHS}  # type: ignore[arg-type]
    models |= {name: koopman(sizes, spec, window, "loop", losses) for name, losses in VARIANTS.items()}
    models[MLP] = equal_mlp(sizes, spec, window)
    places = consecutive(rows.episode, rows.step, window).T[:batch]
    seconds = take_turns({name: trainer(model, rows, places) for name, model in models.items()}, repeats)
    ratios = {name: ratio(seconds, name, MLP) for name in models}
    return {"window": window, "batch": batch, "seconds": seconds, "of_mlp": ratios}


def trainer(model: DynamicsModel, rows: Transitions, places: Tensor) -> Callable[[], object]:
    batch = model.prepare(rows)[places[None]]
    optimizer = torch.optim.Adam(model.parameter_groups(0.0), lr=1e-3, fused=True)

    def step() -> None:
        loss, _ = model.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


# -- paths ---------------------------------------------------------------------------------------------------------


def path_choice(sizes: Sizes, length: int, rows: int, repeats: int) -> dict[str, Any]:
    """Seconds of following the modes forward and back, by path; and what the library would choose."""
    luck = torch.Generator().manual_seed(length)
    pushed = torch.randn(length, rows, sizes.modes, dtype=torch.complex64, generator=luck).requires_grad_()
    mu, start = torch.full((sizes.modes,), -0.2, requires_grad=True), pushed.detach()[0]
    omega, step = 3.0 * torch.arange(sizes.modes), torch.full((sizes.modes,), 0.01)

    def work(path: Path) -> Callable[[], object]:
        def turn() -> None:
            factor, gain = discretise(torch.complex(mu, omega), step)
            found = follow(start, factor, gain * pushed, path)
            torch.autograd.grad(found.real.sum() + found.imag.sum(), [mu, pushed])

        return turn

    seconds = take_turns({path: work(path) for path in PATHS}, repeats)  # type: ignore[arg-type]
    fastest = min(PATHS, key=lambda path: statistics.median(seconds[path]))
    chosen = faster_path("cpu", length, rows * sizes.modes)
    found = {"length": length, "rows": rows, "seconds": seconds, "fastest": fastest, "chosen": chosen}
    return found | {"chosen_of_fastest": ratio(seconds, chosen, fastest)}


# -- all of it -----------------------------------------------------------------------------------------------------


def run(sizes: Sizes, seed: int, repeats: int) -> dict[str, Any]:
    spec, longest = env_spec("Pendulum-v1"), max(window for window, _ in sizes.training)
    most = max(batch for _, batch in sizes.training)
    rows = librating(max(8, most // longest + 1), 2 * longest, seeding.generator(seed, "rows"))
    torch.manual_seed(seeding.derive_seed(seed, "init"))
    return {
        "prediction": [prediction(sizes, spec, batch, repeats) for batch in sizes.batches],
        "training": [training(sizes, spec, *size, rows, repeats) for size in sizes.training],
        "paths": [path_choice(sizes, length, n, repeats) for length in sizes.lengths for n in sizes.rows],
    }


def ms(seconds: Sequence[float]) -> float:
    return 1000.0 * statistics.median(seconds)


def lines_of(sizes: Sizes, found: dict[str, Any]) -> list[str]:
    ahead: list[list[object]] = [[f"{sizes.horizon} steps ahead, ms", "last alone", "every latent", MLP]]
    ahead[0] += ["MLP / last alone (goal >= 5)", "MLP / every latent"]
    for part in found["prediction"]:
        times = [ms(seconds) for seconds in part["seconds"].values()]
        ahead.append([f"batch {part['batch']}", *times, part["mlp_of_koopman"], part["mlp_of_every_latent"]])
    steps: list[list[object]] = [["training step", "ms", "of the MLP's"]]
    for part in found["training"]:
        for name, seconds in part["seconds"].items():
            steps.append([f"{part['window']} steps, batch {part['batch']}: {name}", ms(seconds), part["of_mlp"][name]])
    ways: list[list[object]] = [["modes forward and back, ms", *PATHS, "fastest", "chosen", "chosen / fastest"]]
    for part in found["paths"]:
        times = [ms(part["seconds"][name]) for name in PATHS]
        verdict = [part["fastest"], part["chosen"], part["chosen_of_fastest"]]
        ways.append([f"{part['length']} steps, {part['rows']} rows", *times, *verdict])
    got = found["training"][0]["of_mlp"]
    aim = f"training / MLP: {got['loop']:.2f}; two losses, target held still: {got[STILL]:.2f} (goal <= 0.75)"
    return [*table(ahead), "", *table(steps), aim, "", *table(ways)]


def main(argv: Sequence[str]) -> None:
    options = parse(make_parser("koopman-speed", __doc__ or "", repeats=15), argv)
    sizes = QUICK if options.quick else Sizes()
    with one_thread():
        found = run(sizes, options.seed, options.repeats)
    config = {"sizes": asdict(sizes), "seed": options.seed, "repeats": options.repeats, "goals": GOALS}
    publish("koopman-speed", argv, options, config, lines_of(sizes, found), found)
