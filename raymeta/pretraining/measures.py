"""What pre-training is measured by: loss and perplexity of held-out rows with their intervals, and lines for the console."""

import math
from typing import Any

import torch

from raymeta.errors import UserError
from raymeta.metrics import Estimate, estimate_of_ratio
from raymeta.pretraining import Pretrain
from raymeta.pretraining.losses import LanguageModel
from raymeta.pretraining.rows import Rows
from raymeta.stream import share
from raymeta.track import duration
from raymeta.workers import Workers


def measured(model: LanguageModel, held: Rows, section: Pretrain, workers: Workers) -> dict[str, Any]:
    """Loss, perplexity and accuracy of held-out rows, always the same with the same masks, by all workers together.

    Intervals (95 %) are over rows: tokens of a row are not independent.
    """
    count = min(section.validation_rows, len(held))
    numbers = list(share(0, count, workers.rank, workers.count))
    mine: list[tuple[float, ...]] = []
    model.module.eval()
    with torch.no_grad():
        for at in range(0, len(numbers), section.at_once):
            due = numbers[at : at + section.at_once]
            found = model.sums([held.row(n) for n in due])
            sums = (found.loss, found.tokens, found.hits, found.pair_loss, found.pairs, found.pair_hits)
            mine += zip(due, *(t.double().tolist() for t in sums), strict=True)
    everyone = sorted(row for part in workers.gathered(mine) for row in part)
    loss, tokens, hits, pair_loss, pairs, pair_hits = (list(of) for of in list(zip(*everyone, strict=True))[1:])
    if not sum(tokens):
        raise UserError(
            f"pretrain.validation_share: in the {len(everyone)} held-out rows no token is to be predicted; raise it, or pretrain.mask_rate"
        )
    row = {"rows": len(everyone), "tokens": int(sum(tokens)), **perplexity(estimate_of_ratio(loss, tokens))}
    row |= _named("accuracy", estimate_of_ratio(hits, tokens))
    if sum(pairs):
        row |= _named("nsp_loss", estimate_of_ratio(pair_loss, pairs))
        row |= _named("nsp_accuracy", estimate_of_ratio(pair_hits, pairs))
        row["pairs"] = int(sum(pairs))
    return row


def perplexity(loss: Estimate) -> dict[str, Any]:
    """A mean loss and its exponential, with their intervals (None, where there is one row only)."""
    ends = [_exp(end) for end in loss.interval] if math.isfinite(loss.ci95) else None
    return {**_named("loss", loss), "perplexity": _exp(loss.mean), "perplexity_ci95": ends}


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # of a model that says nonsense


def _named(name: str, found: Estimate) -> dict[str, float | None]:
    return {name: found.mean, f"{name}_ci95": found.ci95 if math.isfinite(found.ci95) else None}


def step_line(row: dict[str, Any], steps: int, eta_s: float | None) -> str:
    """One step as a line for the console."""
    pairs = f"  pairs {percent(row, 'nsp_accuracy')}" if "nsp_accuracy" in row else ""
    left = "" if eta_s is None else f"  eta {duration(eta_s)}"
    return f"step {row['step']}/{steps}  loss {row['loss']:.3f}{pairs}  grad {row['grad_norm']:.2f}  {row['tokens_per_s']:.0f} tokens/s{left}"


def validation_line(row: dict[str, Any], metric: str) -> str:
    """One measurement of held-out text as a line for the console."""
    low, high = row["perplexity_ci95"] or (math.nan, math.nan)
    pairs = f", pairs told apart {percent(row, 'nsp_accuracy')}" if "nsp_accuracy" in row else ""
    return f"held-out text at step {row['step']}: perplexity {row['perplexity']:.1f} ({low:.1f} to {high:.1f}, {row['rows']} rows){pairs}"


def percent(row: dict[str, Any], name: str) -> str:
    """A share of a row as a person says it, with its interval where there is one."""
    wide = row.get(f"{name}_ci95")
    return f"{100 * row[name]:.1f}{'' if wide is None else f' ± {100 * wide:.1f}'} %"
