"""A transformers encoder made safe to differentiate twice, and the loss of one task as a function of its parameters.

`Backbone` is the settings; `Network` is the loaded model as pure functions of a dictionary of parameters; `Inner` binds
it to one episode. Parameters are never written into the model: adapted ones are passed along.

Texts are packed several to a row where the model allows (it is tried when the model loads): positions start anew with
each text and a block-diagonal mask keeps texts apart, so little work is spent on padding.
"""

import importlib.util
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny
from torch import Tensor, nn
from torch.func import functional_call

from raymeta.component import Section
from raymeta.episodes import Episode, Examples
from raymeta.errors import UserError, did_you_mean, expanded, first_line
from raymeta.heads import Head

Params = dict[str, Tensor]


class Last(Section):
    """The last `last` layers adapt, and the head."""

    last: int = Field(ge=1)
    """How many layers."""


Adapt = Literal["all", "head"] | Last


class Backbone(Section):
    """The pretrained encoder, what of it adapts to a task, and the head."""

    name: str
    """A hub id, a local folder, or `package:NAME/PATH`: a folder inside an installed Python package."""
    adapt: Adapt = "all"
    """What the inner loop changes: `all`, `head` (ANIL), or `{last: n}` layers and the head."""
    head: SerializeAsAny[Head] = Field(default_factory=lambda: Head.model_validate("prototype"))
    """Where a task's output layer starts: `prototype` (ProtoMAML), `zero`, `learned`."""
    pooling: Literal["auto", "mean", "first"] = "auto"
    """How token states become a text's: their mean, or the first token's; `auto`: as the checkpoint was trained
    (sentence-transformers' `1_Pooling/config.json`), else the mean."""
    max_length: int = Field(128, ge=8)
    """Tokens a text, special tokens included; longer ones are cut, and their number is printed."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in the encoder while training, in inner and outer loop; seeded by episode and step."""
    trust_remote_code: bool = False
    """Whether code that comes with a checkpoint may run."""

    def path(self) -> str:
        """The folder or hub id that `name` stands for; raises UserError where a package or folder is missing."""
        name = expanded(self.name, "model.name")
        if name.startswith("package:"):
            name = _inside_package(name.removeprefix("package:"))
        elif (name.startswith(("/", ".")) or name.count("/") > 1) and not Path(name).is_dir():
            raise UserError(f"model.name: there is no folder {name!r}; give a folder with a config.json, or a hub id")
        if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
            raise UserError(f"model.name: the folder {name!r} has no config.json; give one that save_pretrained wrote")
        return name

    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer; raises UserError where it cannot be loaded."""
        from transformers import AutoTokenizer

        path = self.path()
        found = _loaded(
            f"the tokenizer of {self.name!r}",
            lambda: AutoTokenizer.from_pretrained(path, use_fast=True, clean_up_tokenization_spaces=False),
        )
        if len(found) <= len(found.all_special_ids):  # what transformers makes up where a tokenizer's files are missing
            raise UserError(
                f"model.name: {self.name!r} has no tokenizer; put its files (tokenizer.json) beside config.json"
            )
        return found

    def load(self, outputs: int, seed: int = 0, second_order: bool = True) -> "Network":
        """The model, ready to adapt; `outputs` is the size of the largest head."""
        from transformers import AutoConfig, AutoModel

        path = self.path()
        extra = {"trust_remote_code": self.trust_remote_code}
        config = _loaded(f"the model {self.name!r}", lambda: AutoConfig.from_pretrained(path, **extra))
        for key in (
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "dropout",
            "attention_dropout",
            "resid_pdrop",
            "embd_pdrop",
            "attn_pdrop",
        ):
            if hasattr(config, key):
                setattr(config, key, self.dropout)
        attention = "eager" if second_order else "sdpa"
        keywords = {**extra, "config": config, "attn_implementation": attention, "dtype": torch.float32}
        try:
            module = _loaded(
                f"the model {self.name!r}", lambda: AutoModel.from_pretrained(path, add_pooling_layer=False, **keywords)
            )
        except TypeError:  # not every architecture has a pooler to leave out
            module = _loaded(f"the model {self.name!r}", lambda: AutoModel.from_pretrained(path, **keywords))
        return Network(self, module, outputs, seed, self._pooling(path))

    def _pooling(self, path: str) -> str:
        if self.pooling != "auto":
            return self.pooling
        settings = Path(path) / "1_Pooling" / "config.json"
        if settings.is_file() and '"pooling_mode_cls_token": true' in settings.read_text(encoding="utf-8"):
            return "first"
        return "mean"


def _inside_package(place: str) -> str:
    package, _, inner = place.partition("/")
    package = package.replace("-", "_")
    if not package.isidentifier():
        raise UserError(f"model.name: 'package:{place}' names no package; write package:NAME/PATH")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model.name: package {package!r} is not installed here; install it (pip install {package.replace('_', '-')}), "
            "or name a local folder or a hub id"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / inner
    if not folder.is_dir():
        there = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
        raise UserError(f"model.name: package {package!r} has no folder {inner!r}{did_you_mean(inner, there)}")
    return str(folder)


def _loaded(what: str, load: Any) -> Any:
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        return load()
    except UserError:
        raise
    except Exception as error:  # damaged files make each library raise kinds of its own
        if isinstance(error, TypeError) and "add_pooling_layer" in str(error):
            raise
        raise UserError(
            f"model.name: {what} could not be loaded: {first_line(error)}. Give a folder with config.json, weights and tokenizer, "
            "a `package:NAME/PATH`, or a hub id (with a network, or with the files in the hub's cache)"
        ) from error


@dataclass(frozen=True)
class Layout:
    """Where each token of some Examples stands in a batch of rows.

    ids, positions: int64 [row, place]; mask: additive float [row, 1, place, place] when packed, int64 [row, place] when
    padded; where: int64 [token], the flat place of each token in the order of the Examples.
    """

    ids: Tensor
    positions: Tensor | None
    mask: Tensor
    where: Tensor


def packed(ids: Tensor, lengths: Tensor, dtype: torch.dtype, room: int = 128) -> Layout:
    """Texts laid several to a row of about `room` places (first fit, longest first), kept apart by a mask."""
    sizes = lengths.tolist()
    width = max(max(sizes), min(room, sum(sizes)))
    free: list[int] = []
    place = [(0, 0)] * len(sizes)
    for text in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((r for r, f in enumerate(free) if f >= sizes[text]), None)
        if row is None:
            row = len(free)
            free.append(width)
        place[text] = (row, width - free[row])
        free[row] -= sizes[text]
    width -= min(free)
    rows = len(free)
    length = lengths.cpu().numpy()
    first = np.array([row * width + start for row, start in place], dtype=np.int64)
    inside = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    where = np.repeat(first, length) + inside
    flat_ids, positions, owner = (np.zeros(rows * width, dtype=np.int64) for _ in range(3))
    flat_ids[where] = ids.cpu().numpy()
    positions[where] = inside
    owner[where] = np.repeat(np.arange(1, len(sizes) + 1), length)
    owner = owner.reshape(rows, width)
    apart = torch.from_numpy(owner[:, :, None] != owner[:, None, :])
    mask = torch.zeros(apart.shape, dtype=dtype).masked_fill_(apart, torch.finfo(dtype).min).unsqueeze(1)
    there = ids.device
    tokens, places = (torch.from_numpy(a.reshape(rows, width)).to(there) for a in (flat_ids, positions))
    return Layout(tokens, places, mask.to(there), torch.from_numpy(where).to(there))


def padded(ids: Tensor, lengths: Tensor) -> Layout:
    """One text a row, padded to the longest."""
    width = int(lengths.max())
    length = lengths.cpu().numpy()
    inside = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    where = torch.from_numpy(np.repeat(np.arange(len(length)) * width, length) + inside).to(ids.device)
    flat = ids.new_zeros(len(length) * width).index_copy(0, where, ids)
    mask = ids.new_zeros(len(length) * width).index_fill(0, where, 1)
    return Layout(flat.view(-1, width), None, mask.view(-1, width), where)


class Network:
    """A loaded encoder as pure functions of its parameters."""

    def __init__(self, backbone: Backbone, module: nn.Module, outputs: int, seed: int, pooling: str) -> None:
        self.backbone, self.module, self.head, self.pooling = backbone, module, backbone.head, pooling
        self.outputs = outputs
        module.requires_grad_(False)
        module.eval()
        for layer in module.modules():
            if isinstance(layer, nn.Embedding):
                layer.padding_idx = None  # else the gradient of that row would be dropped
        if getattr(module, "is_activation_checkpointing", False):
            raise UserError(
                "model: gradient checkpointing inside the model recomputes with the wrong parameters; turn it off"
            )
        tokens = module.get_input_embeddings()  # type: ignore[operator]
        self.embedding = next(n for n, p in module.named_parameters() if p is tokens.weight)
        self.names = [n for n, _ in module.named_parameters()]
        self.adapted = self._adapted(backbone.adapt)
        random = torch.Generator().manual_seed(seed)
        self._head_params = backbone.head.params(outputs, module.config.hidden_size, random)  # type: ignore[union-attr, arg-type]
        self.packs = self._can_pack()

    def params(self) -> Params:
        """The meta-parameters as loaded: the encoder's and the head's, by name; views of the model's own tensors."""
        return {**{n: p.detach() for n, p in self.module.named_parameters()}, **self._head_params}

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Network":
        """Moves the model (and its head's parameters) to `device`, and to `dtype` if given."""
        self.module.to(device=device, dtype=dtype)
        self._head_params = {n: p.to(device=device, dtype=dtype) for n, p in self._head_params.items()}
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the parameters."""
        return next(self.module.parameters()).dtype

    def layers(self) -> list[str]:
        """Names of the encoder's layers, lowest first."""
        count = getattr(self.module.config, "num_hidden_layers", None)
        for name, child in self.module.named_modules():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return [f"{name}.{i}" for i in range(len(child))]
        raise UserError(
            f"model.adapt: no stack of {count} layers was found in {type(self.module).__name__}; use all or head"
        )

    def _adapted(self, adapt: Adapt) -> frozenset[str]:
        if adapt == "all":
            return frozenset(self.names)
        if adapt == "head":
            return frozenset()
        layers = self.layers()
        if adapt.last > len(layers):
            raise UserError(
                f"model.adapt.last: {adapt.last} layers were asked for, but the model has {len(layers)}; use all"
            )
        chosen = tuple(f"{name}." for name in layers[-adapt.last :])
        return frozenset(n for n in self.names if n.startswith(chosen))

    def layout(self, ids: Tensor, lengths: Tensor) -> Layout:
        """Rows for texts laid end to end: packed where the model can, else padded."""
        return packed(ids, lengths, self.dtype) if self.packs else padded(ids, lengths)

    def states(self, params: Mapping[str, Tensor], layout: Layout, seed: int | None = None) -> Tensor:
        """Last hidden state of each token, [token, hidden]; `layout.ids` index rows of `params[self.embedding]`.

        `seed`: with dropout on, what its masks are drawn from; None: no dropout.
        """
        embedded = F.embedding(layout.ids, params[self.embedding])
        keywords: dict[str, Tensor] = {"inputs_embeds": embedded, "attention_mask": layout.mask}
        if layout.positions is not None:
            keywords["position_ids"] = layout.positions
        own = {n: p for n, p in params.items() if n != self.embedding and not n.startswith("head.")}
        if seed is None or self.backbone.dropout == 0:
            out = functional_call(self.module, own, args=(), kwargs=keywords)
        else:
            devices = [embedded.device] if embedded.is_cuda else []
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)
                self.module.train()
                try:
                    out = functional_call(self.module, own, args=(), kwargs=keywords)
                finally:
                    self.module.eval()
        hidden = out.last_hidden_state
        flat: Tensor = hidden.reshape(-1, hidden.shape[-1]).index_select(0, layout.where)
        return flat

    def _can_pack(self) -> bool:
        """Whether packed and padded rows give this model's texts the same states: tried, not guessed."""
        if "position_ids" not in inspect.signature(self.module.forward).parameters:
            return False
        rows = self.module.get_parameter(self.embedding).shape[0]
        lengths = torch.tensor([5, 3, 4])
        ids = torch.randint(rows, (12,), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            params = self.params()
            plain = self.states(params, padded(ids, lengths))
            try:
                dense = self.states(params, packed(ids, lengths, self.dtype))
            except (TypeError, ValueError, RuntimeError, IndexError):
                return False
        return bool(torch.allclose(plain, dense, rtol=1e-3, atol=1e-4))

    def inner(self, tasks: "TaskLoss", episode: Episode, seed: int | None = None) -> "Inner":
        """The loss of `episode` as a function of parameters; `seed` seeds dropout (None: no dropout)."""
        return Inner(self, tasks, episode, seed)


class TaskLoss(Protocol):
    """What `Inner` asks of a task kind; `raymeta.tasks.Tasks` fulfils it."""

    def outputs_for(self, ways: int) -> int:
        """Outputs of a head for `ways` classes."""

    def features(self, states: Tensor, examples: Examples, pooling: str) -> Tensor:
        """[token, hidden] -> [item, hidden]."""

    def targets(self, examples: Examples) -> Tensor:
        """int64 [item]."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[item, output], [item] -> scalar."""


@dataclass(frozen=True)
class Fast:
    """A task's adapted parameters after some inner steps.

    encoder: the adapted part of the encoder, by name; head: `weight` and `bias`; rest: parameters that do not adapt;
    features: the support set's features under these parameters, where they are known already.
    """

    encoder: Params
    head: Params
    rest: Params
    steps: int = 0
    features: Tensor | None = field(default=None, repr=False)


class Inner:
    """The support and query loss of one episode as a function of adapted parameters.

    Works on *local* parameters: all of the model's, but of the token embedding only the rows that occur in the episode
    (`rows`), which is exact for gradient steps and spares the other tens of thousands.
    """

    def __init__(self, network: Network, tasks: TaskLoss, episode: Episode, seed: int | None) -> None:
        self.network, self.tasks, self.episode, self.seed = network, tasks, episode, seed
        both = torch.cat([episode.support.ids, episode.query.ids])
        self.rows, local = torch.unique(both, return_inverse=True)
        cut = len(episode.support.ids)
        self._support = network.layout(local[:cut], episode.support.lengths)
        self._query = network.layout(local[cut:], episode.query.lengths)
        self._targets = tasks.targets(episode.support)
        self._outputs = tasks.outputs_for(len(episode.classes))

    def localised(self, params: Params) -> Params:
        """`params` with the token embedding cut to the rows that occur, [row, hidden]."""
        return {**params, self.network.embedding: params[self.network.embedding].index_select(0, self.rows)}

    def start(self, local: Params) -> Fast:
        """Adapted parameters before the first step; the head is set from the support set where it asks for it.

        Where gradients are enabled and `local` wants them, all is differentiable in `local`.
        """
        encoder = {n: _leaf(p) for n, p in local.items() if n in self.network.adapted}
        rest = {n: p for n, p in local.items() if n not in self.network.adapted}
        outside = torch.is_grad_enabled()
        with torch.enable_grad():
            features = self._features(encoder, rest, self._support, self.episode.support, 0)
        with torch.set_grad_enabled(outside):
            shaped = self.network.head.shaped(features, rest)
            head = self.network.head.start(local, shaped, self._targets, self._outputs)
        return Fast(encoder, {n: _leaf(w) for n, w in head.items()}, rest, 0, features)

    def step(self, fast: Fast, rates: "Rates", l2: float = 0.0, detach: bool = False) -> Fast:
        """One gradient step on the support loss plus `l2` times the squared norm of what adapts.

        `rates`: step size, one for all or by name. With `detach` (or where gradients are off) the step's gradient is a
        constant: the result still depends on `fast`, but not through the gradient.
        """
        outside = torch.is_grad_enabled()
        keep = outside and not detach
        first = fast.features is not None  # the graph from `encoder` to the features is there, and may be needed again
        encoder = fast.encoder if keep or first else {n: p.detach().requires_grad_() for n, p in fast.encoder.items()}
        head = fast.head if keep else {n: w.detach().requires_grad_() for n, w in fast.head.items()}
        with torch.enable_grad():
            features = fast.features
            if features is None:
                features = self._features(encoder, fast.rest, self._support, self.episode.support, fast.steps)
            # a node of its own, so that the head's weights, made from the same features, count as independent of them
            item = features.view_as(features) if keep else features.detach().requires_grad_()
            loss = self._loss(head, item, fast.rest)
            ours = torch.autograd.grad(loss, [item, *head.values()], create_graph=keep)
            theirs: tuple[Tensor | None, ...] = ()
            if encoder:
                theirs = torch.autograd.grad(
                    features,
                    list(encoder.values()),
                    ours[0],
                    create_graph=keep,
                    retain_graph=keep or (first and outside),
                    allow_unused=True,
                )
        names = [*encoder, *(f"head.{n}" for n in head)]
        olds = [*fast.encoder.values(), *fast.head.values()]
        moved = {}
        for name, old, grad in zip(names, olds, (*theirs, *ours[1:]), strict=True):
            if l2:
                pull = 2 * l2 * (old if keep else old.detach())
                grad = pull if grad is None else grad + pull
            rate = rates if isinstance(rates, (int, float)) else rates[name]
            moved[name] = old if grad is None else old - rate * grad
        at = len(encoder)
        return Fast(
            dict(zip(encoder, list(moved.values())[:at], strict=True)),
            dict(zip(head, list(moved.values())[at:], strict=True)),
            fast.rest,
            fast.steps + 1,
            None if encoder else features,
        )

    def support_loss(self, fast: Fast) -> Tensor:
        """Mean loss over the support items, a scalar."""
        features = fast.features
        if features is None:
            features = self._features(fast.encoder, fast.rest, self._support, self.episode.support, fast.steps)
        return self._loss(fast.head, features, fast.rest)

    def query_outputs(self, fast: Fast) -> Tensor:
        """Logits of the query items, [item, output]."""
        features = self._features(fast.encoder, fast.rest, self._query, self.episode.query, -1)
        return self.network.head.logits(fast.head, self.network.head.shaped(features, fast.rest))

    def query_loss(self, outputs: Tensor) -> Tensor:
        """Mean loss over the query items given their logits, a scalar."""
        return self.tasks.loss(outputs, self.tasks.targets(self.episode.query))

    def _loss(self, head: Params, features: Tensor, rest: Params) -> Tensor:
        logits = self.network.head.logits(head, self.network.head.shaped(features, rest))
        return self.tasks.loss(logits, self._targets)

    def _features(self, encoder: Params, rest: Params, layout: Layout, examples: Examples, phase: int) -> Tensor:
        seed = None if self.seed is None else hash((self.seed, self.episode.number, phase)) & 0x7FFF_FFFF_FFFF_FFFF
        states = self.network.states({**rest, **encoder}, layout, seed)
        return self.tasks.features(states, examples, self.network.pooling)


Rates = float | Mapping[str, float | Tensor]


def _leaf(tensor: Tensor) -> Tensor:
    """The tensor itself where a gradient can reach it, else a detached one that starts a graph."""
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_()
