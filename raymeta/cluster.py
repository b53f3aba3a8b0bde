"""Where a run runs: a profile (in this process, on this machine's cores, on a cluster's GPUs), and how to start on it."""

import atexit
import logging
import os
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError, field_validator, model_validator

from raymeta import checkpoint, nodes, notice, yaml12
from raymeta.component import Section
from raymeta.errors import UserError, did_you_mean, first_line, told
from raymeta.workers import Workers, summing_in_order

_STARTS, _STARTS_ON_DEMAND = 3, 60
"""How often workers are waited for, a minute each, before a run gives up; a machine that is yet to be started takes long."""
_SAVES_WITHIN_S = 20
"""How long a run that is told to end waits for its workers to finish their step and save it."""


class Profile(Section):
    """What raymeta needs to know of a cluster."""

    description: str = ""
    """One line for `raymeta ls clusters`."""
    in_process: bool = False
    """Everything in this process, without Ray: a debugger's breakpoints work everywhere."""
    address: str | None = None
    """The Ray cluster to join: `auto`, `host:port`; absent: the one of the surrounding Ray job, else a new one here."""
    workers: int | tuple[int, int] = 1
    """Training workers; each takes its share of a step's tasks. [fewest, most]: as many as the cluster has, from time to
    time; the run goes on from its newest checkpoint when they change."""
    gpu: bool = False
    """One GPU a worker, and NCCL between them."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPU cores a worker; on CPU also its threads."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Further resources a worker, by the names that the cluster gives them."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray places workers on nodes."""
    max_failures: int = Field(3, ge=0)
    """How often workers may be lost and started again from the newest checkpoint."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of every worker."""
    autoscales: bool = False
    """Whether machines are added when they are asked for: then workers are waited for, where else they must have room."""
    storage: str | None = None
    """The folder for results of runs that name none: on several machines, one that all of them see."""
    dashboard: str | None = None
    """Where `raymeta submit` sends jobs: the address of the cluster's dashboard; $RAY_API_SERVER_ADDRESS goes before it."""
    runtime: Literal["there", "pip"] = "there"
    """Where a job's packages come from: they are on the cluster, or those that raymeta needs are installed for the job, at the
    versions of the machine that submits it."""
    image: str | None = None
    """A container image for jobs, with raymeta in it: Ray then takes no working directory along."""
    secrets: tuple[str, ...] = ()
    """Names of environment variables that jobs are given from the environment of who submits; no file holds their values."""

    @model_validator(mode="after")
    def _image_or_packages(self) -> Self:
        if self.image and self.runtime == "pip":
            raise ValueError(
                "image: Ray takes either an image or packages to install; leave one of image and runtime: pip out"
            )
        return self

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """The profile with these settings; raises UserError that names every setting that is wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError("\n".join(f"cluster.{line}" for line in told(error))) from error

    @field_validator("environment")
    @classmethod
    def _holds_no_secret(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if re.search(r"TOKEN|SECRET|PASSWORD|API_?KEY|ACCESS_KEY|CREDENTIAL", name.upper()):
                raise ValueError(
                    f"{name} looks like a secret, and files of the run would hold its value; set it where the command is given (a job gets it by "
                    "cluster.secrets, which names it)"
                )
        return value

    @field_validator("workers")
    @classmethod
    def _some(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        fewest, most = (value, value) if isinstance(value, int) else value
        if not 1 <= fewest <= most:
            raise ValueError(
                f"give at least 1 worker, or [fewest, most], not {value if isinstance(value, int) else list(value)}"
            )
        return value

    @property
    def fewest(self) -> int:
        """Workers that it takes to begin."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        """Workers that there may be."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker holds, as Ray counts it."""
        return {"CPU": self.cpus_per_worker, **({"GPU": 1.0} if self.gpu else {}), **self.resources}

    def explain(self) -> str:
        """What it is, in a line: its description, workers and place."""
        if self.in_process:
            return self.description
        count = str(self.most) if self.fewest == self.most else f"{self.fewest} to {self.most}"
        each = " + ".join(f"{n:g} {name}" for name, n in self.bundle.items())
        where = {None: "a Ray of its own, or the surrounding job's", "auto": "the Ray cluster of this machine"}.get(
            self.address, self.address
        )
        more = [f"results in {self.storage}"] if self.storage else []
        return f"{self.description} ({'; '.join([f'{count} x {each}', str(where), *more])})"


def room(profile: Profile) -> int:
    """How many runs of a profile, at their largest, the cluster has room for at once."""
    return nodes.groups(profile.bundle, profile.most, profile.placement, nodes.alive())


def shipped(name: str) -> list[Path]:
    """Where named files of a kind are looked for: ./NAME, the source checkout's, the installed package's."""
    package = Path(str(files("raymeta")))
    return [p for p in (Path(name), package.parent / name, package / name) if p.is_dir()]


def profiles() -> dict[str, Path]:
    """The profiles there are, by name."""
    found: dict[str, Path] = {}
    for folder in shipped("clusters"):
        for path in sorted([*folder.glob("*.yaml"), *folder.glob("*/profile.yaml")]):
            found.setdefault(path.parent.name if path.stem == "profile" else path.stem, path)
    return found


