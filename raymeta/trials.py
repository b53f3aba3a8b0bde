"""What a loaded model can do: each way of computing compared with its plain forward, on a few random tokens."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raymeta.episodes import Examples
from raymeta.errors import UserError
from raymeta.layers import TaskLinear, Weights, swap
from raymeta.layout import padded
from raymeta.reading import Read

if TYPE_CHECKING:
    from raymeta.network import Network

_FAILURES = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError, AssertionError)
_LENGTHS, _TARGETS = (5, 3, 4), (3, 5, 4)


def try_out(network: "Network") -> None:
    """Finds what the model can do, and sets it: causal, output, swapped, packs, batches, sdpa, cut and lower.

    All in full precision, whose rounding hides no fault. Raises UserError where it must write texts and cannot.
    """
    with torch.no_grad(), _in_full_precision(network):
        examples = _examples(network, 0)
        read = network.read(examples)
        plain = _states(network, read)

        def same(found: Callable[[], Tensor]) -> bool:
            try:
                return bool(torch.allclose(plain, found(), rtol=1e-3, atol=1e-4))
            except _FAILURES:
                return False

        network.causal = _is_causal(network, read, plain)
        if network.output is not None:
            network.output = replace(network.output, scale=_scale(network, examples, read, plain))
        _try_swap(network, lambda: same(lambda: _states(network, read, watched=_linears(network))))
        _try_packing(network, lambda: same(lambda: _states(network, read)))
        network.batches = network.swapped and network.packs and _together(network, read, plain)
        network.sdpa = network.sdpa and same(lambda: _states(network, read, twice=False))
        _try_cut(network, lambda: same(lambda: _from_the_middle(network, read)))


@contextmanager
def _in_full_precision(network: "Network") -> Iterator[None]:
    backbone = network.backbone
    network.backbone = backbone.model_copy(update={"precision": "float32"})
    try:
        yield
    finally:
        network.backbone = backbone


def _examples(network: "Network", seed: int) -> Examples:
    random = torch.Generator().manual_seed(seed)
    vocabulary = len(network.base[network.embedding])

    def tokens(sizes: tuple[int, ...]) -> Tensor:
        return torch.randint(vocabulary, (sum(sizes),), generator=random)

    extra = {"target_ids": tokens(_TARGETS), "target_lengths": torch.tensor(_TARGETS)}
    return Examples(tokens(_LENGTHS), torch.tensor(_LENGTHS), torch.arange(3), extra)


def _linears(network: "Network") -> frozenset[str]:
    return frozenset(n for n, m in network.module.named_modules() if isinstance(m, TaskLinear))


def _states(network: "Network", read: Read, watched: frozenset[str] = frozenset(), twice: bool = True) -> Tensor:
    weights = Weights(1, network.base, watched=watched)
    return network.states(weights, network.base[network.embedding], network.layout([read]), twice=twice)


def _is_causal(network: "Network", read: Read, plain: Tensor) -> bool:
    """Whether a token, the fifth, changes no state before it, such as that of its text's first token."""
    ids = read.ids.clone()
    ids[4] = (ids[4] + 1) % len(network.base[network.embedding])
    return bool(torch.allclose(plain[:4], _states(network, replace(read, ids=ids))[:4], atol=1e-6))


def _scale(network: "Network", examples: Examples, read: Read, plain: Tensor) -> float:
    """By what the states are scaled before the output layer; raises UserError where the model writes no texts."""
    name, output, config = type(network.plain).__name__, network.output, network.config
    assert output is not None
    if not network.causal:
        raise UserError(
            f"model.name: {name} reads both ways and writes no texts; name a decoder (GPT-2, Llama type) or an "
            "encoder-decoder (T5)"
        )
    layout = padded([read])
    given: dict[str, Any] = {"input_ids": layout.ids, "attention_mask": layout.mask, "use_cache": False}
    if layout.source is not None:
        given = {
            "input_ids": layout.source.ids, "attention_mask": layout.source.mask, "use_cache": False,
            "decoder_input_ids": layout.ids, "decoder_attention_mask": layout.mask,
        }  # fmt: skip
    logits = network.plain(**given).logits
    wanted = logits.reshape(-1, logits.shape[-1]).index_select(0, layout.where)
    scores = plain @ network.base[output.weight].T
    bias = 0.0 if output.bias is None else network.base[output.bias]
    known = [1.0, config.hidden_size**-0.5, getattr(config, "logit_scale", None)]
    if getattr(config, "logits_scaling", None):
        known.append(1 / config.logits_scaling)
    for scale in (s for s in known if s):
        if torch.allclose(scores * scale + bias, wanted, rtol=1e-3, atol=1e-4):
            return float(scale)
    raise UserError(
        f"model.name: the scores of {name} are no linear layer of its last hidden states, which raymeta needs to write texts; "
        "name a GPT-2, Llama or T5 type model"
    )


def _try_swap(network: "Network", works: Callable[[], bool]) -> None:
    """Puts layers that know a task axis into a copy of the model, where all of its layers are known."""
    original = network.module
    network.module = copy.deepcopy(original, {id(p): p for p in original.parameters()})
    try:
        network.swapped = swap(network.module, network.now, network.embedding)
        network.swapped = network.swapped and works()
    except _FAILURES:
        network.swapped = False
    if not network.swapped:
        network.module = original


def _try_packing(network: "Network", works: Callable[[], bool]) -> None:
    kinds = getattr(network.config, "layer_types", None) or ()
    if len(set(kinds)) > 1:
        return  # layers that see only near tokens have masks of their own
    pad = getattr(network.config, "pad_token_id", None)
    network.packs = True
    for network.position_offset in dict.fromkeys((0, (pad or 0) + 1)):
        if works():
            return
    network.packs, network.position_offset = False, 0


def _together(network: "Network", read: Read, plain: Tensor) -> bool:
    """Whether two tasks with parameters of their own can be computed at once."""
    table = network.base[network.embedding]
    own = {n: p.expand(2, *p.shape) for n, p in network.base.items() if n in network.adapted and p is not table}
    try:
        found = network.states(Weights(2, network.base, own), table, network.layout([read, read]))
    except _FAILURES:
        return False
    return all(torch.allclose(plain, part, rtol=1e-3, atol=1e-4) for part in found.chunk(2))


def _from_the_middle(network: "Network", read: Read) -> Tensor:
    weights, layout = Weights(1, network.base), network.layout([read])
    middle = network.below(weights, network.base[network.embedding], layout)
    return network.above(weights, middle, middle.tensors, layout)


def _try_cut(network: "Network", works: Callable[[], bool]) -> None:
    """Finds the lowest layer that adapts, if what is below it can be computed once."""
    inside = f"{network.stack}."
    if network.backbone.adapt in ("all", "body") or not all(n.startswith(inside) for n in network.adapted):
        return
    lowest = [int(n.removeprefix(inside).split(".")[0]) for n in network.adapted]
    network.cut = min(lowest, default=network.layers)
    norm = network.last_norm()
    upper = [f"{inside}{i}." for i in range(network.cut, network.layers)]
    if norm and network.cut < network.layers:
        upper.append(f"{norm}.")
    mixed = len(set(getattr(network.config, "layer_types", None) or ())) > 1
    if not works() or (mixed and network.cut < network.layers):
        if network.cut:
            network.cut = None
            return
        network.whole_upper = True
        upper = [n for n in network.base if n.startswith(network.body_prefix) and n != network.embedding]
    of_output = {network.output.weight, network.output.bias} - {network.embedding} if network.output else set()
    network.lower = frozenset(n for n in network.base if not n.startswith(tuple(upper)) and n not in of_output)
