"""A transformers encoder made safe to differentiate twice.

`Backbone` is the settings; `Network` is the loaded model as a pure function of its parameters, which are passed along and
never written into it. What a model can do (pack several texts into a row, serve several tasks at once, start from a
middle layer) is tried when it loads and compared with its plain forward, not guessed from its name.
"""

import copy
import importlib.util
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from raymeta.component import Section
from raymeta.errors import UserError, did_you_mean, expanded, first_line
from raymeta.heads import Head
from raymeta.layers import History, Params, TaskLinear, Weights, swap
from raymeta.layout import Layout, packed, padded
from raymeta.lora import Lora, injected, is_adapter

DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "dropout_rate",
    "resid_pdrop", "embd_pdrop", "attn_pdrop",
)  # fmt: skip
_LAST_NORMS = ("ln_f", "norm", "final_norm", "final_layer_norm", "final_layernorm")

_ATTENTION = 0.4
"""What a place's attention to one other place costs, times the hidden size, as a share of the place's other work: products,
and the passes over each head's scores, which weigh more."""


class Last(Section):
    """The last `last` layers adapt, and the head."""

    last: int = Field(ge=1)
    """How many layers."""


class Layers(Section):
    """These layers adapt (counted from 0, the lowest), and the head."""

    layers: tuple[int, ...] = Field(min_length=1)
    """Which layers."""


Adapt = Literal["all", "head", "body"] | Last | Layers | Lora


class Backbone(Section):
    """The pretrained encoder, what of it adapts to a task, and the head."""

    name: str = ""
    """A hub id, a local folder, or `package:NAME/PATH`: a folder inside an installed Python package. Empty only where
    `pretrain.architecture` says what is trained from nothing."""
    adapt: Adapt = "all"
    """What the inner loop changes: `all`; `head` (ANIL, Raghu et al. 2020); `body`, all but the head (BOIL, Oh et al. 2021);
    `{last: n}` or `{layers: [...]}`, those layers and the head; `{lora: {rank, alpha, targets}}`, low-rank adapters and the
    head."""
    head: SerializeAsAny[Head] = Field(default_factory=lambda: Head.model_validate("prototype"))
    """Where a task's output layer starts: `prototype` (ProtoMAML), `zero`, `learned`."""
    pooling: Literal["auto", "mean", "first", "last"] = "auto"
    """How token states become a text's: their mean, the first token's, or the last one's; `auto`: as the checkpoint was
    trained (sentence-transformers' `1_Pooling/config.json`), else the mean."""
    max_length: int = Field(128, ge=8)
    """Tokens a text, special tokens included; longer ones are cut, and their number is printed."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in the encoder while training, in inner and outer loop; seeded by episode and step."""
    precision: Literal["float32", "bf16"] = "float32"
    """`bf16` computes matrix products in bfloat16 (autocast): about 1.7 times as fast where the hardware has it, with
    gradients off by about 1 %."""
    trust_remote_code: bool = False
    """Whether code that comes with a checkpoint may run."""

    @model_validator(mode="after")
    def _can_move(self) -> Self:
        if self.adapt == "body" and self.head.kind == "zero":
            raise ValueError(
                "adapt: body with head: zero can never move: a head of zeros sends no gradient to the body; use another head"
            )
        return self

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
        found = loaded(
            f"the tokenizer of {self.name!r}",
            lambda: AutoTokenizer.from_pretrained(path, use_fast=True, clean_up_tokenization_spaces=False),
        )
        if len(found) <= len(found.all_special_ids):  # what transformers makes up where a tokenizer's files are missing
            raise UserError(
                f"model.name: {self.name!r} has no tokenizer; put its files (tokenizer.json) beside config.json"
            )
        return found

    def load(
        self, outputs: int, seed: int = 0, trained: Literal["all", "adapted"] = "all", slots: int = 1
    ) -> "Network":
        """The model, ready to adapt; `outputs` is the size of the largest head, `trained` what the outer loop moves, `slots`
        the states that make a feature of the head's."""
        from transformers import AutoConfig, AutoModel

        path = self.path()
        extra = {"trust_remote_code": self.trust_remote_code}
        config = loaded(self.name, lambda: AutoConfig.from_pretrained(path, **extra))
        for key in DROPOUTS:
            if hasattr(config, key):
                setattr(config, key, self.dropout)
        keywords = {**extra, "config": config, "attn_implementation": "eager", "dtype": torch.float32}
        try:
            module = loaded(self.name, lambda: AutoModel.from_pretrained(path, add_pooling_layer=False, **keywords))
        except TypeError:  # not every architecture has a pooler to leave out
            module = loaded(self.name, lambda: AutoModel.from_pretrained(path, **keywords))
        if "decoder_input_ids" in inspect.signature(module.forward).parameters:
            module = module.get_encoder()
        if isinstance(self.adapt, Lora):
            module = injected(module, self.adapt.lora, seed)
        return Network(self, module, outputs, seed, self._pooling(path), trained, slots)

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


