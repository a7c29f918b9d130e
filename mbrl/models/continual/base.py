"""What all models of a task sequence share: tasks that start and end, data of one task at a time, binding."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel, Estimator, Prediction, Propagation, State, Step, Trajectory
from mbrl.models.bound_ensemble import BoundEnsemble, check_balance
from mbrl.models.continual.flat import Layers, Layout, forward, net_shapes
from mbrl.models.continual.slot import TaskSlot, bytes_of
from mbrl.models.coordinates import Coordinates
from mbrl.models.ensemble import ProbabilisticEnsemble, Regression

NO_TASK = -1


class ContinualModel(DynamicsModel):
    """Dynamics of tasks that come one after another, told apart by whole-number ids.

    :meth:`start_task`, fits on that task's rows, :meth:`end_task`, and so on. Every task has the same main network
    (that of :class:`~mbrl.models.ensemble.ProbabilisticEnsemble`, its coordinates, known rewards and terminations) with
    weights that :meth:`layers` gives; they are made of parameters that all tasks share and of the task's own. Inputs
    and targets are standardised with statistics of the task, refitted at each of its fits and fixed with its end.

    The unbound model speaks of the open task. To plan, and for every other task, :meth:`bind`.

    The training loss is a sum over the batch, so that penalties keep their meaning at any batch size:
    ``1/d_y * sum_batch ||mean - target||^2``, and with a variance ``1/d_y * sum_batch sum_i (mean_i - target_i)^2
    exp(-s_i) + s_i``, plus ``bound_weight * (sum s_max - sum s_min)``. The bounds are a task's own and are trained.

    Args:
        spec: the environment; of its tasks, the first.
        hidden: width of the main network's hidden layers.
        layers: number of its hidden layers.
        members: networks side by side, trained on batches of their own.
        probabilistic: predict a variance as well.
        bound_weight: weight of the pull on the log-variance bounds.
        validity: see the ensemble.
    """

    look_ahead = False
    """Whether :meth:`penalty` wants a preview of the optimiser's step."""
    watches_steps = False
    """Whether :meth:`watch_step` wants to hear of every step."""
    open_task: Tensor

    def __init__(
        self,
        spec: EnvSpec,
        hidden: int = 32,
        layers: int = 2,
        members: int = 1,
        probabilistic: bool = False,
        bound_weight: float = 0.01,
        validity: float = 0.0,
    ) -> None:
        super().__init__(spec)
        if min(hidden, layers, members) < 1:
            raise UserError("hidden, layers, members", (hidden, layers, members), "each is at least 1")
        self.members, self.probabilistic, self.bound_weight, self.validity = (
            members,
            probabilistic,
            bound_weight,
            validity,
        )
        self.coordinates = Coordinates(spec)
        self.learns_reward, self.learns_end = not spec.reward_complete, spec.termination is None
        self.target_size = self.coordinates.size + self.learns_reward
        self.input_size = self.coordinates.feature_size + spec.action.size
        outputs = self.target_size * (1 + probabilistic) + self.learns_end
        self.sizes = (self.input_size, *[hidden] * layers, outputs)
        self.net = Layout(net_shapes(self.sizes))
        self.slots = nn.ModuleDict()
        self.register_buffer("open_task", torch.tensor(NO_TASK))
        self._specs: dict[int, EnvSpec] = {}
        self.shared_parts = self.shared_layout()
        self.shared = nn.Parameter(self.initial_shared(self.shared_parts))

    # -- what a method says of itself --------------------------------------------------------------------------------

    @abstractmethod
    def shared_layout(self) -> Layout:
        """The parameters that all tasks share."""

    @abstractmethod
    def own_layout(self, position: int) -> Layout:
        """The parameters of the task that comes at this place of the sequence, without its log-variance bounds."""

    @abstractmethod
    def layers(self, task: int) -> Layers:
        """The main network's weights for a task, differentiable in what is trained."""

    def initial_shared(self, layout: Layout) -> Tensor:
        """``[E, n]`` starting values, drawn from the global random state as in every constructor of a network."""
        return layout.initial(self.members, None)

    def objective(self, batch: Regression, generator: Generator) -> Tensor:
        """Training loss on prepared rows ``[E, B, ...]`` of the open task (and on what the method keeps of others)."""
        return self.loss(batch)[0]

    def penalty(self, step: Tensor | None, rows: int, generator: Generator) -> Tensor | None:
        """What keeps old tasks, for a batch of so many rows: a function of :attr:`shared` only. None: nothing does.

        ``step [E, n]`` is the change of :attr:`shared` that the optimiser would make on the loss alone, where the
        method wants to :attr:`look_ahead`.
        """
        return None

    def watch_step(self, gradient: Tensor, change: Tensor) -> None:
        """Hear the loss's gradient ``[E, n]`` (without penalty) and the change made of :attr:`shared`."""

    def remember(self, slot: TaskSlot, data: Transitions, generator: Generator) -> None:
        """Keep in ``slot`` what the method needs of the task that ends. The default keeps nothing."""

    def recall(self, generator: Generator) -> None:
        """Hear that a task has started; its slot exists."""

    def forget_cached(self) -> None:
        """Drop what was computed from tasks that have ended: another task starts, or others are loaded."""

    def trained_own(self) -> list[nn.Parameter]:
        """Own parameters that are trained now (default: the open task's)."""
        return [self.slot(self.current).own]

    # -- tasks -------------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[int]:
        """Ids in the order in which they came, the open one included."""
        return [int(name) for name in self.slots]

    @property
    def ended(self) -> list[int]:
        """Those that have ended."""
        closed = int(self.open_task) == NO_TASK
        return self.tasks if closed else self.tasks[:-1]  # the open one is the last

    @property
    def current(self) -> int:
        """The open task."""
        if int(self.open_task) == NO_TASK:
            raise UserError("task", None, "no task is open: call start_task first, or bind a task that has ended")
        return int(self.open_task)

    def slot(self, task: int) -> TaskSlot:
        if isinstance(task, bool) or not isinstance(task, int) or str(task) not in self.slots:
            known = ", ".join(map(str, self.tasks)) or "none yet"
            raise UserError("task", task, f"no task of this id has been started; known: {known}")
        found = self.slots[str(task)]
        assert isinstance(found, TaskSlot)
        return found

    def start_task(self, task: int, generator: Generator, spec: EnvSpec | None = None) -> None:
        """Open a task of a new id; ``spec`` is its environment, where its physics parameters differ.

        Raises:
            UserError: an id that is no whole number of at least 0 or has been there, a task still open, or other
                observations, actions or kinds of known pieces than the model's.
        """
        if isinstance(task, bool) or not isinstance(task, int) or task < 0:
            raise UserError("task", task, "give a whole number of at least 0")
        if str(task) in self.slots:
            raise UserError(
                "task", task, "this task has been started before: every task of a sequence has an id of its own"
            )
        if int(self.open_task) != NO_TASK:
            raise UserError("task", task, f"task {self.current} is open: call end_task({self.current}, data) first")
        spec = spec or self.spec
        self._check_spec(spec)
        own = self._with_bounds(self.own_layout(len(self.slots))).initial(self.members, generator, self.shared.device)
        self.slots[str(task)] = self._new_slot(own, spec.params).to(self.shared.device)
        self._specs[task] = spec
        self.open_task.fill_(task)
        self.forget_cached()
        self.recall(generator)

    def end_task(self, task: int, data: Transitions, generator: Generator) -> None:
        """Close the open task; ``data [N]`` are its rows, of which the method keeps what it says.

        Raises:
            UserError: it is not the open task, has not been fitted, or the rows are not its rows.
        """
        slot = self.slot(task)
        if task != int(self.open_task):
            raise UserError(
                "task", task, f"is not open; open: {'none' if int(self.open_task) == NO_TASK else self.current}"
            )
        if not bool(slot.fitted):
            raise UserError("task", task, "has not been fitted: its weights mean nothing yet")
        check_task(data, task)
        self.remember(slot, data, generator)
        self.open_task.fill_(NO_TASK)

    def attach_spec(self, task: int, spec: EnvSpec) -> None:
        """Say again what is known of a task, after loading. Without it the model's own spec serves, with the task's
        saved physics parameters: enough unless the reward or termination *functions* differ.
        """
        self._check_spec(spec)
        self.slot(task).params = dict(spec.params)
        self._specs[task] = spec

    def task_spec(self, task: int) -> EnvSpec:
        slot = self.slot(task)
        return self._specs.get(task) or dataclasses.replace(self.spec, params=slot.params)

    def _check_spec(self, spec: EnvSpec) -> None:
        for name in ("obs_size", "action", "angles", "reward_complete"):
            seen, mine = getattr(spec, name), getattr(self.spec, name)
            if seen != mine:
                raise UserError(f"task's spec.{name}", seen, f"tasks of one sequence share it: {mine!r}")
        if (spec.termination is None) != self.learns_end:
            fix = "either all tasks of a sequence know their termination or none"
            raise UserError("task's spec.termination", spec.termination, fix)

    def _new_slot(self, own: Tensor, params: Mapping[str, float]) -> TaskSlot:
        return TaskSlot(own, self.input_size, self.target_size, self.coordinates, params)

    def _with_bounds(self, layout: Layout) -> Layout:
        return Layout({**layout.shapes, "bounds": (2, self.target_size)}) if self.probabilistic else layout

    def own(self, task: int) -> dict[str, Tensor]:
        """A task's own parameters by name, ``[E, ...]``."""
        return self._with_bounds(self.own_layout(self.tasks.index(task))).split(self.slot(task).own)

    # -- what it costs -----------------------------------------------------------------------------------------------

    def memory_bytes(self, task: int) -> dict[str, int]:
        """Bytes that one task adds, by part: its own parameters (``embedding``, ``network``, ``bounds``), its
        ``normaliser``, and what the method keeps by name (``targets``, ``rows``, ``fisher``, ``anchor``).
        """
        slot, parts = self.slot(task), dict[str, int]()
        for name, tensor in [*self.own(task).items(), *((_part(name), kept) for name, kept in slot.kept.items())]:
            part = "network" if name.startswith(("weight", "bias")) else name
            parts[part] = parts.get(part, 0) + bytes_of(tensor)
        statistics = [*slot.input_norm.buffers(), *slot.target_norm.buffers(), slot.varies, slot.box, slot.fitted]
        return parts | {"normaliser": bytes_of(*statistics)}

    def shared_bytes(self) -> int:
        """Bytes that do not grow with the tasks."""
        return bytes_of(self.shared, *self.buffers(recurse=False))

    def stored_rows(self) -> dict[int, int]:
        """Transitions kept of every task, by id: 0 everywhere unless the method is a replay of old data."""
        return {task: len(self.slot(task).kept.get("rows_inputs", ())) for task in self.tasks}

    # -- training ----------------------------------------------------------------------------------------------------

    def prepare(self, data: Transitions, fit_statistics: bool = True) -> Regression:
        """Training rows of the open task; refits its normalisers on them first when asked."""
        check_task(data, self.current)
        spec, slot = self.task_spec(self.current), self.slot(self.current)
        z, next_z = self.coordinates.from_obs(data.obs), self.coordinates.from_obs(data.next_obs)
        inputs, parts = self.coordinates.features(z, data.action), [self.coordinates.difference(z, next_z)]
        if self.learns_reward:
            parts.append((data.reward - spec.known_reward(data.obs, data.action, data.next_obs))[..., None])
        targets = torch.cat(parts, -1)
        if fit_statistics:
            slot.fit_statistics(inputs, targets, z, self.validity)
        ends = data.terminated[..., None].to(inputs.dtype) if self.learns_end else inputs[..., :0]
        return Regression(slot.input_norm.normalize(inputs), slot.target_norm.normalize(targets), ends)

    def loss(self, batch: Regression) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over members of the open task's loss on prepared rows ``[E, B, ...]``."""
        loss = self.task_loss(self.current, self.layers(self.current), batch)
        return loss, {"loss": loss.detach()}

    def task_loss(self, task: int, layers: Layers, batch: Regression) -> Tensor:
        """Loss of a task under given weights: a sum over members and batch, see the class."""
        outputs, varies = forward(layers, batch.inputs), self.slot(task).varies
        error = (outputs[..., : self.target_size] - batch.targets).square() * varies
        if not self.probabilistic:
            loss = error.sum() / self.target_size
        else:
            low, high = self.bounds(task)
            log_var = _clamped(outputs[..., self.target_size : 2 * self.target_size], low, high)
            loss = (error * torch.exp(-log_var) + log_var * varies).sum() / self.target_size
            loss = loss + self.bound_weight * (high.sum() - low.sum())
        if self.learns_end:
            loss = loss + F.binary_cross_entropy_with_logits(outputs[..., -1:], batch.ends, reduction="sum")
        return loss

    def bounds(self, task: int) -> tuple[Tensor, Tensor]:
        """Lowest and highest log-variance, ``[E, 1, T]`` each."""
        low, high = self.own(task)["bounds"].split(1, 1)
        return low, high

    @torch.no_grad()
    def holdout_score(self, batch: Regression) -> tuple[Tensor, dict[str, Tensor]]:
        """``[E]`` squared error in standardised units on held-out rows ``[B, ...]`` of the open task."""
        inputs = batch.inputs.expand(self.members, *batch.inputs.shape)
        mean = forward(self.layers(self.current), inputs)[..., : self.target_size]
        score = ((mean - batch.targets).square() * self.slot(self.current).varies).mean((1, 2))
        return score, {"holdout_mse": score.mean()}

    # -- prediction --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def bind(self, task: int | None = None) -> BoundEnsemble:
        """The main network of a task (default: the open one), weights made once, normalisers folded in; a snapshot.

        Raises:
            UserError: no such task.
        """
        task = self.current if task is None else task
        slot, layers = self.slot(task), self.layers(task)
        net = self._empty_net(self.task_spec(task), layers)
        for mine, theirs in zip(layers, zip(net.weights, net.biases, strict=True), strict=True):
            theirs[0].copy_(mine[0])
            theirs[1].copy_(mine[1])
        if self.probabilistic:
            low, high = self.bounds(task)
            net.min_log_var.copy_(low)
            net.max_log_var.copy_(high)
        net.input_norm.load_state_dict(slot.input_norm.state_dict())
        net.target_norm.load_state_dict(slot.target_norm.state_dict())
        net.get_buffer("varies").copy_(slot.varies)
        net.get_buffer("box").copy_(slot.box)
        return net.bind()

    def _empty_net(self, spec: EnvSpec, layers: Layers) -> ProbabilisticEnsemble:
        """Binding must not move the global random state: how often a model is bound is no part of a run."""
        with torch.random.fork_rng(devices=[]):
            net = ProbabilisticEnsemble(
                spec,
                members=self.members,
                hidden=layers[0][0].shape[-1],
                layers=len(layers) - 1,
                probabilistic=self.probabilistic,
                validity=self.validity,
            )
        return net.to(self.shared.device)

    def predict(self, state: State, action: Tensor) -> Prediction:
        return self.bind().predict(state, action)

    def uncertainty(self, state: State, action: Tensor, kind: Estimator) -> Tensor:
        return self.bind().uncertainty(state, action, kind)

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        return self.bind().step(state, action, generator)

    def rollout(
        self,
        state: State,
        actions: Tensor,
        generator: Generator | None,
        *,
        particles: int = 1,
        propagation: Propagation = "trajectory",
    ) -> Trajectory:
        return self.bind().rollout(state, actions, generator, particles=particles, propagation=propagation)

    def check_particles(self, particles: int, propagation: Propagation) -> None:
        check_balance(self.members, particles, propagation)

    # -- loading -----------------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """How many tasks there are is known only now: make their slots, which then load themselves."""
        self.forget_cached()
        saved = list(dict.fromkeys(_saved_tasks(state_dict, prefix + "slots.")))
        self._specs = {task: spec for task, spec in self._specs.items() if str(task) in saved}
        self.slots = nn.ModuleDict()
        for name in saved:
            empty = torch.empty(self.members, 0, device=self.shared.device)
            self.slots[name] = self._new_slot(empty, {}).to(self.shared.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _saved_tasks(state_dict: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key in state_dict:
        if key.startswith(prefix):
            yield key.removeprefix(prefix).partition(".")[0]


def _clamped(raw: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Both soft clamps of a log-variance in closed form, see the ensemble."""
    var: Tensor = low.exp() + high.exp() * torch.sigmoid(raw - high)
    return var.log()


def _part(kept: str) -> str:
    return "rows" if kept.startswith("rows_") else kept


def check_task(data: Transitions, task: int) -> None:
    """Raise ``UserError`` unless every row is of ``task``."""
    if data.task is None:
        raise UserError("training data: task", None, f"rows say which task they are of; set their task to {task}")
    seen = data.task.unique().tolist()
    if seen != [task]:
        raise UserError("training data: task", seen, f"give rows of task {task} only, the one that is open")
