"""The objective is L + l2 |theta|^2, whoever computes which part of a batch; heads start where they say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertModel

from raymeta.finetuning import Finetune
from raymeta.finetuning.classifier import Classifier, head_for, parts
from raymeta.finetuning.target import Target
from raymeta.heads import Head
from raymeta.layers import Params
from raymeta.model import Backbone, Network
from raymeta.outer import Outer, OuterLoop
from raymeta.tasks.entities import Entities
from tests.small import DATA, as_jsonl, ready

CPU = torch.device("cpu")
L2 = 0.03
INTENTS = {"kind": "files", "path": {s: str(DATA / "intents.jsonl") for s in ("train", "test")}}
SENTENCES = {"kind": "files", "path": {s: str(DATA / "entities.conll") for s in ("train", "test")}}
CLASSIFY = {"kind": "classification", "ways": 2, "shots": 1, "queries": 1}


def classifier_of(
    folder: Path, model: str, corpus: dict[str, Any] = INTENTS, tasks: dict[str, Any] = CLASSIFY, head: Any = "zero", **model_settings: Any
) -> tuple[Classifier, Params]:  # fmt: skip
    """A classifier in float64, and its parameters with a random output layer."""
    made, kind = ready(folder, model, corpus, tasks, max_length=model_settings.get("max_length", 128))
    target = Target.of(made.folder, kind, Finetune(patience=None), 0)
    network = Backbone.model_validate({"name": model, "head": head, **model_settings}).load(9).to(CPU, torch.float64)
    classifier = Classifier(network, target, network.head, 5, CPU)
    random = torch.Generator().manual_seed(0)
    shape = (classifier.outputs, network.module.config.hidden_size)
    head_params = {
        "head.weight": torch.randn(shape, generator=random),
        "head.bias": torch.randn(shape[0], generator=random),
    }
    return classifier, {**network.params(), **{n: p.double() for n, p in head_params.items()}}


def loop_of(classifier: Classifier, params: Params, **settings: Any) -> OuterLoop:
    return OuterLoop(Outer(**settings), {n: params[n] for n in classifier.moving(params)}, classifier.network.embedding)


def objective_gradient(classifier: Classifier, params: Params, rows: Any, size: int, l2: float, on: str) -> Params:
    """As fine-tuning computes it: parts of the batch, then the penalty, then the mean."""
    outer = loop_of(classifier, params)
    for i, part in enumerate(parts(rows, size)):
        found = classifier.gradient(params, part, 0, i)
        outer.accumulate(found.grads, found.rows, found.weight, found.loss)
    names = [n for n, p in outer.params.items() if on == "all" or p.dim() > 1]
    penalty = outer.penalise(l2, names)
    assert penalty == pytest.approx(l2 * sum(float(params[n].square().sum()) for n in names), rel=1e-12)
    weight = float(outer.sums[-3])
    return {n: g / weight for n, g in outer._grads.items()}


def apart(found: Params, wanted: Params) -> float:
    """The largest difference of any number, relative to the largest of all."""
    assert found.keys() == wanted.keys()
    largest = max(float(w.abs().max()) for w in wanted.values())
    return max(float((found[n] - w).abs().max()) for n, w in wanted.items()) / largest


def plain_loss(model: str, target: Target, params: Params, rows: Any) -> tuple[Tensor, Params]:
    """The mean cross-entropy by transformers' own BERT, padded and with a mean over tokens; and its leaves."""
    bert = BertModel.from_pretrained(model, add_pooling_layer=False).double().eval()
    examples = target.examples(rows)
    texts = torch.split(examples.ids, examples.lengths.tolist())
    ids = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    there = torch.arange(ids.shape[1]) < examples.lengths.unsqueeze(1)
    states = bert(input_ids=ids, attention_mask=there.long()).last_hidden_state
    pooled = (states * there.unsqueeze(2)).sum(1) / examples.lengths.unsqueeze(1)
    head = {n: params[n].clone().requires_grad_() for n in ("head.weight", "head.bias")}
    logits = pooled @ head["head.weight"].T + head["head.bias"]
    return F.cross_entropy(logits, target.tasks.targets(examples)), {**dict(bert.named_parameters()), **head}


