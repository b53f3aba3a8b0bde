"""The loss of rows is that of transformers' own classes on each text alone, for every family."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raymeta.metrics import estimate_of_ratio
from raymeta.pretraining.losses import LanguageModel
from raymeta.pretraining.measures import perplexity
from raymeta.pretraining.models import started
from raymeta.pretraining.rows import Row, Rows
from tests.pretrained import OBJECTIVES, frame_of, run_of, text_of, tokenizer_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("losses")


def made(family: str, folder: Path, several: bool = True, **section: Any) -> tuple[LanguageModel, Rows]:
    run = run_of(family, folder, **section)
    store = text_of(run)
    frame = frame_of(run, store)
    assert run.pretrain is not None
    module, _ = started(run.pretrain, run.model, tokenizer_of(str(store.folder)), 0)
    with torch.no_grad():  # far from a new model's evenness, so that what is wrong would show
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    module.eval()
    return LanguageModel(module, frame), Rows(str(store.folder), "train", frame, several, seed=0)


def theirs(module: nn.Module, row: Row) -> tuple[float, int, float, int]:
    """Summed token loss, tokens, summed pair loss and pairs by transformers' own `labels`, text by text."""
    sums = [0.0, 0, 0.0, 0]
    ends = np.cumsum(row["sizes"])
    answer_ends = np.cumsum(row["answer_sizes"]) if "answer" in row else ends
    for i, (end, size) in enumerate(zip(ends, row["sizes"], strict=True)):
        ids = torch.tensor(row["ids"][end - size : end]).long()[None]
        if "answer" in row:
            labels = torch.tensor(row["answer"][answer_ends[i] - row["answer_sizes"][i] : answer_ends[i]]).long()[None]
            scored, out = labels.shape[1], module(input_ids=ids, labels=labels)
        elif "follows" in row:
            out = module(input_ids=ids, token_type_ids=torch.tensor(row["types"][end - size : end]).long()[None])
            labels = _labels(row, end, size)
            scored = int((labels >= 0).sum())
            if row["follows"][i] >= 0:
                wanted = torch.tensor([0 if row["follows"][i] else 1])  # transformers: 0 is a true continuation
                sums[2] += float(nn.functional.cross_entropy(out.seq_relationship_logits, wanted))
                sums[3] += 1
            each = nn.functional.cross_entropy(out.prediction_logits[0], labels[0], reduction="sum")
            sums[0], sums[1] = sums[0] + float(each), sums[1] + scored
            continue
        else:
            labels = ids if module.config.model_type in ("gpt2", "llama") else _labels(row, end, size)
            scored = int((labels >= 0).sum()) - (module.config.model_type in ("gpt2", "llama"))
            if not scored:
                continue
            out = module(input_ids=ids, labels=labels)
        sums[0], sums[1] = sums[0] + float(out.loss) * scored, sums[1] + scored
    return tuple(sums)  # type: ignore[return-value]


def _labels(row: Row, end: int, size: int) -> torch.Tensor:
    labels = torch.full((len(row["ids"]),), -100)
    labels[torch.tensor(row["places"]).long()] = torch.tensor(row["targets"]).long()
    return labels[end - size : end][None]


@pytest.mark.parametrize("family", OBJECTIVES)
def test_several_texts_in_a_row_lose_what_each_loses_alone_by_transformers_own_count(family, folder):
    model, rows = made(family, folder)
    assert model.packs
    numbers = sorted(range(len(rows)), key=lambda n: -len(rows.row(n)["sizes"]))[:6]
    assert min(len(rows.row(n)["sizes"]) for n in numbers) > 1
    with torch.no_grad():
        ours = model.sums([rows.row(n) for n in numbers])
        wanted = [theirs(model.module, rows.row(n)) for n in numbers]
    assert sum(tokens for _, tokens, _, _ in wanted) > 10
    for i, (loss, tokens, pair_loss, pairs) in enumerate(wanted):
        assert float(ours.tokens[i]) == tokens
        assert float(ours.pairs[i]) == pairs
        # float32, of sums of up to 32 losses of 3 to 10
        assert float(ours.loss[i]) == pytest.approx(loss, rel=2e-5, abs=1e-5)
        assert float(ours.pair_loss[i]) == pytest.approx(pair_loss, rel=2e-5, abs=1e-5)


