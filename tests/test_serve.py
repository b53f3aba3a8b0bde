"""What is answered to requests; `tests/end_to_end/test_serve.py` sends them over HTTP."""

import json

import pytest

from raymeta.learner import Learner
from raymeta.serve import MOST_TEXTS, Service

SHOWN = {"text": ["play jazz", "book a table", "a song please"], "label": ["music", "food", "music"]}


@pytest.fixture(scope="module")
def service(trained_run):
    return Service(str(trained_run), keep=2)


def post(service, path, given):
    return service.answer("POST", path, json.dumps(given).encode())


def test_a_task_is_adapted_to_and_answered_as_the_learner_does(service, trained_run):
    status, task = post(service, "/adapt", SHOWN)
    assert (status, task["classes"], task["examples"]) == (200, ["music", "food"], 3)
    texts = ["what a song", "a table for two"]
    wanted = Learner.from_pretrained(trained_run).adapt(SHOWN["text"], SHOWN["label"]).predict(texts)
    assert post(service, "/predict", {"task": task["task"], "text": texts}) == (200, {"answers": wanted})
    assert post(service, "/adapt", SHOWN) == (200, task)


def test_only_the_newest_tasks_are_kept(service):
    tasks = [post(service, "/adapt", {**SHOWN, "inner_steps": steps})[1]["task"] for steps in (1, 2, 3)]
    statuses = [post(service, "/predict", {"task": task, "text": ["a"]})[0] for task in tasks]
    assert statuses == [404, 200, 200]
    assert service.answer("GET", "/", b"") == (
        200, {"kind": "classification", "roles": ["text", "label"], "tasks": tasks[1:]},
    )  # fmt: skip


def test_an_adapted_model_answers_without_a_task(trained_run, tmp_path):
    one = Learner.from_pretrained(trained_run).adapt(SHOWN["text"], SHOWN["label"])
    one.save_pretrained(tmp_path / "out")
    service = Service(str(tmp_path / "out"), keep=1)
    assert service.answer("GET", "/", b"")[1]["classes"] == ["music", "food"]
    assert post(service, "/predict", {"text": ["a song"]}) == (200, {"answers": one.predict(["a song"])})


MISTAKES = {
    "no json": ("/adapt", b"{", 400, "the body is not JSON"),
    "not text": ("/adapt", b"\xff\xfe", 400, "the body is not JSON"),
    "no object": ("/adapt", b"[1]", 400, "the body is a JSON list, not an object"),
    "a role": ("/adapt", {"texts": ["a"]}, 400, "no role 'texts'; did you mean 'text'?"),
    "no labels": ("/adapt", {"text": ["a"]}, 400, "no label was given"),
    "not a list": ("/adapt", {"text": {"a": 1}, "label": ["x"]}, 400, "text: give a list"),
    "self": ("/predict", {"self": ["a"]}, 400, "task: is missing"),
    "self and texts": ("/adapt", {"self": ["a"], **SHOWN}, 400, "no role 'self'"),
    "a number": ("/adapt", {"text": [1, 2], "label": ["x", "y"]}, 400, "example 0: text is int '1', not a string"),
    "steps": ("/adapt", {**SHOWN, "inner_steps": -1}, 400, "inner_steps: give a whole number from 0 to 100, not -1"),
    "no task": ("/predict", {"text": ["a"]}, 400, "task: is missing"),
    "a task": ("/predict", {"text": ["a"], "task": "x"}, 404, "no task 'x'"),
    "a task of a kind": ("/predict", {"text": ["a"], "task": ["x"]}, 404, "no task ['x']"),
    "a path": ("/learn", {}, 404, "no POST /learn; there are POST /adapt, POST /predict and GET /"),
    "too many": ("/predict", {"text": ["a"] * (MOST_TEXTS + 1)}, 413, "are too many for one request"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_request_is_said(mistake, service):
    path, body, status, says = MISTAKES[mistake]
    found = service.answer("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert found[0] == status
    assert says in found[1]["error"]
    assert list(found[1]) == ["error"]