@pytest.mark.parametrize("on", ["all", "matrices"])
def test_the_gradient_is_that_of_the_plain_loss_plus_twice_lambda_theta(on, tmp_path, tiny_tokenizer_folder):
    classifier, params = classifier_of(tmp_path, tiny_tokenizer_folder)
    rows = classifier.target.train[::3]
    loss, leaves = plain_loss(tiny_tokenizer_folder, classifier.target, params, rows)
    objective = loss + L2 * sum(p.square().sum() for p in leaves.values() if on == "all" or p.dim() > 1)
    wanted = dict(zip(leaves, torch.autograd.grad(objective, list(leaves.values())), strict=True))
    found = objective_gradient(classifier, params, rows, len(rows), L2, on)
    assert apart(found, wanted) < 1e-12
    without = objective_gradient(classifier, params, rows, len(rows), 0.0, on)
    for name, grad in found.items():  # and so, term by term
        penalised = on == "all" or grad.dim() > 1
        torch.testing.assert_close(grad - without[name], 2 * L2 * params[name] * penalised, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["relations", "qa"])
def test_parts_of_other_kinds_add_up_as_well(kind, tmp_path, tiny_tokenizer_folder):
    words = ["the", "bank", "is", "in", "the", "city", "of", "music"]
    found = []
    for i in range(8):
        marks = {"head_start": i % 3, "head_end": i % 3 + 1, "tail_start": 5, "tail_end": 5 + i % 2 + 1}
        context = " ".join(words * (1 + 6 * (i % 2)))  # some are read in several windows
        found.append(
            {"tokens": words, "label": "ab"[i % 2], **marks, "question": "where?", "context": context, "answer": words[i % 3 + 4], "split": "ab"[i > 5]}
        )  # fmt: skip
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl(found))
    tasks = {
        "kind": kind,
        "split": {"column": "split", "train": "a", "test": "b"},
        **({"stride": 4, "max_windows": 8} if kind == "qa" else {}),
    }
    corpus = {"kind": "files", "path": str(tmp_path / "rows.jsonl")}
    classifier, params = classifier_of(tmp_path, tiny_tokenizer_folder, corpus, tasks, head="zero", max_length=24)
    rows = classifier.target.train
    if kind == "qa":
        assert len(classifier.target.examples(rows)) > len(rows)
    else:
        params["head.weight"] = params["head.weight"].repeat(1, 2)  # two states an item
    whole = objective_gradient(classifier, params, rows, len(rows), L2, "all")
    for size in (1, 4):
        assert apart(objective_gradient(classifier, params, rows, size, L2, "all"), whole) < 1e-12