@pytest.mark.parametrize("family", OBJECTIVES)
def test_one_text_a_row_has_the_same_losses(family, folder):
    model, rows = made(family, folder, several=False)
    with torch.no_grad():
        packed = model.sums([rows.row(n) for n in range(8)])
        model.packs = False
        plain = model.sums([rows.row(n) for n in range(8)])
    assert torch.allclose(packed.loss, plain.loss, rtol=2e-5, atol=1e-5)
    assert torch.equal(packed.hits, plain.hits)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_the_gradient_is_that_of_the_plain_forward(family, folder):
    model, rows = made(family, folder)
    grads = []
    row = rows.row(0)
    sums = model.sums([row])
    (sums.loss.sum() + sums.pair_loss.sum()).backward()
    grads.append({n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None})
    model.module.zero_grad()
    model.packs = False
    for alone in _texts(row):
        sums = model.sums([alone])
        (sums.loss.sum() + sums.pair_loss.sum()).backward()
    grads.append({n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    size = math.sqrt(sum(float(g.square().sum()) for g in grads[1].values()))
    apart = math.sqrt(sum(float((grads[0][n] - g).square().sum()) for n, g in grads[1].items()))
    assert apart < 1e-5 * size


def _texts(row: Row) -> list[Row]:
    """Each text of a row as a row of its own."""
    found = []
    ends = np.cumsum(row["sizes"])
    for i, (end, size) in enumerate(zip(ends, row["sizes"], strict=True)):
        one: Row = {"ids": row["ids"][end - size : end], "sizes": row["sizes"][i : i + 1]}
        if "answer" in row:
            last = int(np.cumsum(row["answer_sizes"])[i])
            one |= {
                "answer": row["answer"][last - row["answer_sizes"][i] : last],
                "answer_sizes": row["answer_sizes"][i : i + 1],
            }
        else:
            mine = (row["places"] >= end - size) & (row["places"] < end)
            one |= {"places": row["places"][mine] - (end - size), "targets": row["targets"][mine]}
        if "follows" in row:
            one |= {"types": row["types"][end - size : end], "follows": row["follows"][i : i + 1]}
        found.append(one)
    return found


def test_a_model_that_cannot_tell_texts_in_a_row_apart_gets_one_text_a_row(folder):
    class Blind(nn.Module):
        """A BERT that sees no mask."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.config, self.base_model = inner, inner.config, inner.base_model
            forward = self.base_model.forward
            self.base_model.forward = lambda attention_mask, position_ids=None, **more: forward(**more)

        def forward(self, **keywords: Any) -> Any:
            return self.inner(**keywords)

    model, _ = made("distilbert", folder)
    assert model.packs
    assert not LanguageModel(Blind(model.module), model.frame).packs


def test_bf16_is_near_float32(folder):
    for family in ("bert", "t5"):
        model, rows = made(family, folder)
        both = []
        for precision in ("float32", "bf16"):
            model.precision = precision
            with torch.no_grad():
                both.append(model.sums([rows.row(n) for n in range(4)]).loss.sum())
        assert both[0] != both[1]
        assert float(both[1]) == pytest.approx(float(both[0]), rel=2e-2)


def test_perplexity_is_the_exponential_of_the_mean_loss_and_its_interval_is_over_rows():
    loss, tokens = [10.0, 30.0, 26.0], [4, 9, 7]
    found = perplexity(estimate_of_ratio(loss, tokens))
    mean = 66 / 20
    assert found["loss"] == pytest.approx(mean)
    assert found["perplexity"] == pytest.approx(math.exp(mean))
    residuals = [x - mean * n for x, n in zip(loss, tokens, strict=True)]
    half = 1.96 * math.sqrt(sum(r * r for r in residuals) / 2 / 3) / (20 / 3)
    assert found["loss_ci95"] == pytest.approx(half)
    assert found["perplexity_ci95"] == pytest.approx([math.exp(mean - half), math.exp(mean + half)])
    assert perplexity(estimate_of_ratio([2.0], [1]))["perplexity_ci95"] is None


def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        counts = random.integers(1, 20, 60)
        group = random.normal(0, 0.5, 60)  # tokens of a row are alike
        sums = np.array([random.normal(3 + g, 1, n).sum() for g, n in zip(group, counts, strict=True)])
        low, high = estimate_of_ratio(sums.tolist(), counts.tolist()).interval
        held += low < 3 < high
    assert 0.91 < held / 400 < 0.98
