"""Exported folders: transformers loads them without raymeta, and they answer as the learner does."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from raymeta.errors import UserError
from raymeta.layers import Weights
from raymeta.learner import Adapted, Learner
from raymeta.reading import Read
from tests.families import FAMILIES, save_family
from tests.mistakes import command, told
from tests.small import SENTENCES
from tests.test_learner import LABELS, SHOWN, TEXTS, learner
from tests.test_tasks_relations import WORDS
from tests.test_tasks_relations import row as relation

ALONE = """
import json, sys
sys.modules["raymeta"] = None  # an import of it raises ImportError
import numpy as np, torch, transformers
for folder, kind in json.loads(sys.argv[1]):
    given = json.load(open(folder + "/given.json"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder, trust_remote_code=True)
    texts = [text if isinstance(text, str) else " ".join(text) for text in given]
    inputs = tokenizer(texts, padding=True, return_tensors="pt", return_offsets_mapping=True, return_special_tokens_mask=True)
    offsets, special = inputs.pop("offset_mapping").tolist(), inputs.pop("special_tokens_mask").tolist()
    with torch.no_grad():
        logits = model(**inputs).logits
    if kind == "TokenClassification":  # the first token after the word before (a byte-level one may be a space alone)
        ends = [[sum(map(len, words[:w])) + max(w - 1, 0) for w in range(len(words))] for words in given]
        first = [
            [[not s and a >= end for (a, _), s in zip(offsets[i], special[i])].index(True) for end in ends[i]]
            for i in range(len(given))
        ]
        logits = torch.cat([logits[i, places] for i, places in enumerate(first)])
    np.save(folder + "/found.npy", logits.numpy())
    task = {"SequenceClassification": "text-classification", "TokenClassification": "token-classification"}[kind]
    answer = transformers.pipeline(task, model=folder, trust_remote_code=True)
    if kind == "SequenceClassification":
        found = [one["label"] for one in answer(texts, batch_size=4)]
    else:
        found = [[[e["entity_group"], e["start"], e["end"]] for e in answer(t, aggregation_strategy="first")] for t in texts]
    json.dump(found, open(folder + "/pipeline.json", "w"))
"""
"""Answers the texts in each folder's given.json with the model in it, in a process that has no raymeta."""

EXPORTS = {
    **{f"{family}, mean": (family, "classification", {"pooling": "mean"}) for family in FAMILIES},
    **{f"{family}, words": (family, "entities", {}) for family in FAMILIES},
    "bert, first": ("bert", "classification", {"pooling": "first"}),
    "gpt2, last": ("gpt2", "classification", {"pooling": "last"}),
    "llama, last": ("llama", "classification", {"pooling": "last", "head": "zero"}),
    "bert, normalized": ("bert", "classification", {"head": {"kind": "prototype", "normalize": True, "scale": 10.0}}),
    "bert, words, normalized": ("bert", "entities", {"head": {"kind": "prototype", "normalize": True, "scale": 10.0}}),
    "bert, adapters": ("bert", "classification", {"adapt": {"lora": {"rank": 2}}}),
    "gpt2, adapters": ("gpt2", "classification", {"adapt": {"lora": {"rank": 2}}}),
    "bert, learned scale": ("bert", "classification", {"head": {"kind": "prototype", "learn_scale": True}}),
}
ALGORITHM = {"kind": "maml", "inner_steps": 3, "inner_lr": 0.2, "linear": "dual"}


@pytest.fixture(scope="module")
def exports(tmp_path_factory, tiny_tokenizer_folder):
    """Name -> the adapted model, its folder, and the logits that transformers alone finds there."""
    models = {f: save_family(f, tmp_path_factory.mktemp(f), tiny_tokenizer_folder) for f in FAMILIES}
    found, folders = {}, []
    for name, (family, tasks, settings) in EXPORTS.items():
        made = learner(models[family], tasks, ALGORITHM, **settings)
        if tasks == "classification":
            one, given = made.adapt([TEXTS[i] for i in SHOWN], [LABELS[i] for i in SHOWN]), TEXTS[:9]
        else:
            one, given = made.adapt(*zip(*SENTENCES[:3], strict=True)), [words for words, _ in SENTENCES[:5]]
        folder = tmp_path_factory.mktemp("exported") / "out"
        one.save_pretrained(folder)
        (folder / "given.json").write_text(json.dumps(given))
        folders.append([str(folder), one.tasks.auto_class])
        found[name] = (one, folder, given)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path_factory.mktemp("modules"))
    subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps(folders)],
        check=True,
        env=environment,
        cwd=tmp_path_factory.mktemp("elsewhere"),
    )
    return found


