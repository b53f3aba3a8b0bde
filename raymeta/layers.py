"""Layers that read their weights from outside and know a task axis.

Swapped into a Hugging Face model, they let its forward serve several tasks at once, each with weights of its own, lying
side by side in the batch. A linear layer can do so in two exact ways:

materialised: each task has its own matrix, and the product is batched;
dual: an SGD inner loop's matrix is W_t = W_0 - sum_s D_s^T X_s, with X_s the layer's inputs at inner step s and D_s its
output gradients times the step size, so y = x W_0^T - sum_s (x X_s^T) D_s needs no matrix of its own: one product with
W_0 is shared by all tasks, and the rest are small.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from raymeta.products import Layer, Tape, linear, product

Params = dict[str, Tensor]
History = dict[str, tuple[Tensor, Tensor]]


@dataclass
class Weights:
    """What the swapped layers of one model read while a forward runs.

    shared: by name, used by all tasks; own: by name, [task, ...]; history: dual layer -> (inputs [task, token, in], output
    gradients times step size [task, token, out]) of earlier inner steps; watched: linear layers whose products `tape` notes
    and whose inputs [task, token, in] this forward records in `seen`; repeated: those that one forward used more than once;
    rows: of a task in this forward.
    """

    tasks: int = 1
    shared: Params = field(default_factory=dict)
    own: Params = field(default_factory=dict)
    history: History = field(default_factory=dict)
    watched: frozenset[str] = frozenset()
    seen: Params = field(default_factory=dict)
    tape: Tape = field(default_factory=Tape)
    anchor: Tensor = field(default_factory=lambda: torch.zeros(()))
    repeated: set[str] = field(default_factory=set)
    rows: int = 1

    @contextmanager
    def given(self, weights: "Weights") -> Iterator[None]:
        """These weights for the time of a forward; then none, for a graph that they hold would live until the next one."""
        for name in self._LENT:
            setattr(self, name, getattr(weights, name))
        try:
            yield
        finally:
            blank = Weights()
            for name in self._LENT:
                setattr(self, name, getattr(blank, name))

    _LENT: ClassVar = ("tasks", "shared", "own", "history", "watched", "seen", "tape", "anchor")


class _Swapped(nn.Module):
    """A layer of a model that reads its weights from `now`."""

    def __init__(self, name: str, now: Weights) -> None:
        super().__init__()
        self.name, self.now = name, now

    @property
    def weight(self) -> Tensor:
        """For model code that looks at a layer's weight (its type, say)."""
        return self._pick("weight")

    def _pick(self, leaf: str) -> Tensor:
        """The parameter: [task, ...] where each task has its own, else shared."""
        name = f"{self.name}.{leaf}"
        own = self.now.own.get(name)
        return self.now.shared[name] if own is None else own

    def is_own(self, leaf: str) -> bool:
        """Whether each task has its own."""
        return f"{self.name}.{leaf}" in self.now.own