def loaded(what: str, load: Any) -> Any:
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
class Middle:
    """Where the upper part of a model starts: hidden states [row, place, hidden], and what else its layers are given."""

    hidden: Tensor
    args: tuple[Any, ...]
    keywords: dict[str, Any]


class Network:
    """A loaded encoder as a pure function of its parameters.

    base: the encoder's parameters as loaded, by name; embedding: the name of the token embedding; adapted: names of the
    encoder's parameters that the inner loop changes; trained: those that the outer loop moves; cut: the lowest layer that
    adapts, if what is below can be computed once for all inner steps, else None; lower: names of the parameters below it.
    """

    def __init__(
        self,
        backbone: Backbone,
        module: nn.Module,
        outputs: int,
        seed: int,
        pooling: str,
        trained: str,
        slots: int = 1,
    ) -> None:
        self.backbone, self.module, self.head, self.pooling, self.outputs = (
            backbone,
            module,
            backbone.head,
            pooling,
            outputs,
        )
        self._stack_name: str | None = None
        self._reads = frozenset(inspect.signature(module.forward).parameters)
        self._prepare()
        tokens = module.get_input_embeddings()  # type: ignore[operator]
        self.embedding = next(n for n, p in module.named_parameters() if p is tokens.weight)
        self.base: Params = {n: p.detach() for n, p in module.named_parameters()}
        self._sdpa = bool(getattr(module, "_supports_sdpa", False))
        self.adapted = self._chosen(backbone.adapt)
        self.trained = frozenset(self.base) if trained == "all" else self.adapted
        random = torch.Generator().manual_seed(seed)
        width = slots * int(module.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self._head_params = backbone.head.params(outputs, width, random)
        self.now = Weights()
        self.position_offset = 0
        self._try_out()

    def _prepare(self) -> None:
        self.module.requires_grad_(False)
        self.module.eval()
        for layer in self.module.modules():
            if isinstance(layer, nn.Embedding):
                layer.padding_idx = None  # else the gradient of that row would be dropped
        if getattr(self.module, "is_activation_checkpointing", False):
            raise UserError(
                "model: gradient checkpointing inside the model recomputes with the wrong parameters; turn it off"
            )

    def params(self) -> Params:
        """All meta-parameters as loaded: the encoder's and the head's, by name."""
        return {**self.base, **self._head_params}

    def trainable(self) -> Params:
        """The meta-parameters that the outer loop moves."""
        return {n: p for n, p in self.params().items() if n in self.trained or n.startswith("head.")}

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Network":
        """Moves the model and its parameters to `device`, and to `dtype` if given."""
        self.module.to(device=device, dtype=dtype)
        self.base = {n: p.to(device=device, dtype=dtype) for n, p in self.base.items()}
        self._head_params = {n: p.to(device=device, dtype=dtype) for n, p in self._head_params.items()}
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the parameters."""
        return self.base[self.embedding].dtype

    # what the model consists of

    def _stack(self) -> tuple[str, nn.ModuleList]:
        """Name and modules of the encoder's layers, lowest first."""
        if self._stack_name is not None:
            return self._stack_name, self.module.get_submodule(self._stack_name)  # type: ignore[return-value]
        count = getattr(self.module.config, "num_hidden_layers", None)
        for name, child in self.module.named_modules():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                self._stack_name = name
                return name, child
        raise UserError(
            f"model.adapt: no stack of {count} layers was found in {type(self.module).__name__}; use all or head"
        )

    def _last_norm(self) -> str | None:
        """Name of the norm that follows the last layer, where there is one."""
        parent = self._stack()[0].rpartition(".")[0]
        owner = self.module.get_submodule(parent) if parent else self.module
        found = next((n for n in _LAST_NORMS if isinstance(getattr(owner, n, None), nn.Module)), None)
        return None if found is None else f"{parent}.{found}" if parent else found

    def _chosen(self, adapt: Adapt) -> frozenset[str]:
        if adapt in ("all", "body"):
            return frozenset(self.base)
        if adapt == "head":
            return frozenset()
        if isinstance(adapt, Lora):
            return frozenset(n for n in self.base if is_adapter(n))
        name, stack = self._stack()
        count = len(stack)
        if isinstance(adapt, Last):
            if adapt.last > count:
                raise UserError(
                    f"model.adapt.last: {adapt.last} layers were asked for, but the model has {count}; use all"
                )
            chosen = range(count - adapt.last, count)
        else:
            assert isinstance(adapt, Layers)
            wrong = [i for i in adapt.layers if not 0 <= i < count]
            if wrong:
                raise UserError(
                    f"model.adapt.layers: there is no layer {wrong[0]}; the model has layers 0 to {count - 1}"
                )
            chosen = adapt.layers  # type: ignore[assignment]
        starts = tuple(f"{name}.{i}." for i in chosen)
        return frozenset(n for n in self.base if n.startswith(starts))

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

    # running it

    def layout(self, ids: Sequence[Tensor], lengths: Sequence[Tensor]) -> Layout:
        """Rows for the texts of each task: packed where the model can, else padded."""
        if not self.packs:
            return padded(ids, lengths)
        found = packed(ids, lengths, self.dtype, self.causal, _ATTENTION / self.module.config.hidden_size)  # type: ignore[union-attr, operator, arg-type]
        assert found.positions is not None
        return Layout(found.ids, found.positions + self.position_offset, found.mask, found.where)

    def states(
        self, weights: Weights, embedded: Tensor, layout: Layout, seed: int | None = None, twice: bool = True
    ) -> Tensor:
        """Last hidden state of each token, [token, hidden], from embedded tokens [row, place, hidden].

        `seed`: with dropout on, what its masks are drawn from (None: no dropout). `twice`: whether it must be
        differentiable twice (fused attention is not). Watched layers' inputs are left in `weights.seen`.
        """
        out = self._run(weights, seed, twice, lambda: self._keywords(embedded, layout), None)
        return self._flat(out.last_hidden_state, layout)

    def below(
        self, weights: Weights, embedded: Tensor, layout: Layout, seed: int | None = None, twice: bool = True
    ) -> Middle:
        """What enters the layer at `cut`; at the top, the last hidden states."""
        assert self.cut is not None
        stack = self._stack()[1]
        if self.cut == len(stack):
            out = self._run(weights, seed, twice, lambda: self._keywords(embedded, layout), None)
            return Middle(out.last_hidden_state, (), {})
        caught: list[Middle] = []

        def catch(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given = dict(keywords)
            hidden = args[0] if args else given.pop("hidden_states")
            caught.append(Middle(hidden, args[1:], given))
            raise _Reached

        hook = stack[self.cut].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self._run(weights, seed, twice, lambda: self._keywords(embedded, layout), None)
        except _Reached:
            pass
        finally:
            hook.remove()
        return caught[0]

    def above(
        self, weights: Weights, middle: Middle, layout: Layout, seed: int | None = None, twice: bool = True
    ) -> Tensor:
        """Last hidden state of each token, [token, hidden], from what `below` gave."""
        stack = self._stack()[1]
        hidden = middle.hidden if self.cut == len(stack) else self._run(weights, seed, twice, dict, middle)
        return self._flat(hidden, layout)

    def _flat(self, hidden: Tensor, layout: Layout) -> Tensor:
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, layout.where).to(self.dtype)

    def _keywords(self, embedded: Tensor, layout: Layout) -> dict[str, Any]:
        keywords: dict[str, Any] = {"inputs_embeds": embedded, "attention_mask": layout.mask}
        if layout.positions is not None:
            keywords["position_ids"] = layout.positions
        if "use_cache" in self._reads:
            keywords["use_cache"] = False
        return keywords

    def _run(self, weights: Weights, seed: int | None, twice: bool, keywords: Any, middle: Middle | None) -> Any:
        """The model's forward, or its upper part from `middle`, with these weights."""
        self.module.config._attn_implementation = "eager" if twice or not self._sdpa else "sdpa"  # type: ignore[union-attr]
        runner: nn.Module = self.module if middle is None else self._upper
        given = keywords()
        if middle is not None:
            given = {"middle": middle}
        if self.swapped:

            def call() -> Any:
                with self.now.given(weights):
                    return runner(**given)
        else:
            values = {n: p for n, p in weights.shared.items() if n in self.base and n != self.embedding}
            values |= {n: p.squeeze(0) for n, p in weights.own.items() if n != self.embedding}
            if middle is not None:
                values = {f"module.{n}": p for n, p in values.items()}

            def call() -> Any:
                return functional_call(runner, values, args=(), kwargs=given)

        device = self.base[self.embedding].device
        with torch.autocast(
            device.type, torch.bfloat16, enabled=self.backbone.precision == "bf16", cache_enabled=False
        ):
            if seed is None or self.backbone.dropout == 0:
                return call()
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                self.module.train()
                try:
                    return call()
                finally:
                    self.module.eval()

    # trying it out

    def _try_out(self) -> None:
        """Finds what the model can do, each way compared with its plain forward on a few random tokens."""
        self.swapped, self.packs, self.causal = False, False, False
        self.cut: int | None = None
        self.lower: frozenset[str] = frozenset()
        lengths = torch.tensor([5, 3, 4])
        ids = torch.randint(self.base[self.embedding].shape[0], (12,), generator=torch.Generator().manual_seed(0))
        weights = Weights(1, self.base)

        def embedded(layout: Layout) -> Tensor:
            return F.embedding(layout.ids, self.base[self.embedding])

        def same(found: Tensor) -> bool:
            return bool(torch.allclose(plain, found, rtol=1e-3, atol=1e-4))

        with torch.no_grad():
            layout = padded([ids], [lengths])
            plain = self.states(weights, embedded(layout), layout)
            other = ids.clone()
            other[4] = (other[4] + 1) % len(self.base[self.embedding])
            changed = padded([other], [lengths])
            self.causal = bool(
                torch.allclose(plain[:4], self.states(weights, embedded(changed), changed)[:4], atol=1e-6)
            )
            original = self.module
            self.module = copy.deepcopy(original, {id(p): p for p in original.parameters()})
            try:
                self.swapped = swap(self.module, self.now, self.embedding)
                watched = frozenset(n for n, m in self.module.named_modules() if isinstance(m, TaskLinear))
                watching = Weights(1, self.base, watched=watched)
                self.swapped = self.swapped and same(self.states(watching, embedded(layout), layout))
            except (AttributeError, TypeError, RuntimeError):
                self.swapped = False
            if not self.swapped:
                self.module = original
            if "position_ids" in self._reads:
                pad = getattr(self.module.config, "pad_token_id", None)
                for self.position_offset in dict.fromkeys((0, (pad or 0) + 1)):
                    dense = packed([ids], [lengths], self.dtype, self.causal)
                    assert dense.positions is not None
                    dense = Layout(dense.ids, dense.positions + self.position_offset, dense.mask, dense.where)
                    try:
                        self.packs = same(self.states(weights, embedded(dense), dense))
                    except (TypeError, ValueError, RuntimeError, IndexError):
                        self.packs = False
                    if self.packs:
                        break
            self._upper = _Upper(self)
            self._try_cut(weights, embedded(layout), layout, same)

    def _try_cut(self, weights: Weights, embedded: Tensor, layout: Layout, same: Any) -> None:
        if self.backbone.adapt in ("all", "body"):
            return
        name, stack = self._stack()
        norm = self._last_norm()
        cut = len(stack)
        if not all(n.startswith(f"{name}.") for n in self.adapted):
            return  # an adapter outside of the stack
        if self.adapted:
            cut = min(int(n.removeprefix(f"{name}.").split(".")[0]) for n in self.adapted)
        self.cut = cut
        upper = tuple(
            [f"{name}.{i}." for i in range(cut, len(stack))] + ([f"{norm}."] if norm and cut < len(stack) else [])
        )
        try:
            works = same(self.above(weights, self.below(weights, embedded, layout), layout))
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError):
            works = False
        self.cut = cut if works else None
        self.lower = frozenset(n for n in self.base if not n.startswith(upper)) if works else frozenset()


class _Reached(Exception):
    """Ends a forward at the layer from which the upper part starts."""


class _Upper(nn.Module):
    """The layers of a model from its cut up."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.module = network.module
        self._network = [network]  # not a submodule

    def forward(self, middle: Middle) -> Tensor:
        network = self._network[0]
        hidden = middle.hidden
        for layer in network._stack()[1][network.cut :]:
            out = layer(hidden, *middle.args, **middle.keywords)
            hidden = out[0] if isinstance(out, tuple) else out
        norm = network._last_norm()
        return hidden if norm is None else self.module.get_submodule(norm)(hidden)


__all__ = ["Adapt", "Backbone", "History", "Last", "Layers", "Middle", "Network", "Params", "Weights"]
