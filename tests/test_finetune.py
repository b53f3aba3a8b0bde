"""Fine-tuning from end to end in this process: it learns, keeps the best weights, resumes bit for bit, and says what it measured."""

import csv
import json
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import classification_report as sklearn_report
from transformers import BertConfig, BertModel, BertTokenizerFast

from raymeta import checkpoint
from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.finetuning.compare import ARMS, GAIN
from raymeta.finetuning.fit import Fit
from raymeta.metrics import estimate_of_few
from raymeta.stages.finetune import Result, finetune, finished, targets
from raymeta.stages.metatrain import metatrain
from raymeta.track import rows
from tests.mistakes import DATA, Case, assert_is_a_message, assert_told, command, run_file
from tests.small import INTENTS, as_jsonl

SHORT: dict[str, Any] = {
    "outer": {"steps": 2, "tasks_per_step": 2}, "validation": {"every": 0}, "evaluate": {"episodes": 2}, "save": {"every": 2, "keep": 100},
}  # fmt: skip
OWN = {"kind": "files", "path": str(DATA / "intents.jsonl"), "columns": {"task": "domain"}}


def run_of(folder: Path, model: str, settings: dict[str, Any], /, **sections: Any) -> Run:
    """A short run on the test's intents, with a fine-tuning that starts from the plain backbone."""
    return Run.of(
        {
            "name": "run", "model": {"name": model}, "corpus": OWN, "storage": str(folder / "results"), "cluster": "local-debug",
            "tasks": {"kind": "classification", "ways": 2, "shots": 1, "queries": 1, "split": {"train": 2, "validation": 2, "test": 2}},
            **SHORT, "finetune": {"start": "backbone", "corpus": OWN, "lr": 3e-3, "epochs": 4, "batch_size": 8, **settings}, **sections,
        }
    )  # fmt: skip


def one(run: Run) -> Result:
    (found,) = finetune(run)
    return found


