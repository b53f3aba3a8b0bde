"""Relations: where the markers stand whatever the words, what is kept of a long sentence, and none of the above."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_score, recall_score

from raymeta.algorithms.maml import Maml
from raymeta.episodes import Episode, Examples
from raymeta.errors import UserError
from raymeta.model import Backbone
from raymeta.tasks.relations import Relations, marker_ids
from tests.small import as_jsonl, source
from tests.test_tasks_entities import pool_of
from tests.tiny import relative, whole

WORDS = ["the", "music", "room", "is", "in", "the", "city", "bank", "of", "the", "day"]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_folder):
    return Backbone(name=tiny_tokenizer_folder).tokenizer()


def row(tokens, head, tail, label="where"):
    """A row of a corpus."""
    return {
        "tokens": tokens, "label": label, "head_start": head[0], "head_end": head[1], "tail_start": tail[0], "tail_end": tail[1],
    }  # fmt: skip


def encoded(tokenizer, values, max_length=64):
    assert Relations().fault(values) is None
    return Relations().encode([values], tokenizer, max_length)[0]


def pieces_between(found, tokenizer, side):
    """The pieces between a side's two markers."""
    start, end = found["marks"][2 * side : 2 * side + 2]
    length = len(marker_ids(tokenizer)[2 * side + 1])
    return tokenizer.convert_ids_to_tokens(found["ids"][start + 1 : end - length + 1])


