"""Entities: every way to write tags, words and their pieces, and episodes of K to 2K mentions."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raymeta.episodes import Pool
from raymeta.errors import UserError
from raymeta.model import Backbone
from raymeta.tasks.entities import Entities, _spans_to_codes

WAYS_TO_WRITE = {
    "BIO": ["B-per", "I-per", "O", "B-loc", "B-loc", "O", "B-per", "I-per", "I-per"],
    "BIOES": ["B-per", "E-per", "O", "S-loc", "S-loc", "O", "B-per", "I-per", "E-per"],
    "BILOU": ["B-per", "L-per", "O", "U-loc", "U-loc", "O", "B-per", "I-per", "L-per"],
    "BMES": ["B-per", "E-per", "O", "S-loc", "S-loc", "O", "B-per", "M-per", "E-per"],
    "IOB1": ["I-per", "I-per", "O", "I-loc", "B-loc", "O", "I-per", "I-per", "I-per"],
}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_folder):
    return Backbone(name=tiny_tokenizer_folder).tokenizer()


def encoded(tokenizer, tokens, tags, max_length=128):
    return Entities().encode([{"tokens": tokens, "tags": tags}], tokenizer, max_length)[0]


@pytest.mark.parametrize("scheme", WAYS_TO_WRITE)
def test_every_scheme_of_tags_says_the_same(scheme):
    assert Entities().fault({"tokens": ["w"] * 9, "tags": WAYS_TO_WRITE[scheme]}) is None
    assert _spans_to_codes(WAYS_TO_WRITE[scheme]) == (["per", "loc"], [1, 2, 0, 3, 3, 0, 1, 2, 2])


@pytest.mark.parametrize("tags", [["per", "per", "O", "loc"], ["I-per", "I-per", "O", "I-loc"]])
def test_io_tags_and_bare_types_are_one_entity_where_they_touch(tags):
    assert _spans_to_codes(tags) == (["per", "loc"], [1, 2, 0, 3])


def test_a_change_of_type_begins_an_entity():
    assert _spans_to_codes(["B-a", "I-b", "I-b", "b", "I-a"]) == (["a", "b"], [1, 3, 4, 4, 1])


@pytest.mark.parametrize(
    ("tokens", "tags", "says"),
    [
        (["a", "b"], ["O"], "2 tokens but 1 tags"),
        ([], [], "no tokens"),
        (None, ["O"], "tokens is missing, not a list"),
        ("a b", ["O", "O"], "tokens is str, not a list"),
        (["a"], "O", "tags is str, not a list"),
        (["a"], [3], "tag 3 is not a string"),
        (["a"], [None], "tag None is not a string"),
        (["a"], [""], "a tag is empty"),
        (["a"], ["B-"], "tag 'B-' is not O"),
        (["a"], ["X-per"], "tag 'X-per' is not O"),
        ([1], ["O"], "a token is not a string"),
        ([" ", ""], ["O", "O"], "every token is empty"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(tokens, tags, says):
    assert str(Entities().fault({"tokens": tokens, "tags": tags})).startswith(says)


def test_a_word_stands_where_its_first_piece_does(tokenizer):
    found = encoded(tokenizer, ["hello", "the", "world"], ["B-x", "O", "B-y"])
    pieces = tokenizer.convert_ids_to_tokens(found["ids"])
    assert pieces[0] == "[CLS]"
    assert pieces[-1] == "[SEP]"
    assert [pieces[i] for i in found["first"]] == ["h", "the", "w"]
    assert found["codes"] == [1, 0, 3]
    assert (found["classes"], found["counts"], found["cut"]) == (["x", "y"], [1, 1], False)


@pytest.mark.parametrize("odd", ["\u200b", " ", "", "\u00a0", "\ufffd", "\u2028", "🎉", "\x00", "\u0301"])
def test_a_word_without_pieces_survives(tokenizer, odd):
    found = encoded(tokenizer, ["a", odd, "b", odd], ["O", "B-x", "O", "B-y"])
    assert len(found["first"]) == len(found["codes"]) == 4
    assert len(set(found["first"])) == 4
    assert found["codes"] == [0, 1, 0, 3]
    assert found["ids"][found["first"][1]] == tokenizer.unk_token_id


def test_special_tokens_written_as_words_are_words(tokenizer):
    found = encoded(tokenizer, ["[SEP]", "[CLS]", "a"], ["B-x", "O", "B-y"])
    assert len(found["first"]) == 3
    assert tokenizer.convert_ids_to_tokens(found["ids"])[found["first"][2]] == "a"


def test_a_long_text_is_cut_between_words_and_keeps_its_special_tokens(tokenizer):
    tokens, tags = ["abcd"] * 10, ["O"] * 3 + ["B-x"] + ["O"] * 5 + ["B-y"]
    found = encoded(tokenizer, tokens, tags, max_length=20)
    assert len(found["ids"]) == 20
    assert found["ids"][-1] == tokenizer.sep_token_id
    assert found["cut"]
    assert len(found["first"]) == len(found["codes"]) == 5
    assert found["classes"] == ["x"]
    assert not encoded(tokenizer, tokens[:4], tags[:4], max_length=18)["cut"]


words = st.lists(st.text(max_size=12), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words, st.integers(8, 64))
def test_any_words_keep_their_places(tokenizer, tokens, max_length):
    if Entities().fault({"tokens": tokens, "tags": ["O"] * len(tokens)}):
        return
    found = encoded(tokenizer, tokens, ["B-x"] * len(tokens), max_length)
    assert len(found["ids"]) <= max_length
    assert found["first"] == sorted(set(found["first"]))
    assert all(0 < place < len(found["ids"]) - 1 for place in found["first"])
    assert found["cut"] or len(found["first"]) == len(tokens)
    assert found["codes"] == [1] * len(found["first"])


def pool_of(rows: list[dict[int, int]], classes: int, task: list[int] | None = None) -> Pool:
    """A pool of rows, each class -> mentions."""
    task = task or [0] * len(rows)
    cells = sorted({(c, task[i]) for i, row in enumerate(rows) for c in row})
    postings = [[i for i, row in enumerate(rows) if c in row and task[i] == t] for c, t in cells]
    return Pool(
        "train",
        [f"class {c}" for c in range(classes)],
        [f"task {t}" for t in range(max(task) + 1)],
        np.array([c for c, _ in cells], dtype=np.int32),
        np.array([t for _, t in cells], dtype=np.int32),
        np.cumsum([0, *(len(p) for p in postings)]),
        np.array([i for p in postings for i in p], dtype=np.int64),
        np.cumsum([0, *(len(row) for row in rows)]),
        np.array([c for row in rows for c in row], dtype=np.int32),
        np.array([n for row in rows for n in row.values()], dtype=np.int32),
    )


mentions = st.dictionaries(st.integers(0, 5), st.integers(1, 3), min_size=1, max_size=3)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(mentions, min_size=30, max_size=120), ways=st.integers(2, 5), shots=st.integers(1, 4),
    queries=st.integers(1, 3), seed=st.integers(0, 2**63 - 1), number=st.integers(0, 2**62),
)  # fmt: skip
def test_every_class_has_k_to_2k_mentions_and_no_sentence_is_used_twice(rows, ways, shots, queries, seed, number):
    pool = pool_of(rows, 6)
    tasks = Entities(ways=ways, shots=shots, queries=queries)
    try:
        drawn = tasks.draw(pool, seed, number, tasks.choices(pool))
    except UserError:
        return  # such rows hold no such episode
    names = [int(c.removeprefix("class ")) for c in drawn.classes]
    assert len(set(names)) == ways
    assert len({*drawn.support.tolist(), *drawn.query.tolist()}) == len(drawn.support) + len(drawn.query)
    for side, need in ((drawn.support, shots), (drawn.query, queries)):
        have = dict.fromkeys(names, 0)
        for row in side.tolist():
            for cls, count in rows[row].items():
                have[cls] += count  # a KeyError here: a sentence of a class that is not among the N
        assert all(need <= n <= 2 * need for n in have.values())
    again = tasks.draw(pool, seed, number, tasks.choices(pool))
    assert (again.support.tolist(), again.query.tolist()) == (drawn.support.tolist(), drawn.query.tolist())


@settings(max_examples=30, deadline=None)
@given(number=st.integers(0, 10_000))
def test_classes_from_task_share_a_task_in_every_sentence(number):
    rows = [{i % 4: 1} for i in range(80)]
    task = [i % 2 for i in range(80)]
    pool = pool_of(rows, 4, task)
    tasks = Entities(ways=2, shots=(1, 3), queries=2, classes_from="task")
    drawn = tasks.draw(pool, 0, number, tasks.choices(pool))
    assert len({task[i] for i in [*drawn.support, *drawn.query]}) == 1


def test_the_order_of_classes_differs_between_episodes():
    pool = pool_of([{i % 2: 1} for i in range(40)], 2)
    tasks = Entities(ways=2, shots=1, queries=1)
    found = {tasks.draw(pool, 0, n, tasks.choices(pool)).classes for n in range(40)}
    assert found == {("class 0", "class 1"), ("class 1", "class 0")}
