"""A run is read from YAML and `key=value`, and written so that it is read back the same."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from raymeta import yaml12
from raymeta.cluster import Profile, profile_values, profiles
from raymeta.config import Run, recipe_path, recipes
from raymeta.errors import UserError
from tests.mistakes import run_file

ROOT = Path(__file__).parents[1]


@pytest.fixture
def path(tmp_path) -> Path:
    return run_file(tmp_path, "some-model")


@pytest.mark.parametrize("recipe", sorted((ROOT / "raymeta" / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_loads_by_name_and_reads_back_the_same(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYMETA_DATA", str(tmp_path))
    run = Run.load(recipe.stem)
    assert run.name == recipe.stem
    assert run.description
    (tmp_path / "run.yaml").write_text(run.yaml(), encoding="utf-8")
    assert Run.load(str(tmp_path / "run.yaml")) == run
    assert Run.load(str(tmp_path)) == run
    assert Run.load(str(recipe)) == run


@pytest.mark.parametrize("profile", sorted((ROOT / "clusters").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_cluster_profile_loads_by_name_and_by_path(profile):
    assert profile.stem in profiles()
    made = Profile.model_validate(profile_values(profile.stem))
    assert made.description
    assert Profile.model_validate(profile_values(str(profile))) == made


@pytest.mark.parametrize("name", recipes())
@pytest.mark.parametrize("cluster", profiles())
def test_every_recipe_takes_every_cluster_or_says_why_not(name, cluster):
    try:
        assert Run.load(name, f"cluster={cluster}").cluster == Profile.model_validate(profile_values(cluster))
    except UserError as error:
        assert "outer.tasks_per_step" in str(error)  # noqa: PT017 - one of two outcomes


def test_a_setting_is_documented_below_its_name():
    def undocumented(section: type[BaseModel], above: str = "") -> list[str]:
        found = []
        for name, field in section.model_fields.items():
            if not field.description:
                found.append(f"{above}{name}")
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                found += undocumented(field.annotation, f"{above}{name}.")
        return found

    assert undocumented(Run) == []


def test_overrides_change_what_they_name(path):
    run = Run.load(
        str(path), "outer.lr=3e-4", "outer.steps=7", "seed=3", "name=other", "tasks.ways=[2, 3]", "model.adapt={last: 1}",
        "algorithm.inner_lr=1e-1", "evaluate.shots=5", "tasks.split={column: fold, train: [a, b], test: no}",
        "corpus.columns.task=domain", "cluster.workers=2", "model.head=zero",
    )  # fmt: skip
    assert run.outer.lr == 3e-4
    assert (run.outer.steps, run.seed, run.name) == (7, 3, "other")
    assert run.tasks.ways == (2, 3)
    assert run.model.adapt.last == 1
    assert run.algorithm.inner_lr == 0.1
    assert run.evaluate.shots == (5,)
    assert run.tasks.split.train == ("a", "b")
    assert run.tasks.split.test == "no"
    assert run.corpus.columns == {"task": "domain"}
    assert (run.cluster.workers, run.cluster.in_process) == (2, True)
    assert run.model.head.kind == "zero"


def test_a_setting_below_a_kind_keeps_the_kind(path):
    assert Run.load(str(path), "model.head=prototype", "model.head.scale=2").model.head.scale == 2
    assert Run.load(str(path), "cluster=local", "cluster.workers=3").cluster.workers == 3


def test_a_value_may_hold_equals_signs_and_colons(path):
    run = Run.load(str(path), "corpus.path=file:///a/b?x=y.csv", "storage=a=b")
    assert run.corpus.path == "file:///a/b?x=y.csv"
    assert run.storage == "a=b"


NUMBERS = {
    "3e-4": 3e-4, "1E5": 1e5, "-2.5e+3": -2500.0, ".5": 0.5, "1.": 1.0, "-.5e1": -5.0, "0010": 10, "+7": 7, "-0": 0,
}  # fmt: skip
TEXTS = ["no", "yes", "on", "12:30", "1_000", "2024-01-01", "0x1F", "1e", "e5", "--5", "1.2.3", "=", "3e4x"]


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_are_read_as_yaml_1_2_reads_them(text):
    found = yaml12.parse(text)
    assert found == NUMBERS[text]
    assert type(found) is type(NUMBERS[text])


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_number_stays_text(text):
    assert yaml12.parse(text) == text


TEXT = st.characters(codec="utf-8", exclude_categories=["Cc"])  # PyYAML takes U+0085 for a line break
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(TEXT),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(TEXT), inner, max_size=4),
    max_leaves=10,
)


@given(plain)
def test_yaml_reads_back_what_it_wrote(value):
    assert yaml12.parse(yaml12.dump(value)) == value


@given(st.sampled_from([*NUMBERS, *TEXTS, "true", "null", "~", "", "#", "- a", "a: b", "'", '"', "\n", "\u2028"]))
def test_text_that_looks_like_something_else_is_written_as_text(text):
    assert yaml12.parse(yaml12.dump({"a": text, "b": [text]})) == {"a": text, "b": [text]}


@pytest.mark.parametrize(
    ("gpu", "asked", "exact"), [(False, None, True), (True, None, False), (True, True, True), (False, False, False)]
)
def test_runs_are_deterministic_on_cpus_unless_told_otherwise(gpu, asked, exact):
    assert Run.of({**GOOD, "cluster": {"gpu": gpu}, "deterministic": asked}).exact == exact


SECTIONS = sorted(set(Run.model_fields) - {"description"})
KNOWN = sorted({f"{s}.{k}" for s in ("outer", "save", "evaluate", "validation", "model", "tasks", "algorithm", "cluster") for k in (
    "steps", "lr", "every", "keep", "episodes", "shots", "ways", "queries", "name", "head", "adapt", "kind", "inner_lr", "inner_steps",
    "order", "workers", "split", "clip_norm",
)})  # fmt: skip
GOOD = {
    "name": "x",
    "model": {"name": "some-model"},
    "corpus": {"kind": "quickstart"},
    "tasks": {"kind": "classification", "split": {"test": 2}},
}


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(SECTIONS), plain, max_size=4))
def test_any_values_for_sections_make_a_run_or_a_message(sections):
    try:
        run = Run.of({**GOOD, **sections})
    except UserError as error:
        assert str(error).strip()  # noqa: PT017 - one of two outcomes
        return
    assert Run.of(yaml12.parse(run.yaml())) == run


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KNOWN), plain)
def test_any_value_of_a_setting_makes_a_run_that_reads_back_the_same_or_a_message_that_names_it(setting, value):
    section, _, key = setting.partition(".")
    try:
        run = Run.of({**GOOD, section: {**GOOD.get(section, {}), key: value}})
    except UserError as error:
        assert section in str(error)  # noqa: PT017 - one of two outcomes
        return
    assert Run.of(yaml12.parse(run.yaml())) == run
    assert run.hash() == Run.of(yaml12.parse(run.yaml())).hash()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(KNOWN), st.text(TEXT, max_size=12))
def test_any_text_behind_a_settings_name_makes_a_run_or_a_message(setting, text):
    run = Run.of(GOOD)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(run.yaml(), encoding="utf-8")
        try:
            Run.load(str(path), f"{setting}={text}")
        except UserError as error:
            assert str(error).strip()  # noqa: PT017 - one of two outcomes


def test_the_runs_folder_changes_with_what_training_depends_on_and_with_nothing_else(path):
    base = Run.load(str(path))
    for same in ("cluster=local", "description=x", "save.keep=9", "evaluate.episodes=9", "corpus.bad_rows=0.5"):
        assert Run.load(str(path), same).hash() == base.hash(), same
    for other in (
        "seed=1",
        "outer.lr=1",
        "tasks.shots=2",
        "model.adapt=head",
        "algorithm.order=1",
        "validation.every=9",
    ):
        assert Run.load(str(path), other).hash() != base.hash(), other
    assert base.folder == Path(base.storage) / f"run-{base.hash()}"


def test_storage_expands_home_and_variables(path, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOME_PLACE", str(tmp_path / "b"))
    assert Run.load(str(path), "storage=~/a").root == tmp_path / "a"
    assert Run.load(str(path), "storage=$SOME_PLACE/c").root == tmp_path / "b" / "c"


def test_every_mistake_of_a_run_is_told_at_once(path):
    with pytest.raises(UserError) as caught:
        Run.load(str(path), "outer.lr=x", "seed=-1", "algorithm.order=7", "tasks.ways=1")
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert sorted(line.split(":")[0] for line in lines) == ["algorithm.order", "outer.lr", "seed", "tasks.ways"]


def test_a_run_is_a_file_a_folder_or_a_recipe(path, tmp_path, monkeypatch):
    assert recipe_path(str(path)) == path
    assert recipe_path(str(tmp_path)) == path
    assert recipe_path("quickstart") == recipes()["quickstart"]
    monkeypatch.setenv("SOME_PLACE", str(tmp_path))
    assert recipe_path("$SOME_PLACE/run.yaml") == path
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        recipe_path("quickstrt")


def test_evaluation_may_ask_for_other_episodes_than_training(path):
    run = Run.load(str(path), "evaluate={shots: [1, 5], ways: [2, 4], queries: 3}")
    assert run.measured(5).shots == (5, 5)
    assert run.measured(5).ways == (2, 4)
    assert run.measured(None).queries == 3
    assert run.measured(None).shots == run.tasks.shots
    assert run.measured(1).split == run.tasks.split


NEW = {"architecture": {"type": "bert", "layers": 1}, "tokenizer": {"kind": "wordpiece", "size": 100}}
"""The pre-training of a new model."""


def with_pretraining(path: Path, **more: object) -> Run:
    values = yaml12.read(path)
    return Run.of({**values, "name": "run", "pretrain": {**NEW, **more}})


def test_stages_after_pretraining_start_from_its_folder(path):
    plain, run = Run.load(str(path)), with_pretraining(path)
    assert plain.backbone == plain.model
    assert run.backbone.name == str(run.pretrained / "model")
    assert run.backbone.model_copy(update={"name": run.model.name}) == run.model
    assert run.pretrained.parent == run.root / "pretrained"
    assert run.hash() != plain.hash()


def test_a_run_is_pretrained_anew_where_that_changes_and_only_there(path):
    base = with_pretraining(path)
    elsewhere = {**NEW, "corpus": {"kind": "quickstart"}}
    for same in ("outer.lr=1", "tasks.shots=2", "model.adapt=head", "corpus.bad_rows=0.5", "evaluate.episodes=9"):
        key, _, value = same.partition("=")
        changed = Run.of(_replaced(base, key, yaml12.parse(value)))
        assert changed.pretrained == base.pretrained, same
    for key, value in (
        ("seed", 1),
        ("pretrain.steps", 9),
        ("pretrain.lr", 1),
        ("tasks.split.train", 3),
        ("corpus.path", "x.csv"),
    ):
        changed = Run.of(_replaced(base, key, value))
        assert changed.pretrained != base.pretrained, key
        assert changed.hash() != base.hash(), key
    split = Run.of(_replaced(Run.of({**base.model_dump(mode="json"), "pretrain": elsewhere}), "tasks.split.train", 3))
    assert split.pretrained == with_pretraining(path, corpus={"kind": "quickstart"}).pretrained


def _replaced(run: Run, key: str, value: object) -> dict[str, object]:
    values = run.model_dump(mode="json")
    *above, last = key.split(".")
    place = values
    for part in above:
        place = place[part]
    place[last] = value
    return values


def test_a_new_model_needs_a_tokenizer_and_room_for_its_texts(path):
    values = {**yaml12.read(path), "name": "run", "model": {"name": ""}}
    with pytest.raises(UserError, match=r"model\.name: is missing"):
        Run.of(values)
    with pytest.raises(UserError, match=r"pretrain\.tokenizer: is missing"):
        Run.of({**values, "pretrain": {"architecture": NEW["architecture"]}})
    short = {**NEW, "architecture": {"type": "bert", "max_positions": 64}, "length": 64}
    with pytest.raises(UserError, match=r"model\.max_length: texts of 128 tokens do not fit the 64 positions"):
        Run.of({**values, "pretrain": short})
    assert Run.of({**values, "model": {"max_length": 64}, "pretrain": short}).backbone.max_length == 64


PRETRAIN_MISTAKES = [
    ({"objective": "clm"}, "pretrain.objective: clm does not suit a bert type; use mlm"),
    ({"architecture": None}, "pretrain.tokenizer: a new tokenizer does not fit the embedding of a pretrained model"),
    ({"length": 1024}, "pretrain.length: rows of 1024 tokens do not fit a model of 512 positions"),
    ({"architecture": {"type": "gpt2"}, "objective": "clm", "whole_words": True}, "pretrain.whole_words: only mlm"),
    ({"warmup_steps": 5, "steps": 5}, "pretrain.warmup_steps: 5 steps of warm-up leave none of 5"),
    (
        {"architecture": {"type": "bert", "heads": 3}},
        "pretrain.architecture.heads: 3 heads do not divide a width of 256",
    ),
    ({"architecture": {"type": "llama", "heads": 4, "hidden": 12}, "objective": "clm"}, "12 / 4 is odd"),
    ({"corpus": []}, "pretrain.corpus: give a list of at least 1"),
    ({"corpus": ["own", {"kind": "quikstart"}]}, r"pretrain.corpus\[1\]: .* did you mean 'quickstart'"),
]


@pytest.mark.parametrize(("section", "says"), PRETRAIN_MISTAKES, ids=lambda v: v[:40] if isinstance(v, str) else "")
def test_a_pretraining_that_cannot_be_is_one_message(section, says, path):
    with pytest.raises(UserError, match=says):
        with_pretraining(path, **section)


@pytest.mark.parametrize(
    ("kinds", "head"), [(["qa"], "learned"), (["qa", "qa"], "learned"), (["qa", "classification"], "prototype")]
)
def test_tasks_whose_outputs_are_no_classes_take_a_learned_head_by_themselves(kinds, head, tmp_path):
    parts = [{"kind": "files", "path": str(tmp_path), "called": f"part-{i}", "tasks": {"kind": kind, "split": {"of": "task", "test": 2}}} for i, kind in enumerate(kinds)]  # fmt: skip
    written = {"name": "mixed", "model": {"name": "some"}, "corpus": parts}
    if head == "prototype":
        with pytest.raises(UserError, match=r"model\.head: prototype makes outputs of class means"):
            Run.of(written)
    else:
        assert Run.of(written).model.head.kind == head
