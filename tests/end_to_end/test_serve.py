"""A model over HTTP, on Ray Serve."""

import json
import urllib.error
import urllib.request

import pytest

from raymeta.learner import Learner
from raymeta.serve import LARGEST, start
from tests.end_to_end.test_jobs import free_ports

pytest.importorskip("starlette", reason="needs the extra `serve`")


@pytest.fixture(scope="module")
def address(ray_cluster, trained_run):
    from ray import serve

    (port,) = free_ports(1)
    start(str(trained_run), "127.0.0.1", port, keep=2)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def sent(address, path, body):
    """Status and body of the answer."""
    request = urllib.request.Request(address + path, data=body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_task_is_taught_and_asked_over_http(address, trained_run):
    shown = {"text": ["play jazz", "book a table"], "label": ["music", "food"]}
    status, task = sent(address, "/adapt", json.dumps(shown).encode())
    assert (status, task["classes"]) == (200, ["music", "food"])
    texts = ["what a song", "a table for two"]
    wanted = Learner.from_pretrained(trained_run).adapt(*shown.values()).predict(texts)
    asked = json.dumps({"task": task["task"], "text": texts}).encode()
    assert sent(address, "/predict", asked) == (200, {"answers": wanted})


def test_a_mistake_and_a_large_body_are_answered_in_json(address):
    assert sent(address, "/adapt", b"{")[0] == 400
    status, found = sent(address, "/adapt", b" " * (LARGEST + 1))
    assert (status, found) == (413, {"error": f"the body is larger than {LARGEST} bytes"})
