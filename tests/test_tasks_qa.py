"""Questions: where answers stand among tokens and windows, the loss over a window's tokens, and the best span."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raymeta.config import Run
from raymeta.episodes import Episode
from raymeta.errors import UserError
from raymeta.learner import Learner
from raymeta.model import Backbone
from raymeta.stages.evaluate import evaluate, table
from raymeta.stages.metatrain import metatrain
from raymeta.tasks._windows import best_span
from raymeta.tasks.qa import Qa
from tests.small import as_jsonl, source

CONTEXT = "The music room is in the city bank. Please play what you have, or stop at the table for a book today."


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_folder):
    return Backbone(name=tiny_tokenizer_folder).tokenizer()


def row(answer, context=CONTEXT, question="where is the music?", start=None, **more):
    """A row of a corpus; the answer stands where it first occurs."""
    first = answer if isinstance(answer, str) else answer[0] if answer else None
    return {
        "question": question, "context": context, "answer": answer,
        "answer_start": context.find(first) if start is None and first else start, **more,
    }  # fmt: skip


def encoded(tokenizer, rows, max_length=64, **tasks):
    kind = Qa(**tasks)
    assert [kind.fault(r) for r in rows] == [None] * len(rows)
    found = kind.encode(rows, tokenizer, max_length)
    assert not [f["fault"] for f in found if "fault" in f]
    return found


def examples(kind, found):
    names = {name for f in found for name in f}
    return kind.examples({n: [f[n] for f in found] for n in names}, np.arange(len(found)), ("a task",))


def marked(kind, made):
    """What stands between the marked tokens of each window, by picking the context's characters; "" where nothing is marked."""
    targets = kind.targets(made)
    held = (made.extra["held"] + 1).tolist()
    texts = "".join(map(chr, made.extra["text"].tolist()))
    starts, ends = (torch.split(made.extra[n], made.extra["held"].tolist()) for n in ("starts", "ends"))
    out = []
    for w, codes in enumerate(torch.split(targets, held)):
        assert codes.min() // 4 == codes.max() // 4 == w
        start, end = int((codes % 2).argmax()), int((codes % 4 // 2).argmax())
        assert int((codes % 2).sum()) == int((codes % 4 // 2).sum()) == 1
        out.append(texts[int(starts[w][start - 1]) : int(ends[w][end - 1])] if start else "")
    return out


@pytest.mark.parametrize("answer", ["city bank", "The", "today", "in the city", "bank"])
def test_an_answer_is_marked_where_it_stands(tokenizer, answer):
    kind = Qa()
    made = examples(kind, encoded(tokenizer, [row(answer)]))
    assert marked(kind, made) == [answer]
    picked = kind.picks(made, "mean").token
    assert picked[0] == 0
    assert tokenizer.convert_ids_to_tokens(made.ids[picked[1:4]]) == ["the", "music", "room"]
    assert len(picked) == made.extra["held"].sum() + 1


def test_a_long_context_is_read_in_windows_that_overlap(tokenizer):
    context = " ".join(["room"] * 40 + ["bank"] + ["table"] * 40)
    found = encoded(tokenizer, [row("bank", context), row("room room", context)], max_length=40, stride=10)
    kind = Qa(stride=10)
    made = examples(kind, found)
    windows = made.extra["questions"].tolist()
    assert windows[0] > 2
    assert max(made.lengths.tolist()) == 40
    assert marked(kind, made)[: windows[0]].count("bank") == sum(w == "bank" for w in marked(kind, made)) >= 1
    covered = set()
    for starts in torch.split(made.extra["starts"], made.extra["held"].tolist())[: windows[0]]:
        covered |= set(starts.tolist())
    assert len(covered) == 81
    between = [set(s.tolist()) for s in torch.split(made.extra["starts"], made.extra["held"].tolist())[:2]]
    assert len(between[0] & between[1]) == 10
    assert made.rows.tolist() == [0] * windows[0] + [1] * windows[1]


def test_an_answer_that_no_window_holds_is_said_of_the_row(tokenizer):
    context = " ".join(["room"] * 60)
    long = Qa(stride=2).encode([row(context[:200], context)], tokenizer, 32)[0]
    assert long["fault"].startswith("no window holds the whole answer; raise tasks.stride")
    far = Qa(max_windows=1).encode([row("bank", context + " bank")], tokenizer, 32)[0]
    assert far["fault"].startswith("no window holds the whole answer")
    assert far["cut"]
    asked = Qa().encode([row("room", context, "where " * 30)], tokenizer, 32)[0]
    assert "tokens of model.max_length for its context" in asked["fault"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"question": None}, "question is missing, not a string"),
        ({"context": "  "}, "context is empty"),
        ({"answer": 3}, "answer is int '3', not a string or a list of strings"),
        ({"answer": ""}, "there is no answer, and tasks.no_answer is off"),
        ({"answer": None}, "there is no answer"),
        ({"answer": []}, "there is no answer"),
        ({"answer_start": 3}, "the answer 'bank' does not stand at character 3 of its context"),
        ({"answer_start": -1}, "the answer 'bank' does not stand at character -1"),
        ({"answer_start": "x"}, "answer_start is 'x', not a whole number"),
        ({"answer_start": None, "answer": "mouse"}, "the answer 'mouse' is not in its context"),
        ({"answer": ["bank", "city"], "answer_start": [30]}, "2 answers but 1 starts"),
        ({"language": 7}, "language is int '7'"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(changed, says):
    assert str(Qa().fault(row("bank") | changed)).startswith(says)


def test_a_question_without_an_answer_marks_the_first_token(tokenizer):
    kind = Qa(no_answer=True)
    for none in (None, "", [], [""]):
        assert kind.fault(row("bank") | {"answer": none, "answer_start": None}) is None
    made = examples(kind, encoded(tokenizer, [row(None), row("bank")], no_answer=True))
    assert marked(kind, made) == ["", "bank"]
    assert kind.accepted(made)[0] == [[], ["bank"]]


odd = st.text(st.sampled_from([*"abc  .'", "é", "\u0301", "北", "🎉", "\u00a0", "\n", "\u200b", "[", "İ"]), max_size=30)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=odd, answer=st.text(st.sampled_from("abc é"), min_size=1, max_size=8).filter(str.strip), after=odd)
def test_a_marked_answer_holds_the_answers_words_whatever_is_around(tokenizer, before, answer, after):
    kind = Qa()
    made = examples(kind, encoded(tokenizer, [row(answer, f"{before} {answer} {after}", start=len(before) + 1)], 512))
    assert answer.strip() in marked(kind, made)[0]


def by_hand(logits, targets):
    """The loss of one task, window by window with torch's own cross-entropy."""
    total = []
    for window in range(int(targets.max()) // 4 + 1):
        mine = targets // 4 == window
        for output, code in ((0, targets[mine] % 2), (1, targets[mine] % 4 // 2)):
            total.append(F.cross_entropy(logits[mine, output].unsqueeze(0), code.argmax().unsqueeze(0)))
    return torch.stack(total).mean()


def some_targets(windows, random):
    """Targets of windows of 2 to 6 items."""
    out = []
    for w in range(windows):
        items = int(torch.randint(2, 7, (1,), generator=random))
        start, end = torch.randint(items, (2,), generator=random).sort().values.tolist()
        out += [4 * w + (i == start) + 2 * (i == end) for i in range(items)]
    return torch.tensor(out)


def test_the_loss_is_cross_entropy_over_each_windows_tokens_and_padding_is_no_token():
    random = torch.Generator().manual_seed(0)
    tasks = [some_targets(n, random) for n in (3, 1, 5)]
    logits = [torch.randn(len(t), 2, generator=random, dtype=torch.float64) * 3 for t in tasks]
    width = max(map(len, tasks))
    padded = torch.stack([F.pad(t, (0, width - len(t)), value=-100) for t in tasks])
    scores = torch.stack([F.pad(x, (0, 0, 0, width - len(x)), value=1e4) for x in logits])
    wanted = torch.stack([by_hand(x, t) for x, t in zip(logits, tasks, strict=True)])
    torch.testing.assert_close(Qa().losses(scores, padded), wanted, rtol=1e-12, atol=0)


def test_the_loss_can_be_differentiated_twice():
    random = torch.Generator().manual_seed(1)
    targets = torch.stack(
        [F.pad(t, (0, 20 - len(t)), value=-100) for t in (some_targets(2, random), some_targets(3, random))]
    )
    logits = torch.randn(2, 20, 2, generator=random, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Qa().losses(x, targets), logits)
    assert torch.autograd.gradgradcheck(lambda x: Qa().losses(x, targets), logits)


@settings(max_examples=100, deadline=None)
@given(tokens=st.integers(1, 12), longest=st.integers(1, 12), seed=st.integers(0, 1000))
def test_the_best_span_is_the_best_of_all_spans(tokens, longest, seed):
    scores = np.random.default_rng(seed).normal(size=(tokens, 2))
    every = {(s, e): scores[s, 0] + scores[e, 1] for s in range(tokens) for e in range(s, min(tokens, s + longest))}
    value, first, last = best_span(scores, longest)
    assert value == pytest.approx(max(every.values()))
    assert every[first, last] == pytest.approx(value)


def says(made, answers):
    """Scores that point to the first occurrence of each question's answer in the window where it stands, or to no answer."""
    logits = torch.zeros(int((made.extra["held"] + 1).sum()), 2)
    begin = np.concatenate([[0], np.cumsum(made.extra["held"].numpy() + 1)])
    codes = Qa().targets(made)
    owner = np.repeat(np.arange(len(answers)), made.extra["questions"].numpy())
    for w, question in enumerate(owner):
        mine = codes[begin[w] : begin[w + 1]]
        if answers[question] is None:
            logits[begin[w], :] = 9.0
        elif answers[question] and not mine[0] % 2:
            logits[begin[w] + int((mine % 2).argmax()), 0] = 5.0
            logits[begin[w] + int((mine % 4 // 2).argmax()), 1] = 5.0
    return logits


def test_answers_are_the_contexts_own_words_from_the_best_window(tokenizer):
    kind = Qa(no_answer=True, stride=10)
    long = " ".join(["room"] * 40 + ["The-City", "BANK,"] + ["table"] * 40)
    rows = [row("The-City BANK", long), row(["music room", "room"]), row(None), row("bank")]
    made = examples(kind, encoded(tokenizer, rows, 40, no_answer=True, stride=10))
    right = kind.score(says(made, [True, True, None, True]), made, ("a task",))
    assert right == {"token_f1": 1.0, "exact_match": 1.0, "no_answer_precision": 1.0, "no_answer_recall": 1.0}
    assert kind.answers(says(made, [True, True, None, True]), made, ("a task",), rows) == [
        "The-City BANK",
        "music room",
        "",
        "bank",
    ]
    silent = kind.score(says(made, [None] * 4), made, ("a task",))
    assert silent == {"token_f1": 0.25, "exact_match": 0.25, "no_answer_precision": 0.25, "no_answer_recall": 1.0}
    assert "" not in Qa(stride=10).answers(says(made, [None] * 4), made, ("a task",), rows)


def test_rows_name_the_language_of_their_answers(tokenizer):
    kind = Qa()
    rows = [row("der Bank", "in der Bank"), row("der Bank", "in der Bank", language="de")]
    made = examples(kind, encoded(tokenizer, rows))
    assert kind.accepted(made) == ([["der Bank"], ["der Bank"]], ["en", "de"])


TASKS = {"kind": "qa", "shots": 3, "queries": 2, "split": {"of": "class", "train": 3, "validation": 1, "test": 1}}
CORPUS = {"columns": {"task": "article", "answer_start": "answer_start"}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Questions on five articles."""
    words = ["music", "room", "city", "bank", "table", "book"]
    rows = [
        row(words[(i + a) % 6], " ".join(words[(j * (a + 1)) % 6] for j in range(12)) + f" {words[(i + a) % 6]} today.", article=f"article {a}")
        for a in range(5) for i in range(8)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("qa") / "rows.jsonl"
    path.write_bytes(as_jsonl(rows))
    return {"kind": "files", "path": str(path), **CORPUS}


def test_an_episode_is_one_task_and_survives_the_stream(tmp_path, tiny_tokenizer_folder, tokenizer, corpus):
    made = source(tmp_path, tiny_tokenizer_folder, corpus, TASKS)
    episode = made.episode(5)
    again = Episode.from_row(episode.to_row())
    assert len(episode.classes) == 1
    assert (len(episode.support.extra["questions"]), len(episode.query.extra["questions"])) == (3, 2)
    assert not set(episode.support.rows.tolist()) & set(episode.query.rows.tolist())
    assert again.query.extra.keys() == episode.query.extra.keys()
    assert all(torch.equal(v, again.query.extra[k]) for k, v in episode.query.extra.items())
    assert "where is the music?" in made.tasks.show(again, tokenizer)


def test_a_run_of_questions_is_meta_trained_and_measured_beside_the_model_that_does_not_adapt(
    tmp_path, tiny_tokenizer_folder, corpus
):
    settings = {
        "name": "qa", "model": {"name": tiny_tokenizer_folder}, "corpus": corpus, "tasks": TASKS, "storage": str(tmp_path),
        "algorithm": {"kind": "maml", "inner_steps": 2}, "outer": {"steps": 2, "tasks_per_step": 2}, "cluster": "local-debug",
        "validation": {"every": 2, "episodes": 2}, "evaluate": {"episodes": 2},
    }  # fmt: skip
    run = Run.of(settings)
    assert run.model.head.kind == "learned"
    assert Run.of(run.model_dump(mode="json")) == run
    found = evaluate(run, metatrain(run).best)
    assert {"metrics", "untrained", "unadapted"} <= found.keys()
    assert "prototype" not in found
    assert "meta-trained, not adapted" in table(found)
    adapted = Learner.from_pretrained(run.folder).adapt(["where?", "what?"], [CONTEXT, CONTEXT], ["city bank", "book"])
    questions, contexts = ["where is it?", "who?"], ["it is at the table now " * 30, "you"]
    assert all(a and a in c for a, c in zip(adapted.predict(questions, contexts), contexts, strict=True))
    with pytest.raises(UserError, match=r"the outputs of qa are none: use predict"):
        adapted.predict_proba(questions, contexts)
    adapted.save_pretrained(tmp_path / "exported")
    again = Learner.from_pretrained(tmp_path / "exported")
    assert again.predict(questions, contexts) == adapted.predict(questions, contexts)
    with pytest.raises(UserError, match=r"model.head: prototype makes outputs of class means.*use learned or zero"):
        Run.of({**settings, "model": {"name": tiny_tokenizer_folder, "head": "prototype"}})
    with pytest.raises(UserError, match="ways: an episode of qa is one task; leave ways out"):
        Run.of({**settings, "tasks": {**TASKS, "ways": 5}})