class TaskLinear(_Swapped):
    """nn.Linear, or GPT-2's Conv1D (`transposed`: its weight is [in, out])."""

    def __init__(self, name: str, now: Weights, bias: bool, transposed: bool) -> None:
        super().__init__(name, now)
        self.bias, self.transposed = bias, transposed

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]; the leading axis holds the tasks side by side."""
        now = self.now
        if self.name in now.watched:
            return self._noted(x)
        one = now.tasks == 1
        weight = self._pick("weight")
        own_weight = self.is_own("weight")
        if own_weight and one:
            weight = weight.squeeze(0)  # not [0], whose gradient is a copy
        matrix = weight.mT if self.transposed else weight
        bias: Tensor | None = None
        fused = False
        if self.bias:
            bias = self._pick("bias")
            own_bias = self.is_own("bias")
            if own_bias and one:
                bias = bias.squeeze(0)
            fused = one or not own_bias
        if one or not own_weight:
            y = linear(x, matrix, bias if fused else None)
            if bias is not None and not fused:
                y = (y.reshape(now.tasks, -1, y.shape[-1]) + bias.unsqueeze(1)).view(y.shape)
            return y
        if bias is not None and fused:
            bias = bias.expand(now.tasks, -1)
        return linear(x.reshape(now.tasks, -1, x.shape[-1]), matrix, bias).view(*x.shape[:-1], -1)

    def _noted(self, x: Tensor) -> Tensor:
        """The same by a product that the tape notes, less what earlier inner steps took away in dual form."""
        now = self.now
        rows = x.reshape(now.tasks, -1, x.shape[-1])
        weight = self._pick("weight").detach()
        bias = self._pick("bias") if self.bias else None
        if not self.is_own("weight"):
            weight = weight.unsqueeze(0)
        if bias is not None and not self.is_own("bias"):
            bias = bias.unsqueeze(0)
        y = product(rows, bias, now.anchor, weight, Layer(self.name, self.transposed, len(weight) == 1), now.tape)
        if self.name in now.history:
            inputs, grads = now.history[self.name]
            y = torch.baddbmm(y, rows @ inputs.mT, grads.to(y.dtype), alpha=-1.0)
        if self.name in now.seen:
            now.repeated.add(self.name)
        now.seen[self.name] = rows
        return y.view(*x.shape[:-1], y.shape[-1])


class _QuickLinear(nn.Linear):
    """nn.Linear by the faster library."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class _QuickConv1D(Conv1D):  # type: ignore[misc]
    """GPT-2's layer by the faster library."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.T, self.bias)


def quicken(model: nn.Module) -> None:
    """Lets the linear layers of a model multiply by the faster library. Their names, parameters and results stay."""
    kinds = {nn.Linear: _QuickLinear, Conv1D: _QuickConv1D}
    for layer in model.modules():
        if type(layer) in kinds:
            layer.__class__ = kinds[type(layer)]


class TaskNorm(_Swapped):
    """nn.LayerNorm, its affine part outside the kernel where tasks differ."""

    def __init__(self, name: str, now: Weights, layer: nn.LayerNorm) -> None:
        super().__init__(name, now)
        self.shape, self.eps = layer.normalized_shape, layer.eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        weight, bias = self._pick("weight"), self._pick("bias")
        if self.now.tasks == 1 or not self.is_own("weight"):
            if self.is_own("weight"):
                weight, bias = weight.squeeze(0), bias.squeeze(0)
            return F.layer_norm(x, self.shape, weight, bias, self.eps)
        y = F.layer_norm(x, self.shape, None, None, self.eps).reshape(self.now.tasks, -1, x.shape[-1])
        return (y * weight.unsqueeze(1) + bias.unsqueeze(1)).view(x.shape)


class TaskRmsNorm(_Swapped):
    """The root-mean-square norm of T5 and Llama types, in float32 at least inside, as theirs."""

    def __init__(self, name: str, now: Weights, eps: float) -> None:
        super().__init__(name, now)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        weight = self._pick("weight")
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        y = (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        if self.is_own("weight"):
            return (y.reshape(self.now.tasks, -1, x.shape[-1]) * weight.unsqueeze(1)).view(x.shape)
        return y * weight


class TaskEmbedding(_Swapped):
    """nn.Embedding over positions or types: the same indices may serve all rows."""

    task: int | None = None
    """The one task that a forward is for, where indices do not tell tasks apart."""

    def forward(self, ids: Tensor) -> Tensor:
        """[row, place] or [1, place] -> [row or task, place, hidden]."""
        weight = self._pick("weight")
        if not self.is_own("weight"):
            return F.embedding(ids, weight)
        if self.now.tasks == 1:
            return F.embedding(ids, weight.squeeze(0))
        if self.task is not None:
            return F.embedding(ids, weight[self.task])
        per_row = ids.dim() == 2 and ids.shape[0] % self.now.tasks == 0 and ids.shape[0] > 1
        assert per_row, f"{self.name}: indices of shape {tuple(ids.shape)} do not tell tasks apart"
        start = torch.arange(self.now.tasks, device=ids.device) * weight.shape[1]
        offset = start.repeat_interleave(ids.shape[0] // self.now.tasks)[:, None]
        return F.embedding(ids + offset, weight.reshape(-1, weight.shape[-1]))


class TaskBias:
    """A T5 type's `compute_bias`, which makes [1, head, place, place] of an embedding of distances: one for each row where
    tasks have embeddings of their own."""

    def __init__(self, compute: Callable[..., Tensor], distances: TaskEmbedding) -> None:
        self.compute, self.distances = compute, distances

    def __call__(self, *args: Any, **keywords: Any) -> Tensor:
        """[1 or row, head, place, place]."""
        distances = self.distances
        if distances.now.tasks == 1 or not distances.is_own("weight"):
            return self.compute(*args, **keywords)
        each = []
        for task in range(distances.now.tasks):
            distances.task = task
            each.append(self.compute(*args, **keywords))
        distances.task = None
        return torch.cat(each).repeat_interleave(distances.now.rows, 0)


def swap(model: nn.Module, now: Weights, skip: str) -> bool:
    """Swaps every layer of `model` that has parameters (but `skip`, the token embedding); False if it has others.

    The model is changed only where all its parameters belong to layers that can be swapped.
    """
    new: dict[str, nn.Module] = {}
    covered: set[str] = {skip}
    for name, layer in model.named_modules():
        kind = type(layer).__name__
        if type(layer) is nn.Linear or isinstance(layer, Conv1D):
            new[name] = TaskLinear(name, now, layer.bias is not None, isinstance(layer, Conv1D))
        elif type(layer) is nn.LayerNorm and layer.elementwise_affine and layer.bias is not None:
            new[name] = TaskNorm(name, now, layer)
        elif kind == "T5LayerNorm" or (kind.endswith("RMSNorm") and hasattr(layer, "variance_epsilon")):
            new[name] = TaskRmsNorm(name, now, layer.variance_epsilon)
        elif type(layer) is nn.Embedding and f"{name}.weight" != skip:
            new[name] = TaskEmbedding(name, now)
        else:
            continue
        covered.update(f"{name}.{leaf}" for leaf, _ in layer.named_parameters(recurse=False))
    if any(name not in covered for name, _ in model.named_parameters()):
        return False
    for name, layer in new.items():
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent) if parent else model
        if isinstance(owner, (nn.ModuleList, nn.Sequential)):
            owner[int(leaf)] = layer
        else:
            setattr(owner, leaf, layer)
    for layer in model.modules():
        distances = getattr(layer, "relative_attention_bias", None)
        if isinstance(distances, TaskEmbedding) and hasattr(layer, "compute_bias"):
            layer.compute_bias = TaskBias(layer.compute_bias, distances)  # type: ignore[assignment, arg-type]
    return True
