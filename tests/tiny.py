"""Tiny models of each family from their configs, and random episodes: what the engine's tests compute with."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
)

from raymeta.episodes import Episode, Examples
from raymeta.layers import Params
from raymeta.model import Backbone, Network
from raymeta.tasks.classification import Classification

VOCABULARY = 40
WAYS = 3
FAMILIES = ("bert", "roberta", "distilbert", "gpt2", "t5", "llama")
TASKS = Classification(ways=WAYS)


def save_model(family: str, folder: Path, layers: int = 2, hidden: int = 8, vocabulary: int = VOCABULARY) -> str:
    """A tiny model of `family` with random weights, as a folder that Backbone loads."""
    common: dict[str, Any] = {"vocab_size": vocabulary}
    torch.manual_seed(0)
    if family in ("bert", "roberta"):
        config, kind = {"bert": (BertConfig, BertModel), "roberta": (RobertaConfig, RobertaModel)}[family]
        model = kind(
            config(
                **common, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=2 * hidden,
                max_position_embeddings=64, pad_token_id=1 if family == "roberta" else 0,
            )
        )  # fmt: skip
    elif family == "distilbert":
        model = DistilBertModel(
            DistilBertConfig(
                **common, dim=hidden, n_layers=layers, n_heads=2, hidden_dim=2 * hidden, max_position_embeddings=64
            )
        )
    elif family == "gpt2":
        model = GPT2Model(
            GPT2Config(
                **common, n_embd=hidden, n_layer=layers, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
            )
        )
    elif family == "t5":
        model = T5EncoderModel(
            T5Config(**common, d_model=hidden, d_kv=hidden // 2, d_ff=2 * hidden, num_layers=layers, num_heads=2)
        )
    else:
        model = LlamaModel(
            LlamaConfig(
                **common, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=2 * hidden,
                max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            )
        )  # fmt: skip
    with torch.no_grad():  # far from a fresh model's near-linearity, so that second derivatives are not small
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return str(folder)


def double(folder: str, **settings: Any) -> Network:
    """The model in float64."""
    trained = settings.pop("trained", "all")
    network = Backbone.model_validate({"name": folder, "head": {"kind": "prototype", "scale": 0.2}, **settings}).load(
        WAYS, 0, trained
    )
    return network.to(torch.device("cpu"), torch.float64)


def examples(texts_a_class: int, seed: int, longest: int = 8) -> Examples:
    """Random texts of 3 to `longest` tokens, `texts_a_class` of each class."""
    random = torch.Generator().manual_seed(seed)
    texts = texts_a_class * WAYS
    lengths = torch.randint(3, longest + 1, (texts,), generator=random)
    ids = torch.randint(2, VOCABULARY, (int(lengths.sum()),), generator=random)
    return Examples(ids, lengths, torch.arange(texts), {"labels": torch.arange(texts) % WAYS})


def episode(number: int = 0, shots: int = 1, queries: int = 2) -> Episode:
    """A random episode."""
    support, query = examples(shots, 2 * number + 1), examples(queries, 2 * number + 2)
    return Episode(number, "train", tuple("abc"), support, query)


def whole(grads: Params, rows: Tensor, network: Network, like: Params) -> Params:
    """Gradients of all of `like`, the embedding's scattered to its rows, and zero where the loss does not reach."""
    full = {n: torch.zeros_like(p) for n, p in like.items()}
    for name, grad in grads.items():
        if name == network.embedding:
            full[name].index_add_(0, rows, grad)
        else:
            full[name] += grad
    return full


def relative(found: Params, wanted: Params) -> float:
    """Euclidean distance over all parameters, relative to the size of `wanted`."""
    distance = sum(float((found[n] - wanted[n]).square().sum()) for n in wanted)
    return float((distance / sum(float(w.square().sum()) for w in wanted.values())) ** 0.5)


def slope_errors(loss: Any, params: Params, grads: Params, step: float = 1e-5) -> dict[str, float]:
    """For each layer: the error of its parameters' gradient along a random direction, against a central difference.

    Relative to the gradient's norm over all parameters, so that a gradient that is zero in truth can be compared.
    """
    layers: dict[str, list[str]] = {}
    for name in params:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return {layer: slope_error(loss, params, grads, names, i, step) for i, (layer, names) in enumerate(layers.items())}


def slope_error(loss: Any, params: Params, grads: Params, names: list[str], seed: int = 0, step: float = 1e-5) -> float:
    """The error of the gradient along one random direction of the parameters `names`, as `slope_errors` has it."""
    random = torch.Generator().manual_seed(seed)
    way = {n: torch.randn(params[n].shape, dtype=torch.float64, generator=random) for n in names}
    length = sum(float(d.square().sum()) for d in way.values()) ** 0.5
    way = {n: d / length for n, d in way.items()}

    def at(distance: float) -> float:
        with torch.no_grad():
            return float(loss({**params, **{n: params[n] + distance * d for n, d in way.items()}}))

    slope = (at(step) - at(-step)) / (2 * step)
    size = sum(float(g.square().sum()) for g in grads.values()) ** 0.5
    return abs(slope - sum(float((grads[n] * d).sum()) for n, d in way.items())) / size


@contextmanager
def double_inside() -> Iterator[None]:
    """T5 and Llama types compute softmax, norms and positions in float32 even where all else is float64; here they do not."""
    softmax, as_float, to = F.softmax, Tensor.float, Tensor.to

    def double_softmax(
        x: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
    ) -> Tensor:
        return softmax(x, dim=dim, dtype=torch.float64 if x.dtype == torch.float64 else dtype)

    F.softmax = torch.nn.functional.softmax = double_softmax  # type: ignore[assignment]
    Tensor.float = lambda x, *a, **k: x if x.dtype == torch.float64 else as_float(x, *a, **k)  # type: ignore[method-assign]

    def double_to(x: Tensor, *args: Any, **keywords: Any) -> Tensor:
        return x if x.dtype == torch.float64 and args[:1] == (torch.float32,) else to(x, *args, **keywords)

    Tensor.to = double_to  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        F.softmax = torch.nn.functional.softmax = softmax
        Tensor.float, Tensor.to = as_float, to  # type: ignore[method-assign]


def query_loss(
    algorithm: Any, network: Network, episodes: list[Episode], params: Params, seed: int | None = None, **options: Any
) -> Tensor:
    """The sum of query losses after adaptation, computed without any of the engine's ways back."""
    inner = algorithm.bound(network, TASKS, episodes, seed)
    fast = algorithm.adapt(inner, inner.opened(params, learn=False), **options)
    return inner.query_losses(inner.query_logits(fast)).sum()


def meta_gradient(
    algorithm: Any, network: Network, episodes: list[Episode], params: Params, seed: int | None = None, step: int = 1
) -> Params:
    """The algorithm's meta-gradient, of all parameters."""
    inner = algorithm.bound(network, TASKS, episodes, seed)
    found = algorithm.meta_step(inner, params, step)
    return whole(found.grads, found.rows, network, params)