@pytest.mark.parametrize(("head", "tail"), [((1, 3), (6, 8)), ((6, 8), (1, 3))], ids=["in order", "tail first"])
def test_head_and_tail_stand_between_their_markers(tokenizer, head, tail):
    found = encoded(tokenizer, row(WORDS, head, tail))
    assert pieces_between(found, tokenizer, 0) == WORDS[slice(*head)]
    assert pieces_between(found, tokenizer, 1) == WORDS[slice(*tail)]
    assert found["classes"] == ["where"]
    assert (found["ids"][0], found["ids"][-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    signs = {i for sign in marker_ids(tokenizer) for i in sign}
    texts = [i for i in found["ids"][1:-1] if i not in signs]
    assert tokenizer.convert_ids_to_tokens(texts) == WORDS


def test_spans_of_a_text_count_characters(tokenizer):
    text = " ".join(WORDS)
    head, tail = (text.index("music"), text.index("music") + 10), (text.index("city"), text.index("city") + 9)
    by_text = encoded(tokenizer, row(text, head, tail))
    assert by_text == encoded(tokenizer, row(WORDS, (1, 3), (6, 8)))


@pytest.mark.parametrize(
    ("head", "tail"), [((1, 5), (2, 4)), ((2, 4), (1, 5)), ((1, 3), (1, 3)), ((1, 3), (1, 5)), ((3, 5), (1, 5))]
)
def test_one_entity_may_hold_the_other(tokenizer, head, tail):
    found = encoded(tokenizer, row(WORDS, head, tail))
    signs = {i for sign in marker_ids(tokenizer) for i in sign}
    for side, span in enumerate((head, tail)):
        start, end = found["marks"][2 * side : 2 * side + 2]
        inside = [i for i in found["ids"][start:end] if i not in signs]
        assert tokenizer.convert_ids_to_tokens(inside) == WORDS[slice(*span)]


def test_the_markers_are_unused_entries_where_the_vocabulary_has_them(tmp_path):
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[unused1]", "[unused2]", "[unused3]", "[unused4]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    spare = BertTokenizerFast(vocab={w: i for i, w in enumerate(words)})
    assert marker_ids(spare) == [[1], [2], [3], [4]]
    found = encoded(spare, row(["a", "b"], (0, 1), (1, 2)))
    assert found["ids"] == [6, 1, 9, 2, 3, 10, 4, 7]
    assert found["marks"] == [1, 3, 4, 6]


def test_markers_without_unused_entries_are_the_pieces_of_their_names(tokenizer):
    names = [tokenizer.decode(ids).replace(" ", "") for ids in marker_ids(tokenizer)]
    assert names == ["[e1]", "[/e1]", "[e2]", "[/e2]"]


odd_words = st.sampled_from(["the", "music", "", " ", "\u200b", "🎉", "Zürich", "NAÏVE", "[SEP]"])
cuts = st.lists(st.integers(0, 40), min_size=4, max_size=4, unique=True).map(sorted)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.lists(odd_words, min_size=40, max_size=40), cut=cuts, swap=st.booleans(), max_length=st.integers(24, 64)
)
def test_no_marker_is_lost_whatever_the_words_and_the_length(tokenizer, tokens, cut, swap, max_length):
    spans = [(cut[0], cut[1]), (cut[2], cut[3])]
    values = row(tokens, *(reversed(spans) if swap else spans))
    found = encoded(tokenizer, values, max_length)
    assert len(found["ids"]) <= max_length
    for sign, place in zip(marker_ids(tokenizer), found["marks"], strict=True):
        assert found["ids"][place - len(sign) + 1 : place + 1] == sign
    assert found["cut"] == (
        len(found["ids"]) == max_length and encoded(tokenizer, values, 10_000)["ids"] != found["ids"]
    )


def test_a_long_sentence_keeps_what_is_next_to_the_markers(tokenizer):
    tokens = ["a"] * 30 + ["music"] + ["in"] * 30 + ["bank"] + ["of"] * 30
    found = encoded(tokenizer, row(tokens, (30, 31), (61, 62)), max_length=40)
    assert found["cut"]
    texts = tokenizer.convert_ids_to_tokens(found["ids"])
    assert pieces_between(found, tokenizer, 0) == ["music"]
    assert pieces_between(found, tokenizer, 1) == ["bank"]
    assert min(texts.count(word) for word in ("a", "in", "of")) >= 3


def test_a_length_without_room_for_the_markers_is_said_of_the_row(tokenizer):
    found = Relations().encode([row(WORDS, (1, 3), (6, 8))], tokenizer, 8)[0]
    assert found["fault"] == "model.max_length: 8 tokens have no room for the entity markers"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": ["a", 3]}, "a token is not a string"),
        ({"label": None}, "label is missing"),
        ({"label": " "}, "label is empty"),
        ({"head_start": None}, "head_start and head_end are missing and int '3', not whole numbers"),
        ({"head_start": "x"}, "head_start and head_end are str 'x' and int '3', not whole numbers"),
        ({"head_start": True}, "head_start and head_end are bool 'True'"),
        ({"tail_end": 12}, "the tail 6:12 is not a span of the 11 words"),
        ({"tail_start": 8}, "the tail 8:8 is not a span"),
        ({"head_start": -1}, "the head -1:3 is not a span"),
        ({"head_end": 7}, "head and tail overlap"),
        ({"tokens": "ab  cd efgh", "head_start": 2, "head_end": 4}, "the head 2:4 is blank"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(changed, says):
    assert str(Relations().fault(row(WORDS, (1, 3), (6, 8)) | changed)).startswith(says)


def test_numbers_may_be_written_as_text():
    written = row(" ".join(WORDS), (4, 9), (27, 31))
    assert Relations().fault({k: str(v) for k, v in written.items()}) is None


def test_the_features_are_the_states_of_both_start_markers(tokenizer):
    tasks = Relations(ways=2)
    rows = [row(WORDS, (1, 3), (6, 8), "x"), row(WORDS[:9], (6, 8), (0, 1), "y")]
    table = {k: [e[k] for e in tasks.encode(rows, tokenizer, 64)] for k in ("ids", "classes", "marks")}
    examples = tasks.examples(table, np.arange(2), ["y", "x"])
    assert tasks.targets(examples).tolist() == [1, 0]
    signs = marker_ids(tokenizer)
    for feature, which in (("markers", (0, 2)), ("end_markers", (1, 3))):
        picks = Relations(ways=2, feature=feature).picks(examples, "mean")
        assert (picks.slots, picks.item, picks.weight) == (2, None, None)
        assert examples.ids[picks.token].tolist() == [signs[i][-1] for i in which] * 2
    assert (Relations().slots, Relations(feature="pooled").slots) == (2, 1)


rows_of_nota = [{i % 6: 1} for i in range(120)]


@settings(max_examples=60, deadline=None)
@given(
    ways=st.integers(2, 4), shots=st.integers(1, 3), queries=st.integers(1, 4), rate=st.sampled_from([0.0, 0.15, 0.5, 0.8]),
    nota_shots=st.integers(1, 6), number=st.integers(0, 2**62),
)  # fmt: skip
def test_none_of_the_above_has_its_share_and_no_relation_of_the_episode(ways, shots, queries, rate, nota_shots, number):
    pool = pool_of(rows_of_nota, 6)
    tasks = Relations(ways=ways, shots=shots, queries=queries, nota_rate=rate, nota_shots=nota_shots)
    drawn = tasks.draw(pool, 7, number, tasks.choices(pool))
    named = {int(c.removeprefix("class ")) for c in drawn.classes}
    support, query = ([i % 6 for i in side] for side in (drawn.support.tolist(), drawn.query.tolist()))
    other = [[c for c in side if c not in named] for side in (support, query)]
    assert len({*drawn.support.tolist(), *drawn.query.tolist()}) == len(support) + len(query)
    assert all(support.count(c) == shots and query.count(c) == queries for c in named)
    assert len(other[0]) == (nota_shots if rate else 0)
    assert not set(other[0]) & set(other[1])
    wanted = rate / (1 - rate) * ways * queries
    held = 20 * len(set(other[1]))  # all rows of the relations that the query may take
    assert abs(len(other[1]) - wanted) <= 1 or len(other[1]) == held


def test_too_few_relations_for_none_of_the_above_are_named():
    pool = pool_of([{i % 3: 1} for i in range(60)], 3)
    tasks = Relations(ways=2, shots=1, queries=1, nota_rate=0.5)
    with pytest.raises(UserError, match=r"tasks.nota_rate: 2 ways leave 1 other relations of the train split's 3"):
        tasks.choices(pool)


def test_scores_of_none_of_the_above_are_those_of_scikit_learn(tokenizer):
    random = np.random.default_rng(0)
    gold, answers = random.integers(0, 4, 200), random.integers(0, 4, 200)
    tasks = Relations(ways=3, nota_rate=0.3)
    logits = torch.nn.functional.one_hot(torch.from_numpy(answers), 4).float()
    nothing = torch.zeros(0, dtype=torch.int64)
    scores = tasks.score(logits, Examples(nothing, nothing, nothing, {"labels": torch.from_numpy(gold)}), list("abc"))
    assert scores["accuracy"] == pytest.approx((gold == answers).mean())
    assert scores["nota_precision"] == pytest.approx(precision_score(gold == 0, answers == 0))
    assert scores["nota_recall"] == pytest.approx(recall_score(gold == 0, answers == 0))


@pytest.mark.parametrize("nota", [0.0, 0.3])
def test_an_episode_of_a_corpus_is_shown_with_its_markers(tmp_path, tiny_tokenizer_folder, tokenizer, nota):
    rows = [row(WORDS, (1 + i % 2, 3), (6, 8), f"r{i % 4}") for i in range(80)]
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl(rows))
    tasks = {"kind": "relations", "ways": 2, "shots": 2, "queries": 2, "nota_rate": nota, "split": {"train": 4}}
    made = source(tmp_path, tiny_tokenizer_folder, {"kind": "files", "path": str(tmp_path / "rows.jsonl")}, tasks)
    episode = Episode.from_row(made.episode(3).to_row())
    text = made.tasks.show(episode, tokenizer)
    assert ("none of the above" in text) == (nota > 0)
    assert "[E2] city bank [/E2] of the day" in text
    assert made.tasks.targets(episode.query).max() == (2 if nota else 1)


@pytest.mark.parametrize("feature", ["markers", "pooled"])
@pytest.mark.parametrize(
    "head", [{"kind": "prototype", "scale": 0.1}, "learned", "zero"], ids=["prototype", "learned", "zero"]
)
def test_none_of_the_above_is_learned_with_every_head_and_several_tasks_give_the_sum_of_each(
    tmp_path, tiny_tokenizer_folder, head, feature
):
    rows = [row(WORDS, (1 + i % 2, 3), (6, 8), f"r{i % 6}") for i in range(90)]
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl(rows))
    tasks = {
        "kind": "relations", "ways": [2, 3], "shots": [1, 2], "queries": 2, "nota_rate": 0.4, "nota_shots": 2, "feature": feature,
        "split": {"train": 6},
    }  # fmt: skip
    made = source(tmp_path, tiny_tokenizer_folder, {"kind": "files", "path": str(tmp_path / "rows.jsonl")}, tasks)
    backbone = Backbone.model_validate({"name": tiny_tokenizer_folder, "head": head})
    network = backbone.load(made.tasks.outputs_for(3), slots=made.tasks.slots).to(torch.device("cpu"), torch.float64)
    algorithm = Maml(inner_steps=2, inner_lr=0.01)
    params = network.params()

    def found(numbers):
        return algorithm.meta_step(algorithm.bound(network, made.tasks, [made.episode(n) for n in numbers]), params, 1)

    each = [found([n]) for n in (0, 1, 2)]
    together = found([0, 1, 2])
    wanted = {n: sum(whole(m.grads, m.rows, network, params)[n] for m in each) for n in params}
    assert relative(whole(together.grads, together.rows, network, params), wanted) < 1e-12
    for number, outputs in enumerate(together.outputs):
        episode = made.episode(number)
        assert outputs.shape == (len(episode.query), len(episode.classes) + 1)
        scores = made.tasks.score(outputs, episode.query, episode.classes)
        assert {"accuracy", "macro_f1", "nota_precision", "nota_recall"} == scores.keys()
    inner = algorithm.bound(network, made.tasks, [made.episode(3)], learn=False)
    with torch.no_grad():
        local = inner.opened(params, learn=False)
        before, after = (inner.support_losses(algorithm.adapt(inner, local, steps=n)).item() for n in (0, 2))
    assert after < before
