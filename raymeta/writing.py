"""Texts that an adapted model writes: the library's own generation, with a task's parameters lent to it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raymeta.adapt import PROMPT
from raymeta.episodes import Examples
from raymeta.errors import UserError
from raymeta.layers import Params
from raymeta.network import Network, attend_by, with_parameters

_ROWS = 64
"""Most texts that are answered together."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn, where they are not to be the likeliest token each time. temperature: logits are divided by it;
    top_p: only the likeliest tokens of together this probability; seed: the same gives the same answers."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


def end_of(examples: Examples) -> int:
    """The token in which the targets of these examples end."""
    return int(examples.extra["target_ids"][-1])


@torch.no_grad()
def written(
    network: Network, params: Params, sources: Examples, end: int, limit: int, sampling: Sampling | None = None
) -> list[list[int]]:
    """The answer to each of `sources`, as tokens, by the whole parameters `params` (see `raymeta.plain.whole`).

    Each ends before the token `end`, or after `limit` tokens; without `sampling`, every token is the likeliest. Texts are
    answered side by side, with what was computed for earlier tokens kept. Raises UserError where a source leaves no room.
    """
    texts = torch.split(sources.ids.to(params[network.embedding].device), sources.lengths.tolist())
    answers: list[list[int]] = []
    with torch.random.fork_rng(devices=[], enabled=sampling is not None):
        if sampling is not None:
            torch.manual_seed(sampling.seed)
        for at in range(0, len(texts), _ROWS):
            answers += _together(network, params, texts[at : at + _ROWS], end, limit, sampling)
    return answers


def _together(
    network: Network, params: Params, texts: tuple[Tensor, ...], end: int, limit: int, sampling: Sampling | None
) -> list[list[int]]:
    from transformers import GenerationConfig

    embedded, mask = _embedded(network, params, texts)
    first = 0
    if network.encoder is not None:
        first = 1  # the start token
    elif network.places is not None:
        limit = min(limit, network.places - embedded.shape[1])
        if limit < 1:
            raise UserError(
                f"model.max_length: a source of {embedded.shape[1]} tokens leaves no room for an answer among the "
                f"{network.places} positions of {type(network.plain).__name__}; lower it"
            )
    drawn = {} if sampling is None else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=limit, do_sample=sampling is not None, num_beams=1, use_cache=True, eos_token_id=end, pad_token_id=end,
        decoder_start_token_id=network.start_token, **drawn,
    )  # fmt: skip
    values = {n: p for n, p in params.items() if n in network.base}
    attend_by(network.plain, "sdpa" if network.sdpa else "eager")
    with network.autocast():
        found: Tensor = with_parameters(
            network.plain,
            values,
            lambda: network.plain.generate(inputs_embeds=embedded, attention_mask=mask, generation_config=config),  # type: ignore[operator]
        )
    return [row[: row.index(end)] if end in row else row for row in found[:, first:].tolist()]


def _embedded(network: Network, params: Params, texts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The texts behind a soft prompt, if there is one, [text, place, hidden], and a mask of what is there.

    A decoder goes on at the end of each, so padding comes before them; an encoder wants it behind.
    """
    table, prompt = params[network.embedding], params.get(PROMPT)
    rows = [F.embedding(t, table) for t in texts]
    if prompt is not None:
        rows = [torch.cat([prompt, row]) for row in rows]
    width = max(len(row) for row in rows)
    before = network.encoder is None
    pads = [(width - len(row), 0) if before else (0, width - len(row)) for row in rows]
    embedded = torch.stack([F.pad(row, (0, 0, *pad)) for row, pad in zip(rows, pads, strict=True)])
    mask = [F.pad(row.new_ones(len(row), dtype=torch.int64), pad) for row, pad in zip(rows, pads, strict=True)]
    return embedded, torch.stack(mask)
