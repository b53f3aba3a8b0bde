"""Pre-training: perplexity falls, a stopped run goes on bit for bit, and what is saved is what was trained."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from raymeta import checkpoint
from raymeta.checks import changed_settings, check
from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.pipeline import run_all
from raymeta.pretraining.losses import LanguageModel
from raymeta.pretraining.rows import Rows
from raymeta.stages import pretrain as stage
from raymeta.stages.pretrain import finished, looked_at, pretrain
from raymeta.track import Track, rows
from tests.mistakes import assert_is_a_message, command
from tests.pretrained import OBJECTIVES, frame_of, run_of, text_of, values

LEARNED = ["bert", "gpt2", "llama", "t5"]
AUTO = {
    "mlm+nsp": "AutoModelForMaskedLM",
    "mlm": "AutoModelForMaskedLM",
    "clm": "AutoModelForCausalLM",
    "span": "AutoModelForSeq2SeqLM",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pretrain")


@pytest.mark.parametrize("family", LEARNED)
def test_perplexity_of_held_out_text_falls(family, folder):
    run = run_of(family, folder)
    result = pretrain(run)
    found = result.measured
    before, after = found["before"], found["after"]
    size = 400
    assert 0.8 * size < before["perplexity"] < 2 * size  # a new model knows nothing: all pieces are alike
    assert after["loss"] + after["loss_ci95"] < before["loss"] - before["loss_ci95"]
    assert after["perplexity_ci95"][0] < after["perplexity"] < after["perplexity_ci95"][1]
    lines = rows(result.folder / "metrics.jsonl")
    assert [row["step"] for row in lines if "step_s" in row] == [*range(1, 21)]
    assert [row["step"] for row in lines if row.get("split") == "validation"] == [0, 10, 20]
    assert all(
        row["tokens_per_s"] > 0 and row["tokens"] <= 8 * (32 if family != "t5" else 64)
        for row in lines
        if "step_s" in row
    )
    assert found["tokens"] == sum(row["tokens"] for row in lines if "step_s" in row)
    trained = checkpoint.load(result.folder / "checkpoints" / "step_000020").params()
    assert found["parameters"] == sum(p.numel() for p in trained.values())
    assert ("nsp_accuracy" in after) == (family == "bert")


def _model(run: Run) -> torch.nn.Module:
    assert run.pretrain
    return getattr(transformers, AUTO[run.pretrain.objective]).from_pretrained(run.pretrained / "model").eval()


def _said_by_transformers(load: Any) -> str:
    """What loading says on the console."""
    logger = logging.getLogger("transformers")
    caught: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: caught.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            load()
    finally:
        logger.removeHandler(handler)
    return "\n".join([*caught, *(str(w.message) for w in warned if "transformers" in str(w.filename))])


@pytest.mark.parametrize("family", LEARNED)
def test_what_is_saved_is_a_plain_folder_with_the_trained_weights(family, folder, capfd):
    run = run_of(family, folder)
    pretrain(run)
    model, trained = _model(run), checkpoint.load(run.pretrained / "checkpoints" / "step_000020").params()
    state = model.state_dict()
    shared = {n: v for n, v in trained.items() if n in state}
    assert len(shared) > 10
    assert all(torch.equal(state[n], v) for n, v in shared.items())
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.pretrained / "model")
    assert tokenizer.model_max_length == 32
    network = run.backbone.load(3)
    assert len(run.backbone.tokenizer()) == len(tokenizer) == 400
    inner = model.get_encoder() if family == "t5" else model.base_model
    for name, value in network.base.items():
        assert torch.equal(value, dict(inner.named_parameters())[name]), name
    ids = torch.tensor([tokenizer("play some music for us")["input_ids"]])
    plain = transformers.AutoModel.from_pretrained(run.pretrained / "model").eval()
    plain = plain.get_encoder() if family == "t5" else plain
    assert torch.equal(plain(input_ids=ids).last_hidden_state, inner(input_ids=ids).last_hidden_state)
    capfd.readouterr()
    said = _said_by_transformers(lambda: run.backbone.load(3))
    assert said == ""
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("family", OBJECTIVES)
def test_the_perplexity_that_is_told_is_that_of_the_saved_model(family, folder):
    run = run_of(family, folder)
    found = pretrain(run).measured["after"]
    store = text_of(run)
    assert run.pretrain
    kind = (
        transformers.AutoModelForPreTraining
        if family == "bert"
        else getattr(transformers, AUTO[run.pretrain.objective])
    )
    model = LanguageModel(kind.from_pretrained(run.pretrained / "model").eval(), frame_of(run, store))
    held = Rows(str(store.folder), "validation", model.frame, True, run.seed)
    with torch.no_grad():
        sums = model.sums([held.row(n) for n in range(len(held))])
    assert found["rows"] == len(held)
    assert found["tokens"] == int(sums.tokens.sum())
    assert found["loss"] == pytest.approx(float(sums.loss.sum() / sums.tokens.sum()), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float(sums.hits.sum() / sums.tokens.sum()))


class Ended(BaseException):
    """Stands for a signal."""


@pytest.mark.parametrize(("family", "at"), [("bert", 3), ("bert", 13), ("bert", 20), ("t5", 13)])
def test_a_run_that_is_ended_and_started_again_ends_bit_for_bit_as_an_unbroken_one(
    family, at, folder, tmp_path, monkeypatch
):
    section = {"dropout": 0.1}
    whole = pretrain(run_of(family, folder, **section))
    run = run_of(family, tmp_path, **section)
    row = Track.row

    def end(self: Track, **numbers: Any) -> None:
        if numbers["step"] == at and "step_s" in numbers:
            raise Ended
        row(self, **numbers)

    monkeypatch.setattr(Track, "row", end)
    with pytest.raises(Ended):
        pretrain(run)
    monkeypatch.undo()
    assert finished(run) is None
    again = pretrain(run)
    names = ["model.safetensors", "config.json", "tokenizer.json"]
    assert [(again.model / n).read_bytes() for n in names] == [(whole.model / n).read_bytes() for n in names]
    assert again.measured == whole.measured
    untimed = [
        [{k: v for k, v in r.items() if not k.endswith("_s")} for r in rows(result.folder / "metrics.jsonl")]
        for result in (whole, again)
    ]
    assert untimed[0] == untimed[1]


def test_a_run_that_is_ended_while_it_saves_its_model_saves_it_when_started_again(tmp_path, monkeypatch):
    run = run_of("gpt2", tmp_path, steps=2)

    def end(*_: Any) -> None:
        raise Ended

    monkeypatch.setattr(stage, "_conclude", end)
    with pytest.raises(Ended):
        pretrain(run)
    monkeypatch.undo()
    assert finished(run) is None
    result = pretrain(run)
    assert result.measured["after"] == {
        k: v for k, v in rows(result.folder / "metrics.jsonl")[-1].items() if k not in ("step", "split")
    }


def test_rows_at_once_change_the_result_by_rounding_only(folder, tmp_path):
    one, other = (pretrain(run_of("bert", tmp_path, at_once=n)) for n in (3, 8))
    ours, theirs = (checkpoint.load(r.folder / "checkpoints" / "step_000020").params() for r in (one, other))
    # gradients of about 1 summed in another order differ by 1e-7; AdamW at a rate of 0.01 carries that along
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in ours) < 1e-4


def test_a_finished_pretraining_is_not_done_again_and_a_changed_setting_is_and_says_why(folder, capsys):
    run = run_of("gpt2", folder)
    stamp = (pretrain(run).folder / "pretrain.json").stat().st_mtime_ns
    capsys.readouterr()
    later = Run.of({**run.model_dump(mode="json"), "outer": {"steps": 7}})
    assert pretrain(later).folder == run.pretrained
    assert "pre-training is done" in capsys.readouterr().out
    assert (run.pretrained / "pretrain.json").stat().st_mtime_ns == stamp
    assert [*changed_settings(later)] == []
    other = run_of("gpt2", folder, steps=21)
    assert finished(other) is None
    assert [*changed_settings(other)] == [
        f"settings differ from {run.pretrained} (pretrain.steps: 20 -> 21); pre-training anew in {other.pretrained}"
    ]


def test_a_checkpoint_without_a_head_gets_one_tied_to_its_embeddings_and_keeps_its_own_weights(
    tmp_path, tiny_tokenizer_folder, capsys
):
    run = Run.of({**values("bert", tmp_path), "model": {"name": tiny_tokenizer_folder, "max_length": 32}, "pretrain": {
        "objective": "mlm", "steps": 1, "lr": 1e-9, "batch_size": 2, "length": 32, "validation_share": 0.1,
    }})  # fmt: skip
    result = pretrain(run)
    assert "it has no head for mlm; a new one is trained, tied to its embeddings" in capsys.readouterr().out
    model = transformers.AutoModelForMaskedLM.from_pretrained(result.model)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    before = transformers.BertModel.from_pretrained(tiny_tokenizer_folder, add_pooling_layer=False)
    for name, value in model.bert.named_parameters():
        assert torch.allclose(value, dict(before.named_parameters())[name], atol=1e-7)
    assert result.measured["before"]["loss"] == pytest.approx(result.measured["after"]["loss"], abs=1e-4)


def test_a_pretrained_run_is_meta_trained_and_evaluated_from_its_folder(folder, capsys):
    run = Run.of({
        **values("bert", folder), "outer": {"steps": 2, "tasks_per_step": 2}, "validation": {"every": 2, "episodes": 3},
        "evaluate": {"episodes": 4},
    })  # fmt: skip
    found = run_all(run)
    assert found["metrics"]["accuracy"]["mean"] > 0
    assert (run.folder / "checkpoints" / "step_000002").is_dir()
    again = run_all(run)
    assert again == found
    said = capsys.readouterr().out
    assert said.index("pre-training is done") < said.index("meta-training is done")


def test_check_shows_what_will_be_pretrained_without_the_folder(tmp_path, capsys):
    run = run_of("t5", tmp_path)
    check(run)
    said = capsys.readouterr().out
    assert "to be pre-trained: a new t5 of 0.0 M parameters; span with 400 pieces" in said
    assert "from own rows of classification: 320 documents, 256 rows of other splits left out" in said
    assert "steps of 8 go through them" in said
    assert "episode 0 of the train split:" in said
    assert not run.pretrained.exists()
    pretrain(run)
    check(run)
    assert f"pre-trained: {run.pretrained}" in capsys.readouterr().out


def test_text_that_is_also_read_for_tasks_is_said(tmp_path, capsys):
    own = {"kind": "quickstart", "part": "intents", "columns": {"text": "text"}}
    with looked_at(run_of("gpt2", tmp_path, corpus=own)):
        said = capsys.readouterr().out
    assert "is also read for tasks: text of classes that validate or test may be pre-trained on" in said
    with looked_at(run_of("gpt2", tmp_path)):
        assert "also read for tasks" not in capsys.readouterr().out


def test_a_loss_that_is_not_finite_names_the_rate(tmp_path):
    run = run_of("gpt2", tmp_path, lr=1e30, clip_norm=1e30)
    with pytest.raises(UserError, match=r"pretrain\.lr: at step \d+ the loss or its gradient is not finite"):
        pretrain(run)


def test_held_out_rows_without_a_masked_token_are_one_message(tmp_path):
    with pytest.raises(UserError, match=r"pretrain\.validation_share: in the \d+ held-out rows no token"):
        pretrain(run_of("roberta", tmp_path, mask_rate=1e-6))


MINI = {"steps": 2, "length": 32, "validation_share": 0.1}
MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("no text", {"corpus": {"kind": "text", "path": "{here}/empty.txt"}}, "pretrain.corpus: .*empty.txt is empty"),
    ("no file", {"corpus": {"kind": "text", "path": "{here}/none.txt"}}, "pretrain.corpus: .*there is no file or folder"),
    ("blank text", {"corpus": {"kind": "text", "path": "{here}/blank.txt"}}, "pretrain.corpus: there is no row in it"),
    ("few documents", {"corpus": {"kind": "text", "path": "{here}/one.txt"}}, "validation_share: of 1 documents"),
    ("many pieces", {"tokenizer": {"kind": "wordpiece", "size": 9000}}, "tokenizer.size: 9000 pieces were asked for"),
    ("labels only", {"corpus": {"kind": "quickstart", "columns": {"task": "task", "text": "txt"}}}, "'txt' is not a column"),
    ("long rows", {**MINI, "length": 512}, "pretrain.length: rows of 512 tokens do not fit the 128 positions of a bert model"),
    ("causal", {**MINI, "objective": "clm"}, "pretrain.objective: clm does not suit a bert model; use mlm or mlm\\+nsp"),
    ("spans", {**MINI, "objective": "span"}, "pretrain.objective: span does not suit a bert model"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "says"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
@pytest.mark.parametrize("verb", ["check", "pretrain"])
def test_what_cannot_be_pretrained_is_one_message(
    verb, section, says, tmp_path, tiny_tokenizer_folder, monkeypatch, capsys
):
    for name, text in (("empty.txt", ""), ("blank.txt", "\n \n\n"), ("one.txt", "just one\n")):
        (tmp_path / name).write_text(text)
    settings = values("bert", tmp_path / "results")
    if "steps" in section:
        settings |= {"model": {"name": tiny_tokenizer_folder, "max_length": 32}, "pretrain": {}}
    settings["pretrain"] |= json.loads(json.dumps(section).replace("{here}", str(tmp_path)))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    status, _, message = command([verb, str(tmp_path / "run.yaml")], monkeypatch, capsys)
    assert status == 2, message
    assert_is_a_message(message)
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(message)


def test_the_verb_pretrains_and_tells_what_it_measured(tmp_path, monkeypatch, capsys):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values("gpt2", tmp_path / "results", steps=2)), encoding="utf-8")
    status, out, _ = command(["pretrain", str(tmp_path / "run.yaml")], monkeypatch, capsys)
    assert status == 0
    assert "held-out text at step 0: perplexity" in out
    assert "step 2/2  loss" in out
    assert "perplexity of held-out text:" in out
    assert "model: " in out
    without = values("gpt2", tmp_path / "results") | {"model": {"name": "x"}}
    without.pop("pretrain")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(without), encoding="utf-8")
    status, _, message = command(["pretrain", str(tmp_path / "run.yaml")], monkeypatch, capsys)
    assert status == 2
    assert "has no such section" in message


def test_a_later_stage_asks_for_pretraining_where_it_is_not_done(tmp_path, monkeypatch, capsys):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values("gpt2", tmp_path / "results")), encoding="utf-8")
    status, _, message = command(["metatrain", str(tmp_path / "run.yaml")], monkeypatch, capsys)
    assert status == 2
    assert_is_a_message(message)
    assert "not pre-trained to its end" in message
    assert "raymeta pretrain" in message


def test_text_that_changed_between_two_starts_is_said(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"line {i} of many" for i in range(40)), encoding="utf-8")
    own = {"kind": "text", "path": str(path), "document": "line"}
    run = run_of("gpt2", tmp_path, corpus=own, tokenizer={"kind": "byte_bpe", "size": 270}, steps=6)
    row = Track.row

    def end(self: Track, **numbers: Any) -> None:
        if numbers["step"] == 6:
            raise Ended
        row(self, **numbers)

    monkeypatch.setattr(Track, "row", end)
    with pytest.raises(Ended):
        pretrain(run)
    monkeypatch.undo()
    path.write_text(path.read_text(encoding="utf-8") + "\none more line", encoding="utf-8")
    assert pretrain(run).measured["steps"] == 6
    said = capsys.readouterr().out
    assert "going on from step 5\nthe text has changed since then; what is left is trained on the new one" in said
