"""Episode number i is the same whoever draws it, and support and query share no example."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raymeta.episodes import Episode, Examples
from raymeta.errors import UserError
from raymeta.stream import Source, rows, share, steps
from tests.small import DATA, source

CORPORA = {
    "intents": (
        {"kind": "files", "path": str(DATA / "intents.jsonl"), "columns": {"task": "domain"}},
        {"kind": "classification", "ways": [2, 3], "shots": [1, 2], "queries": 2, "split": {"test": 2}},
    ),
    "entities": (
        {"kind": "quickstart"},
        {
            "kind": "entities", "ways": 3, "shots": [1, 3], "queries": 2, "classes_from": "task",
            "split": {"of": "task", "test": ["law", "music"]},
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CORPORA)
def train(request, tmp_path_factory, tiny_tokenizer_folder) -> Source:
    corpus, tasks = CORPORA[request.param]
    return source(tmp_path_factory.mktemp(request.param), tiny_tokenizer_folder, corpus, tasks)


def same(one: Episode, other: Episode) -> bool:
    def equal(a: Examples, b: Examples) -> bool:
        pairs = [(a.ids, b.ids), (a.lengths, b.lengths), (a.rows, b.rows)]
        pairs += [(a.extra[k], b.extra[k]) for k in a.extra]
        return a.extra.keys() == b.extra.keys() and all(torch.equal(x, y) for x, y in pairs)

    head = (one.number, one.split, one.classes) == (other.number, other.split, other.classes)
    return head and equal(one.support, other.support) and equal(one.query, other.query)


def test_an_episode_is_the_same_asked_again_in_any_order_or_process(train):
    before = {n: train.episode(n) for n in (5, 0, 10**12)}
    for number in (10**12, 5, 0):
        assert same(train.episode(number), before[number])
    code = (
        "import pickle, sys; s, n = pickle.load(sys.stdin.buffer); sys.stdout.buffer.write(pickle.dumps(s.episode(n)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps((train, 5)), capture_output=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert same(pickle.loads(done.stdout), before[5])


def test_support_and_query_share_no_example(train):
    for number in range(100):
        episode = train.episode(number)
        assert not set(episode.support.rows.tolist()) & set(episode.query.rows.tolist())
        for side in (episode.support, episode.query):
            assert len(set(side.rows.tolist())) == len(side)
            assert int(side.lengths.sum()) == len(side.ids)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_a_step_is_made_of_the_same_episodes_on_any_number_of_workers(train, workers):
    whole = list(steps(train, 3, 5, tasks_per_step=8))
    parts = [list(steps(train, 3, 5, 8, rank, workers)) for rank in range(workers)]
    for step in range(2):
        met = sorted((e for part in parts for e in part[step]), key=lambda e: e.number)
        assert [e.number for e in met] == list(range(8 * (step + 3), 8 * (step + 4)))
        assert all(same(a, b) for a, b in zip(met, whole[step], strict=True))


def test_a_resumed_stream_needs_nothing_but_its_step(train):
    through = list(steps(train, 0, 6, 4))
    resumed = list(steps(train, 4, 6, 4))
    assert all(same(a, b) for x, y in zip(through[4:], resumed, strict=True) for a, b in zip(x, y, strict=True))
    assert list(steps(train, 6, 6, 4)) == []


@given(st.integers(0, 10**9), st.integers(1, 40), st.integers(1, 12))
def test_shares_cover_every_number_once_and_differ_by_one_at_most(first, count, workers):
    shares = [share(first, count, rank, workers) for rank in range(workers)]
    assert sorted(n for s in shares for n in s) == list(range(first, first + count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_episode_survives_its_way_through_arrow(train):
    table = rows(train, [0, 1, 2])
    assert all(
        same(Episode.from_row(row), train.episode(n)) for n, row in zip(range(3), table.to_pylist(), strict=True)
    )


def test_splits_share_no_class_and_their_episodes_differ(train):
    test = Source(train.folder, train.tasks, "test", train.seed)
    ours = {c for n in range(50) for c in train.episode(n).classes}
    theirs = {c for n in range(50) for c in test.episode(n).classes}
    assert ours
    assert theirs
    assert not ours & theirs


def test_the_seed_changes_the_episodes(train):
    other = Source(train.folder, train.tasks, train.split, train.seed + 1)
    assert any(not same(train.episode(n), other.episode(n)) for n in range(3))


def test_an_episode_shows_as_text(train, tiny_tokenizer_folder):
    from raymeta.model import Backbone

    episode = train.episode(0)
    text = train.tasks.show(episode, Backbone(name=tiny_tokenizer_folder).tokenizer())
    assert text.startswith("support: ")
    assert "\nquery: " in text
    assert all(name in text for name in episode.classes)


def test_a_split_without_rows_is_named(train):
    with pytest.raises(UserError, match="no row belongs to the validation split"):
        Source(train.folder, train.tasks, "validation", 0).check()


def test_real_slots_fill_episodes_of_k_to_2k_mentions(real_data, tmp_path, tiny_tokenizer_folder):
    path = str(real_data / "slots_sgd" / "meta_val.parquet")
    corpus = {"kind": "files", "path": {"train": path}, "columns": {"task": "service"}}
    for shots in (1, 5):
        tasks = {"kind": "entities", "ways": 5, "shots": shots, "queries": 2}
        slots = source(tmp_path, tiny_tokenizer_folder, corpus, tasks)
        for number in range(20):
            episode = slots.episode(number)
            first = torch.bincount(episode.support.extra["tags"], minlength=11)[1::2]
            assert first.min() >= shots
            assert first.max() <= 2 * shots