@pytest.mark.parametrize("name", EXPORTS)
def test_an_exported_folder_answers_as_the_learner_does_without_raymeta(name, exports):
    one, folder, given = exports[name]
    wanted = one.logits(given)
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(torch.from_numpy(np.load(folder / "found.npy")), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EXPORTS)
def test_an_exported_folder_loads_again_as_the_adapted_model(name, exports):
    one, folder, given = exports[name]
    again = Adapted.from_pretrained(folder)
    assert (again.classes, again.shown, again.output_names) == (one.classes, one.shown, one.output_names)
    torch.testing.assert_close(again.logits(given), one.logits(given), rtol=1e-5, atol=1e-5)
    assert again.predict(given) == one.predict(given)


@pytest.mark.parametrize(
    "name", [n for n in EXPORTS if n.startswith(("bert", "distilbert", "gpt2, last", "llama, last"))]
)
def test_a_pipeline_of_transformers_answers_as_the_learner_does_without_raymeta(name, exports):
    one, folder, given = exports[name]
    found = json.loads((folder / "pipeline.json").read_text())
    if one.tasks.auto_class == "SequenceClassification":
        assert found == one.predict(given)
    else:
        texts = [" ".join(words) for words in given]
        wanted = [
            [[span.type, *_characters(words, span)] for span in spans]
            for words, spans in zip(given, one.spans(given), strict=True)
        ]
        assert found == wanted, texts


def _characters(words, span):
    """Where a span of words begins and ends in the words joined by spaces."""
    start = len(" ".join(words[: span.start])) + (span.start > 0)
    return [start, start + len(span.text)]


def test_words_are_exported_in_a_class_of_transformers_and_texts_in_one_that_must_be_trusted(exports):
    from transformers import AutoModelForSequenceClassification

    for name, (one, folder, _) in exports.items():
        config = json.loads((folder / "config.json").read_text())
        own = one.tasks.kind == "classification" or "normalized" in name
        assert config["architectures"][0].startswith("Raymeta") == own == (folder / "modeling_raymeta.py").is_file()
    with pytest.raises(ValueError, match="trust_remote_code=True"):  # and no pooler with random weights in silence
        AutoModelForSequenceClassification.from_pretrained(exports["bert, mean"][1], trust_remote_code=False)


