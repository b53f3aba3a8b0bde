"""Classification: which rows can be used, and episodes of exactly N classes, K support and Q query texts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymeta.episodes import Pool
from raymeta.errors import UserError
from raymeta.model import Backbone
from raymeta.tasks.classification import Classification


def pool_of(sizes: list[int], tasks: int = 1) -> Pool:
    """A pool of classes of these sizes; the examples of each class go round the tasks."""
    label = np.repeat(np.arange(len(sizes)), sizes)
    task = np.concatenate([np.arange(n) % tasks for n in sizes])
    order = np.lexsort((task, label))
    cells, starts = np.unique(np.stack([label[order], task[order]]), axis=1, return_index=True)
    return Pool(
        "train",
        [f"c{i}" for i in range(len(sizes))],
        [f"t{i}" for i in range(tasks)],
        cells[0].astype(np.int32),
        cells[1].astype(np.int32),
        np.append(starts, len(label)),
        order,
        np.arange(len(label) + 1),
        label.astype(np.int32),
        np.ones(len(label), dtype=np.int32),
    )


def bounds(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high)).map(lambda b: (min(b), max(b)))


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(8, 30), min_size=6, max_size=20), ways=bounds(2, 6), shots=bounds(1, 5),
    queries=st.integers(1, 3), seed=st.integers(0, 2**63 - 1), number=st.integers(0, 2**62),
)  # fmt: skip
def test_an_episode_has_n_classes_of_k_support_and_q_query_texts_none_shared(sizes, ways, shots, queries, seed, number):
    pool = pool_of(sizes)
    tasks = Classification(ways=ways, shots=shots, queries=queries)
    drawn = tasks.draw(pool, seed, number, tasks.choices(pool))
    n = len(drawn.classes)
    k = len(drawn.support) // n
    assert ways[0] <= n <= ways[1]
    assert shots[0] <= k <= shots[1]
    assert len(set(drawn.classes)) == n
    assert len(drawn.support) == n * k
    assert len(drawn.query) == n * queries
    assert len({*drawn.support.tolist(), *drawn.query.tolist()}) == n * (k + queries)
    for i, name in enumerate(drawn.classes):
        mine = [*drawn.support[i * k : (i + 1) * k], *drawn.query[i * queries : (i + 1) * queries]]
        assert {f"c{pool.held_class[row]}" for row in mine} == {name}
    again = tasks.draw(pool, seed, number, tasks.choices(pool))
    assert again.classes == drawn.classes
    assert again.support.tolist() == drawn.support.tolist()
    assert again.query.tolist() == drawn.query.tolist()


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), ways=bounds(2, 12), shots=bounds(1, 20),
    queries=st.integers(1, 20), tasks=st.integers(1, 3), classes_from=st.sampled_from(["all", "task"]),
    number=st.integers(0, 2**62),
)  # fmt: skip
def test_any_sizes_give_a_whole_episode_or_a_message_that_names_the_setting(
    sizes, ways, shots, queries, tasks, classes_from, number
):
    pool = pool_of(sizes, tasks)
    kind = Classification(ways=ways, shots=shots, queries=queries, classes_from=classes_from)
    held = [[sum(1 for i in range(size) if i % tasks == t) for size in sizes] for t in range(tasks)]
    enough = max(sum(n >= shots[1] + queries for n in of) for of in (held if classes_from == "task" else [sizes]))
    if enough < ways[0]:
        with pytest.raises(UserError, match=r"tasks\.ways: "):
            kind.choices(pool)
        return
    drawn = kind.draw(pool, 0, number, kind.choices(pool))
    n = len(drawn.classes)
    assert ways[0] <= n <= min(ways[1], enough)
    assert len(set(drawn.classes)) == n
    both = [*drawn.support.tolist(), *drawn.query.tolist()]
    assert len(set(both)) == len(both) == len(drawn.support) + n * queries
    assert len(drawn.support) % n == 0
    assert shots[0] <= len(drawn.support) // n <= shots[1]
    table = {"ids": [[1]] * len(both), "classes": [[f"c{pool.held_class[row]}"] for row in both]}
    labels = kind.examples(table, np.array(both), drawn.classes).extra["labels"].tolist()
    assert labels == [drawn.classes.index(of[0]) for of in table["classes"]]
    assert sorted(set(labels)) == list(range(n))


def test_ranges_reach_both_their_ends():
    pool = pool_of([20] * 6)
    tasks = Classification(ways=(2, 4), shots=(1, 3), queries=1)
    choices = tasks.choices(pool)
    found = [tasks.draw(pool, 0, n, choices) for n in range(200)]
    assert {len(d.classes) for d in found} == {2, 3, 4}
    assert {len(d.support) // len(d.classes) for d in found} == {1, 2, 3}


def test_seed_split_and_number_each_change_the_episode():
    pool = pool_of([50] * 10)
    tasks = Classification(ways=5, shots=2, queries=3)
    choices = tasks.choices(pool)

    def drawn(seed: int = 0, number: int = 0, where: Pool = pool) -> list[int]:
        return tasks.draw(where, seed, number, choices).support.tolist()

    other = Pool("validation", *list(vars(pool).values())[1:])
    assert drawn() == drawn()
    assert len({tuple(d) for d in (drawn(), drawn(seed=1), drawn(number=1), drawn(where=other))}) == 4


def test_every_class_and_every_text_is_drawn_alike():
    pool = pool_of([10] * 8)
    tasks = Classification(ways=4, shots=1, queries=1)
    choices = tasks.choices(pool)
    seen = np.zeros(80)
    for number in range(2000):
        seen[tasks.draw(pool, 0, number, choices).support] += 1
    classes = seen.reshape(8, 10).sum(1)
    assert abs(classes - 1000).max() < 5 * np.sqrt(2000 * 0.5 * 0.5)  # five standard deviations
    assert abs(seen - 100).max() < 5 * np.sqrt(2000 * 0.05 * 0.95)


def test_classes_from_task_come_from_one_task():
    pool = pool_of([30] * 6, tasks=3)
    tasks = Classification(ways=3, shots=2, queries=2, classes_from="task")
    choices = tasks.choices(pool)
    task = np.concatenate([np.arange(30) % 3] * 6)
    found = [tasks.draw(pool, 0, n, choices) for n in range(50)]
    owners = [set(task[[*d.support, *d.query]].tolist()) for d in found]
    assert all(len(o) == 1 for o in owners)
    assert set().union(*owners) == {0, 1, 2}


def test_classes_with_too_few_texts_are_left_out_and_named():
    tasks = Classification(ways=2, shots=3, queries=3)
    choices = tasks.choices(pool_of([6, 5, 9, 2]))
    assert choices.left_out == {"c1": 5, "c3": 2}
    assert [choices[i][1].tolist() for i in range(len(choices))] == [[0, 2]]
    with pytest.raises(UserError, match=r"has 1 classes with at least 7 examples .* 'c0' has 6"):
        Classification(ways=2, shots=4, queries=3).choices(pool_of([6, 5, 9, 2]))


@pytest.mark.parametrize(
    ("text", "label", "says"),
    [
        (None, "a", "text is missing, not a string"),
        (7, "a", "text is int '7', not a string"),
        (["a"], "a", "text is list"),
        (" \n", "a", "text is empty"),
        ("a", None, "label is missing"),
        ("a", 0.5, "label is float '0.5'"),
        ("a", ["b"], "label is list"),
        ("a", {"b": 1}, "label is dict"),
        ("a", " ", "label is empty"),
        ("a", "b", "None"),
        ("a", 0, "None"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(text, label, says):
    assert str(Classification().fault({"text": text, "label": label})).startswith(says)


def test_texts_are_cut_at_max_length_and_only_those_are_said_to_be(tiny_tokenizer_folder):
    tokenizer = Backbone(name=tiny_tokenizer_folder).tokenizer()
    rows = [{"text": "a" * n, "label": 3} for n in (5, 6, 7)]
    found = Classification().encode(rows, tokenizer, max_length=8)
    assert [len(f["ids"]) for f in found] == [7, 8, 8]
    assert [f["cut"] for f in found] == [False, False, True]
    assert {f["classes"][0] for f in found} == {"3"}
    assert all(f["ids"][-1] == tokenizer.sep_token_id for f in found)
