"""The support and query loss of one or several tasks as a function of what adapts.

An algorithm says what is computed; `Inner` knows how. It works on *local* parameters: of the token embedding, only the rows
that occur in the episodes (exact for gradient steps, and sparing the other tens of thousands), and where lower layers do
not adapt, only what is above them, with their output computed once for all inner steps. An output layer that scores the
vocabulary has local parameters of its own, `output.weight` and `output.bias`, even where its matrix is the embedding's; but
if that adapts, it does so whole, and serves both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from raymeta.adapt import PROMPT
from raymeta.episodes import Episode, Examples
from raymeta.layers import History, Params, Weights
from raymeta.network import Middle, Network
from raymeta.products import Tape, lowered
from raymeta.reading import Read

_PAD = -100
_SUPPORT, _QUERY = "below.support", "below.query"
_OUTPUT = "output."


@dataclass(frozen=True)
class Picks:
    """Which token states make the items that a head classifies.

    An item's feature is `slots` sums of states, one after the other. token: int64 [pick], places among the tokens, texts end
    to end; item: int64 [pick], the slot that each goes to, counted over all items (item * slots + slot), or None where pick
    i is slot i; weight: float [pick], or None for 1.
    """

    token: Tensor
    item: Tensor | None = None
    weight: Tensor | None = None
    slots: int = 1


class TaskLoss(Protocol):
    """What `Inner` asks of a task kind; `raymeta.tasks.Tasks` fulfils it."""

    def outputs_for(self, ways: int) -> int:
        """Outputs of a head for `ways` classes."""

    def picks(self, examples: Examples, pooling: str) -> Picks:
        """Which token states make the items of `examples`."""

    def targets(self, examples: Examples) -> Tensor:
        """int64 [item]."""

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[task, item, output], [task, item] (-100: no item) -> [task]."""


@dataclass(frozen=True)
class Fast:
    """Adapted parameters of each task after some inner steps.

    own: encoder parameters that adapt, by name, [task, ...]; those of the linear layers `fused` lie outside of the graph, and
    are [1, ...] before the first step, and [task, in, out] for those that are `turned`; history: of dual linear layers, in their stead; head: `weight` and `bias`, [task, ...];
    shared: local parameters that do not adapt, and the W_0 of dual layers; features: the support items' features under these
    parameters, [task, item, hidden], and seen: the inputs of fused and dual layers, if known, with the tape of their products;
    pulls: layer -> (p, x, f), where the last step took f p^T x from a fused layer's weight: output gradients and inputs, and a
    step size that is a number, or 1 where p has it; `kept` is the share of the weight that l2 left.
    """

    own: Params
    history: History
    head: Params
    shared: Params
    steps: int = 0
    features: Tensor | None = field(default=None, repr=False)
    seen: Params = field(default_factory=dict, repr=False)
    tape: Tape | None = field(default=None, repr=False)
    fused: frozenset[str] = frozenset()
    turned: frozenset[str] = frozenset()
    pulls: dict[str, tuple[Tensor, Tensor, float]] = field(default_factory=dict, repr=False)
    kept: float = 1.0

    def small(self) -> Params:
        """The encoder parameters that adapt within the graph."""
        return {n: p for n, p in self.own.items() if n.removesuffix(".weight") not in self.fused}

    def moving(self) -> Params:
        """What an inner step changes within the graph, as one flat dictionary."""
        flat = {**self.small(), **{f"head.fast.{n}": w for n, w in self.head.items()}}
        for name, (inputs, grads) in self.history.items():
            flat[f"{name}.inputs"], flat[f"{name}.grads"] = inputs, grads
        return flat

    def moved(self, flat: Params, shared: Params) -> "Fast":
        """The same state with other tensors in place of `moving` and `shared`; what was known of features is dropped."""
        return Fast(
            {n: flat.get(n, p) for n, p in self.own.items()},
            {n: (flat[f"{n}.inputs"], flat[f"{n}.grads"]) for n in self.history},
            {n: flat[f"head.fast.{n}"] for n in self.head},
            shared,
            self.steps,
            fused=self.fused,
            turned=self.turned,
        )


Rates = Callable[[str], Tensor | float]
"""Step size of a parameter by name; the head's are `head.weight` and `head.bias`."""


