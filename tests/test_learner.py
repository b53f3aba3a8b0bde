"""A meta-trained model in use: what it adapts to is what the engine finds, and mistakes are messages."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raymeta import checkpoint
from raymeta.algorithms import Algorithm
from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.learner import Adapted, Learner
from raymeta.model import Backbone
from raymeta.stages.metatrain import metatrain
from raymeta.tasks import Tasks
from raymeta.tasks._spans import Span, marked, spans
from tests.small import INTENTS, SENTENCES, source
from tests.test_mixed import values as mixed

TEXTS, LABELS = [row["text"] for row in INTENTS], [row["label"] for row in INTENTS]
SHOWN = [LABELS.index(label) for label in list(dict.fromkeys(LABELS))[:3]]


def learner(model: str, tasks: str = "classification", algorithm: object = "maml", **backbone: object) -> Learner:
    """A learner with a fresh model, not meta-trained."""
    kind = Tasks.model_validate({"kind": tasks, **({} if tasks == "qa" else {"ways": 3})})
    settings = Backbone.model_validate({"name": model, **backbone})
    network = settings.load(kind.outputs_for(3), slots=kind.slots)
    chosen = Algorithm.model_validate(algorithm)
    params = {**network.params(), **chosen.init(network)}
    return Learner(network, kind, chosen, params, settings.tokenizer())


def adapted(found: Learner) -> Adapted:
    """`found` adapted to three intents, from one text each."""
    return found.adapt([TEXTS[i] for i in SHOWN], [LABELS[i] for i in SHOWN])


WAYS_TO_ADAPT = {
    "all": {}, "head": {"adapt": "head"}, "body": {"adapt": "body"}, "last": {"adapt": {"last": 1}},
    "lora": {"adapt": {"lora": {"rank": 2}}}, "learned head": {"head": "learned"}, "zero head": {"head": "zero"},
    "normalized": {"head": {"kind": "prototype", "normalize": True, "scale": 10.0}},
}  # fmt: skip
ALGORITHMS = {
    "materialised": {"kind": "maml", "inner_steps": 3, "linear": "materialised"},
    "dual": {"kind": "maml", "inner_steps": 3, "linear": "dual"},
    "meta-sgd": {"kind": "meta_sgd", "inner_steps": 2},
    "imaml": {"kind": "imaml", "inner_steps": 2},
    "protonet": {"kind": "protonet"},
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("way", WAYS_TO_ADAPT)
def test_a_learner_answers_as_the_engine_does_in_an_evaluation(way, algorithm, tiny_tokenizer_folder, tmp_path):
    settings = WAYS_TO_ADAPT[way]
    if algorithm == "protonet" and "head" in settings and settings["head"] in ("learned", "zero"):
        pytest.skip("protonet wants class means")
    found = learner(tiny_tokenizer_folder, algorithm=ALGORITHMS[algorithm], **settings)
    corpus = {"kind": "files", "path": str(Path(__file__).parent / "data" / "intents.jsonl")}
    tasks = {"kind": "classification", "ways": 3, "shots": 2, "queries": 2, "split": {"of": "class", "train": 6}}
    drawn = source(tmp_path, tiny_tokenizer_folder, corpus, tasks)
    episode = drawn.episode(3)
    inner = found.algorithm.bound(found.network, found.tasks, [episode], learn=False)
    with torch.no_grad():
        fast = found.algorithm.adapt(inner, inner.opened(found.params))
        wanted = inner.answers(inner.query_logits(fast))[0]
    rows = {tuple(found.tokenizer(row["text"])["input_ids"]): row for row in INTENTS}
    support, query = (
        [rows[tuple(ids.tolist())] for ids in side.ids.split(side.lengths.tolist())]
        for side in (episode.support, episode.query)
    )
    one = found.adapt([row["text"] for row in support], [row["label"] for row in support])
    assert one.classes == episode.classes
    texts = [row["text"] for row in query]
    torch.testing.assert_close(one.logits(texts), wanted, rtol=1e-5, atol=1e-5)
    assert one.predict(texts) == [episode.classes[i] for i in wanted.argmax(-1).tolist()]
    torch.testing.assert_close(
        torch.from_numpy(one.predict_proba(texts)), wanted.double().softmax(-1), rtol=1e-5, atol=1e-5
    )


def test_entities_are_learned_from_tags_or_from_marked_strings_and_found_as_tags_or_spans(tiny_tokenizer_folder):
    found = learner(
        tiny_tokenizer_folder, "entities", {"kind": "maml", "inner_steps": 60, "inner_lr": 0.3}, head="zero"
    )
    words, tags = [list(column) for column in zip(*SENTENCES[:4], strict=True)]
    strings = [" ".join(_marks(*pair)) for pair in zip(words, tags, strict=True)]
    by_tags, by_marks = found.adapt(words, tags), found.adapt(strings)
    assert by_tags.classes == by_marks.classes
    assert by_tags.output_names == ["O", *(f"I-{name}" for name in by_tags.classes)]
    torch.testing.assert_close(by_tags.logits(words), by_marks.logits(words))
    assert by_tags.predict(words) == tags  # 60 steps on four sentences learn them by heart
    by_words, by_characters = by_tags.spans(words), by_tags.spans([" ".join(sentence) for sentence in words])
    assert [[span[:2] for span in some] for some in by_words] == [[span[:2] for span in some] for some in by_characters]
    for sentence, some in zip(words, by_characters, strict=True):
        assert all(" ".join(sentence)[span.start : span.end] == span.text for span in some)
    probabilities = by_tags.predict_proba(words)
    assert [p.shape for p in probabilities] == [(len(sentence), len(by_tags.output_names)) for sentence in words]


def _marks(words, tags):
    """Words with their entities marked; a word of several characters of which some are punctuation stays as it is."""
    out = []
    for i, (word, tag) in enumerate(zip(words, tags, strict=True)):
        text = f"[{word}" if tag.startswith("B-") else word
        ends = tag != "O" and (i + 1 == len(tags) or tags[i + 1] != f"I-{tag[2:]}")
        out.append(f"{text}]({tag[2:]})" if ends else text)
    return out


def test_marks_and_spans_are_read_and_written():
    assert marked("Ada met [Dr Grace Hopper](person) in [Bonn](city).") == (
        ["Ada", "met", "Dr", "Grace", "Hopper", "in", "Bonn", "."],
        ["O", "O", "B-person", "I-person", "I-person", "O", "B-city", "O"],
    )
    assert spans("Dr Hopper, Bonn", ["B-person", "I-person", "O", "B-city"]) == [
        Span("person", "Dr Hopper", 0, 9), Span("city", "Bonn", 11, 15),
    ]  # fmt: skip
    assert spans(["a", "b", "c"], ["B-x", "B-x", "I-x"]) == [Span("x", "a", 0, 1), Span("x", "b c", 1, 3)]


def test_a_sentence_longer_than_the_model_reads_has_a_tag_for_every_word(tiny_tokenizer_folder):
    found = learner(tiny_tokenizer_folder, "entities", max_length=8)
    one = found.adapt(["[Bonn](city) is far", "call [Ada](person)"])
    assert [len(tags) for tags in one.predict([["play"] * 30, ["stop"]])] == [30, 1]


def test_questions_are_answered_in_the_words_of_their_context(tiny_tokenizer_folder):
    made = learner(tiny_tokenizer_folder, "qa", {"kind": "maml", "inner_steps": 60, "inner_lr": 0.2}, head="learned")
    contexts = ["the music is in the room today", "we play at the city bank this time"]
    asked = {"question": ["where is the music?", "where do we play?"], "context": contexts}
    one = made.adapt(**asked, answer=["the room", "the city bank"], language=["en", "en"])
    assert one.predict(**asked) == ["the room", "the city bank"]
    assert one.predict(asked["question"], contexts) == ["the room", "the city bank"]


def test_a_run_that_mixes_corpora_is_loaded_for_one_of_its_kinds_of_task(tiny_tokenizer_folder, tmp_path):
    result = metatrain(Run.of({**mixed(tiny_tokenizer_folder, tmp_path), "outer": {"steps": 1, "tasks_per_step": 2}}))
    kinds = {
        part: Learner.from_pretrained(result.checkpoint, part=part).tasks for part in (None, "intents", "entities")
    }
    assert (kinds[None].kind, kinds["intents"], kinds["entities"].kind) == ("classification", kinds[None], "entities")
    with pytest.raises(UserError, match="no part 'intent'; did you mean 'intents'"):
        Learner.from_pretrained(result.checkpoint, part="intent")


def test_any_number_of_classes_is_learned_but_by_a_learned_head(tiny_tokenizer_folder):
    two = [LABELS.index(label) for label in list(dict.fromkeys(LABELS))[:2]]
    every = [LABELS.index(label) for label in dict.fromkeys(LABELS)]
    for head in ("prototype", "zero"):
        found = learner(tiny_tokenizer_folder, head=head)
        for some in (two, every):
            one = found.adapt([TEXTS[i] for i in some], [LABELS[i] for i in some])
            assert one.predict_proba(TEXTS[:2]).shape == (2, len(some))
    found = learner(tiny_tokenizer_folder, head="learned")
    assert len(found.adapt([TEXTS[i] for i in two], [LABELS[i] for i in two]).predict(TEXTS[:3])) == 3
    with pytest.raises(UserError, match="the learned head has 3 outputs, and 6 classes need 6"):
        found.adapt([TEXTS[i] for i in every], [LABELS[i] for i in every])


def test_one_task_leaves_no_trace_in_another(tiny_tokenizer_folder):
    found = learner(tiny_tokenizer_folder, algorithm={"kind": "maml", "inner_steps": 5, "inner_lr": 0.5})
    before = {name: tensor.clone() for name, tensor in found.params.items()}
    first = adapted(found)
    once = first.logits(TEXTS)
    found.adapt(TEXTS[:9], LABELS[:9])
    torch.testing.assert_close(first.logits(TEXTS), once, rtol=0, atol=0)
    torch.testing.assert_close(adapted(found).logits(TEXTS), once, rtol=0, atol=0)
    for name, tensor in before.items():
        torch.testing.assert_close(found.params[name], tensor, rtol=0, atol=0)


MISTAKES = {
    "one text": (lambda f: f.adapt("play jazz", "music"), "text: give a list, one entry for each text, not str"),
    "lengths": (lambda f: f.adapt(["a", "b"], ["x"]), "the lists differ in length: text 2, label 1"),
    "no labels": (lambda f: f.adapt(["a", "b"]), "no label was given; give a list of each of text, label"),
    "a role": (lambda f: f.adapt(text=["a"], lable=["x"]), "no role 'lable'; did you mean 'label'? (roles: text, label)"),
    "twice": (lambda f: f.adapt(["a"], ["b"], text=["c"]), "text is given twice"),
    "too many": (lambda f: f.adapt(["a"], ["b"], ["c"]), "3 lists were given, but there are 2 roles: text, label"),
    "nothing": (lambda f: f.adapt([], []), "no text was given"),
    "one class": (lambda f: f.adapt(["a", "b"], ["x", "x"]), "all examples are 'x'; give examples of at least two classes"),
    "empty": (lambda f: f.adapt(["a", " "], ["x", "y"]), "example 1: text is empty"),
    "no texts": (lambda f: adapted(f).predict([]), "no text was given"),
    "spans": (lambda f: adapted(f).spans(["a"]), "use predict()"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_examples_is_a_message(mistake, tiny_tokenizer_folder):
    call, says = MISTAKES[mistake]
    with pytest.raises(UserError) as told:
        call(learner(tiny_tokenizer_folder))
    assert says in str(told.value)


def test_a_run_a_checkpoint_and_its_result_load_as_the_best_learner(trained_run):
    state = checkpoint.newest(trained_run / "checkpoints").state
    best = checkpoint.load(trained_run / "checkpoints" / f"step_{state['best']['step']:06d}")
    learners = [Learner.from_pretrained(where) for where in (trained_run, str(best.folder), best)]
    wanted = best.params()
    for found in learners:
        assert not isinstance(found, Adapted)
        for name, tensor in wanted.items():
            torch.testing.assert_close(found.params[name], tensor, rtol=0, atol=0)
    with pytest.raises(UserError, match="is not adapted to a task"):
        Adapted.from_pretrained(trained_run)


def test_a_folder_without_a_model_is_a_message(tmp_path):
    with pytest.raises(UserError, match="is no checkpoint, no run's folder and no folder that raymeta exported"):
        Learner.from_pretrained(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has no checkpoint yet"):
        Learner.from_pretrained(tmp_path)


def test_adapting_and_predicting_start_no_ray(trained_run):
    code = (
        "import sys; from raymeta import Learner; "
        f"one = Learner.from_pretrained({str(trained_run)!r}).adapt(['play jazz', 'book a table'], ['music', 'food']); "
        "assert len(one.predict(['a song'])) == 1; assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
