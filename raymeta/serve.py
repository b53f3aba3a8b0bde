"""A model over HTTP, through Ray Serve: a few examples in, a task's name out; texts in, answers out. All bodies are JSON.

    POST /adapt    {"text": [...], "label": [...]}      ->  {"task": "5f1c...", "classes": [...], "examples": 5}
    POST /predict  {"task": "5f1c...", "text": [...]}   ->  {"answers": [...]}
    GET  /                                              ->  what is served, and the names of the roles

The names beside `task` are the roles of the model's kind of task. A served model that is adapted already answers /predict
without a task. A mistake is {"error": what} with status 400 (404: no such task or path, 413: too large).
"""

import asyncio
import hashlib
import json
import threading
from collections import OrderedDict
from typing import Any

from raymeta.cluster import Profile, connect, profile_values
from raymeta.errors import UserError
from raymeta.learner import Adapted, Learner

LARGEST = 1 << 20
"""Bytes of a request's body."""
MOST_TEXTS = 256
"""Texts of a request."""

Answer = tuple[int, dict[str, Any]]


class Service:
    """The tasks of one model. Adapting to the same examples again gives the same task; only the newest are kept."""

    def __init__(self, where: str, keep: int) -> None:
        self.learner = Learner.from_pretrained(where)
        self.keep = keep
        self._tasks: OrderedDict[str, Adapted] = OrderedDict()
        self._one_at_a_time = threading.Lock()  # a network computes for one caller

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """Status and body of the response to a request."""
        answers = {("POST", "/adapt"): self._adapt, ("POST", "/predict"): self._predict}
        if (method, path) == ("GET", "/"):
            return 200, self._about()
        if (method, path) not in answers:
            return 404, {"error": f"no {method} {path}; there are POST /adapt, POST /predict and GET /"}
        try:
            given = json.loads(body)
            if not isinstance(given, dict):
                return 400, {"error": f"the body is a JSON {type(given).__name__}, not an object"}
            sizes = [len(column) for column in given.values() if isinstance(column, list)]
            if max(sizes, default=0) > MOST_TEXTS:
                return 413, {"error": f"{max(sizes)} texts are too many for one request; send at most {MOST_TEXTS}"}
            with self._one_at_a_time:
                return answers[method, path](given)
        except UserError as error:
            return 400, {"error": str(error)}
        except ValueError as error:
            return 400, {"error": f"the body is not JSON: {error}"}

    def _about(self) -> dict[str, Any]:
        found: dict[str, Any] = {"kind": self.learner.tasks.kind, "roles": list(self.learner.tasks.reads())}
        if isinstance(self.learner, Adapted):
            found["classes"] = list(self.learner.classes)
        return {**found, "tasks": list(self._tasks)}

    def _adapt(self, given: dict[str, Any]) -> Answer:
        steps = given.pop("inner_steps", None)
        if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or not 0 <= steps <= 100):
            return 400, {"error": f"inner_steps: give a whole number from 0 to 100, not {steps!r}"}
        name = hashlib.sha256(json.dumps([steps, given], sort_keys=True).encode()).hexdigest()[:16]
        if name not in self._tasks:
            self._tasks[name] = self.learner.adapt(inner_steps=steps, **given)
        self._tasks.move_to_end(name)
        while len(self._tasks) > self.keep:
            self._tasks.popitem(last=False)
        one = self._tasks[name]
        return 200, {"task": name, "classes": list(one.classes), "examples": one.shown}

    def _predict(self, given: dict[str, Any]) -> Answer:
        name = given.pop("task", None)
        if name is None:
            if not isinstance(self.learner, Adapted):
                return 400, {"error": "task: is missing; give the name that /adapt answered"}
            one = self.learner
        elif not isinstance(name, str) or name not in self._tasks:
            return 404, {
                "error": f"no task {name!r}; the {self.keep} newest are kept: send its examples to /adapt again"
            }
        else:
            self._tasks.move_to_end(name)
            one = self._tasks[name]
        return 200, {"answers": one.predict(**given)}


def start(where: str, host: str, port: int, keep: int) -> None:
    """Serves the model in `where` on Ray, and comes back; raises UserError where it cannot."""
    try:
        from ray import serve
        from starlette.requests import Request
        from starlette.responses import JSONResponse
    except ImportError as error:
        raise UserError(
            "serve needs Ray Serve, which is not installed here; install raymeta's extra `serve` (pip install 'raymeta[serve]')"
        ) from error
    Learner.from_pretrained(where)  # a mistake is told before Ray starts
    connect(Profile.model_validate(profile_values("local")))

    @serve.deployment(num_replicas=1, max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
    class Served:
        def __init__(self) -> None:
            self.service = Service(where, keep)

        async def __call__(self, request: Request) -> JSONResponse:
            body = b""
            async for chunk in request.stream():
                body += chunk
                if len(body) > LARGEST:
                    return JSONResponse({"error": f"the body is larger than {LARGEST} bytes"}, status_code=413)
            status, found = await asyncio.to_thread(self.service.answer, request.method, request.url.path, body)
            return JSONResponse(found, status_code=status)

    serve.start(http_options={"host": host, "port": port})
    deployment: Any = Served  # what the decorator made of the class
    serve.run(deployment.bind(), name="raymeta", route_prefix="/")


def serve(where: str, host: str, port: int, keep: int) -> None:
    """Serves the model in `where` until it is interrupted."""
    start(where, host, port, keep)
    print(f"serving {where} at http://{host}:{port}; stop it with Ctrl-C", flush=True)
    try:
        threading.Event().wait()
    finally:
        from ray import serve as on_ray

        on_ray.shutdown()
