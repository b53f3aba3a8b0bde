"""The outer loop's optimizer: one flat vector of parameters, one of gradients, AdamW, a schedule and clipping."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raymeta.component import Section
from raymeta.errors import UserError
from raymeta.hypergradient import MetaStep
from raymeta.layers import Params


class Outer(Section):
    """How meta-parameters move."""

    steps: int = Field(500, ge=1)
    """Outer steps."""
    tasks_per_step: int = Field(4, ge=1)
    """Tasks whose meta-gradients are averaged in a step, over all workers."""
    lr: float = Field(3e-5, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices; norms, biases and heads are left alone."""
    beta2: float = Field(0.999, gt=0, lt=1)
    """Decay of the squared gradient's average."""
    eps: float = Field(1e-6, gt=0)
    """AdamW's epsilon. Large enough that parameters whose gradient is mere rounding (a key's bias) stay put, so that
    runs on different numbers of workers walk the same path."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """What the learning rate does after the warm-up: stays, or falls to 0 at the last step."""
    clip_norm: float = Field(1.0, gt=0)
    """Longest allowed meta-gradient (Euclidean norm over all parameters)."""
    train: Literal["all", "adapted"] = "all"
    """What the outer loop moves: the whole encoder, or only what adapts to a task (the rest stays as pretrained). The head's
    meta-parameters and learned rates always move."""
    rates_lr: float = Field(1e-3, gt=0)
    """Peak learning rate of learned inner step sizes; it follows the same schedule."""

    def rate(self, step: int) -> float:
        """Learning rate of outer step `step`, counted from 1."""
        if step <= self.warmup_steps:
            return self.lr * step / (self.warmup_steps + 1)
        done = (step - 1 - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        if self.schedule == "linear":
            return self.lr * (1 - done)
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * min(done, 1.0))) / 2
        return self.lr


@dataclass(frozen=True)
class OuterStep:
    """What one outer step was: its tasks, their mean query loss, the mean metric of those of each part (None: there were
    none), the gradient's norm before clipping, the rate."""

    tasks: int
    query_loss: float
    metrics: tuple[float | None, ...]
    grad_norm: float
    lr: float


