"""Training of a DDPM from one step to another: epsilon loss, masked steps, EMA, checkpoints, step-indexed randomness."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from raylt.diffusion import preemption
from raylt.diffusion.checkpoints import Checkpoints, on_host, to_host
from raylt.diffusion.compute import Compute
from raylt.diffusion.data import flipped_where, to_float
from raylt.diffusion.network import loss_function
from raylt.diffusion.rng import Draw, batch_indices, generator, seed_dropout
from raylt.diffusion.tensors import NamedTensors, losslessly_gathered, pack, scattered, unpack
from raylt.errors import Diverged, Preempted
from raylt.spec.sections import TrainSpec

NUM_TIMESTEPS = 1000  # T of Ho et al. 2020
COSINE_FLOOR = 0.05  # the cosine schedule ends at this fraction of the learning rate


@dataclass
class TrainState:
    """Where training stands after `step` steps. Every tensor is on the CPU and keyed by parameter name."""

    step: int
    weights: NamedTensors
    first_moments: NamedTensors  # Adam's m
    second_moments: NamedTensors  # Adam's v
    ema: NamedTensors
    ema_updates: int  # since the last rewind
    moment_updates: int | None = None  # behind the moments, where they are not `step`: they began empty at a later one

    @staticmethod
    def fresh(weights: NamedTensors, step: int = 0) -> TrainState:
        """Nothing but weights: empty moments, and an EMA that starts here, whatever the step of the schedule."""
        ema = {name: value.clone() for name, value in weights.items()}
        return TrainState(step, weights, _zeros_like(weights), _zeros_like(weights), ema, 0, 0)

    def to_bytes(self, masks: Mapping[str, Tensor] | None = None) -> bytes:
        """`w/NAME`, `m/NAME`, `v/NAME`, `ema/NAME`: values; where there is a mask for the name, the kept ones alone."""
        groups = {"w": self.weights, "m": self.first_moments, "v": self.second_moments, "ema": self.ema}
        return pack(n=self._counters, **{group: losslessly_gathered(values, masks or {}) for group, values in groups.items()})

    def start_to_bytes(self) -> bytes:
        """As a rewind point: without the EMA, which every round starts anew, and without moments where there are none yet."""
        if self.moment_updates == 0:
            return pack(w=self.weights, n=self._counters)
        return pack(w=self.weights, m=self.first_moments, v=self.second_moments, n=self._counters)

    @property
    def _counters(self) -> NamedTensors:
        counters = {"step": torch.tensor(self.step), "ema_updates": torch.tensor(self.ema_updates)}
        if self.moment_updates not in (None, self.step):
            counters["moment_updates"] = torch.tensor(self.moment_updates)
        return counters

    @staticmethod
    def from_bytes(data: bytes, masks: Mapping[str, Tensor] | None = None) -> TrainState:
        """What `to_bytes` made with these masks, or `start_to_bytes`: its EMA then starts from the weights."""
        groups = unpack(data)
        counters = groups.pop("n")
        step = int(counters["step"])
        updates = int(counters.get("moment_updates", step))
        full = {group: scattered(values, masks or {}) for group, values in groups.items()}
        first, second = (full.get(name) or _zeros_like(full["w"]) for name in ("m", "v"))
        ema = full.get("ema") or {name: value.clone() for name, value in full["w"].items()}
        return TrainState(step, full["w"], first, second, ema, int(counters["ema_updates"]), updates)


def _zeros_like(values: NamedTensors) -> NamedTensors:
    return {name: torch.zeros_like(value) for name, value in values.items()}


def learning_rate_at(train: TrainSpec, step: int) -> float:
    """Learning rate of step `step`: linear warm-up, then constant or a cosine down to 5 % at `train.steps`."""
    warm_up = min(1.0, (step + 1) / (train.warmup_steps + 1))
    if train.schedule == "constant":
        return train.learning_rate * warm_up
    after = max(0, step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    cosine = COSINE_FLOOR + (1 - COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, after)))
    return train.learning_rate * warm_up * cosine


def ema_decay_at(train: TrainSpec, num_updates: int) -> float:
    """EMA decay after `num_updates` updates, ramped as (1 + k) / (10 + k): a short run forgets where it started."""
    return min(train.ema_decay, (1 + num_updates) / (10 + num_updates))


def noise_schedule(beta_schedule: str) -> DDPMScheduler:
    """The forward process q(x_t | x_0) (Ho et al. 2020, arXiv 2006.11239, eq. 4)."""
    return DDPMScheduler(num_train_timesteps=NUM_TIMESTEPS, beta_schedule=beta_schedule)


@dataclass(frozen=True)
class Recipe:
    """What decides every step of a training, beside the weights it starts from and the images."""

    train: TrainSpec
    compute: Compute
    seed: int  # orders batches, noise and timesteps
    flip: bool = False
    masks: Mapping[str, Tensor] = field(default_factory=dict)  # parameter name -> boolean tensor, True where a weight is kept
    learning_rate: Callable[[TrainSpec, int], float] = learning_rate_at


class Trainer:
    """A model on its device, its optimizer and its mask; `run_step()` trains one step and holds the mask."""

    def __init__(self, model: nn.Module, images_NCHW: Tensor, recipe: Recipe, state: TrainState) -> None:
        """`images_NCHW`: uint8. Weights and moments of `state` obey the recipe's masks."""
        self.recipe, train, masks = recipe, recipe.train, recipe.masks
        self.device = device = torch.device(recipe.compute.device)
        self.model = model.to(device).to(memory_format=recipe.compute.layout).train()
        self._loss_of = loss_function(recipe.compute)
        self.images_NCHW = images_NCHW.to(device)
        self.alpha_bars_T = noise_schedule(train.beta_schedule).alphas_cumprod.to(device)
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters: list[Tensor] = [parameter for _, parameter in model.named_parameters()]
        self.masked: list[Tensor] = [p for name, p in model.named_parameters() if name in masks]
        self.masks: list[Tensor] = [_like(p, masks[name]) for name, p in model.named_parameters() if name in masks]
        kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
        betas = (train.betas[0], train.betas[1])
        self.optimizer = kind(self.parameters, lr=train.learning_rate, betas=betas, weight_decay=train.weight_decay, fused=True)
        self.load(state)

    def load(self, state: TrainState) -> None:
        self.step, self.ema_updates = state.step, state.ema_updates
        self.moment_updates = state.step if state.moment_updates is None else state.moment_updates
        for name, parameter in zip(self.names, self.parameters, strict=True):
            parameter.data.copy_(state.weights[name])
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.moment_updates), device=self.device),  # Adam's bias correction counts it
                "exp_avg": _like(parameter, state.first_moments[name]),
                "exp_avg_sq": _like(parameter, state.second_moments[name]),
            }
        self.ema = [_like(p, state.ema[name]) for name, p in zip(self.names, self.parameters, strict=True)]

    def state(self) -> TrainState:
        """A copy of where training stands."""
        return self._state_of([on_host(tensor) for tensor in self._tensors], self._counters)

    def snapshot(self) -> Callable[[], TrainState]:
        """The same, taken now and on the host when it is called: training may go on meanwhile."""
        copies, counters = to_host(self._tensors), self._counters
        return lambda: self._state_of(copies(), counters)

    @property
    def _tensors(self) -> list[Tensor]:
        moments = [self.optimizer.state[parameter] for parameter in self.parameters]
        return [*self.parameters, *(m["exp_avg"] for m in moments), *(m["exp_avg_sq"] for m in moments), *self.ema]

    @property
    def _counters(self) -> tuple[int, int, int]:
        return self.step, self.ema_updates, self.moment_updates

    def _state_of(self, tensors: list[Tensor], counters: tuple[int, int, int]) -> TrainState:
        num, (step, ema_updates, moment_updates) = len(self.names), counters
        weights, first, second, ema = (dict(zip(self.names, tensors[i * num : (i + 1) * num], strict=True)) for i in range(4))
        return TrainState(step, weights, first, second, ema, ema_updates, moment_updates)

    def run_step(self) -> Tensor:
        """One step; returns the loss, on the device. Pruned weights, moments and EMA are zero before and after."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self.recipe.train, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(self.step)
        torch.autograd.backward(loss)
        if self.masked:  # before clipping: pruned coordinates would inflate the norm, 100x at 99 % sparsity
            _multiply([p.grad for p in self.masked if p.grad is not None], self.masks)
        if self.recipe.train.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.train.gradient_clip)
        self.optimizer.step()
        with torch.no_grad():
            if self.masked:
                _multiply(self.masked, self.masks)
            torch._foreach_lerp_(self.ema, self.parameters, 1 - ema_decay_at(self.recipe.train, self.ema_updates))
        self.step, self.ema_updates, self.moment_updates = self.step + 1, self.ema_updates + 1, self.moment_updates + 1
        return loss.detach()

    def gradient(self, steps: Sequence[int]) -> NamedTensors:
        """Mean gradient of the loss over the batches of `steps` at the present weights, float64, on the CPU. Trains nothing."""
        total = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in self.parameters]
        for step in steps:
            torch._foreach_add_(total, [g.double() for g in torch.autograd.grad(self._loss(step), self.parameters)])
        return {name: (value / len(steps)).cpu() for name, value in zip(self.names, total, strict=True)}

    def _loss(self, step: int) -> Tensor:
        """The loss on the batch of step `step`."""
        seed, batch_size = self.recipe.seed, self.recipe.train.batch_size
        draw = generator(seed, Draw.STEP, step, self.device)
        seed_dropout(seed, step, self.device)
        indices = batch_indices(seed, step, batch_size, len(self.images_NCHW), self.device)
        images_BCHW = self.images_NCHW.index_select(0, indices)
        if self.recipe.flip:
            images_BCHW = flipped_where(torch.rand(batch_size, generator=draw, device=self.device) < 0.5, images_BCHW)
        x0_BCHW = to_float(images_BCHW)
        t_B = torch.randint(NUM_TIMESTEPS, (len(x0_BCHW),), generator=draw, device=self.device)
        noise_BCHW = torch.randn(x0_BCHW.shape, generator=draw, device=self.device)
        x_t_BCHW = add_noise(x0_BCHW, noise_BCHW, self.alpha_bars_T[t_B])
        layout = self.recipe.compute.layout
        return self._loss_of(self.model, x_t_BCHW.contiguous(memory_format=layout), t_B, noise_BCHW)


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy of a value with the device, type and strides of a parameter: what is done to all at once wants them alike."""
    return torch.empty_like(parameter).copy_(value).detach()


