"""One run over several corpora and kinds of task: which part an episode belongs to, and what is learned and told of each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymeta.checks import changed_settings, check
from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.metrics import Estimate, mean_of
from raymeta.parts import held_out, prepared, training
from raymeta.stages.evaluate import evaluate, table
from raymeta.stages.metatrain import Result, _together, metatrain
from raymeta.stream import Mixture, rows, steps
from raymeta.track import rows as metric_rows
from tests.end_to_end.outcome import metrics, same_bytes
from tests.mistakes import DATA, assert_is_a_message, told
from tests.test_stream import same


def values(model: str, folder: Path, **sections: Any) -> dict[str, Any]:
    """A run over intents (weight 3), entities of domains (1), and a corpus of intents that is only measured."""
    return {
        "name": "mixed",
        "model": {"name": model, "head": {"kind": "prototype", "scale": 0.2}},
        "corpus": [
            {"kind": "quickstart", "part": "intents", "weight": 3, "called": "intents"},
            {
                "kind": "quickstart",
                "tasks": {
                    "kind": "entities", "ways": 3, "shots": 1, "queries": 1, "classes_from": "task",
                    "split": {"of": "task", "validation": 3, "test": 3},
                },
            },
            {
                "kind": "files", "path": str(DATA / "intents.jsonl"), "weight": 0, "called": "elsewhere",
                "tasks": {"kind": "classification", "ways": 2, "queries": 1, "split": {"of": "class", "train": 3, "test": 3}},
            },
        ],
        "tasks": {"kind": "classification", "ways": 3, "queries": 2, "split": {"validation": 8, "test": 8}},
        "algorithm": {"kind": "maml", "inner_steps": 1, "inner_lr": 0.05, "order": 1, "tasks_at_once": 2},
        "outer": {"steps": 6, "tasks_per_step": 4, "lr": 1e-3},
        "validation": {"every": 3, "episodes": 5},
        "evaluate": {"episodes": 6},
        "save": {"every": 2},
        "storage": str(folder),
        "cluster": "local-debug",
        **sections,
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_tokenizer_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run.of(values(tiny_tokenizer_folder, tmp_path_factory.mktemp("mixed")))


@pytest.fixture(scope="module")
def folders(run: Run) -> list[str]:
    return prepared(run.parts, run.model, run.seed, run.root / "prepared", on_ray=False, say=lambda _: None)


@pytest.fixture(scope="module")
def mixture(run: Run, folders: list[str]) -> Mixture:
    found = training(run.parts, folders, run.seed)
    assert isinstance(found, Mixture)
    return found


@pytest.fixture(scope="module")
def trained(run: Run) -> Result:
    return metatrain(run)


def test_a_run_names_its_parts_and_reads_back_the_same(run, tmp_path):
    assert [(part.name, part.tasks.kind, part.weight) for part in run.parts] == [
        ("intents", "classification", 3.0), ("entities", "entities", 1.0), ("elsewhere", "classification", 0.0),
    ]  # fmt: skip
    assert run.parts[0].tasks == run.tasks
    (tmp_path / "run.yaml").write_text(run.yaml(), encoding="utf-8")
    again = Run.load(str(tmp_path))
    assert again == run
    assert again.hash() == run.hash()
    assert Run.of(run.model_dump(mode="json")) == run


def test_entries_of_one_kind_are_numbered_and_tasks_that_all_entries_have_need_no_more(tiny_tokenizer_folder, tmp_path):
    settings = values(tiny_tokenizer_folder, tmp_path)
    tasks = settings.pop("tasks")
    for entry in settings["corpus"]:
        entry.pop("called", None)
        entry.setdefault("tasks", tasks)
    whole = Run.of(settings)
    assert [part.name for part in whole.parts] == ["classification-0", "entities", "classification-2"]
    assert "tasks" not in whole.model_dump()
    assert Run.of(whole.model_dump(mode="json")) == whole


def test_an_override_reaches_into_an_entry(run, tmp_path):
    (tmp_path / "run.yaml").write_text(run.yaml(), encoding="utf-8")
    changed = Run.load(str(tmp_path), "corpus.0.weight=1", "corpus.1.tasks.ways=2", "corpus.2.path=elsewhere.csv")
    assert changed.parts[0].weight == 1
    assert changed.parts[1].tasks.ways == (2, 2)
    assert changed.parts[2].corpus.path == "elsewhere.csv"
    assert changed.parts[1].corpus == run.parts[1].corpus
    assert changed.hash() != run.hash()
    assert Run.load(str(tmp_path), "corpus.0.bad_rows=0.5").hash() == run.hash()
    with pytest.raises(UserError, match=r"corpus.3.weight: '3' is no place in this list; write a number from 0 to 2"):
        Run.load(str(tmp_path), "corpus.3.weight=1")


MISTAKES = [
    ({"corpus.1.tasks.way": 3}, ["corpus[1].tasks: unknown setting 'way'", "did you mean 'ways'"]),
    ({"corpus.1.pat": 3}, ["corpus[1]: unknown setting 'pat'", "did you mean 'part'"]),
    ({"corpus.0.weight": -1}, ["corpus[0].weight: give at least 0"]),
    ({"corpus.0.kind": "file"}, ["corpus[0]: no corpus of kind 'file'"]),
    ({"corpus.0.called": "entities"}, ["corpus: 'entities' is the name of two entries", "called:"]),
    ({"corpus.0.called": "a/b"}, ["corpus[0].called", "'a/b'"]),
    ({"corpus.0.weight": 0, "corpus.1.weight": 0}, ["corpus: every weight is 0"]),
    ({"model.head": "learned"}, ["model.head", "(elsewhere, entities)", "prototype or zero"]),
    ({"corpus": []}, ["corpus: give a list of at least 1"]),
    ({"corpus.2.path": "/nowhere/x.csv"}, ["corpus[2].path: there is no file", "/nowhere/x.csv"]),
    ({"corpus.2.columns": {"text": "words"}}, ["corpus[2].columns: text: 'words' is not a column of"]),
    ({"corpus.2.columns": {"tekst": "text"}}, ["corpus[2].columns: this task kind has no role 'tekst'"]),
    ({"corpus.2.tasks.split": {"column": "folt"}}, ["corpus[2].tasks.split.column: 'folt' is not a column"]),
    ({"corpus.1.tasks.ways": 9}, ["corpus[1].tasks.ways: 9 ways were asked for within one task", "lower corpus[1].tasks.ways"]),
    ({"tasks.ways": 30}, ["corpus[0]: tasks.ways: 30 ways were asked for"]),
    ({"tasks.split": {"test": 8}, "corpus.1.tasks.split": {"of": "task", "test": 3}},
     ["no row belongs to the validation split", "validation.every to 0"]),
    ({"evaluate.split": "validation", "corpus.2.tasks.split.validation": 9}, ["corpus[2].tasks.split.validation: 9 classes"]),
]  # fmt: skip
"""Overrides of the mixed run, and what its message must say."""


@pytest.mark.parametrize(("changes", "says"), MISTAKES, ids=lambda v: ",".join(v) if isinstance(v, dict) else "")
def test_a_mistake_in_an_entry_is_one_message_that_names_it(
    changes, says, run, tiny_tokenizer_folder, tmp_path, monkeypatch, capsys
):
    (tmp_path / "run.yaml").write_text(run.yaml(), encoding="utf-8")
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    status, message = told(["check", str(tmp_path), *overrides], monkeypatch, capsys)
    assert status == 2, message
    assert_is_a_message(message)
    for words in says:
        assert words in message


def test_tasks_that_nothing_reads_and_tasks_that_are_missing_are_told(tiny_tokenizer_folder, tmp_path):
    settings = values(tiny_tokenizer_folder, tmp_path)
    tasks = settings.pop("tasks")
    with pytest.raises(UserError, match=r"corpus\[0\].tasks: is missing"):
        Run.of(settings)
    settings["corpus"][0]["tasks"] = tasks
    with pytest.raises(UserError, match="tasks: every entry of corpus has tasks of its own"):
        Run.of({**settings, "tasks": tasks})


def test_an_episode_of_a_mixture_is_its_parts_own_of_the_same_number(mixture):
    assert [source.part for source in mixture.sources] == [0, 1]  # the third weighs nothing
    met = set()
    for number in [*range(20), 10**12]:
        episode = mixture.episode(number)
        met.add(episode.part)
        assert same(episode, mixture.sources[episode.part].episode(number))
        assert same(episode, mixture.episode(number))
    assert met == {0, 1}


def test_parts_are_drawn_by_their_weights_and_by_the_seed(mixture):
    drawn = np.array([mixture.source(n).part for n in range(4000)])
    assert abs((drawn == 0).mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 4000)  # five standard deviations
    neighbours = (drawn[1:] == drawn[:-1]).mean()  # independent draws: 0.75^2 + 0.25^2
    assert abs(neighbours - 0.625) < 5 * np.sqrt(0.625 * 0.375 / 4000)
    other = Mixture(
        tuple(type(s)(s.folder, s.tasks, s.split, 1, s.part, s.place) for s in mixture.sources), mixture.weights
    )
    assert [other.source(n).part for n in range(100)] != drawn[:100].tolist()
    never = Mixture(mixture.sources, (0.0, 2.0))
    assert {never.source(n).part for n in range(200)} == {1}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_mixed_step_is_made_of_the_same_episodes_on_any_number_of_workers(mixture, workers):
    whole = list(steps(mixture, 3, 5, tasks_per_step=8))
    parts = [list(steps(mixture, 3, 5, 8, rank, workers)) for rank in range(workers)]
    for step in range(2):
        met = sorted((e for part in parts for e in part[step]), key=lambda e: e.number)
        assert [e.part for e in met] == [e.part for e in whole[step]]
        assert all(same(a, b) for a, b in zip(met, whole[step], strict=True))


def test_mixed_episodes_survive_their_way_through_arrow_in_tables_of_one_form(mixture):
    from raymeta.episodes import Episode

    of_one = [next([n] for n in range(100) if mixture.source(n).part == part) for part in (0, 1)]
    tables = [rows(mixture, numbers) for numbers in (*of_one, list(range(12)))]
    assert tables[0].schema == tables[1].schema == tables[2].schema
    for row in tables[2].to_pylist():
        back, whole = Episode.from_row(row), mixture.episode(row["number"])
        assert same(back, whole)
        assert back.part == whole.part


def test_episodes_computed_together_are_of_one_part_and_all_are_computed(mixture):
    episodes = next(steps(mixture, 2, 3, tasks_per_step=16))
    chunks = list(_together(episodes, lambda mine: 3))
    assert all(len({e.part for e in chunk}) == 1 and len(chunk) <= 3 for chunk in chunks)
    assert sorted(e.number for chunk in chunks for e in chunk) == list(range(32, 48))
    for part in (0, 1):
        numbers = [e.number for chunk in chunks for e in chunk if e.part == part]
        assert numbers == sorted(numbers)


def test_training_writes_the_metric_of_each_part_and_is_judged_by_their_mean(run, trained):
    found = metric_rows(run.folder / "metrics.jsonl")
    columns = {name for row in found if "split" not in row for name in row if name.startswith("query_")}
    assert columns == {"query_loss", "query_intents/accuracy", "query_entities/entity_f1"}
    validated = [row for row in found if "split" in row]
    assert [row["step"] for row in validated] == [3, 6]
    for row in validated:
        assert row["mean"] == pytest.approx((row["intents/accuracy"] + row["entities/entity_f1"]) / 2)
        widths = [row["intents/accuracy_ci95"], row["entities/entity_f1_ci95"]]
        assert row["mean_ci95"] == pytest.approx((widths[0] ** 2 + widths[1] ** 2) ** 0.5 / 2)
        assert not any(name.startswith("elsewhere") for name in row)
    assert trained.last.state["metric"] == "mean"
    assert trained.last.state["best"]["mean"] == max(row["mean"] for row in validated)


def test_a_mixed_run_that_stops_goes_on_bit_for_bit(run, trained, tmp_path):
    sign = tmp_path / "sign"
    sign.touch()
    interrupted = {
        **run.algorithm.model_dump(mode="json"), "kind": "tests.end_to_end.interrupted:Interrupted", "at": 4 * 4 + 1,
        "sign": str(sign), "how": "mistaken",
    }  # fmt: skip
    broken = Run.of({**run.model_dump(mode="json"), "name": "broken", "algorithm": interrupted})
    with pytest.raises(UserError, match="Friday"):
        metatrain(broken)
    assert [row["step"] for row in metrics(broken.folder)][-1] == 4
    result = metatrain(broken)
    assert same_bytes(result, trained)
    assert metrics(broken.folder) == metrics(run.folder)


def test_evaluation_has_a_table_for_each_part_and_their_mean(run, trained, capsys):
    found = evaluate(run, trained.best)
    mean, *parts = found["settings"]
    assert mean["parts"] == ["intents", "entities", "elsewhere"]
    assert [part["part"] for part in parts] == mean["parts"]
    assert [part["ways"] for part in parts] == [3, 3, 2]
    main = ["accuracy", "entity_f1", "accuracy"]
    for row in ("metrics", "untrained", "prototype"):
        each = [Estimate(**part[row][metric]) for part, metric in zip(parts, main, strict=True)]
        assert Estimate(**mean[row]["mean"]) == mean_of(each)
        assert found[row] == mean[row]
    text = table(found, frozenset({"entities"}))
    assert "test of entities: 6 episodes, 3-way 1~2-shot" in text
    assert "test of elsewhere: 6 episodes, 2-way 1-shot" in text
    assert text.startswith("test: mean of the main metrics of intents, entities, elsewhere; 6 episodes each")
    assert text.count("\n  not meta-trained, adapted alike") == 4
    assert text.count("\n  difference to not meta-trained, adapted alike") == 4


def test_parts_without_the_split_are_named_and_not_measured(run, trained, folders, capsys):
    there = held_out(run.parts, folders, "validation", run.seed)
    assert [part.name for part, _ in there] == ["intents", "entities"]
    again = Run.of({**run.model_dump(mode="json"), "evaluate": {"episodes": 3, "split": "validation"}})
    found = evaluate(again, trained.best)
    assert "validation: no rows of elsewhere; measured on intents, entities" in capsys.readouterr().out
    assert found["settings"][0]["parts"] == ["intents", "entities"]


def test_check_shows_an_episode_of_each_part_that_is_trained_on(run, capsys):
    check(run)
    said = capsys.readouterr().out
    assert "episode 0 of the train split of intents:\nsupport: 3 texts" in said
    assert "episode 0 of the train split of entities:\nsupport: " in said
    assert "of elsewhere:" not in said
    assert "elsewhere: corpus: train 18 rows, 3 classes" in said


def test_a_changed_entry_is_told(run, trained, tmp_path):
    settings = run.model_dump(mode="json")
    settings["corpus"][0]["weight"] = 2.0
    assert "corpus.0.weight: 3.0 -> 2.0" in next(changed_settings(Run.of(settings)))


def test_the_mean_of_estimates_has_the_interval_of_independent_ones():
    random = np.random.default_rng(0)
    widths = np.array([0.01, 0.03, 0.02])
    draws = (random.standard_normal((100_000, 3)) * widths / 1.96).mean(1)
    found = mean_of([Estimate(m, w) for m, w in zip((0.1, 0.2, 0.6), widths, strict=True)])
    assert found.mean == pytest.approx(0.3)
    assert found.ci95 == pytest.approx(1.96 * draws.std(), rel=0.02)