ENCODERS = {
    "bert": ("bert", {"kind": "maml", "learn": "layer_and_step", "inner_steps": 2}, {"head": "learned"}),
    "t5": ("t5", {"kind": "maml"}, {"head": {"kind": "prototype", "learn_scale": True}}),
    "gpt2, adapters": ("gpt2", {"kind": "meta_sgd"}, {"adapt": {"lora": {"rank": 2}}}),
    "llama, last": ("llama", {"kind": "protonet"}, {"pooling": "last", "head": {"kind": "prototype", "normalize": True}}),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_a_meta_trained_model_is_exported_as_an_encoder_that_is_a_learner_too(name, tmp_path, tiny_tokenizer_folder):
    import transformers

    family, algorithm, settings = ENCODERS[name]
    made = learner(save_family(family, tmp_path, tiny_tokenizer_folder), "classification", algorithm, **settings)
    random = torch.Generator().manual_seed(1)
    trained = {n: p + 0.1 * torch.randn(p.shape, generator=random) for n, p in made.params.items()}
    made = replace(made, params=trained, inner_steps=2)
    made.save_pretrained(tmp_path / "out")
    again = Learner.from_pretrained(tmp_path / "out")
    assert not isinstance(again, Adapted)
    assert (again.algorithm, again.tasks, again.inner_steps) == (made.algorithm, made.tasks, made.inner_steps)
    assert again.params.keys() == trained.keys()
    for parameter, tensor in trained.items():
        torch.testing.assert_close(again.params[parameter], tensor, rtol=0, atol=0)
    shown = [TEXTS[i] for i in SHOWN], [LABELS[i] for i in SHOWN]
    torch.testing.assert_close(
        again.adapt(*shown).logits(TEXTS), made.adapt(*shown).logits(TEXTS), rtol=1e-5, atol=1e-5
    )
    encoder = getattr(transformers, "AutoModelForTextEncoding" if family == "t5" else "AutoModel").from_pretrained(
        tmp_path / "out"
    )
    ids = torch.tensor([made.tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        network = made.network
        layout = network.layout([Read(ids[0], torch.tensor([ids.shape[1]]))])
        wanted = network.states(Weights(1, trained), trained[network.embedding], layout)
        torch.testing.assert_close(encoder(ids).last_hidden_state[0], wanted, rtol=1e-5, atol=1e-5)


def test_an_answer_that_transformers_has_no_class_for_is_exported_with_its_head_beside(tmp_path, tiny_tokenizer_folder):
    rows = [
        relation(WORDS, *spans)
        for spans in (((1, 3), (6, 8), "where"), ((6, 8), (1, 3), "what"), ((0, 1), (4, 7), "where"))
    ]
    made = learner(tiny_tokenizer_folder, "relations", ALGORITHM)
    one = made.adapt(**{role: [row[role] for row in rows] for role in made.tasks.roles})
    one.save_pretrained(tmp_path / "out")
    again = Adapted.from_pretrained(tmp_path / "out")
    asked = {role: [row[role] for row in rows] for role in made.tasks.roles[:-1]}
    torch.testing.assert_close(again.logits(**asked), one.logits(**asked), rtol=1e-5, atol=1e-5)
    assert again.predict(**asked) == one.predict(**asked)


def test_the_card_says_what_was_measured_and_how_to_load_it(trained_run, tmp_path, monkeypatch, capsys):
    status, out, message = command(["export", str(trained_run), "--to", str(tmp_path / "mine")], monkeypatch, capsys)
    assert (status, message) == (0, "")
    assert str(tmp_path / "mine") in out
    text = (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["pipeline_tag"] == "feature-extraction"
    found = json.loads((trained_run / "evaluation.json").read_text())
    mean, interval = found["metrics"]["accuracy"]["mean"], found["metrics"]["accuracy"]["ci95"]
    assert f"| meta-trained | {100 * mean:.1f} ± {100 * interval:.1f} |" in text
    for words in (
        "# mine",
        "4 episodes, 2-way 1-shot",
        "AutoModel.from_pretrained",
        "Learner.from_pretrained",
        "kind: maml",
    ):
        assert words in text
    one = Learner.from_pretrained(tmp_path / "mine").adapt(TEXTS[:12], LABELS[:12])
    one.save_pretrained(tmp_path / "adapted")
    text = (tmp_path / "adapted" / "README.md").read_text(encoding="utf-8")
    for words in (
        "adapted to 12 examples",
        "`renew_loan`",
        "trust_remote_code=True",
        "Adapted.from_pretrained",
        f"± {100 * interval:.1f}",
    ):
        assert words in text
    one.save_pretrained(tmp_path / "adapted")  # again, over itself


def test_a_folder_that_holds_something_else_is_left_alone(trained_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    status, message = told(["export", str(trained_run), "--to", str(tmp_path)], monkeypatch, capsys)
    assert (status, [p.name for p in tmp_path.iterdir()]) == (2, ["mine.txt"])
    assert "is not empty" in message


def test_a_push_without_a_network_is_a_message(tiny_tokenizer_folder, monkeypatch):
    made = learner(tiny_tokenizer_folder)
    with pytest.raises(UserError, match="push_to_hub: 'me/mine' was not uploaded: "):
        made.push_to_hub("me/mine")