@pytest.mark.parametrize("kind", ["classification", "io", "bio", "weighted"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(kind, tmp_path, tiny_tokenizer_folder):
    how = {"io": {"labels": "io"}, "bio": {"labels": "bio"}, "weighted": {"labels": "io", "outside_weight": 0.2}}
    more = (SENTENCES, {**CLASSIFY, "kind": "entities", **how[kind]}) if kind in how else ()
    classifier, params = classifier_of(tmp_path, tiny_tokenizer_folder, *more)
    rows = classifier.target.train[:11]
    whole = objective_gradient(classifier, params, rows, 11, L2, "all")
    for size in (1, 4, 10):
        assert apart(objective_gradient(classifier, params, rows, size, L2, "all"), whole) < 1e-12


def test_the_loss_that_is_told_is_the_mean_over_items(tmp_path, tiny_tokenizer_folder):
    classifier, params = classifier_of(tmp_path, tiny_tokenizer_folder)
    rows = classifier.target.train
    wanted, _ = plain_loss(tiny_tokenizer_folder, classifier.target, params, rows)
    outer = loop_of(classifier, params)
    for i, part in enumerate(parts(rows, 5)):
        found = classifier.gradient(params, part, 0, i)
        outer.accumulate(found.grads, found.rows, found.weight, found.loss)
    assert outer.update().query_loss == pytest.approx(float(wanted.detach()), rel=1e-12)


@pytest.mark.parametrize("trained", ["all", "adapted"])
def test_what_trains_is_the_encoder_or_what_adapts_and_the_output_layer(trained, tmp_path, tiny_tokenizer_folder):
    made, kind = ready(tmp_path, tiny_tokenizer_folder, INTENTS, CLASSIFY)
    target = Target.of(made.folder, kind, Finetune(patience=None), 0)
    backbone = Backbone.model_validate({"name": tiny_tokenizer_folder, "adapt": {"last": 1}, "head": "zero"})
    network = backbone.load(9, 0, trained)
    classifier = Classifier(network, target, network.head, 8, CPU)
    params = {**network.params(), **classifier.started(network.params(), target.train, 0)}
    params["head.weight"] = torch.ones_like(params["head.weight"]).cumsum(0)
    names = set(classifier.moving(params))
    assert {"head.weight", "head.bias"} < names
    layers = {n for n in network.base if ".layer.1." in n}
    assert names - {"head.weight", "head.bias"} == (set(network.base) if trained == "all" else layers)
    found = classifier.gradient(params, target.train[:8], 0, 0)
    assert set(found.grads) <= names
    assert layers <= set(found.grads)


def test_a_soft_prompt_trains_and_reads_along(tmp_path, tiny_tokenizer_folder):
    classifier, params = classifier_of(tmp_path, tiny_tokenizer_folder, adapt={"prompt": {"tokens": 3}})
    assert "prompt.weight" in classifier.moving(params)
    rows = classifier.target.train[:6]
    assert classifier.gradient(params, rows, 0, 0).grads["prompt.weight"].abs().max() > 0
    other = {**params, "prompt.weight": -params["prompt.weight"]}
    assert not torch.allclose(classifier.logits(params, rows), classifier.logits(other, rows))


HEADS: dict[str, Any] = {
    "plain": {"kind": "prototype", "scale": 0.3},
    "cosine": {"kind": "prototype", "scale": 5.0, "normalize": True},
}


@pytest.mark.parametrize("head", HEADS)
def test_a_prototype_head_starts_as_the_nearest_class_mean(head, tmp_path, tiny_tokenizer_folder):
    classifier, params = classifier_of(tmp_path, tiny_tokenizer_folder, head=HEADS[head])
    rows = classifier.target.train
    params |= classifier.started(params, rows, 0)
    features = torch.cat(
        [mean_states(tiny_tokenizer_folder, classifier.target, rows[i : i + 1]) for i in range(len(rows))]
    )
    if head == "cosine":
        features = F.normalize(features, dim=-1)
    labels = classifier.target.tasks.targets(classifier.target.examples(rows))
    means = torch.stack([features[labels == i].mean(0) for i in range(classifier.outputs)])
    distances = torch.cdist(features, means).square()
    logits = classifier.logits(params, rows)
    wanted = -HEADS[head]["scale"] * distances
    # up to what is the same for every class
    torch.testing.assert_close(logits - logits[:, :1], wanted - wanted[:, :1], rtol=1e-9, atol=1e-9)


def mean_states(model: str, target: Target, rows: Any) -> Tensor:
    bert = BertModel.from_pretrained(model, add_pooling_layer=False).double().eval()
    with torch.no_grad():
        return bert(input_ids=target.examples(rows).ids.unsqueeze(0)).last_hidden_state.mean(1)


def test_heads_of_zeros_and_random_ones_start_as_they_say(tmp_path, tiny_tokenizer_folder):
    classifier, params = classifier_of(tmp_path, tiny_tokenizer_folder)
    del params["head.weight"], params["head.bias"]
    found = classifier.started(params, classifier.target.train[:3], 0)
    assert found["head.weight"].shape == (6, 16)
    assert not found["head.weight"].any()
    assert not found["head.bias"].any()
    classifier.head = head_for("learned", classifier.network.head)
    one, same, other = (
        classifier.started(params, classifier.target.train[:3], seed)["head.weight"] for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 0.01 < float(one.std()) < 0.03


def test_a_learned_head_is_taken_along_where_it_is_wide_enough(tmp_path, tiny_tokenizer_folder):
    classifier, params = classifier_of(tmp_path, tiny_tokenizer_folder, head="learned")
    wide = {**params, **classifier.network.params()}  # nine outputs
    found = classifier.started(wide, classifier.target.train[:3], 5)
    assert torch.equal(found["head.weight"], wide["head.weight"][:6])
    narrow = {**wide, "head.weight": wide["head.weight"][:4], "head.bias": wide["head.bias"][:4]}
    assert not torch.equal(
        classifier.started(narrow, classifier.target.train[:3], 5)["head.weight"][:4], narrow["head.weight"]
    )


def test_the_runs_own_head_is_kept_where_it_is_of_the_kind_that_is_asked_for():
    own = Head.model_validate({"kind": "prototype", "scale": 7.0, "normalize": True})
    assert head_for(None, own) is own
    assert head_for("prototype", own) is own
    assert head_for("zero", own).kind == "zero"
    assert head_for("prototype", Head.model_validate("zero")) == Head.model_validate("prototype")


def test_a_head_with_a_rate_of_its_own_moves_by_it():
    random = torch.Generator().manual_seed(0)
    params = {
        n: torch.randn(s, generator=random)
        for n, s in (("w", (3, 2)), ("b", (3,)), ("head.weight", (2, 3)), ("head.bias", (2,)))
    }
    loops = [OuterLoop(Outer(lr=0.01, schedule="constant"), params, "w", head_lr=rate) for rate in (None, 0.05)]
    for loop in loops:
        loop.accumulate({n: p.clone() for n, p in params.items() if n != "w"}, torch.tensor([0]), 1.0, 0.5)
        loop.update()
    for name in ("b", "head.weight", "head.bias"):
        # AdamW's first step is as long as its rate, whatever the gradient
        for loop, rate in zip(loops, (0.01, 0.05 if name.startswith("head.") else 0.01), strict=True):
            torch.testing.assert_close(
                (loop.params[name] - params[name]).abs(), torch.full_like(params[name], rate), rtol=1e-3, atol=0
            )
    state = loops[1].state()
    again = OuterLoop(Outer(lr=0.01, schedule="constant"), params, "w", head_lr=0.05)
    again.restore(1, dict(loops[1].params), state)
    assert all(torch.equal(again.params[n], p) for n, p in loops[1].params.items())
    assert {k: v.tolist() for k, v in again.state().items()} == {k: v.tolist() for k, v in state.items()}


def test_what_a_part_weighs_is_what_its_loss_was_divided_by():
    random = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(2, 7, 4, generator=random), torch.randint(4, (2, 7), generator=random)
    targets[1, 5:] = -100
    for weight in (1.0, 0.3):
        tasks = Entities(ways=3, outside_weight=weight)
        each = torch.full((4,), 1.0)
        each[0] = weight
        sums = torch.stack([
            F.cross_entropy(logits[t], targets[t], each, ignore_index=-100, reduction="sum") for t in range(2)
        ])  # fmt: skip
        torch.testing.assert_close(tasks.losses(logits, targets) * tasks.measure(targets).float(), sums)


def test_parts_cut_rows_into_runs():
    assert [p.tolist() for p in parts(np.arange(5), 2)] == [[0, 1], [2, 3], [4]]
    assert parts(np.arange(0), 2) == []


def test_dropout_of_a_part_depends_on_seed_and_number_alone(tmp_path, tiny_tokenizer_folder):
    classifier, params = classifier_of(tmp_path, tiny_tokenizer_folder, dropout=0.3)
    rows = classifier.target.train[:4]
    losses = [classifier.gradient(params, rows, seed, number).loss for seed, number in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3
    assert isinstance(classifier.network, Network)
