"""A loaded transformers model as a pure function of its parameters, which are passed along and never written into it.

What a model can do (pack several texts into a row, serve several tasks at once, start from a middle layer) is tried when it
loads and compared with its plain forward (`raymeta.trials`), not guessed from its name.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from transformers import GenerationConfig

from raymeta import trials
from raymeta.adapt import PROMPT, Prompt, chosen
from raymeta.episodes import Examples
from raymeta.errors import UserError
from raymeta.layers import Params, TaskLinear, Weights
from raymeta.layout import Layout, packed, padded
from raymeta.reading import Read, answered, continued, plain

if TYPE_CHECKING:
    from raymeta.model import Backbone

_LAST_NORMS = ("ln_f", "norm", "final_norm", "final_layer_norm", "final_layernorm")
_COUNTS = ("num_hidden_layers", "num_decoder_layers", "decoder_layers")

_ATTENTION = 0.4
"""What a place's attention to one other place costs, times the hidden size, as a share of the place's other work: products,
and the passes over each head's scores, which weigh more."""


@dataclass(frozen=True)
class Middle:
    """Where the upper part of a model starts.

    tensors: the hidden states [row, place, hidden], then whatever else of what the layers are given may have a gradient (an
    encoder's states, say); `given` puts them back among the rest.
    """

    tensors: tuple[Tensor, ...]
    _leaves: list[Any]
    _spec: TreeSpec

    @classmethod
    def of(cls, hidden: Tensor, args: tuple[Any, ...], keywords: dict[str, Any]) -> "Middle":
        """What a layer is called with."""
        leaves, spec = tree_flatten((args, keywords))
        moving = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        fixed = [None if isinstance(leaf, Tensor) and leaf.requires_grad else leaf for leaf in leaves]
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        return cls((hidden, *moving), [fixed, places], spec)

    def given(self, tensors: Sequence[Tensor]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
        """Hidden states, arguments and keywords, with `tensors` in the place of those that were caught."""
        fixed, places = self._leaves
        leaves = list(fixed)
        for place, tensor in zip(places, tensors[1:], strict=True):
            leaves[place] = tensor
        args, keywords = tree_unflatten(leaves, self._spec)
        return tensors[0], args, keywords


@dataclass(frozen=True)
class Output:
    """A language model's own output layer: the names of its parameters, and by what the states are scaled before it."""

    weight: str
    bias: str | None
    scale: float = 1.0


class Network:
    """A loaded model as a pure function of its parameters.

    base: the model's parameters as loaded, by name; embedding: the name of the token embedding; adapted: names of the
    parameters that the inner loop changes, the head's left out; trained: those that the outer loop moves; output: where it
    writes texts, its own output layer; cut: the lowest layer that adapts, if what is below can be computed once for all
    inner steps, else None; lower: names of the parameters below it.
    """

    def __init__(
        self,
        backbone: "Backbone",
        module: nn.Module,
        outputs: int,
        seed: int,
        pooling: str,
        trained: str,
        slots: int = 1,
        generates: bool = False,
    ) -> None:
        self.backbone, self.head, self.pooling, self.outputs = backbone, backbone.head, pooling, outputs
        self.module = self.plain = module
        self.config = cast(Any, module.config)
        _mended(module)
        tokens = module.get_input_embeddings()  # type: ignore[operator]
        self.embedding = next(n for n, p in module.named_parameters() if p is tokens.weight)
        self.places = _places(module)
        self.base: Params = {n: p.detach() for n, p in module.named_parameters()}
        self.output = _output(module) if generates else None
        self._body, self._encoder = _parts(module, generates)
        self.stack, self.layers = self._stack()
        self.adapted = self._adapted()
        self.head_adapts = self.output is None or (
            backbone.adapt == "head" or (backbone.adapt == "all" and not self.tied)
        )
        random = torch.Generator().manual_seed(seed)
        self._extra = self.head.params(outputs, slots * self.config.hidden_size, random)
        if isinstance(backbone.adapt, Prompt):
            self._extra[PROMPT] = backbone.adapt.vectors(self.base[self.embedding], random)
        of_head = {self.output.weight, self.output.bias} if self.output and self.head_adapts else set()
        self.trained = frozenset(self.base) if trained == "all" else self.adapted | (of_head & self.base.keys())
        self.start_token = _start_token(self.config)
        self.now = Weights()
        self.position_offset = 0
        self.swapped = self.packs = self.batches = self.causal = False
        self.sdpa = bool(getattr(module, "_supports_sdpa", False))
        self.cut: int | None = None
        self.whole_upper = False
        self.lower: frozenset[str] = frozenset()
        trials.try_out(self)

    # its parameters

    def params(self) -> Params:
        """All meta-parameters as loaded: the model's, the head's and a soft prompt's, by name."""
        return {**self.base, **self._extra}

    def trainable(self) -> Params:
        """The meta-parameters that the outer loop moves."""
        return {n: p for n, p in self.params().items() if n in self.trained or n in self._extra}

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Network":
        """Moves the model and its parameters to `device`, and to `dtype` if given."""
        self.base = {n: p.to(device=device, dtype=dtype) for n, p in self.base.items()}
        self._extra = {n: p.to(device=device, dtype=dtype) for n, p in self._extra.items()}
        for name, parameter in self.plain.named_parameters():
            parameter.data = self.base[name]
        for module in {self.plain, self.module}:
            module.to(device=device, dtype=dtype)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the parameters."""
        return self.base[self.embedding].dtype

    @property
    def tied(self) -> bool:
        """Whether the output layer's matrix is the token embedding."""
        return self.output is not None and self.output.weight == self.embedding

    @property
    def whole(self) -> bool:
        """Whether the token embedding adapts as a whole, since it scores the vocabulary, too."""
        return self.tied and self.embedding in self.adapted

    @property
    def vocabulary(self) -> int:
        """How many tokens the output layer scores; 0 where there is none."""
        return 0 if self.output is None else len(self.base[self.output.weight])

    @property
    def prompt_size(self) -> int:
        """Virtual tokens before each text."""
        adapt = self.backbone.adapt
        return adapt.prompt.tokens if isinstance(adapt, Prompt) else 0

    def output_names(self) -> dict[str, str]:
        """Local name -> name of the output layer's parameters, where they stand apart from the embedding."""
        if self.output is None:
            return {}
        names = {"output.weight": None if self.whole else self.output.weight, "output.bias": self.output.bias}
        return {local: name for local, name in names.items() if name}

    def head_name(self, leaf: str) -> str:
        """The name among all parameters of a head's `weight` or `bias`: of the output layer, where that is the head."""
        if self.output is None:
            return f"head.{leaf}"
        name = self.output.weight if leaf == "weight" else self.output.bias
        assert name is not None
        return name

    def linears(self) -> dict[str, tuple[int, int]]:
        """Linear layers whose weight adapts and is used once in a forward: name -> (in, out)."""
        return {
            name: (
                self.base[f"{name}.weight"].shape[0 if layer.transposed else 1],
                self.base[f"{name}.weight"].shape[1 if layer.transposed else 0],
            )
            for name, layer in self.module.named_modules()
            if isinstance(layer, TaskLinear) and f"{name}.weight" in self.adapted and name not in self.now.repeated
        }

    def transposed(self, name: str) -> bool:
        """Whether the weight of a swapped linear layer is [in, out], as GPT-2's."""
        return bool(getattr(self.module.get_submodule(name), "transposed", False))

    def _adapted(self) -> frozenset[str]:
        adapt, output = self.backbone.adapt, self.output
        of_output = {output.weight, output.bias} if output else set()
        if self.tied and adapt == "head":
            raise UserError(
                "model.adapt: the output layer of this model is its token embedding, so that head would change what the "
                "model reads, too; use {last: n}, {lora: {}}, {prompt: {}} or all"
            )
        if self.tied and adapt == "all":
            of_output.discard(self.embedding)
        return chosen(adapt, [n for n in self.base if n not in of_output], self.stack, self.layers)

    # what it consists of

    @property
    def body(self) -> nn.Module:
        """What turns embedded tokens into states: the decoder, where the model has one."""
        return self.module.get_submodule(self._body)

    @property
    def encoder(self) -> nn.Module | None:
        """The encoder beside a decoder."""
        return None if self._encoder is None else self.module.get_submodule(self._encoder)

    @property
    def body_prefix(self) -> str:
        """How the names of the body's parameters start."""
        return f"{self._body}." if self._body else ""

    def _stack(self) -> tuple[str, int]:
        """Name and number of the body's layers."""
        counts = {getattr(self.config, name, None) for name in _COUNTS}
        for name, child in self.body.named_modules(prefix=self._body):
            if isinstance(child, nn.ModuleList) and len(child) in counts:
                return name, len(child)
        raise UserError(f"model.name: no stack of layers was found in {type(self.module).__name__}")

    def stacked(self) -> nn.ModuleList:
        """The body's layers, lowest first."""
        found = self.module.get_submodule(self.stack)
        assert isinstance(found, nn.ModuleList)
        return found

    def last_norm(self) -> str | None:
        """Name of the norm that follows the last layer, where there is one."""
        parent = self.stack.rpartition(".")[0]
        owner = self.module.get_submodule(parent)
        found = next((n for n in _LAST_NORMS if isinstance(getattr(owner, n, None), nn.Module)), None)
        return None if found is None else f"{parent}.{found}" if parent else found

    # what it reads

    def read(self, examples: Examples) -> Read:
        """What it is fed for these examples, ids being tokens."""
        if self.output is None:
            return plain(examples)
        return continued(examples) if self.encoder is None else answered(examples, self.start_token)

    def tokens(self, examples: Examples) -> int:
        """How many tokens a layer sees of these examples, at most."""
        return max(len(side.ids) for side in self.read(examples).sides())

    def layout(self, reads: Sequence[Read]) -> Layout:
        """Rows for the texts of each task: packed where the model can, else padded.

        Raises UserError where a text is longer than the model has positions.
        """
        self._check_room(reads)
        if not self.packs:
            return padded(reads)
        return self.shifted(packed(reads, self.dtype, self.causal, _ATTENTION / self.config.hidden_size))

    def shifted(self, layout: Layout) -> Layout:
        """Packed rows with positions counted as this model counts them."""
        assert layout.positions is not None
        source = None if layout.source is None else self.shifted(layout.source)
        positions = layout.positions + self.position_offset
        return Layout(layout.ids, positions, layout.mask, layout.where, layout.rows, source, layout.cross)

    def _check_room(self, reads: Sequence[Read]) -> None:
        if self.places is None:
            return
        longest = max(int(side.lengths.max()) for r in reads for side in r.sides())
        room = self.places - self.position_offset
        if longest > room:
            raise UserError(
                f"model.max_length: a text of {longest} tokens (with what is put before or behind it) is longer than the "
                f"{room} positions of {type(self.plain).__name__}; lower model.max_length"
            )

    # running it

    def states(
        self, weights: Weights, table: Tensor, layout: Layout, seed: int | None = None, twice: bool = True
    ) -> Tensor:
        """Last hidden state of each token, [token, hidden]; `table` [row, hidden] is what ids look up.

        `seed`: with dropout on, what its masks are drawn from (None: no dropout). `twice`: whether it must be
        differentiable twice (fused attention is not). Watched layers' inputs are left in `weights.seen`.
        """

        def work() -> Tensor:
            hidden: Tensor = self._read(self.body, _looked_up(table, layout), layout, self._encoded(table, layout))
            return hidden

        return self._flat(self._run(weights, layout, seed, twice, work), layout)

    def below(
        self, weights: Weights, table: Tensor, layout: Layout, seed: int | None = None, twice: bool = True
    ) -> Middle:
        """What enters the layer at `cut`; at the top, the last hidden states."""
        assert self.cut is not None

        def work() -> Middle:
            embedded, encoded = _looked_up(table, layout), self._encoded(table, layout)
            if self.whole_upper:
                return Middle.of(embedded, (encoded,), {})
            if self.cut == self.layers:
                return Middle.of(self._read(self.body, embedded, layout, encoded), (), {})
            caught: list[Middle] = []

            def catch(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
                given = dict(keywords)
                hidden = args[0] if args else given.pop("hidden_states")
                caught.append(Middle.of(hidden, args[1:], given))
                raise _Reached

            hook = self.stacked()[self.cut].register_forward_pre_hook(catch, with_kwargs=True)  # type: ignore[index]
            try:
                self._read(self.body, embedded, layout, encoded)
            except _Reached:
                pass
            finally:
                hook.remove()
            return caught[0]

        found: Middle = self._run(weights, layout, seed, twice, work)
        return found

    def above(
        self,
        weights: Weights,
        middle: Middle,
        tensors: Sequence[Tensor],
        layout: Layout,
        seed: int | None = None,
        twice: bool = True,
    ) -> Tensor:
        """Last hidden state of each token, [token, hidden], from what `below` gave, with `tensors` as its own."""
        hidden, args, keywords = middle.given(tensors)

        def work() -> Tensor:
            if self.whole_upper:
                return self._read(self.body, hidden, layout, args[0])
            at = hidden
            for layer in self.stacked()[self.cut :]:
                out = layer(at, *args, **keywords)
                at = out[0] if isinstance(out, tuple) else out
            norm = self.last_norm()
            return at if norm is None else self.module.get_submodule(norm)(at)

        return self._flat(hidden if self.cut == self.layers else self._run(weights, layout, seed, twice, work), layout)

    def _flat(self, hidden: Tensor, layout: Layout) -> Tensor:
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, layout.where).to(self.dtype)

    def _encoded(self, table: Tensor, layout: Layout) -> Tensor | None:
        """An encoder's states, [row, place, hidden]."""
        if layout.source is None:
            return None
        assert self.encoder is not None
        return self._read(self.encoder, _looked_up(table, layout.source), layout.source, None)

    def _read(self, part: nn.Module, embedded: Tensor, layout: Layout, encoded: Tensor | None) -> Tensor:
        """A part's last hidden states, [row, place, hidden]."""
        known = _known(cast(Any, type(part)))
        keywords: dict[str, Any] = {"inputs_embeds": embedded, "attention_mask": layout.mask}
        if encoded is not None:
            keywords |= {"encoder_hidden_states": encoded, "encoder_attention_mask": layout.cross}
        if layout.positions is not None and "position_ids" in known:
            keywords["position_ids"] = layout.positions
        if "use_cache" in known:
            keywords["use_cache"] = False
        return part(**keywords).last_hidden_state  # type: ignore[no-any-return]

    def _run(self, weights: Weights, layout: Layout, seed: int | None, twice: bool, work: Callable[[], Any]) -> Any:
        """What `work` gives while the model has these weights."""
        attend_by(self.module, "eager" if twice or not self.sdpa else "sdpa")
        if self.swapped:
            self.now.rows = layout.rows

            def call() -> Any:
                with self.now.given(weights):
                    return work()
        else:
            values = {n: p for n, p in weights.shared.items() if n in self.base and n != self.embedding}
            values |= {n: p.squeeze(0) for n, p in weights.own.items() if n in self.base and n != self.embedding}

            def call() -> Any:
                return with_parameters(self.module, values, work)

        with self.autocast():
            if seed is None or self.backbone.dropout == 0:
                return call()
            device = self.base[self.embedding].device
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                self.module.train()
                try:
                    return call()
                finally:
                    self.module.eval()

    def autocast(self, enabled: bool = True) -> torch.autocast:
        """Matrix products in bfloat16, where `precision` says so and `enabled`."""
        kind = self.base[self.embedding].device.type
        enabled = enabled and self.backbone.precision == "bf16"
        return torch.autocast(kind, torch.bfloat16, enabled=enabled, cache_enabled=False)


class _Reached(Exception):
    """Ends a forward at the layer from which the upper part starts."""


class _Working(nn.Module):
    """A module whose forward does what it is handed, so that functional_call can lend parameters to any work."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


def with_parameters(module: nn.Module, values: Params, work: Callable[[], Any]) -> Any:
    """What `work` gives while `module` has the parameters `values`."""
    return functional_call(_Working(module), {f"module.{n}": p for n, p in values.items()}, args=(work,))


def attend_by(module: nn.Module, way: str) -> None:
    """Sets how attention is computed: `eager` can be differentiated twice, `sdpa` is fused."""
    for part in module.modules():
        config = getattr(part, "config", None)
        if config is not None:
            config._attn_implementation = way


@lru_cache
def _known(kind: Any) -> frozenset[str]:
    """What a module's forward accepts."""
    return frozenset(inspect.signature(kind.forward).parameters)


def _looked_up(table: Tensor, layout: Layout) -> Tensor:
    return F.embedding(layout.ids, table)


def _mended(module: nn.Module) -> None:
    """Sees that nothing in a loaded module spoils gradients, and that what it writes depends on its parameters alone."""
    module.requires_grad_(False)
    module.eval()
    if getattr(module, "generation_config", None) is not None:
        module.generation_config = GenerationConfig()  # a checkpoint's own may punish repetition, say
    for layer in module.modules():
        if isinstance(layer, nn.Embedding):
            layer.padding_idx = None  # else the gradient of that row would be dropped
    if getattr(module, "is_activation_checkpointing", False):
        raise UserError(
            "model: gradient checkpointing inside the model recomputes with the wrong parameters; turn it off"
        )


def _parts(module: nn.Module, generates: bool) -> tuple[str, str | None]:
    """Names of the body, and of the encoder where there is one beside it."""
    if not generates:
        return "", None
    names = {id(child): name for name, child in module.named_modules()}
    body = names[id(module.get_decoder())]  # type: ignore[operator]
    if not getattr(module.config, "is_encoder_decoder", False):
        return body, None
    return body, names[id(module.get_encoder())]  # type: ignore[operator]


def _output(module: nn.Module) -> Output:
    layer = module.get_output_embeddings()  # type: ignore[operator]
    names = {id(p): n for n, p in module.named_parameters()}
    bias = getattr(layer, "bias", None)
    return Output(names[id(layer.weight)], None if bias is None else names[id(bias)])


def _places(module: nn.Module) -> int | None:
    """How many positions a text can have, where they are looked up in a table."""
    places = getattr(module.config, "max_position_embeddings", None)
    tokens = module.get_input_embeddings()  # type: ignore[operator]
    tables = [m for m in module.modules() if isinstance(m, nn.Embedding) and m.weight is not tokens.weight]
    return places if any(m.num_embeddings == places for m in tables) else None


def _start_token(config: Any) -> int:
    """The token that a decoder beside an encoder starts from."""
    for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id"):
        token = getattr(config, name, None)
        if token is not None:
            return int(token)
    return 0