@pytest.fixture(scope="module")
def word_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT of one layer, 16 wide, whose vocabulary is that of the shipped intents."""
    folder = tmp_path_factory.mktemp("words")
    texts = files("raymeta.corpora").joinpath("quickstart_data", "intents").iterdir()
    words = sorted({w for f in texts for w in re.findall(r"\w+|[^\w\s]", f.read_text(encoding="utf-8").lower())})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    BertTokenizerFast(vocab={p: i for i, p in enumerate(pieces)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder)


def test_a_tiny_bert_learns_the_shipped_intents(word_model, tmp_path):
    settings = {"corpus": {"kind": "quickstart", "part": "intents"}, "epochs": 12, "lr": 1e-2, "head": "learned", "head_lr": 3e-2,
                "batch_size": 32, "texts_at_once": 32, "patience": None}  # fmt: skip
    found = one(run_of(tmp_path, word_model, settings)).found
    losses = [row["loss"] for row in found["history"][1:]]
    assert len(losses) == 12
    assert losses[0] == pytest.approx(3.58, abs=0.3)  # log 36: nothing is known
    assert losses[-1] < 0.5
    # 144 test texts of 36 classes: by chance 2.8 %, and 7.7 % are four standard deviations more
    assert found["test"]["accuracy"]["mean"] > 0.077


# what is kept


def test_the_best_weights_are_restored_and_training_stops_when_none_better_comes(tmp_path, tiny_tokenizer_folder):
    result = one(run_of(tmp_path, tiny_tokenizer_folder, {"epochs": 40, "lr": 3e-2, "patience": 3}))
    found, history = result.found, result.found["history"]
    scores = [row["accuracy"] for row in history]
    best = scores.index(max(scores))
    assert 0 < best < len(scores) - 1 < 40  # else the test says nothing
    assert len(scores) - 1 - best == 3
    assert found["best"] == {"step": history[best]["step"], "epoch": history[best]["epoch"], "accuracy": scores[best]}
    assert result.checkpoint.step == history[best]["step"]
    assert found["validation"]["accuracy"]["mean"] == scores[best]
    assert found["repeats"][0]["steps"] == history[-1]["step"]
    last = checkpoint.newest(result.folder / "checkpoints")
    assert last is not None
    assert last.step == history[-1]["step"]
    assert any(not torch.equal(p, last.params()[n]) for n, p in result.checkpoint.params().items())


def test_without_validation_rows_the_last_weights_are_the_result(tmp_path, tiny_tokenizer_folder):
    result = one(
        run_of(
            tmp_path, tiny_tokenizer_folder, {"patience": None, "held_out": {"validation": 0, "test": 0.3}, "steps": 5}
        )
    )
    assert result.found["best"] is None
    assert result.checkpoint.step == 5
    assert "validation" not in result.found
    assert result.found["history"][-1]["loss"] > 0


def test_the_checkpoint_holds_every_parameter_the_classes_and_what_shapes_features(tmp_path, tiny_tokenizer_folder):
    head = {"kind": "prototype", "scale": 4.0, "normalize": True}
    run = run_of(tmp_path, tiny_tokenizer_folder, {"train": "adapted", "epochs": 1},
                 model={"name": tiny_tokenizer_folder, "adapt": {"last": 1}, "head": head})  # fmt: skip
    result = one(run)
    params, plain = (
        result.checkpoint.params(),
        BertModel.from_pretrained(tiny_tokenizer_folder, add_pooling_layer=False),
    )
    assert params.keys() == {*dict(plain.named_parameters()), "head.weight", "head.bias"}
    for name, tensor in plain.named_parameters():
        if ".layer.1." not in name:
            assert torch.equal(params[name], tensor)
    state = result.checkpoint.state
    assert state["classes"] == sorted({r["label"] for r in INTENTS}) == result.found["classes"]
    assert params["head.weight"].shape == (6, 16)
    assert state["head"] == {**head, "learn_scale": False}
    assert state["pooling"] == "mean"
    assert state["tasks"]["kind"] == "classification"


# going on


def metrics(result: Result) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows(result.folder / "metrics.jsonl")]


@pytest.mark.parametrize("at", [0, 4, 9])
def test_a_resumed_fine_tuning_ends_bit_for_bit_where_an_unbroken_one_does(at, tmp_path, tiny_tokenizer_folder):
    settings = {
        "epochs": 5,
        "l2": 1e-3,
        "dropout": 0.2,
        "head": "learned",
        "patience": None,
        "seeds": 2,
        "every": 3,
        "held_out": {"test": 0.3},
    }
    unbroken = one(run_of(tmp_path / "a", tiny_tokenizer_folder, settings, save={"every": 1, "keep": 100}))
    run = run_of(tmp_path / "b", tiny_tokenizer_folder, settings, save={"every": 1, "keep": 100})
    broken = one(run)
    # as if it had been killed after step `at`, while it wrote a row
    for name in ("finetune.json", "fit.json", "test.json", "fits"):
        path = broken.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for folder in (broken.folder / "checkpoints").glob("step_*"):
        if int(folder.name[5:]) > at:
            shutil.rmtree(folder)
    lines = [
        line for line in (broken.folder / "metrics.jsonl").read_text().splitlines(keepends=True) if "seed-0" in line
    ]
    (broken.folder / "metrics.jsonl").write_text("".join(lines) + lines[-1][:20])
    assert finished(run) is None
    resumed = one(run)
    assert metrics(resumed) == metrics(unbroken)
    assert resumed.found == {**unbroken.found, "from": resumed.found["from"]}
    steps = [sorted(p.name for p in (r.folder / "checkpoints").iterdir()) for r in (unbroken, resumed)]
    assert steps[0] == steps[1]
    for step in steps[0]:
        for name in ("params.safetensors", "outer.safetensors"):
            assert (unbroken.folder / "checkpoints" / step / name).read_bytes() == (
                resumed.folder / "checkpoints" / step / name
            ).read_bytes()


def test_what_is_done_is_not_done_again_and_more_repeats_are_added(tmp_path, tiny_tokenizer_folder):
    first = one(run_of(tmp_path, tiny_tokenizer_folder, {"shots": 2}))
    stamps = {p: p.stat().st_mtime_ns for p in first.folder.rglob("*") if p.is_file()}
    again = one(run_of(tmp_path, tiny_tokenizer_folder, {"shots": 2}))
    assert again == first
    assert stamps == {p: p.stat().st_mtime_ns for p in first.folder.rglob("*") if p.is_file()}
    more = one(run_of(tmp_path, tiny_tokenizer_folder, {"shots": 2, "seeds": 3}))
    assert more.folder == first.folder
    assert more.found["repeats"][0] == first.found["repeats"][0]
    assert [r["repeat"] for r in more.found["repeats"]] == [0, 1, 2]
    assert stamps[first.folder / "fit.json"] == (first.folder / "fit.json").stat().st_mtime_ns
    values = [r["test"]["accuracy"]["value"] for r in more.found["repeats"]]
    wanted = estimate_of_few(values)
    assert more.found["test"]["accuracy"] == {"mean": wanted.mean, "ci95": wanted.ci95}
    other = one(run_of(tmp_path, tiny_tokenizer_folder, {"shots": 2, "lr": 1e-3}))
    assert other.folder != first.folder


def test_each_task_of_a_list_has_a_folder_of_its_own(tmp_path, tiny_tokenizer_folder):
    found = finetune(run_of(tmp_path, tiny_tokenizer_folder, {"task": ["library", "ferry"], "epochs": 1}))
    assert [r.found["target"] for r in found] == ["library", "ferry"]
    assert found[0].found["classes"] == ["lost_card", "opening_hours", "renew_loan"]
    assert found[0].folder != found[1].folder


# where it starts


def test_it_starts_from_the_meta_trained_model_or_from_any_checkpoint(tmp_path, tiny_tokenizer_folder):
    run = run_of(tmp_path, tiny_tokenizer_folder, {"start": "metatrain", "epochs": 1, "corpus": None})
    with pytest.raises(UserError, match=r"finetune.start: .* is not meta-trained to its end"):
        finetune(run)
    assert finished(run) is None
    trained = metatrain(run)
    result = one(run)
    assert result.found["from"] == str(trained.best.folder)
    assert result.found["target"] == "the held-out classes"
    assert len(result.found["classes"]) == 2
    start = checkpoint.load(result.folder / "checkpoints" / "step_000000").params()
    encoder = {n: p for n, p in trained.best.params().items() if not n.startswith("head.")}
    assert all(torch.equal(start[n], p) for n, p in encoder.items())
    plain = run_of(tmp_path, tiny_tokenizer_folder, {"epochs": 1, "corpus": None})
    (other,) = finetune(plain, trained.best)
    assert other.found["from"] == str(trained.best.folder)
    assert one(plain).found["from"] == tiny_tokenizer_folder


def test_arms_of_a_comparison_get_the_same_rows_and_the_gain_is_of_pairs(tmp_path, tiny_tokenizer_folder):
    settings = {"start": "metatrain", "steps": 6, "shots": 2, "compare": {"shots": [2, 3], "rows": 5, "seeds": 2}}
    run = run_of(tmp_path, tiny_tokenizer_folder, settings)
    metatrain(run)
    result = one(run)
    found = result.comparison
    assert found is not None
    assert list(found["rows"]) == [*ARMS, GAIN]
    sizes = ["2 a class", "3 a class", "5 rows"]
    for name, (start, trains) in ARMS.items():
        assert list(found["rows"][name]) == sizes
        for size, (shots, count) in zip(sizes, ((2, None), (3, None), (None, 5)), strict=True):
            fits = [Fit(start, shots, count, repeat, trains) for repeat in range(2)]
            places = [result.folder if (start, shots, repeat, trains) == ("metatrain", 2, 0, True) else result.folder / "fits" / fit.name
                      for repeat, fit in enumerate(fits)]  # fmt: skip
            read = [json.loads((place / "fit.json").read_text()) for place in places]
            assert [r["rows"] for r in read] == [5 if count else 6 * (shots or 0)] * 2
            assert [r["steps"] for r in read] == [6 if trains else 0] * 2 or trains
            assert found["rows"][name][size]["values"] == [r["test"]["headline"]["accuracy"]["value"] for r in read]
    ours, plain = (found["rows"][name] for name in list(ARMS)[:2])
    for size in sizes:
        pairs = [a - b for a, b in zip(ours[size]["values"], plain[size]["values"], strict=True)]
        assert found["rows"][GAIN][size] == {
            "mean": estimate_of_few(pairs).mean,
            "ci95": estimate_of_few(pairs).ci95,
            "values": pairs,
        }
    assert found["text"] in result.text()
    assert (result.folder / "comparison.txt").read_text() == found["text"]
    # of what is only compared, no weights stay
    assert not list((result.folder / "fits").glob("*/checkpoints"))


# reports


def test_the_report_is_scikit_learns_on_what_the_kept_weights_predict_in_plain_transformers(
    tmp_path, tiny_tokenizer_folder
):
    run = run_of(tmp_path, tiny_tokenizer_folder, {"epochs": 8, "lr": 1e-2, "head": "zero", "head_lr": 3e-2})
    result, (target,) = one(run), targets(run, say=lambda _: None)
    params = result.checkpoint.params()
    bert = BertModel.from_pretrained(tiny_tokenizer_folder, add_pooling_layer=False).eval()
    bert.load_state_dict({n: p for n, p in params.items() if not n.startswith("head.")})
    examples = target.examples(target.test)
    with torch.no_grad():
        features = [
            bert(ids.unsqueeze(0)).last_hidden_state.mean(1)
            for ids in torch.split(examples.ids, examples.lengths.tolist())
        ]
    predicted = (torch.cat(features) @ params["head.weight"].T + params["head.bias"]).argmax(-1).tolist()
    gold = target.tasks.targets(examples).tolist()
    wanted = sklearn_report(
        gold, predicted, labels=list(range(6)), target_names=result.found["classes"], output_dict=True, zero_division=0
    )
    assert 0 < wanted["accuracy"] < 1
    assert result.found["test"]["accuracy"]["mean"] == pytest.approx(wanted["accuracy"])
    with (result.folder / "test.csv").open(newline="") as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    for name in (*result.found["classes"], "macro avg", "weighted avg"):
        assert float(table[name]["f1"]) == pytest.approx(wanted[name]["f1-score"])
        assert float(table[name]["precision"]) == pytest.approx(wanted[name]["precision"])
        assert int(table[name]["support"]) == wanted[name]["support"]
    report = json.loads((result.folder / "test.json").read_text())
    assert report["rows"] == len(gold)
    assert report["headline"]["accuracy"]["value"] == pytest.approx(wanted["accuracy"])
    assert (result.folder / "test.txt").read_text() in result.text() + "\n"


CONLL_2003 = """-DOCSTART- -X- -X- O