class OuterLoop:
    """Meta-parameters with their gradients and optimizer state, each one flat vector; `params` are views by name."""

    def __init__(
        self, settings: Outer, params: Params, embedding: str, parts: int = 1, head_lr: float | None = None
    ) -> None:
        """parts: of how many corpora the metric of tasks is told apart; head_lr: the head's peak learning rate, if not `lr`."""
        self.settings, self.embedding = settings, embedding
        apart = head_lr is not None

        def group_of(name: str) -> int:
            return _group(name, params[name], apart)

        names = sorted(params, key=group_of)
        sizes = [params[n].numel() for n in names]
        some = params[names[0]]
        self.flat = torch.empty(sum(sizes), dtype=some.dtype, device=some.device)
        self.sums = torch.zeros(sum(sizes) + 3 * parts, dtype=some.dtype, device=some.device)
        """Sums over a step's tasks: the meta-gradient, then for each part the number of tasks, their query loss and metric."""
        self.grad, self._tail = self.sums[: -3 * parts], self.sums[-3 * parts :].view(parts, 3)
        self.params, self._grads = self._views(self.flat, names, params), self._views(self.grad, names, params)
        for name in names:
            self.params[name].copy_(params[name])
        self._parts = []
        groups = []
        start = 0
        shares = (1.0, 1.0, settings.rates_lr / settings.lr, (head_lr or settings.lr) / settings.lr)
        for group, share in enumerate(shares):
            size = sum(params[n].numel() for n in names if group_of(n) == group)
            if size:
                part = self.flat[start : start + size]
                part.grad = self.grad[start : start + size]
                self._parts.append(part)
                groups.append(
                    {"params": [part], "weight_decay": 0.0 if group else settings.weight_decay, "share": share}
                )
                start += size
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings.lr, betas=(0.9, settings.beta2), eps=settings.eps, foreach=False
        )
        self.step = 0

    @staticmethod
    def _views(flat: Tensor, names: list[str], like: Params) -> Params:
        views, start = {}, 0
        for name in names:
            size = like[name].numel()
            views[name] = flat[start : start + size].view(like[name].shape)
            start += size
        return views

    def add(self, found: MetaStep, metric: float, part: int = 0) -> bool:
        """Adds tasks' meta-gradient, and the sum of their metric, to this step's; False, and nothing added, if not finite."""
        found_all = torch.stack([found.losses.sum(), *(g.sum() for g in found.grads.values())])
        if not bool(found_all.isfinite().all()):
            return False
        self.accumulate(found.grads, found.rows, len(found.losses), float(found.losses.sum()), metric, part)
        return True

    def accumulate(
        self, grads: Params, rows: Tensor, weight: float, loss: float, metric: float = 0.0, part: int = 0
    ) -> None:
        """Adds gradients, loss and metric that are sums over `weight` tasks or items; rows: whose embedding's gradient it is."""
        for name, grad in grads.items():
            if name not in self._grads:
                continue
            if name == self.embedding:
                self._grads[name].index_add_(0, rows, grad)
            else:
                self._grads[name].add_(grad)
        self._tail[part].add_(self._tail.new_tensor([weight, loss, metric]))

    def penalise(self, l2: float, names: Iterable[str]) -> float:
        """Adds the gradient of l2 |theta|^2 over the named parameters, once for the mean of all that was added, on every worker
        alike; gives the penalty."""
        weight, squares = float(self._tail[:, 0].sum()), 0.0
        for name in names:
            self._grads[name].add_(self.params[name], alpha=2 * l2 * weight)
            squares += float(self.params[name].square().sum())
        return l2 * squares

    def hold(self, module: nn.Module) -> None:
        """Makes the module's parameters and gradients views of the flat ones: what `backward` adds is part of the step."""
        for name, parameter in module.named_parameters():
            if name in self.params:
                parameter.data, parameter.grad = self.params[name], self._grads[name]

    def counted(self, weight: int, loss: float) -> None:
        """Says that the gradient added by `backward` is a sum over `weight` items of this loss, on this worker."""
        self._tail[0].add_(self._tail.new_tensor([weight, loss, 0.0]))

    def update(self) -> "OuterStep":
        """Takes a step with the mean meta-gradient over the tasks that were added, and clears the sums.

        Raises UserError where no task had a finite gradient.
        """
        self.step += 1
        each = self._tail.tolist()
        tasks, loss = sum(n for n, _, _ in each), sum(loss for _, loss, _ in each)
        if tasks == 0:
            last = self.step * self.settings.tasks_per_step - 1
            raise UserError(
                f"step {self.step}: no task had a finite loss and gradient (episodes {last + 1 - self.settings.tasks_per_step} to {last}); "
                "lower algorithm.inner_lr or outer.lr, and start again: the run goes on from its newest checkpoint"
            )
        norm = float(self.grad.norm()) / tasks
        self.grad.mul_(min(1.0, self.settings.clip_norm / (norm + 1e-12)) / tasks)
        rate = self.settings.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.step()
        self.sums.zero_()
        metrics = tuple(metric / n if n else None for n, _, metric in each)
        return OuterStep(int(tasks), loss / tasks, metrics, norm, rate)

    def state(self) -> Params:
        """Optimizer state by name, for a checkpoint."""
        state = {}
        for i, part in enumerate(self._parts):
            for key in ("exp_avg", "exp_avg_sq"):
                kept = self.optimizer.state.get(part, {}).get(key)
                state[f"{i}.{key}"] = torch.zeros_like(part) if kept is None else kept
        return state

    def restore(self, step: int, params: Params, state: Params) -> None:
        """Goes on from a checkpoint's parameters, optimizer state and step, bit for bit."""
        self.step = step
        for name, value in params.items():
            self.params[name].copy_(value)
        for i, part in enumerate(self._parts):
            self.optimizer.state[part] = {
                "step": torch.tensor(float(step)),
                **{key: state[f"{i}.{key}"].to(part.device).clone() for key in ("exp_avg", "exp_avg_sq")},
            }


def _group(name: str, tensor: Tensor, head_apart: bool) -> int:
    """Optimizer group: 0 matrices, 1 norms, biases and heads, 2 learned rates, 3 heads that have a rate of their own."""
    if name.startswith("rates"):
        return 2
    if head_apart and name.startswith("head."):
        return 3
    return 1 if tensor.dim() < 2 or name.startswith("head.") else 0