def profile_values(name: str) -> dict[str, Any]:
    """The settings of a profile by name or path, unchecked; raises UserError where there is none."""
    known = profiles()
    path = known.get(name) or Path(name).expanduser()
    if not path.is_file():
        raise UserError(
            f"cluster: no profile {name!r}{did_you_mean(name, known)} (profiles: {', '.join(known)}; or a path to a YAML file)"
        )
    return yaml12.read(path, "cluster")


def connect(profile: Profile, storage: Path | None = None) -> None:
    """Joins or starts Ray as the profile says, and checks that the workers fit and that every machine sees `storage`, where it is
    given; a no-op for `in_process`."""
    if profile.in_process:
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if not ray.is_initialized():
        # a cluster on this host asks for a token, as is Ray's default; that it does is no news to a run's reader
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        need = profile.fewest * profile.cpus_per_worker
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            if profile.address is None and "RAY_ADDRESS" not in os.environ:
                os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody drains this machine
                # Ray keeps a record of each call, and looks after workers by several a second: 5 MiB a minute
                os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", "2000")
                cpus = max(os.cpu_count() or 1, int(-(-need // 1)))
                port = _free_port()
                # Ray Train's helpers ask the dashboard; told which, they find it beside other clusters on this host
                os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
                try:
                    ray.init(
                        address="local",
                        num_cpus=cpus,
                        include_dashboard=True,
                        dashboard_port=port,
                        logging_level="warning",
                    )
                finally:
                    del os.environ["RAY_API_SERVER_ADDRESS"]
            else:
                ray.init(address=profile.address or os.environ["RAY_ADDRESS"], logging_level="warning")
        except ConnectionError as error:
            raise UserError(
                f"cluster.address: no Ray cluster at {profile.address or os.environ.get('RAY_ADDRESS')!r}: {error}"
            ) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own in place, which says nothing of a run
        atexit.register(_hush)
    if not profile.autoscales:
        _check_resources(profile, nodes.alive())
    if storage is not None:
        nodes.shared(storage)


def disconnect() -> None:
    """Leaves the Ray cluster; ends it, if it is this process's own."""
    import ray

    ray.shutdown()


def _hush() -> None:
    """Keeps what Ray's helpers say while this process takes the cluster down off the console."""
    from ray._private.ray_logging import global_worker_stdstream_dispatcher

    global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _check_resources(profile: Profile, there: list[dict[str, float]]) -> None:
    for resource, each in profile.bundle.items():
        need, have = profile.fewest * each, sum(node.get(resource, 0.0) for node in there)
        if need > have:
            setting = {"CPU": "cpus_per_worker", "GPU": "gpu"}.get(resource, "resources")
            raise UserError(
                f"cluster.workers: {profile.fewest} workers x {each:g} {resource} ({setting}) = {need:g} {resource}, but the cluster has "
                f"{have:g}; lower cluster.workers, or use a larger cluster"
            )
    if not nodes.groups(profile.bundle, profile.fewest, profile.placement, there):
        each_node = "; ".join(", ".join(f"{node.get(r, 0.0):g} {r}" for r in profile.bundle) for node in there)
        raise UserError(
            f"cluster.placement: {profile.fewest} workers x {profile.bundle} placed {profile.placement} do not fit on machines with {each_node}; "
            "lower cluster.workers or cluster.cpus_per_worker, or place them PACK"
        )


Job = Callable[[dict[str, Any], Workers], None]
"""What every worker runs: a function of a module, its payload (plain data) and its place among the workers."""


def launch(job: Job, payload: dict[str, Any], profile: Profile, folder: Path, exact: bool = False) -> None:
    """Runs `job` on every worker of the profile and waits. What it finds, it writes to files.

    exact: operations sum in the same order each time, and one that cannot raises.

    Raises UserError with a worker's message where a worker raised one; RuntimeError where workers failed too often.
    """
    if profile.in_process:
        with summing_in_order(exact), _memory_advice():
            job(payload, Workers(device=torch.device("cuda" if profile.gpu else "cpu")))
        return
    import ray

    notice.forget(folder)
    note = folder / "error.txt"
    note.unlink(missing_ok=True)
    environment = {
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **profile.environment,
    }
    if profile.gpu and exact:
        environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not profile.gpu:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, int(profile.cpus_per_worker))))
    interface = nodes.shared(folder)
    if interface:  # between machines, gloo and NCCL are told how; gloo by itself may choose the loopback
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)
        environment.setdefault("NCCL_SOCKET_IFNAME", interface)
    for lost in range(profile.max_failures + 1):
        try:
            _fit(job, payload, profile, folder, environment, note, exact)
            return
        except (
            ray.exceptions.RayActorError
        ) as error:  # Ray Train replaces workers; what looks after them is replaced here
            if lost == profile.max_failures:
                raise RuntimeError(f"Ray Train's controller was lost {lost + 1} times: {error}") from error
            print("Ray Train's controller was lost; going on from the newest checkpoint", flush=True)


