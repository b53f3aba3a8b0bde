"""What raymeta is measured against: a plain functional loop, `higher` and `torchopt`, on one padded Hugging Face model.

Each peer is a function (model, episodes, steps, lr, order) -> the query losses' gradient in the model's parameters, summed
over the episodes. They adapt every parameter, the token embedding's whole matrix among them, as those libraries do.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from raymeta.episodes import Episode, Examples
from raymeta.inner import TaskLoss
from raymeta.layers import Params
from raymeta.layout import padded
from raymeta.model import Network
from raymeta.reading import Read


@dataclass(frozen=True)
class Side:
    """Support or query texts, one a row. mask: int64 [row, place]; token: the items' flat places, or None where an item is
    the mean of a row; targets: int64 [item]."""

    ids: Tensor
    mask: Tensor
    token: Tensor | None
    targets: Tensor

    @classmethod
    def of(cls, examples: Examples, tasks: TaskLoss, pooling: str, width: int) -> "Side":
        """Padded to the longest text, or to `width` if that is more."""
        laid = padded([Read(examples.ids, examples.lengths)])
        longest = laid.ids.shape[1]
        wide = max(width, longest)
        picks = tasks.picks(examples, pooling)
        where = laid.where // longest * wide + laid.where % longest
        more = (0, wide - longest)
        return cls(
            torch.nn.functional.pad(laid.ids, more),
            torch.nn.functional.pad(laid.mask, more),
            None if picks.item is not None else where[picks.token],
            tasks.targets(examples),
        )


class Model(nn.Module):
    """An encoder with a linear head; its forward is the loss of one side of an episode."""

    def __init__(self, network: Network, tasks: TaskLoss) -> None:
        """The same weights as `network`'s, as its own `from_pretrained` loads them, but with a head that is learned."""
        super().__init__()
        from transformers import AutoConfig, AutoModel

        path = network.backbone.path()
        config = AutoConfig.from_pretrained(path)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        self.encoder = AutoModel.from_pretrained(
            path, config=config, attn_implementation="eager", dtype=torch.float32, add_pooling_layer=False
        )
        self.encoder.eval()
        head = {n: p for n, p in network.params().items() if n.startswith("head.")}
        self.head = nn.Linear(head["head.weight"].shape[1], head["head.weight"].shape[0])
        with torch.no_grad():
            self.head.weight.copy_(head["head.weight"])
            self.head.bias.copy_(head["head.bias"])
        self.tasks = tasks

    def forward(self, side: Side) -> Tensor:
        """The mean loss over the side's items."""
        states = self.encoder(input_ids=side.ids, attention_mask=side.mask).last_hidden_state
        if side.token is None:
            share = side.mask.to(states.dtype).unsqueeze(-1)
            features = (states * share).sum(1) / share.sum(1)
        else:
            features = states.reshape(-1, states.shape[-1]).index_select(0, side.token)
        return self.tasks.losses(self.head(features).unsqueeze(0), side.targets.unsqueeze(0)).sum()


Episodes = list[tuple[Side, Side]]
"""Support and query of each."""

Peer = Callable[[Model, Episodes, int, float, int], Params]


def sides(episodes: list[Episode], tasks: TaskLoss, pooling: str, width: int) -> Episodes:
    """The episodes as rows; `width` 0: each side padded to its own longest text."""
    return [(Side.of(e.support, tasks, pooling, width), Side.of(e.query, tasks, pooling, width)) for e in episodes]


def plain(model: Model, episodes: Episodes, steps: int, lr: float, order: int, adapted: Any = None) -> Params:
    """torch.func and torch.autograd, nothing else. `adapted`: whether a parameter of this name adapts; absent: all do."""
    params = dict(model.named_parameters())
    total: Params = {}
    for support, query in episodes:
        fast = dict(params)
        names = [n for n in fast if adapted is None or adapted(n)]
        for _ in range(steps):
            loss = functional_call(model, fast, (support,))
            grads = torch.autograd.grad(loss, [fast[n] for n in names], create_graph=order == 2)
            fast |= {n: fast[n] - lr * g for n, g in zip(names, grads, strict=True)}
        loss = functional_call(model, fast, (query,))
        found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        for name, grad in zip(params, found, strict=True):
            if grad is not None:
                total[name] = total[name].add_(grad) if name in total else grad
    return _named(total)


def higher(model: Model, episodes: Episodes, steps: int, lr: float, order: int) -> Params:
    """higher's `innerloop_ctx` around torch's SGD."""
    from higher import innerloop_ctx

    model.zero_grad(set_to_none=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    total: Params = {}
    second = order == 2
    for support, query in episodes:
        with innerloop_ctx(model, optimizer, copy_initial_weights=False, track_higher_grads=second) as (fast, diffopt):
            for _ in range(steps):
                diffopt.step(fast(support))
            loss = fast(query)
            if second:
                loss.backward()
            else:
                names = [n for n, _ in model.named_parameters()]
                found = torch.autograd.grad(loss, list(fast.parameters()))
                for name, grad in zip(names, found, strict=True):
                    total[name] = total[name].add_(grad) if name in total else grad
    return _taken(model) if second else _named(total)


def torchopt(model: Model, episodes: Episodes, steps: int, lr: float, order: int) -> Params:
    """torchopt's `MetaSGD`; first order, which that lacks, with its functional `sgd`."""
    import torchopt as library

    model.zero_grad(set_to_none=True)
    if order == 1:
        return _torchopt_first_order(model, episodes, steps, lr)
    before = library.extract_state_dict(model, by="reference")
    optimizer = library.MetaSGD(model, lr=lr)
    state = library.extract_state_dict(optimizer, by="reference")
    for support, query in episodes:
        for _ in range(steps):
            optimizer.step(model(support))
        model(query).backward()
        library.recover_state_dict(model, before)
        library.recover_state_dict(optimizer, state)
    return _taken(model)


def _torchopt_first_order(model: Model, episodes: Episodes, steps: int, lr: float) -> Params:
    import torchopt as library

    params = dict(model.named_parameters())
    optimizer = library.sgd(lr)
    total: Params = {}
    for support, query in episodes:
        fast = tuple(p.detach().requires_grad_() for p in params.values())
        state = optimizer.init(fast)
        for _ in range(steps):
            loss = functional_call(model, dict(zip(params, fast, strict=True)), (support,))
            updates, state = optimizer.update(torch.autograd.grad(loss, fast), state, inplace=False)
            fast = tuple(p.detach().requires_grad_() for p in library.apply_updates(fast, updates, inplace=False))
        loss = functional_call(model, dict(zip(params, fast, strict=True)), (query,))
        for name, grad in zip(params, torch.autograd.grad(loss, fast), strict=True):
            total[name] = total[name].add_(grad) if name in total else grad
    return _named(total)


PEERS: dict[str, Peer] = {"plain": plain, "higher": higher, "torchopt": torchopt}
"""The peers, by name."""


def missing(name: str) -> str | None:
    """Why a peer cannot run here, or None if it can."""
    if name == "plain" or importlib.util.find_spec(name) is not None:
        return None
    return f"{name} is not installed; pip install 'raymeta[bench]'"


def _taken(model: Model) -> Params:
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return _named(found)


def _named(grads: Params) -> Params:
    """By raymeta's names: the encoder's without a prefix."""
    return {n.removeprefix("encoder."): g for n, g in grads.items()}