def _multiply(values: list[Tensor], masks: list[Tensor]) -> None:
    """values *= masks, in one launch."""
    torch._foreach_mul_(values, masks)


def add_noise(x0_BCHW: Tensor, noise_BCHW: Tensor, alpha_bar_B: Tensor) -> Tensor:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (Ho et al. 2020, eq. 4)."""
    signal_B111 = alpha_bar_B.sqrt()[:, None, None, None]
    sigma_B111 = (1 - alpha_bar_B).sqrt()[:, None, None, None]
    return signal_B111 * x0_BCHW + sigma_B111 * noise_BCHW


def run(
    trainer: Trainer, stop: int, *, save: Callable[[bytes], None], progress: Callable[[int, float], None] | None = None
) -> TrainState:
    """Train up to step `stop`, calling `save` with the whole state every `checkpoint_every` steps; of a GPU, from a thread.

    Raises `Diverged`, naming the first step whose loss is not finite, before such a state is saved; `Preempted` after
    a notice to leave, with the state of that step saved.
    """
    with preemption.listening(), Checkpoints(save, in_background=trainer.device.type == "cuda") as checkpoints:
        _run(trainer, stop, checkpoints, progress)
    state = trainer.state()
    for name, value in state.weights.items():
        if not bool(torch.isfinite(value).all()):
            raise Diverged(f"training diverged: {name} is not finite after step {stop}; a smaller train.learning_rate may help")
    return state


def _run(trainer: Trainer, stop: int, checkpoints: Checkpoints, progress: Callable[[int, float], None] | None) -> None:
    first, losses = trainer.step, []
    while trainer.step < stop:
        losses.append(trainer.run_step())
        notice = preemption.notice()
        at_checkpoint = notice is not None or trainer.step % trainer.recipe.train.checkpoint_every == 0
        if at_checkpoint or trainer.step == stop:
            _check_finite(torch.stack(losses), first)
            if progress is not None:
                progress(trainer.step, float(torch.stack(losses).mean()))
            first, losses = trainer.step, []
        if at_checkpoint and trainer.step < stop:
            checkpoints.write(_bytes_of(trainer.snapshot(), trainer.recipe.masks))
            if notice is not None:
                checkpoints.wait()
                raise Preempted(f"left at step {trainer.step}: {notice}")


def _bytes_of(snapshot: Callable[[], TrainState], masks: Mapping[str, Tensor]) -> Callable[[], bytes]:
    return lambda: snapshot().to_bytes(masks)


def _check_finite(losses: Tensor, first: int) -> None:
    bad = torch.nonzero(~torch.isfinite(losses)).flatten().tolist()
    if bad:
        value = float(losses[bad[0]])
        raise Diverged(
            f"training diverged: the loss is {value} at step {first + bad[0]}; a smaller train.learning_rate may help"
        )