def _fit(
    job: Job,
    payload: dict[str, Any],
    profile: Profile,
    folder: Path,
    environment: dict[str, str],
    note: Path,
    exact: bool,
) -> None:
    """Runs `job` under one controller of Ray Train."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    trainer = TorchTrainer(
        _on_worker,
        train_loop_config={
            "job": job,
            "payload": payload,
            "folder": str(folder),
            "note": str(note),
            "exact": exact,
            "threads": max(1, int(profile.cpus_per_worker)),
        },
        torch_config=TorchConfig(backend="nccl" if profile.gpu else "gloo", timeout_s=600),
        scaling_config=ScalingConfig(
            num_workers=profile.workers,
            use_gpu=profile.gpu,
            resources_per_worker=profile.bundle,
            placement_strategy=profile.placement,
        ),
        run_config=RunConfig(
            # a name of its own each time: where to go on is said by our checkpoints, not by Ray's record of a run
            name=f"{job.__name__.strip('_')}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}",
            storage_path=str((folder / "ray").absolute()),
            failure_config=FailureConfig(
                max_failures=profile.max_failures,
                controller_failure_limit=_STARTS_ON_DEMAND if profile.autoscales else _STARTS,
            ),
            callbacks=[_stop_on_user_error(str(note))],
            worker_runtime_env={"env_vars": environment},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    controllers: list[Any] = []
    trainer._register_sigint_handler = controllers.append  # Ray's own would end this process; ours says what to do
    try:
        trainer.fit()
    except KeyboardInterrupt:
        notice.give(folder, within_s=_SAVES_WITHIN_S)
        for controller in controllers:
            with suppress(ray.exceptions.RayActorError):
                ray.get(controller.abort.remote(), timeout=30)
        raise
    except (ControllerError, WorkerGroupError) as error:
        if note.is_file() and note.stat().st_size:
            raise UserError(note.read_text(encoding="utf-8")) from error
        told = _told(getattr(error, "controller_failure", None))
        if told:
            raise UserError(told) from error
        if out_of_memory(error):
            said = next((line.strip() for line in str(error).splitlines() if _says_memory(line)), first_line(error))
            raise UserError(_MEMORY.format(said)) from error
        raise RuntimeError(f"the workers failed: {error}") from error


_TOLD = "raymeta: "
"""What a user's mistake begins with on its way from a worker, where no file could carry it."""


def _told(error: Any) -> str | None:
    """The message of a user's mistake, where an error is one."""
    return str(error).partition(_TOLD)[2] or None


def out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice: the GPU's, this process's, or, as Ray tells it, the machine's."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _says_memory(str(error))


def _says_memory(text: str) -> bool:
    words = ("can't allocate memory", "out of memory", "OutOfMemoryError", "running low on memory")
    return any(word in text for word in words)


_MEMORY = (
    "memory did not suffice ({}); lower what is computed at once (algorithm.tasks_at_once, pretrain.at_once, "
    "finetune.texts_at_once) to 1, set algorithm.second_order to recomputed, or lower tasks.shots, tasks.queries or model.max_length"
)


@contextmanager
def _memory_advice() -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(_MEMORY.format(first_line(error))) from error


def _stop_on_user_error(note: str) -> Any:
    from ray.train import UserCallback

    class StopOnUserError(UserCallback):  # type: ignore[misc]
        """A user's mistake is not retried like a crash."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            told = next((said for said in map(_told, worker_exceptions.values()) if said), None)
            if told or Path(note).is_file():
                logging.disable()  # the driver says what is wrong, and where is of no use
                raise RuntimeError(f"{_TOLD}{told}" if told else "a mistake in settings or data; see the message below")

    return StopOnUserError()


def _on_worker(config: dict[str, Any]) -> None:
    """What Ray Train calls on each worker."""
    import ray.train
    import ray.train.torch
    import ray.train.v2._internal.execution.context as train_context

    for name in (train_context.__file__, "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(config["threads"])
    workers = Workers(context.get_world_rank(), context.get_world_size(), device, on_ray=True, leaving=_leaving)
    try:
        with (
            checkpoint.writer(Path(config["folder"])) if workers.first else nullcontext(),
            summing_in_order(config["exact"]),
            _memory_advice(),
        ):
            config["job"](config["payload"], workers)
    except UserError as error:
        with suppress(OSError):  # where storage is what failed, the error itself carries the message
            temporary = Path(f"{config['note']}.{workers.rank}")
            temporary.write_text(str(error), encoding="utf-8")
            temporary.replace(config["note"])
        logging.disable()
        raise RuntimeError(f"{_TOLD}{error}") from error


def _leaving() -> bool:
    """Whether Ray drains a machine of this run's workers, as it does on a spot machine's notice.

    `ray.train.get_preemption_info` tells it too, but all workers have to meet for that.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def explained() -> Iterator[tuple[str, str]]:
    """Each profile's name and what it says of itself."""
    for name, path in profiles().items():
        yield name, Profile.of(yaml12.read(path, "cluster")).explain()
