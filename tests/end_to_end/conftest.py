"""One Ray cluster for all tests of this folder, ended after them, and a small run to walk on it."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raymeta.cluster import Profile, connect
from raymeta.config import Run
from raymeta.stages.metatrain import Result, metatrain

os.environ.pop("RAY_ADDRESS", None)
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
os.environ["TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"] = "3"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray's own 15 has workers wait, for minutes, for whatever else a machine of few cores does
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as Ray spells it

MakeRun = Callable[..., Run]

INTERRUPTED = "tests.end_to_end.interrupted:Interrupted"


def workers(count: int) -> dict[str, Any]:
    """A profile of `count` CPU workers."""
    return {"workers": count, "cpus_per_worker": 1}


@pytest.fixture(scope="package")
def ray_folder() -> Iterator[Path]:
    """A short path for Ray's files: the names of its sockets must not be long."""
    folder = Path(tempfile.mkdtemp(prefix="rm", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="package")
def ray_cluster(ray_folder: Path) -> Iterator[None]:
    """A cluster of this process, with more (logical) CPUs than this machine has."""
    import ray

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_TMPDIR", str(ray_folder))
        connect(Profile.model_validate(workers(4)), ray_folder)
    yield
    ray.shutdown()


def small_run(model: str, storage: str) -> dict[str, Any]:
    """20 steps of second-order MAML on the shipped entities with a tiny BERT, in this process."""
    return {
        "name": "tiny",
        "model": {"name": model, "head": {"kind": "prototype", "scale": 0.2}},
        "corpus": {"kind": "quickstart"},
        "tasks": {
            "kind": "entities", "ways": 3, "shots": 1, "queries": 1, "classes_from": "task",
            "split": {"of": "task", "validation": 3, "test": 3},
        },
        "algorithm": {"kind": "maml", "inner_steps": 2, "inner_lr": 0.05},
        "outer": {"steps": 20, "tasks_per_step": 4, "lr": 1e-3, "warmup_steps": 2},
        "validation": {"every": 10, "episodes": 6},
        "evaluate": {"episodes": 10},
        "save": {"every": 5},
        "storage": storage,
        "cluster": "local-debug",
    }  # fmt: skip


@pytest.fixture(scope="session")
def settings(tiny_tokenizer_folder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The small run's settings."""
    return small_run(tiny_tokenizer_folder, str(tmp_path_factory.mktemp("results")))


@pytest.fixture
def make_run(settings: dict[str, Any], request: pytest.FixtureRequest) -> MakeRun:
    """Gives the run of `settings` under a name that no other test has, with sections replaced."""

    def make(name: str, **sections: Any) -> Run:
        return Run.of({**settings, "name": f"{request.node.originalname}-{name}", **sections})

    return make


@pytest.fixture(scope="package")
def alone(settings: dict[str, Any]) -> Result:
    """What the small run comes to in this process, with nothing in its way."""
    return metatrain(Run.of({**settings, "name": "alone"}))


@pytest.fixture(scope="package")
def on_two(settings: dict[str, Any], ray_cluster: None) -> Result:
    """What two workers make of the small run, with nothing in their way."""
    return metatrain(Run.of({**settings, "name": "on-two", "cluster": workers(2)}))
