"""`kind: word` becomes the class in the module of that name, and a user's own class by `module:Class`."""

import pytest
from pydantic import ValidationError

from raymeta.algorithms import Algorithm
from raymeta.algorithms.maml import Maml
from raymeta.component import Component
from raymeta.config import Run
from raymeta.corpora import Corpus
from raymeta.corpora.quickstart import Quickstart
from raymeta.errors import UserError, did_you_mean
from raymeta.heads import Head
from raymeta.heads.prototype import Prototype
from raymeta.tasks import Tasks
from raymeta.tasks.classification import Classification
from tests.mistakes import RUNS

FAMILIES = [Algorithm, Corpus, Head, Tasks]
OWN = '''
from raymeta.algorithms.maml import Maml
from raymeta.tasks.classification import Classification

class Mine(Maml):
    """An algorithm of a user's own."""
    extra: int = 3
    """A setting of its own."""

class Questions(Classification):
    """A task kind of a user's own."""
    def fault(self, row):
        return None if str(row["text"]).endswith("?") else "not a question"
'''


def test_a_kind_becomes_the_class_in_the_module_of_that_name():
    assert type(Algorithm.model_validate({"kind": "maml", "order": 1})) is Maml
    assert type(Tasks.model_validate("classification")) is Classification
    assert type(Corpus.model_validate({"kind": "quickstart", "part": "intents"})) is Quickstart
    assert Algorithm.model_validate({"kind": "maml", "order": 1}).order == 1


def test_an_algorithm_and_a_head_have_a_usual_kind():
    assert Algorithm.model_validate({"inner_steps": 2}) == Maml(inner_steps=2)
    assert type(Head.model_validate({})) is Prototype


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_kind_is_documented_setting_by_setting(family):
    assert family.kinds()
    for kind in family.kinds():
        member = family.member(kind)
        assert issubclass(member, family)
        assert (member.__doc__ or "").strip()
        for name, field in member.model_fields.items():
            assert field.description, f"{kind}.{name} has no docstring"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_a_component_is_written_as_it_is_read(family):
    for kind in family.kinds():
        required = {"files": {"path": "x.csv"}, "hub": {"name": "a/b"}, "text": {"path": "x.txt"}}.get(kind, {})
        made = family.model_validate({"kind": kind, **required})
        assert made.kind == kind
        assert made.model_dump(mode="json")["kind"] == kind
        assert family.model_validate(made.model_dump(mode="json")) == made


def test_a_component_does_not_change():
    with pytest.raises(ValidationError):
        Maml().inner_steps = 3


def test_a_class_of_a_users_own_is_named_by_module_and_class(tmp_path, monkeypatch):
    (tmp_path / "my_own_kinds.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    values = {"model": {"name": "x"}, **RUNS["intents"], "algorithm": {"kind": "my_own_kinds:Mine", "extra": 5}}
    run = Run.of({"name": "a", **values, "tasks": {**RUNS["intents"]["tasks"], "kind": "my_own_kinds:Questions"}})
    assert run.algorithm.extra == 5
    assert run.algorithm.kind == "my_own_kinds:Mine"
    assert run.tasks.fault({"text": "really?"}) is None
    assert Run.of(run.model_dump(mode="json")) == run
    with pytest.raises(UserError, match="algorithm: unknown setting 'extr'; did you mean 'extra'"):
        Run.of({"name": "a", **values, "algorithm": {"kind": "my_own_kinds:Mine", "extr": 5}})
    with pytest.raises(UserError, match="has no attribute 'Your'"):
        Run.of({"name": "a", **values, "algorithm": "my_own_kinds:Your"})


def test_an_object_is_taken_as_it_is():
    assert Algorithm.model_validate(Maml(order=1)) == Maml(order=1)
    with pytest.raises(ValidationError):
        Algorithm.model_validate(Prototype())


def test_a_near_word_is_suggested_and_a_far_one_is_not():
    assert did_you_mean("mamml", ["maml", "reptile"]) == "; did you mean 'maml'?"
    assert did_you_mean("xyz", ["maml", "reptile"]) == ""
    assert issubclass(UserError, ValueError)
    assert Component.family == ""
