"""The loss of rows: several texts a row that do not see each other, and logits only where something is predicted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions

from raymeta.layers import quicken
from raymeta.pretraining.frames import Frame
from raymeta.pretraining.rows import Row


@dataclass(frozen=True)
class Sums:
    """For each row [row]: the summed loss of its scored tokens, their number, how many were predicted right; and of its pairs."""

    loss: Tensor
    tokens: Tensor
    hits: Tensor
    pair_loss: Tensor
    pairs: Tensor
    pair_hits: Tensor


class LanguageModel:
    """A transformers model with the head of its objective, on rows of one frame.

    packs: whether several texts may share a row, each as if it were alone: this is tried, not guessed.
    """

    def __init__(self, module: nn.Module, frame: Frame, precision: str = "float32") -> None:
        quicken(module)
        self.module, self.frame, self.precision = module, frame, precision
        self.decodes = bool(module.config.is_encoder_decoder)  # type: ignore[union-attr]
        self.causal = frame.objective == "clm"
        self.first_position = 0
        self.packs = False
        self._try_out()

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.module.parameters()).device

    def sums(self, rows: Sequence[Row]) -> Sums:
        """The losses of rows, with gradients where those are on."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            tokens, pairs = self._decoded(rows) if self.decodes else self._predicted(rows)
        found = tokens.by_row(len(rows))
        return Sums(*found, *(pairs.by_row(len(rows)) if pairs else (torch.zeros_like(found[0]),) * 3))

    def _predicted(self, rows: Sequence[Row]) -> "tuple[_Scored, _Scored | None]":
        """What encoders and causal models say at the scored places, and of pairs."""
        grid = _Grid([row["ids"] for row in rows], [row["sizes"] for row in rows])
        hidden = self._hidden(grid, [row["types"] for row in rows] if "types" in rows[0] else None)
        places = grid.at([row["places"] for row in rows], self.device)
        targets = _joined([row["targets"] for row in rows], self.device)
        owner = _owner([row["targets"] for row in rows], self.device)
        flat = hidden.reshape(-1, hidden.shape[-1])
        if self.frame.objective != "mlm+nsp":
            with _instead(self.module.base_model, flat[places].unsqueeze(0), None):  # type: ignore[arg-type]
                return _Scored(self.module(input_ids=targets.new_zeros(1, 1)).logits[0], targets, owner), None
        follows = _joined([row["follows"] for row in rows], self.device)
        holder = _owner([row["follows"] for row in rows], self.device)
        paired = follows >= 0
        first = flat[torch.from_numpy(grid.firsts).to(self.device)][paired]
        pooled = self.module.base_model.pooler(first.unsqueeze(1))  # type: ignore[union-attr, operator]
        with _instead(self.module.base_model, flat[places].unsqueeze(0), pooled):  # type: ignore[arg-type]
            out = self.module(input_ids=targets.new_zeros(1, 1))
        # transformers' classes: 0 follows, 1 is from elsewhere
        pairs = _Scored(out.seq_relationship_logits, 1 - follows[paired], holder[paired])
        return _Scored(out.prediction_logits[0], targets, owner), pairs

    def _decoded(self, rows: Sequence[Row]) -> "tuple[_Scored, None]":
        """What an encoder-decoder says at the places of its answers."""
        source = _Grid([row["ids"] for row in rows], [row["sizes"] for row in rows])
        answers = [row["answer"] for row in rows]
        begin = int(self.module.config.decoder_start_token_id)  # type: ignore[union-attr, arg-type]
        wanted = _Grid(answers, [row["answer_sizes"] for row in rows])
        given = _Grid([_shifted(row, begin) for row in rows], [row["answer_sizes"] for row in rows])
        encoder, decoder = self.module.get_encoder(), self.module.get_decoder()  # type: ignore[operator]
        masks: tuple[Tensor, Tensor | None, Tensor]
        if self.packs:
            device = self.device
            masks = (
                source.mask(source).to(device),
                given.mask(given, causal=True).to(device),
                given.mask(source).to(device),
            )
        else:
            masks = source.there.to(self.device), given.there.to(self.device), source.there.to(self.device)
        states = encoder(input_ids=source.ids.to(self.device), attention_mask=masks[0]).last_hidden_state
        out = decoder(
            input_ids=given.ids.to(self.device), attention_mask=masks[1], encoder_hidden_states=states,
            encoder_attention_mask=masks[2], use_cache=False,
        ).last_hidden_state  # fmt: skip
        flat = out.reshape(-1, out.shape[-1])
        chosen = flat[wanted.at([np.arange(len(a)) for a in answers], self.device)]
        targets = _joined(answers, self.device)
        with _instead(decoder, chosen.unsqueeze(0), None):
            logits = self.module(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                decoder_input_ids=targets.new_zeros(1, 1),
                use_cache=False,
            ).logits[0]
        return _Scored(logits, targets, _owner(answers, self.device)), None

    def _hidden(self, grid: "_Grid", types: Sequence[Any] | None) -> Tensor:
        """Last hidden states [row, place, hidden]."""
        keywords: dict[str, Any] = {"input_ids": grid.ids.to(self.device)}
        if types is not None:
            keywords["token_type_ids"] = grid.laid(types).to(self.device)
        if self.packs:
            keywords["attention_mask"] = grid.mask(grid, self.causal).to(self.device)
            keywords["position_ids"] = (grid.positions + self.first_position).to(self.device)
        else:
            keywords["attention_mask"] = grid.there.to(self.device)
        if self.causal:
            keywords["use_cache"] = False
        found: Tensor = self.module.base_model(**keywords).last_hidden_state  # type: ignore[operator]
        return found

    def _try_out(self) -> None:
        """Finds whether texts that share a row are computed as if each were alone in one."""
        apart, together = self._trial()
        training = self.module.training
        self.module.eval()

        def logits(rows: Sequence[Row]) -> Tensor:
            return (self._decoded(rows) if self.decodes else self._predicted(rows))[0].logits

        with torch.no_grad():
            alone = logits(apart)
            pad = getattr(self.module.config, "pad_token_id", None)
            self.packs = True
            for self.first_position in dict.fromkeys((0, (pad or 0) + 1)):
                try:
                    same = [torch.allclose(logits(rows), alone, rtol=1e-3, atol=1e-4) for rows in (apart, together)]
                except (TypeError, ValueError, RuntimeError, IndexError):
                    continue
                if all(same):
                    break
            else:
                self.packs, self.first_position = False, 0
        self.module.train(training)

    def _trial(self) -> tuple[list[Row], list[Row]]:
        """Two rows of a text each, and one row of both."""
        random = np.random.default_rng(0)
        sizes = [min(7, self.frame.length // 2), min(5, self.frame.length // 2)]
        texts = [random.choice(self.frame.ordinary, size).astype(np.int32) for size in sizes]
        rows: list[Row] = []
        for text in texts:
            row: Row = {"ids": text, "sizes": np.array([len(text)], dtype=np.int32)}
            if self.frame.objective == "span":
                row |= {"answer": text[:3], "answer_sizes": np.array([3], dtype=np.int32)}
            else:
                row |= {"places": np.arange(len(text) - 1, dtype=np.int32), "targets": text[1:]}
            if self.frame.objective == "mlm+nsp":
                row |= {"types": np.zeros_like(text), "follows": np.array([-100], dtype=np.int32)}
            rows.append(row)
        both = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        if "places" in both:
            both["places"] = np.concatenate([rows[0]["places"], rows[1]["places"] + len(texts[0])])
        return rows, [both]


@dataclass(frozen=True)
class _Scored:
    """Logits [item, class], the wanted classes [item], and the row that each item belongs to."""

    logits: Tensor
    wanted: Tensor
    owner: Tensor

    def by_row(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of losses, numbers of items and of hits, each [row]."""
        each = F.cross_entropy(self.logits.float(), self.wanted, reduction="none")
        zeros, hits = each.new_zeros(rows), (self.logits.argmax(-1) == self.wanted).to(each.dtype)
        return tuple(zeros.index_add(0, self.owner, values) for values in (each, torch.ones_like(each), hits))  # type: ignore[return-value]


class _Grid:
    """Rows of texts on a grid [row, place], padded on the right.

    ids: int64; positions: within their text; there: 1 where there is a token; firsts [text]: the flat place of each text's first.
    """

    def __init__(self, ids: Sequence[Any], sizes: Sequence[Any]) -> None:
        self._lengths = np.array([len(row) for row in ids])
        self._width = max(int(self._lengths.max()), 1)
        self.ids = self.laid(ids)
        self._owner = self._filled([np.repeat(np.arange(1, len(s) + 1), s) for s in sizes])
        inside = [np.arange(int(s.sum())) - np.repeat(np.cumsum(s) - s, s) for s in sizes]
        self.positions = self.laid(inside)
        self.there = torch.from_numpy((self._owner > 0).astype(np.int64))
        self.firsts = np.concatenate([np.cumsum(s) - s + i * self._width for i, s in enumerate(sizes)])

    def _filled(self, rows: Sequence[Any]) -> Any:
        out = np.zeros((len(rows), self._width), dtype=np.int64)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return out

    def laid(self, rows: Sequence[Any]) -> Tensor:
        """Numbers of each row's tokens on the grid, 0 elsewhere."""
        return torch.from_numpy(self._filled(rows))

    def at(self, places: Sequence[Any], device: torch.device) -> Tensor:
        """Flat places of places in each row."""
        found = np.concatenate([np.asarray(p, dtype=np.int64) + i * self._width for i, p in enumerate(places)])
        return torch.from_numpy(found).to(device)

    def mask(self, other: "_Grid", causal: bool = False) -> Tensor:
        """Additive mask [row, 1, place, other's place] that keeps texts apart; causal: and each token from those after it."""
        apart = self._owner[:, :, None] != other._owner[:, None, :]
        if causal:
            apart |= np.triu(np.ones(apart.shape[1:], dtype=bool), 1)
        mask = torch.zeros(apart.shape).masked_fill_(torch.from_numpy(apart), torch.finfo(torch.float32).min)
        return mask.unsqueeze(1)


@contextmanager
def _instead(module: nn.Module, states: Tensor, pooled: Tensor | None) -> Iterator[None]:
    """Lets `module` answer with these states: what is above it then computes its head on them alone."""
    out = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)
    if pooled is not None:
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

        out = BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=states, pooler_output=pooled)
    module.forward = lambda *_, **__: out
    try:
        yield
    finally:
        del module.forward


def _joined(arrays: Sequence[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays).astype(np.int64)).to(device)


def _owner(arrays: Sequence[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.repeat(np.arange(len(arrays)), [len(a) for a in arrays])).to(device)


def _shifted(row: Row, begin: int) -> Any:
    """What a decoder is given for each answer: all but its last token, after a start token."""
    out = np.roll(row["answer"], 1)
    sizes = row["answer_sizes"]
    out[np.cumsum(sizes) - sizes] = begin
    return out