@dataclass(frozen=True)
class Step:
    """What one inner step minimises and how: the support loss plus `l2` |theta|^2, and plus `proximal` / 2 times the squared
    distance to `anchor`. clip: longest gradient of a task, or None. detach: take the gradient as a constant (first order).
    """

    rates: Rates
    l2: float = 0.0
    detach: bool = False
    clip: float | None = None
    proximal: float = 0.0
    anchor: Params = field(default_factory=dict)


class Inner:
    """One or several episodes bound to a network."""

    def __init__(
        self,
        network: Network,
        tasks: TaskLoss,
        episodes: Sequence[Episode],
        seed: int | None = None,
        dual: frozenset[str] = frozenset(),
        twice: bool = True,
        fused: frozenset[str] = frozenset(),
    ) -> None:
        """seed: seeds dropout, by episode and step (None: no dropout). dual: linear layers to compute in dual form.
        twice: whether the model must be differentiable twice. fused: linear layers whose weights are kept out of the graph
        (see `raymeta.products`); steps must not clip, pull to an anchor, or have a rate for each entry of theirs."""
        assert len(episodes) == 1 or network.batches, "this model serves one task at a time"
        self.network, self.tasks, self.episodes, self.seed, self.twice = network, tasks, episodes, seed, twice
        self.dual = dual if network.swapped else frozenset()
        self.fused = fused - dual if network.swapped else frozenset()
        self.anchor = network.base[network.embedding].new_zeros(()).requires_grad_()
        """A scalar that every noted product depends on, so that one call differentiates all of them."""
        self.query_tape = Tape()
        """Of the products of the last query forward."""
        self.count = len(episodes)
        supports, queries = [e.support for e in episodes], [e.query for e in episodes]
        # a task's own embedding rows where the embedding adapts, else the rows of all tasks together
        apart = network.embedding in network.adapted and network.cut is None
        read = [[network.read(e) for e in side] for side in (supports, queries)]
        whole = len(network.base[network.embedding]) if network.whole else None
        self.rows, support, query = _local(read[0], read[1], apart, whole)
        self._support, self._query = (network.layout(self._prompted(reads)) for reads in (support, query))
        self._support_items = _Items(tasks, supports, read[0], network)
        self._query_items = _Items(tasks, queries, read[1], network)
        outputs = [network.vocabulary or tasks.outputs_for(len(e.classes)) for e in episodes]
        self.outputs = max(outputs)
        self._own_outputs = outputs
        self._barred: Tensor | None = None
        if min(outputs) < self.outputs:
            device = self._support.ids.device
            self._barred = torch.tensor(
                [[0.0] * n + [-1e4] * (self.outputs - n) for n in outputs], dtype=network.dtype, device=device
            )
        self._below: tuple[Params, dict[str, Tensor]] | None = None
        self._middles: dict[str, Middle] = {}

    # local parameters

    def opened(self, params: Params, learn: bool = True) -> Params:
        """Local parameters: leaves that require a gradient where the outer loop trains them and `learn`.

        Where lower layers do not adapt, their output stands for them.
        """
        network = self.network
        learn = learn and torch.is_grad_enabled()

        def leaf(name: str, tensor: Tensor) -> Tensor:
            trained = name in network.trained or name not in network.base
            return tensor.detach().requires_grad_(learn and trained)

        output = network.output_names()
        apart = {network.embedding, *network.lower, *output.values()}
        local = {n: leaf(n, p) for n, p in params.items() if n not in apart}
        local |= {leaf_name: leaf(name, params[name]) for leaf_name, name in output.items()}
        table = params[network.embedding]
        if network.whole:
            embedding = leaf(network.embedding, table)
        else:
            found = table.index_select(0, self.rows.flatten())
            embedding = leaf(network.embedding, found.view(*self.rows.shape, -1))
        if network.cut is None:
            return {**local, network.embedding: embedding}
        under = {n: leaf(n, params[n]) for n in network.lower if n != network.embedding}
        weights = Weights(1 if not network.swapped else self.count, {**local, **under})
        below: dict[str, Tensor] = {}
        with torch.set_grad_enabled(any(p.requires_grad for p in (*under.values(), embedding))):
            for key, layout, phase in ((_SUPPORT, self._support, 0), (_QUERY, self._query, -1)):
                middle = network.below(weights, embedding.flatten(0, 1), layout, self._dropout(phase), self.twice)
                self._middles[key] = middle
                below |= {f"{key}.{i}": tensor for i, tensor in enumerate(middle.tensors)}
        self._below = ({**under, network.embedding: embedding}, below)
        for key, tensor in below.items():
            local[key] = tensor.detach().requires_grad_(tensor.requires_grad)
        return local

    def closed(self, grads: Params) -> tuple[Params, Tensor]:
        """Gradients of local parameters carried back to the model's: through the lower layers, where they stood apart.

        The token embedding's gradient is [row, hidden], for the rows that are given beside it, int64 [row].
        """
        network, rows = self.network, self.rows.flatten()
        found = dict(grads)
        if self._below is not None:
            under, below = self._below
            pairs = [(tensor, found.pop(key)) for key, tensor in below.items() if key in found]
            leaves = {n: p for n, p in under.items() if p.requires_grad}
            if pairs and leaves:
                back = torch.autograd.grad(
                    [tensor for tensor, _ in pairs], list(leaves.values()), [g for _, g in pairs], allow_unused=True
                )
                found |= {n: g for n, g in zip(leaves, back, strict=True) if g is not None}
            self._below = None
        name = network.embedding
        if name in found:
            found[name] = found[name].reshape(-1, found[name].shape[-1])
        for leaf, owner in network.output_names().items():
            if leaf not in found:
                continue
            grad = found.pop(leaf)
            if owner != name:
                found[owner] = grad
                continue
            found[name] = grad.index_add(0, rows, found[name]) if name in found else grad
            rows = torch.arange(len(grad), device=grad.device)
        return found, rows

    # adapting

    def start(self, local: Params) -> Fast:
        """The tasks' parameters before the first step; the head is set from the support set where it asks for it.

        Differentiable in `local` where gradients are enabled.
        """
        network = self.network
        outside = torch.is_grad_enabled()
        own, shared = {}, {}
        for name, tensor in local.items():
            if name in network.adapted and not self._is_dual(name):
                source = tensor if outside else tensor.detach()
                if name.removesuffix(".weight") in self.fused:
                    own[name] = tensor.detach().unsqueeze(0)
                    continue
                apart = name == network.embedding and not network.whole
                per_task = source if apart else _for_each(source, self.count)
                own[name] = per_task if per_task.requires_grad else per_task.detach().requires_grad_()
            else:
                shared[name] = tensor if outside else tensor.detach()
        turned = frozenset(n for n in self.fused if network.transposed(n))
        fast = Fast(own, {}, {}, shared, fused=self.fused, turned=turned)
        with torch.enable_grad():
            features, seen, tape = self._features(fast, support=True, phase=0)
        with torch.set_grad_enabled(outside):
            shaped = network.head.shaped(features, shared)
            head = {}
            if network.head_adapts:
                head = network.head.start(local, shaped, self._support_items.targets, self.outputs)
        head = {n: w if w.requires_grad else w.detach().requires_grad_() for n, w in head.items()}
        return replace(fast, head=head, features=features, seen=seen, tape=tape)

    def step(self, fast: Fast, how: Step, again: bool = False) -> Fast:
        """One gradient step of every task on its support set.

        again: the step was taken before, and is wanted for its graph: the fused weights that come of it are not made.
        """
        outside = torch.is_grad_enabled()
        keep = outside and not how.detach
        first = fast.features is not None  # the graph to the features starts at `fast`, and may be needed again
        small = fast.small()
        if not (keep or first):
            small = {n: p.detach().requires_grad_() for n, p in small.items()}
        head = fast.head if keep else {n: w.detach().requires_grad_() for n, w in fast.head.items()}
        with torch.enable_grad():
            features, seen, tape = fast.features, fast.seen, fast.tape
            if features is None or tape is None:
                features, seen, tape = self._features(
                    replace(fast, own={**fast.own, **small}), support=True, phase=fast.steps
                )
            # a node of its own: the head's weights, if made from the same features, count as independent of them
            item = features.view_as(features) if keep and features.requires_grad else features.detach().requires_grad_()
            # so does a table that scores the vocabulary beside what it did for the features
            scoring = {n: p.view_as(p) for n, p in small.items() if n == self.network.embedding and self.network.whole}
            loss = self._losses(head, item, {**fast.shared, **scoring}, self._support_items).sum()
            of_head = torch.autograd.grad(loss, [item, *head.values(), *scoring.values()], create_graph=keep)
            below: tuple[Tensor | None, ...] = ()
            if small or seen:
                below = torch.autograd.grad(
                    features,
                    [*small.values(), self.anchor],
                    of_head[0],
                    create_graph=keep,
                    retain_graph=keep or (first and outside),
                    allow_unused=True,
                )
        of_outputs, tape.outputs = tape.outputs, {}
        grads: dict[str, Tensor | None] = dict(zip(small, below[: len(small)], strict=True))
        del below
        if self.network.backbone.adapt != "body":
            grads |= {f"head.{n}": g for n, g in zip(head, of_head[1:], strict=False)}
        for name, of_scores in zip(scoring, of_head[1 + len(head) :], strict=True):
            of_features = grads[name]
            grads[name] = of_scores if of_features is None else of_features + of_scores
        olds = {**fast.small(), **{f"head.{n}": w for n, w in fast.head.items()}}
        moved = self._moved(olds, grads, how, keep)
        history = dict(fast.history)
        pulls, weights = {}, {}
        kept = 1.0
        for name in seen:
            if name not in of_outputs:
                continue
            rate = how.rates(f"{name}.weight")
            pull, inputs = of_outputs.pop(name), seen[name]
            if not keep:
                pull, inputs = pull.detach(), inputs.detach()
            if name in self.dual:
                history[name] = _longer(history.get(name), inputs, pull * rate)
                continue
            factor = 1.0
            if isinstance(rate, Tensor):
                pull = pull * rate
            else:
                factor = rate
            if how.l2:
                assert not isinstance(rate, Tensor), "a learned rate of |theta|^2 needs its weights in the graph"
                kept = 1 - 2 * rate * how.l2
            if not again:
                old = fast.own[f"{name}.weight"]
                with torch.no_grad():
                    turned = name in fast.turned
                    weights[f"{name}.weight"] = lowered(old, inputs.detach(), pull.detach(), turned, kept, factor)
            if keep:
                pulls[name] = (pull, inputs, factor)
        return Fast(
            {n: moved[n] if n in moved else weights.get(n, p) for n, p in fast.own.items()},
            history,
            {n: moved[f"head.{n}"] for n in head},
            fast.shared,
            fast.steps + 1,
            None if small or seen else features,
            tape=tape,
            fused=fast.fused,
            turned=fast.turned,
            pulls=pulls,
            kept=kept,
        )

    def _moved(self, olds: Params, grads: dict[str, Tensor | None], how: Step, keep: bool) -> Params:
        """Old parameters less step size times gradient of the whole inner objective. Empties `grads`, each when it is used,
        for together they are as large as what adapts."""
        pulls = {}
        for name in olds:
            known = name in grads
            grad = grads.pop(name, None)
            old = olds[name] if keep else olds[name].detach()
            if how.l2 and known:
                grad = 2 * how.l2 * old if grad is None else grad + 2 * how.l2 * old
            if how.proximal and name in how.anchor:
                away = how.proximal * (old - how.anchor[name])
                grad = away if grad is None else grad + away
            if grad is not None:
                pulls[name] = grad
        if how.clip is not None and pulls:
            norm = torch.stack([g.flatten(1).square().sum(1) for g in pulls.values()]).sum(0).sqrt()
            factor = how.clip / norm.clamp(min=how.clip)
            pulls = {n: g * factor.view(-1, *[1] * (g.dim() - 1)) for n, g in pulls.items()}
        return {n: descent(olds[n], how.rates(n), pulls.pop(n)) if n in pulls else olds[n] for n in olds}

    # losses

    def support_losses(self, fast: Fast) -> Tensor:
        """Mean loss over each task's support items, [task]."""
        if fast.features is not None:
            return self._losses(fast.head, fast.features, {**fast.shared, **fast.own}, self._support_items)
        return self.support(fast)[0]

    def support(self, fast: Fast) -> tuple[Tensor, Params, Tape]:
        """The same by a forward of its own, and watched layers' inputs with the tape of their products."""
        features, seen, tape = self._features(fast, support=True, phase=fast.steps)
        return self._losses(fast.head, features, {**fast.shared, **fast.own}, self._support_items), seen, tape

    def query_features(self, fast: Fast) -> Tensor:
        """Features of the query items, [task, item, hidden]."""
        features, _, self.query_tape = self._features(fast, support=False, phase=-1)
        return features

    def query_logits(self, fast: Fast) -> Tensor:
        """Scores of the query items, [task, item, output]."""
        return self._logits(fast.head, self.query_features(fast), {**fast.shared, **fast.own})

    def query_losses(self, logits: Tensor) -> Tensor:
        """Mean loss over each task's query items given their scores, [task]."""
        return self.tasks.losses(logits, self._query_items.targets)

    def answers(self, logits: Tensor) -> list[Tensor]:
        """The scores of each task's own query items and outputs, [item, output] each, detached."""
        found = logits.detach()
        sizes = zip(self._query_items.sizes, self._own_outputs, strict=True)
        return [found[t, :items, :outputs] for t, (items, outputs) in enumerate(sizes)]

    def _losses(self, head: Params, features: Tensor, params: Params, items: "_Items") -> Tensor:
        return self.tasks.losses(self._logits(head, features, params), items.targets)

    def _logits(self, head: Params, features: Tensor, params: Params) -> Tensor:
        network = self.network
        if not network.head_adapts:
            head = {leaf.removeprefix(_OUTPUT): params[leaf].unsqueeze(0) for leaf in network.output_names()}
            if network.whole:
                head["weight"] = params[network.embedding].view(-1, *network.base[network.embedding].shape)
        with network.autocast(enabled=network.output is not None):  # a vocabulary is worth it
            logits = network.head.logits(head, network.head.shaped(features, params)).to(network.dtype)
        return logits if self._barred is None else logits + self._barred.unsqueeze(1)

    def _prompted(self, reads: list[Read]) -> list[Read]:
        """What is read with a soft prompt's virtual tokens, whose rows lie behind the embedding's, task by task."""
        size = self.network.prompt_size
        if not size:
            return reads
        first = torch.arange(size, device=self.rows.device) + self.rows.numel()
        return [read.prompted(first + t * size) for t, read in enumerate(reads)]

    def _is_dual(self, parameter: str) -> bool:
        return parameter.removesuffix(".weight") in self.dual

    def _dropout(self, phase: int) -> int | None:
        if self.seed is None:
            return None
        return hash((self.seed, self.episodes[0].number, phase)) & 0x7FFF_FFFF_FFFF_FFFF

    def _features(self, fast: Fast, support: bool, phase: int) -> tuple[Tensor, Params, Tape]:
        """Features of the support or query items, [task, item, hidden], and watched layers' inputs and their tape."""
        layout, items, key = (
            (self._support, self._support_items, _SUPPORT) if support else (self._query, self._query_items, _QUERY)
        )
        own, shared = fast.own, fast.shared
        weights = Weights(
            self.count, shared, own, fast.history, self.dual | self.fused, tape=Tape(), anchor=self.anchor
        )
        seed, network = self._dropout(phase), self.network
        if network.cut is None:
            table = own.get(network.embedding)
            table = shared[network.embedding] if table is None else table
            table = table.reshape(-1, table.shape[-1])
            prompt = own[PROMPT].flatten(0, 1) if PROMPT in own else shared.get(PROMPT)
            if prompt is not None:
                table = torch.cat([table, prompt])
            states = network.states(weights, table, layout, seed, self.twice)
        else:
            middle = self._middles[key]
            tensors = [shared[f"{key}.{i}"] for i in range(len(middle.tensors))]
            states = network.above(weights, middle, tensors, layout, seed, self.twice)
        return items.features(states), weights.seen, weights.tape


