"""A learner of a kind that writes texts: what it writes, and its exported folder, which transformers loads alone."""

import json
import subprocess
import sys

import pytest
import torch

from raymeta.algorithms import Algorithm
from raymeta.errors import UserError
from raymeta.learner import Adapted, Learner
from raymeta.model import Backbone
from raymeta.tasks import Tasks
from raymeta.writing import Sampling
from tests.families import save_family

SOURCES = ["the music room", "my room", "a table", "the music"]
TARGETS = ["la salle", "ma salle", "une table", "la musique"]
FAMILIES = ("gpt2", "llama", "t5")
ADAPTS = {"all": "all", "last": {"last": 1}, "lora": {"lora": {"rank": 2}}}
ALONE = """
import json, sys
sys.modules["raymeta"] = None  # an import of it raises ImportError
import transformers
for folder in json.loads(sys.argv[1]):
    given = json.load(open(folder + "/given.json"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, given["auto"]).from_pretrained(folder)
    found = []
    for text in given["prompts"]:
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**inputs)[0]
        ids = ids if given["auto"].endswith("Seq2SeqLM") else ids[inputs.input_ids.shape[1] :]
        found.append(tokenizer.decode(ids, skip_special_tokens=True))
    json.dump(found, open(folder + "/found.json", "w"))
"""
"""Writes the answers to the prompts in each folder's given.json, in a process that has no raymeta."""


def learner(model: str, kind: dict[str, object], adapt: object = "all") -> Learner:
    """A learner with a fresh model, not meta-trained."""
    tasks = Tasks.model_validate(kind)
    settings = Backbone.model_validate({"name": model, "adapt": adapt, "max_length": 48})
    network = settings.load(0, generates=True)
    algorithm = Algorithm.model_validate({"kind": "maml", "inner_steps": 3, "inner_lr": 0.2, "order": 1})
    return Learner(network, tasks, algorithm, network.params(), settings.tokenizer(), about={"base_model": model})


TRANSLATION = {"kind": "translation", "template": "to {task}: {source}", "max_target_length": 12}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_tokenizer_folder):
    return {f: save_family(f, tmp_path_factory.mktemp(f), tiny_tokenizer_folder, writes=True) for f in FAMILIES}


@pytest.fixture(scope="module")
def exports(folders, tmp_path_factory):
    """(family, adapt) -> the adapted model, its folder, and what transformers alone writes with it."""
    found, places = {}, []
    for family in FAMILIES:
        for name, adapt in ADAPTS.items():
            one = learner(folders[family], TRANSLATION, adapt).adapt(SOURCES, TARGETS, task=["French"] * 4)
            folder = tmp_path_factory.mktemp("export") / f"{family}-{name}"
            one.save_pretrained(folder)
            prompts = [one.tasks.prompt(one.tokenizer).format(task="French", source=s) for s in SOURCES]
            auto = "AutoModelForSeq2SeqLM" if family == "t5" else "AutoModelForCausalLM"
            (folder / "given.json").write_text(json.dumps({"prompts": prompts, "auto": auto}))
            found[family, name] = (one, folder)
            places.append(str(folder))
    subprocess.run([sys.executable, "-c", ALONE, json.dumps(places)], check=True)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_adapting_changes_what_is_written_to_the_answers_shown(family, folders):
    fresh = learner(folders[family], TRANSLATION)
    one = fresh.adapt(SOURCES, TARGETS, task=["French"] * 4, inner_steps=300)
    assert isinstance(one, Adapted)
    assert one.predict(SOURCES) == TARGETS
    assert one.write(SOURCES, task=["French"] * 4) == TARGETS
    assert fresh.adapt(SOURCES, TARGETS, inner_steps=0).predict(SOURCES) != TARGETS


def test_drawn_answers_are_those_of_their_seed(folders):
    one = learner(folders["gpt2"], TRANSLATION).adapt(SOURCES, TARGETS)
    drawn = [one.write(SOURCES, sampling=Sampling(2.0, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_intents_and_instructions_are_learned_by_their_own_roles(folders):
    dialogue = {"kind": "dialogue", "predict": "intent", "max_target_length": 12}
    one = learner(folders["t5"], dialogue).adapt(source=SOURCES, intent=TARGETS, inner_steps=300)
    assert one.predict(SOURCES) == TARGETS
    told = learner(folders["t5"], {"kind": "instructions", "max_target_length": 12})
    one = told.adapt(SOURCES, ["in French"] * 4, TARGETS, inner_steps=300)
    assert one.predict(SOURCES, ["in French"] * 4) == TARGETS
    with pytest.raises(UserError, match="no definition was given"):
        one.predict(SOURCES)


@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_alone_writes_what_the_adapted_model_does(family, adapt, exports):
    one, folder = exports[family, adapt]
    assert json.loads((folder / "found.json").read_text()) == one.write(SOURCES)


@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_folder_loads_again_as_the_adapted_model(family, adapt, exports):
    one, folder = exports[family, adapt]
    again = Adapted.from_pretrained(folder)
    assert again.write(SOURCES) == one.write(SOURCES)
    assert again.shown == 4
    card = (folder / "README.md").read_text()
    assert "adapted to 4 examples of French" in card
    assert f"prompt = {one.tasks.prompt(one.tokenizer)!r}" in card


@pytest.mark.parametrize("adapt", [*ADAPTS.values(), {"prompt": {"tokens": 3}}])
def test_a_model_that_is_not_adapted_is_exported_as_a_learner(adapt, folders, tmp_path):
    fresh = learner(folders["gpt2"], TRANSLATION, adapt)
    fresh.save_pretrained(tmp_path)
    again = Learner.from_pretrained(tmp_path)
    assert not isinstance(again, Adapted)
    assert again.params.keys() == fresh.params.keys()
    written = [one.adapt(SOURCES, TARGETS).write(SOURCES) for one in (fresh, again)]
    assert written[0] == written[1]
    assert "a language model that is a good start" in (tmp_path / "README.md").read_text()


def test_a_language_model_adapts_and_is_exported(folders, tmp_path):
    fresh = learner(folders["llama"], {"kind": "language_model"})
    one = fresh.adapt(SOURCES)
    assert any(not p.equal(fresh.params[n]) for n, p in one.params.items())
    one.save_pretrained(tmp_path)
    again = Adapted.from_pretrained(tmp_path)
    assert all(torch.equal(p, one.params[n]) for n, p in again.params.items())
    for asked in (again.predict, again.logits, again.write):
        with pytest.raises(UserError, match="language_model"):
            asked(SOURCES)


def test_what_a_model_that_writes_cannot_tell_is_a_message(folders):
    one = learner(folders["t5"], TRANSLATION).adapt(SOURCES, TARGETS)
    for asked in (one.logits, one.predict_proba):
        with pytest.raises(UserError, match="translation"):
            asked(SOURCES)
    with pytest.raises(UserError, match="no target was given"):
        learner(folders["t5"], TRANSLATION).adapt(SOURCES)