{}
"""


def conll_2003(seed: int) -> str:
    """Sentences in the four columns of CoNLL-2003: token, part of speech, chunk, tag."""
    people, places = ("ana", "bo li", "cy", "dee ray"), ("oslo", "new ur", "bern", "rio")
    sentences = []
    for i in range(8):
        who, where = people[(i + seed) % 4].split(), places[(i // 2 + seed) % 4].split()
        words = [(who[0], "B-PER"), *((w, "I-PER") for w in who[1:]), ("is", "O"), ("in", "O"),
                 (where[0], "B-LOC"), *((w, "I-LOC") for w in where[1:]), (".", "O")]  # fmt: skip
        sentences.append("\n".join(f"{w} NNP B-NP {t}" for w, t in words))
    return CONLL_2003.format("\n\n".join(sentences[:4])) + CONLL_2003.format("\n\n".join(sentences[4:]))


def test_conll_2003_columns_are_read_as_they_are_and_reported_as_the_literature_does(tmp_path, tiny_tokenizer_folder):
    paths = {}
    for i, (split, name) in enumerate((("train", "eng.train"), ("validation", "eng.testa"), ("test", "eng.testb"))):
        paths[split] = str(tmp_path / name)
        Path(paths[split]).write_text(conll_2003(i), encoding="utf-8")
    settings = {
        "corpus": {"kind": "files", "path": paths, "format": "conll"}, "tasks": {"kind": "entities", "labels": "bio"}, "epochs": 30, "lr": 1e-2,
        "head": "learned", "head_lr": 3e-2, "patience": None,
    }  # fmt: skip
    result = one(run_of(tmp_path, tiny_tokenizer_folder, settings))
    assert result.found["classes"] == ["LOC", "PER"]
    assert result.checkpoint.params()["head.weight"].shape == (5, 16)
    report = json.loads((result.folder / "test.json").read_text())
    assert report["rows"] == 8
    assert set(report["headline"]) == {"entity_f1", "precision", "recall", "strict_f1"}
    lines = (result.folder / "test.txt").read_text().splitlines()
    modes = [lines.index("default mode"), lines.index("strict mode")]
    names = ["LOC", "PER", "micro avg", "macro avg", "weighted avg"]
    for start in modes:
        table = [re.split(r"\s{2,}", line.strip())[0] for line in lines[start + 1 : start + 10] if line.strip()]
        assert table[1:6] == names
    assert report["tables"]["default mode"]["averages"][0]["support"] == 16
    assert report["headline"]["entity_f1"]["value"] > 0.5


# the command line, and mistakes


def test_the_verb_prints_what_it_measured_and_where_the_model_is(tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    path = run_file(tmp_path, tiny_tokenizer_folder)
    words = ["outer.steps=2", "validation.every=0", "evaluate.episodes=2", "finetune={epochs: 2, shots: 2}"]
    status, out, message = command(["finetune", str(path), *words], monkeypatch, capsys)
    assert status == 2
    assert_is_a_message(message)
    assert "raymeta metatrain" in message
    assert "--from" in message
    status, out, message = command(["run", str(path), *words], monkeypatch, capsys)
    assert (status, message) == (0, "")
    assert "the held-out classes: 2 a class, from " in out
    assert "meta-trained" in out
    status, out, message = command(["finetune", str(path), *words], monkeypatch, capsys)
    assert (status, message) == (0, "")
    model = Path(re.search(r"model: (\S+)", out)[1])
    assert checkpoint.load(model).state["classes"]
    for word in ("precision", "weighted avg", "accuracy"):
        assert word in out
    _, out, _ = command(["finetune", str(path), *words, "finetune.lr=1e-3"], monkeypatch, capsys)
    assert "finetune.lr: 5e-05 -> 0.001" in out
    assert "fine-tuning anew" in out
    start = next((tmp_path / "results").glob("run-*/checkpoints/step_*"))
    status, out, _ = command(["finetune", str(path), *words, "--from", str(start)], monkeypatch, capsys)
    assert status == 0
    assert f"from {start}" in out


def test_a_run_without_the_section_says_what_to_add(tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    status, _, message = command(["finetune", str(run_file(tmp_path, tiny_tokenizer_folder))], monkeypatch, capsys)
    assert status == 2
    assert_is_a_message(message)
    assert "finetune: {task: ...}" in message


MISTAKES = [
    Case("both sizes", ["finetune={shots: 5, rows: 100}"], ["finetune.rows", "5 a class", "not both"]),
    Case("no shots", ["finetune.shots=0"], ["finetune.shots", "at least 1", "0"]),
    Case("a start that is none", ["finetune.start=pretrain"], ["finetune.start", "'metatrain' or 'backbone'", "'pretrain'"]),
    Case("a head that is none", ["finetune.head=protoype"], ["finetune.head", "did you mean 'prototype'"]),
    Case("negative l2", ["finetune.l2=-1"], ["finetune.l2", "at least 0"]),
    Case("nothing to train on", ["finetune.held_out={validation: 0.5, test: 0.5}"], ["finetune.held_out", "leave no row"]),
    Case("a split by classes", ["finetune.split={train: 3}"], ["finetune.split", "by a column"]),
    Case("a split by classes of its tasks", ["finetune.tasks={kind: classification, split: {train: 3}}"], ["finetune.tasks.split", "by a column"]),
    Case("no size to compare at", ["finetune.compare={seeds: 3}"], ["finetune.compare", "shots", "rows"]),
    Case("one seed to compare", ["finetune.compare={shots: 5, seeds: 1}"], ["finetune.compare.seeds", "at least 2"]),
    Case("no column of tasks", ["finetune.task=ferry"], ["finetune.task", "'ferry'", "corpus.columns: {task: domain}"]),
    Case("an unknown task", ["corpus.columns={task: domain}", "finetune.task=fery"], ["finetune.task", "'fery'", "did you mean 'ferry'"]),
    Case("a column that is not there", ["finetune.split={column: nowhere, train: a, test: b}"], ["'nowhere'", "not a column"]),
    Case("no row to test", ["finetune.held_out={test: 0}"], ["the held-out classes has no row to test", "finetune.held_out"]),
    Case("no row to validate", ["finetune.held_out={validation: 0}"], ["finetune.patience: 5", "null"]),
    Case("a corpus without its file", ["finetune.corpus={kind: files, path: /nowhere.jsonl}"], ["/nowhere.jsonl"]),
    Case("classes made anew", ["finetune.tasks={kind: smlmt}"], ["finetune.tasks", "smlmt", "kind: classification"]),
    Case("texts to be written", ["finetune.tasks={kind: translation}"], ["finetune.tasks", "translation", "fixed classes"]),
]  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: case.name)
def test_a_mistake_in_fine_tuning_is_one_message(case, tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    assert_told(case, tmp_path, tiny_tokenizer_folder, monkeypatch, capsys)


def test_questions_are_fine_tuned_on_with_learned_outputs_and_without_class_means(tmp_path, tiny_tokenizer_folder):
    words = ["the", "bank", "is", "in", "the", "city", "of", "music"]
    found = [
        {"question": "where?", "context": " ".join(words), "answer": words[i % 4 + 4], "split": "aab"[i % 3]}
        for i in range(12)
    ]
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl(found))
    corpus = {"kind": "files", "path": str(tmp_path / "rows.jsonl")}
    settings = {
        "corpus": corpus,
        "tasks": {"kind": "qa"},
        "split": {"column": "split", "train": "a", "test": "b"},
        "epochs": 2,
        "patience": None,
    }
    with pytest.raises(UserError, match=r"finetune.head: prototype makes outputs of class means"):
        one(run_of(tmp_path, tiny_tokenizer_folder, settings))
    run = run_of(
        tmp_path,
        tiny_tokenizer_folder,
        {**settings, "head": "learned", "start": "metatrain", "compare": {"rows": [3], "seeds": 2}},
    )
    metatrain(run)
    result = one(run)
    assert set(result.found["test"]) >= {"token_f1", "exact_match"}
    assert result.comparison is not None
    assert list(result.comparison["rows"]) == [*list(ARMS)[:2], GAIN]


def test_a_rate_that_is_far_too_high_is_told(tmp_path, tiny_tokenizer_folder):
    with pytest.raises(UserError, match=r"finetune.lr: .* not finite"):
        one(run_of(tmp_path, tiny_tokenizer_folder, {"lr": 1e30, "warmup": 0, "epochs": 9, "patience": None}))


def test_a_mixed_run_must_name_the_corpus_of_its_target(tmp_path, tiny_tokenizer_folder):
    parts = [{**OWN, "called": "a"}, {**OWN, "called": "b"}]
    with pytest.raises(UserError, match=r"finetune.corpus: the run mixes several corpora \(a, b\)"):
        one(run_of(tmp_path, tiny_tokenizer_folder, {"corpus": None}, corpus=parts))
    assert one(run_of(tmp_path, tiny_tokenizer_folder, {"epochs": 1}, corpus=parts)).found["test"]


def test_rows_that_are_read_from_files_may_be_jsonl_of_ones_own(tmp_path, tiny_tokenizer_folder):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_bytes(as_jsonl(INTENTS))
    corpus = {"kind": "files", "path": {s: str(tmp_path / f"{s}.jsonl") for s in ("train", "validation", "test")}}
    found = one(run_of(tmp_path, tiny_tokenizer_folder, {"corpus": corpus, "epochs": 1})).found
    assert found["rows"] == 36
