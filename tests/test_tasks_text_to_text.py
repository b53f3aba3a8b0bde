"""Text to text: sources, targets and references survive every tokenizer, and an episode is one task's instances."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raymeta.episodes import Episode, Examples
from raymeta.errors import UserError
from raymeta.tasks import Tasks
from raymeta.tasks.dialogue import Dialogue
from raymeta.tasks.instructions import Instructions
from raymeta.tasks.summarization import Summarization
from raymeta.tasks.translation import Translation
from tests.small import ready
from tests.test_tasks_classification import bounds, pool_of
from tests.tokenizers_of import TEXTS, TOKENIZERS

KINDS = {"translation": Translation, "summarization": Summarization, "dialogue": Dialogue, "instructions": Instructions}
ROW = {"task": "French", "source": TEXTS[0], "target": TEXTS[2]}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def encoded(kind: Tasks, tokenizer, max_length: int = 96, **row) -> dict:
    return kind.encode([{**ROW, **row}], tokenizer, max_length)[0]


def made(kind: Tasks, tokenizer, rows: list[dict], max_length: int = 96) -> Examples:
    """The rows as Examples, as they come out of a prepared corpus."""
    found = kind.encode(rows, tokenizer, max_length)
    table = {name: [np.array(row[name]) for row in found] for name in found[0] if name not in ("cut", "classes")}
    return kind.examples(table | {"classes": [row["classes"] for row in found]}, np.arange(len(rows)), ["French"])


def squeezed(text: str) -> str:
    return "".join(text.lower().split())


# encoding


@pytest.mark.parametrize("target", TEXTS)
def test_source_and_target_read_back_as_they_were(tokenizer, target):
    found = encoded(Translation(max_target_length=128), tokenizer, 256, source=TEXTS[1], target=target)
    assert found["target_ids"][-1] == (
        tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    )
    assert not found["cut"]
    source = tokenizer.decode(found["ids"], skip_special_tokens=True)
    answer = tokenizer.decode(found["target_ids"], skip_special_tokens=True)
    lossless = tokenizer.unk_token_id not in (*found["ids"], *found["target_ids"])
    assert lossless or tokenizer.unk_token_id is not None
    if lossless and tokenizer.sep_token_id is None:
        between = "" if tokenizer.pad_token_id is not None else "\n=>"
        assert source == f"translate French: {TEXTS[1]}{between}"
        assert answer == target
    elif lossless and target.isascii():  # WordPiece lower-cases, and writes its spaces anew
        assert squeezed(source) == squeezed(f"translate French: {TEXTS[1]}")
        assert squeezed(answer) == squeezed(target)


def test_special_tokens_written_out_are_words(tokenizer):
    found = encoded(Translation(max_target_length=90), tokenizer, 200, target="a </s> b <|endoftext|> [SEP] c <pad>")
    end = Translation().end(tokenizer)
    assert found["target_ids"].index(end) == len(found["target_ids"]) - 1


@settings(max_examples=60, deadline=None)
@given(source=st.text(max_size=60), target=st.text(max_size=60), more=st.lists(st.text(max_size=20), max_size=3))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_text_has_bounded_tokens_one_end_and_its_references(name, source, target, more):
    tokenizer = _CACHE.setdefault(name, TOKENIZERS[name]())
    kind = Translation(max_target_length=12)
    row = {"task": "x", "source": source, "target": target, "references": more}
    if kind.fault(row):
        assert not source.strip() or not target.strip()
        return
    found = kind.encode([row], tokenizer, 40)[0]
    end = kind.end(tokenizer)
    assert len(found["ids"]) <= 40
    assert 1 <= len(found["target_ids"]) <= 12
    assert found["target_ids"].index(end) == len(found["target_ids"]) - 1
    examples = made(kind, tokenizer, [row, row], 40)
    wanted = [text for text in dict.fromkeys([target, *more]) if text.strip()]
    assert kind.references(examples) == [wanted, wanted]


_CACHE: dict = {}


@settings(max_examples=40, deadline=None)
@given(words=st.integers(1, 40), max_length=st.integers(24, 60))
@pytest.mark.parametrize("keep", ["start", "end"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_long_source_is_cut_inside_its_template(name, keep, words, max_length):
    tokenizer = _CACHE.setdefault(name, TOKENIZERS[name]())
    kind = Translation(template="say: {source} =>", keep=keep)
    source = " ".join(["chest", "pain", "going", "on"] * 10).split()[:words]
    whole = encoded(kind, tokenizer, 4096, source=" ".join(source))
    found = encoded(kind, tokenizer, max_length, source=" ".join(source))
    assert len(found["ids"]) == min(max_length, len(whole["ids"]))
    assert found["cut"] == (len(whole["ids"]) > max_length)
    if found["cut"]:
        size = len(whole["ids"])
        cuts = [(whole["ids"][:a], whole["ids"][size - max_length + a :]) for a in range(max_length)]
        halves = [(a, b) for a, b in cuts if a + b == found["ids"]]
        ends = [squeezed(tokenizer.decode(h[0 if keep == "end" else 1], skip_special_tokens=True)) for h in halves]
        assert "say:" in ends if keep == "end" else {"=>", "=>=>"} & set(ends)


def test_a_target_over_its_limit_still_ends(tokenizer):
    long = " ".join(TEXTS[:2])
    found = encoded(Translation(max_target_length=6), tokenizer, target=long)
    whole = encoded(Translation(max_target_length=200), tokenizer, target=long)
    assert found["cut"]
    assert found["target_ids"] == [*whole["target_ids"][:5], whole["target_ids"][-1]]
    assert bytes(found["reference"]).decode() == long


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"source": " "}, "source is empty"),
        ({"source": None}, "source is missing, not a string"),
        ({"target": "\n"}, "target is empty"),
        ({"target": 7}, "target is int, not a string"),
        ({"references": "one"}, "references is not a list of strings"),
        ({"references": ["one", None]}, "references is not a list of strings"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row, says):
    assert Summarization().fault({**ROW, **row}) == says
    assert Summarization().fault({**ROW, "references": None}) is None


def test_rows_that_do_not_fit_are_bad_rows_where_asked(tokenizer):
    kind = Translation(too_long="set_aside", max_target_length=60)
    fault = "source or target is longer than model.max_length or tasks.max_target_length"
    assert encoded(kind, tokenizer, 24, source=" ".join(TEXTS))["fault"] == fault
    assert encoded(kind, tokenizer, target=" ".join(TEXTS))["fault"] == fault
    assert "fault" not in encoded(kind, tokenizer, 160)


def test_a_template_that_leaves_no_room_is_a_fault(tokenizer):
    kind = Translation(template="chest pain " * 20 + "{source}")
    assert encoded(kind, tokenizer, 24)["fault"].startswith("the template alone has ")


def test_a_separator_stands_where_the_tokenizer_ends_no_text(tokenizer):
    ends = tokenizer.pad_token_id is not None
    plain, marked = encoded(Translation(), tokenizer), encoded(Translation(separator=" A:"), tokenizer)
    assert tokenizer.decode(plain["ids"], skip_special_tokens=True).endswith("\n=>") != ends
    assert squeezed(tokenizer.decode(marked["ids"], skip_special_tokens=True)).endswith("?a:")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ways": 2}, "ways: an episode of translation is one task; leave ways out"),
        ({"template": "no source"}, "must hold {source} once"),
        ({"template": "{source} {source}"}, "must hold {source} once"),
        ({"template": "{source} {tusk}"}, "did you mean 'task'"),
        ({"template": "{source} {"}, "is no template"),
        ({"max_target_length": 1}, "max_target_length"),
        ({"bleu_tokens": "moses"}, "bleu_tokens"),
    ],
)
def test_wrong_settings_are_named(settings, says):
    with pytest.raises(ValidationError) as error:
        Tasks.model_validate({"kind": "translation", **settings})
    assert says in str(error.value)


def test_braces_in_a_template_are_braces():
    tokenizer = TOKENIZERS["byte BPE"]()
    kind = Translation(template="{{{task}}} {source} {{}}", separator="{x}")
    assert tokenizer.decode(encoded(kind, tokenizer)["ids"]) == f"{{French}} {TEXTS[0]} {{}}{{x}}"


def test_a_tokenizer_without_an_end_is_refused():
    tokenizer = TOKENIZERS["byte BPE"]()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither eos_token nor sep_token"):
        Translation().check(tokenizer)


# drawing


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12), shots=bounds(1, 6), queries=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1), number=st.integers(0, 2**62), kind=st.sampled_from(sorted(KINDS)),
)  # fmt: skip
def test_an_episode_is_k_support_and_q_query_instances_of_one_task_none_shared(
    sizes, shots, queries, seed, number, kind
):
    pool, tasks = pool_of(sizes), KINDS[kind](shots=shots, queries=queries)
    if max(sizes) < shots[1] + queries:
        with pytest.raises(UserError, match=f"tasks.shots: no task of the train split has {shots[1] + queries}"):
            tasks.choices(pool)
        return
    drawn = tasks.draw(pool, seed, number, tasks.choices(pool))
    (name,) = drawn.classes
    assert shots[0] <= len(drawn.support) <= shots[1]
    assert len(drawn.query) == queries
    both = [*drawn.support.tolist(), *drawn.query.tolist()]
    assert len(set(both)) == len(both)
    assert {f"c{pool.held_class[row]}" for row in both} == {name}
    again = tasks.draw(pool, seed, number, tasks.choices(pool))
    assert (again.support.tolist(), again.query.tolist()) == (drawn.support.tolist(), drawn.query.tolist())


@pytest.mark.parametrize(
    "split", [{"of": "task", "validation": 1, "test": 1}, {"column": "part", "train": "a", "test": "b"}]
)
def test_a_corpus_is_split_by_tasks_or_by_a_column(split, tmp_path, tiny_tokenizer_folder):
    rows = [
        {"language": f"l{t}", "source": f"show {n}", "target": f"find {n} of {t}", "part": "ab"[t % 2]}
        for t in range(4) for n in range(12)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    corpus = {"kind": "files", "path": str(tmp_path / "rows.jsonl"), "columns": {"task": "language"}}
    tasks = {"kind": "translation", "shots": 3, "queries": 2, "split": split}
    prepared, kind = ready(tmp_path / "prepared", tiny_tokenizer_folder, corpus, tasks)
    pools = {name: prepared.pool(name) for name in prepared.summary["splits"]}
    held = {name: {pool.classes[c] for c in pool.cell_class} for name, pool in pools.items()}
    assert set().union(*held.values()) == {"l0", "l1", "l2", "l3"}
    assert sum(map(len, held.values())) == 4
    drawn = kind.draw(pools["test"], 0, 3, kind.choices(pools["test"]))
    assert drawn.classes[0] in held["test"]
    examples = kind.examples(prepared.take(drawn.query), drawn.query, drawn.classes)
    assert all(t.endswith(f" of {drawn.classes[0][1]}") for (t,) in kind.references(examples))


def test_each_rows_task_must_be_known(tmp_path, tiny_tokenizer_folder):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    corpus = {"kind": "files", "path": {"train": str(tmp_path / "rows.jsonl")}}
    with pytest.raises(UserError, match=r"tasks.kind: translation needs to know each row's task; name its column"):
        ready(tmp_path, tiny_tokenizer_folder, corpus, {"kind": "translation"})


# learning and scoring


def test_an_episode_survives_its_way_as_a_row(tokenizer):
    kind = Summarization()
    examples = made(kind, tokenizer, [ROW, {**ROW, "target": TEXTS[4], "references": [TEXTS[5], TEXTS[4]]}])
    back = Episode.from_row(Episode(3, "test", ("French",), examples, examples).to_row())
    assert kind.references(back.query) == [[TEXTS[2]], [TEXTS[4], TEXTS[5]]]
    assert back.query.extra["target_ids"].equal(examples.extra["target_ids"])
    assert TEXTS[0][:20].lower() in kind.show(back, tokenizer).lower()


def test_loss_and_token_accuracy_are_the_means_over_target_tokens(tokenizer):
    kind = Translation()
    examples = made(kind, tokenizer, [ROW, {**ROW, "target": TEXTS[3]}])
    targets = kind.targets(examples)
    assert len(targets) == int(examples.extra["target_lengths"].sum())
    logits = torch.randn(len(targets), len(tokenizer), generator=torch.Generator().manual_seed(0))
    logits[: len(targets) // 2].scatter_(1, targets[: len(targets) // 2].unsqueeze(1), 20.0)
    found = kind.score(logits, examples, ["French"])
    each = -logits.double().log_softmax(-1)[torch.arange(len(targets)), targets]
    hits = (logits.argmax(-1) == targets).double().mean()
    assert found == {
        "token_accuracy": pytest.approx(float(hits)), "query_loss": pytest.approx(float(each.mean()))
    }  # fmt: skip
    padded = torch.cat([targets, torch.tensor([-100, -100])]).unsqueeze(0)
    more = torch.cat([logits, torch.randn(2, logits.shape[1])]).unsqueeze(0)
    assert kind.losses(more, padded).item() == pytest.approx(found["query_loss"], rel=1e-5)


def test_answers_are_scored_against_all_references():
    tokenizer = TOKENIZERS["byte BPE"]()
    rows = [{**ROW, "references": [TEXTS[1]]}, {**ROW, "target": TEXTS[3]}]
    right, wrong = [TEXTS[1], TEXTS[3]], [TEXTS[3], TEXTS[1]]
    for kind, perfect in (
        (Translation(), {"bleu": 1.0, "chrf": 1.0}),
        (Summarization(), {"rouge_1": 1.0, "rouge_2": 1.0, "rouge_l": 1.0}),
        (Dialogue(), {"bleu": 1.0, "distinct_1": 1.0, "distinct_2": 1.0}),
        (Instructions(template="{source}"), {"rouge_l": 1.0, "exact_match": 1.0}),
    ):
        examples = made(kind, tokenizer, rows)
        assert kind.score_texts(right, examples, ["French"]) == pytest.approx(perfect)
        low = kind.score_texts(wrong, examples, ["French"])
        assert max(v for n, v in low.items() if not n.startswith("distinct")) < 0.3


# what kinds have of their own


def test_dialogue_reads_the_intent_where_it_predicts_one():
    tokenizer = TOKENIZERS["unigram"]()
    kind = Dialogue(predict="intent")
    assert kind.reads() == ("source", "intent")
    assert Dialogue().reads() == ("source", "target")
    rows = [
        {"task": "Banks", "source": TEXTS[6], "intent": "Transfer"},
        {"task": "Banks", "source": "a", "intent": "Check"},
    ]
    examples = made(kind, tokenizer, rows)
    assert kind.references(examples) == [["Transfer"], ["Check"]]
    assert kind.score_texts(["transfer", "Transfer"], examples, ["Banks"]) == {"intent_accuracy": 0.5}
    assert kind.fault({"task": "Banks", "source": "a", "intent": " "}) == "target is empty"


def test_instructions_join_definitions_from_a_file_by_task(tmp_path):
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps({"French": {"definition": " ".join(TEXTS[:2])}, "German": "Say it."}), encoding="utf-8")
    tokenizer = TOKENIZERS["byte BPE"]()
    kind = Instructions(definitions=str(path), definition_length=9)
    kind.check(tokenizer)
    assert kind.reads() == ("source", "target")
    start = tokenizer.decode(tokenizer(TEXTS[0])["input_ids"][:9])
    assert tokenizer.decode(encoded(kind, tokenizer)["ids"]) == f"{start} {TEXTS[0]}\n=>"
    assert tokenizer.decode(encoded(kind, tokenizer, task="German")["ids"]) == f"Say it. {TEXTS[0]}\n=>"
    assert kind.fault({**ROW, "task": "Finnish"}) == "task 'Finnish' has no definition"
    before = kind.fingerprint()
    listed = [{"task": "French", "definition": "Other words."}, {"task": "German", "definition": "Say it."}]
    path.write_text(json.dumps(listed), encoding="utf-8")
    kind = Instructions(definitions=str(path))
    assert kind.fingerprint() != before
    assert tokenizer.decode(encoded(kind, tokenizer)["ids"]) == f"Other words. {TEXTS[0]}\n=>"


def test_instructions_read_definitions_from_a_column_and_score_each_group():
    tokenizer = TOKENIZERS["byte BPE"]()
    kind = Instructions()
    assert kind.reads() == ("source", "definition", "target")
    rows = [{**ROW, "definition": "Answer it.", "group": "qa"}] * 2
    assert tokenizer.decode(encoded(kind, tokenizer, **rows[0])["ids"]).startswith("Answer it. About")
    examples = made(kind, tokenizer, rows)
    found = kind.score_texts([TEXTS[2], ""], examples, ["French"])
    assert found == {"rouge_l": 0.5, "exact_match": 0.5, "qa/rouge_l": 0.5, "qa/exact_match": 0.5}
    assert kind.fault({**ROW, "definition": None}) == "task 'French' has no definition"


@pytest.mark.parametrize("text", ["{", "[]", "{}", "[1]", "7"])
def test_a_damaged_file_of_definitions_is_named(text, tmp_path):
    path = tmp_path / "tasks.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"tasks\.definitions: .*tasks\.json"):
        Instructions(definitions=str(path)).check(TOKENIZERS["unigram"]())


def test_definitions_that_no_template_holds_are_refused():
    with pytest.raises(ValidationError, match="holds no"):
        Instructions(definitions="tasks.json", template="{source}")