class _Items:
    """Where the items of several tasks' texts come from, and what they should be."""

    def __init__(self, tasks: TaskLoss, examples: list[Examples], reads: list[Read], network: Network) -> None:
        picks = [_picks(tasks, e, r, network) for e, r in zip(examples, reads, strict=True)]
        dtype = network.dtype
        targets = [tasks.targets(e) for e in examples]
        self.sizes = [len(t) for t in targets]
        self.slots = picks[0].slots
        self.tasks, self.width = len(examples), max(self.sizes)
        tokens = [len(r.ids) for r in reads]
        starts = [sum(tokens[:t]) for t in range(len(tokens))]
        self.token = torch.cat([p.token + s for p, s in zip(picks, starts, strict=True)])
        self.weight = (
            None
            if picks[0].weight is None
            else torch.cat([p.weight for p in picks if p.weight is not None]).to(dtype).unsqueeze(1)
        )
        self.place: Tensor | None = None
        if self.tasks > 1 or picks[0].item is not None:
            places = [
                (torch.arange(n * self.slots, device=p.token.device) if p.item is None else p.item)
                + t * self.width * self.slots
                for t, (p, n) in enumerate(zip(picks, self.sizes, strict=True))
            ]
            self.place = torch.cat(places)
        self.targets = targets[0].new_full((self.tasks, self.width), _PAD)
        for t, target in enumerate(targets):
            self.targets[t, : len(target)] = target

    def features(self, states: Tensor) -> Tensor:
        """[token, hidden] -> [task, item, slots * hidden]."""
        found = states.index_select(0, self.token)
        if self.weight is not None:
            found = found * self.weight
        if self.place is not None:
            room = found.new_zeros(self.tasks * self.width * self.slots, found.shape[-1])
            found = room.index_add(0, self.place, found)
        return found.view(self.tasks, self.width, -1)


def _picks(tasks: TaskLoss, examples: Examples, read: Read, network: Network) -> Picks:
    """The states that make the items: those that foretell the target tokens, scaled as the output layer wants them, or what
    the task kind says."""
    if network.output is None or read.picks is None:
        return tasks.picks(examples, network.pooling)
    scale = network.output.scale
    weight = (
        None if scale == 1.0 else torch.full(read.picks.shape, scale, dtype=network.dtype, device=read.picks.device)
    )
    return Picks(read.picks, None, weight)


def _local(
    supports: list[Read], queries: list[Read], apart: bool, whole: int | None
) -> tuple[Tensor, list[Read], list[Read]]:
    """Embedding rows that occur, [task, row] or [1, row], and what each task reads with places in them, flat, for ids.

    apart: each task has rows of its own. whole: rows of a table that is taken as it is, of which each task has its own.
    """
    sides = [[side.ids for r in pair for side in r.sides()] for pair in zip(supports, queries, strict=True)]
    both = [torch.cat(ids) for ids in sides]
    if whole is not None:
        table = torch.arange(whole, device=both[0].device).unsqueeze(0)
        local = [ids + t * whole for t, ids in enumerate(both)]
    elif not apart:
        rows, joined = torch.unique(torch.cat(both), return_inverse=True)
        local = list(joined.split([len(b) for b in both]))
        table = rows.unsqueeze(0)
    else:
        pairs = [torch.unique(b, return_inverse=True) for b in both]
        width = max(len(rows) for rows, _ in pairs)
        table = torch.stack([F.pad(rows, (0, width - len(rows)), value=int(rows[0])) for rows, _ in pairs])
        local = [ids + t * width for t, (_, ids) in enumerate(pairs)]
    parts = [list(torch.split(ids, [len(i) for i in side])) for ids, side in zip(local, sides, strict=True)]
    half = [len(r.sides()) for r in supports]
    return (
        table,
        [r.mapped(p[:h]) for r, p, h in zip(supports, parts, half, strict=True)],
        [r.mapped(p[h:]) for r, p, h in zip(queries, parts, half, strict=True)],
    )


def _for_each(tensor: Tensor, tasks: int) -> Tensor:
    """The tensor for each task, without a copy; the gradient of one task needs none either."""
    return tensor.unsqueeze(0) if tasks == 1 else tensor.expand(tasks, *tensor.shape)


def descent(old: Tensor, rate: Tensor | float, grad: Tensor) -> Tensor:
    """`old - rate * grad`, in one pass each way where the rate is a number."""
    return old - rate * grad if isinstance(rate, Tensor) else torch.add(old, grad, alpha=-rate)


def _longer(before: tuple[Tensor, Tensor] | None, inputs: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    if before is None:
        return inputs, grads
    return torch.cat([before[0], inputs], 1), torch.cat([before[1], grads], 1)


__all__ = ["Fast", "Inner", "Params", "Picks", "Rates", "Step", "TaskLoss"]
