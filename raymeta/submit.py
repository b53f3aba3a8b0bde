"""A run as a Ray job: its files and packages to the cluster, its log and exit status back.

https://docs.ray.io/en/latest/cluster/running-applications/job-submission/ has the protocol.
"""

import asyncio
import importlib.metadata
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from raymeta.cluster import Profile, profile_values, shipped
from raymeta.config import Run
from raymeta.errors import UserError

_LIMIT_MIB = 100
"""What Ray's dashboard takes of a working directory (DASHBOARD_CLIENT_MAX_SIZE), before it is packed."""
_LOOK_S = 1.0
_STOP_WAIT_S = "60"
"""How long a stopped job has to end its workers before it is killed; Ray's own 3 s are too few."""
_IGNORED = (".git", ".venv", "__pycache__", "results", ".mypy_cache", ".ruff_cache", ".pytest_cache")
_STOPPED = 143


def command(verb: str, run: str, clusters: Sequence[str], words: Sequence[str]) -> str:
    """The job's command line: `words` are the verb's own options and overrides."""
    where = [w for name in clusters for w in ("--cluster", name)] if verb == "tune" else [f"cluster={clusters[0]}"]
    return shlex.join(["python", "-m", "raymeta", verb, run, *where, *words])


def inside(name: str, here: Path) -> str:
    """The name of a run or cluster as the job knows it: a file's is its path within `here`, which is what the job gets; raises
    UserError for a file elsewhere."""
    path = Path(name).expanduser()
    if not path.exists():
        return name
    if not path.resolve().is_relative_to(here.resolve()):
        raise UserError(f"{name} lies outside of {here}, which is what the job gets; start from a folder that holds it")
    return path.resolve().relative_to(here.resolve()).as_posix()


def check(run: str, cluster: str, words: Sequence[str]) -> Profile:
    """The profile of a cluster, once all is right that can be known before the job is there; else raises UserError."""
    loaded = Run.load(run, f"cluster={cluster}", *(w for w in words if "=" in w and not w.startswith("-")))
    if not Path(loaded.storage).is_absolute() and not loaded.storage.startswith(("~", "$")):
        raise UserError(
            f"storage: {loaded.storage!r} would be in the job's copy of the working directory, which goes when the job does; "
            "name a folder that stays (storage=/shared/results, or storage in the cluster's profile)"
        )
    return loaded.cluster


@contextmanager
def packed(here: Path) -> Iterator[Path]:
    """A folder of what the job gets: the files of `here` that git does not ignore, and raymeta if it is not among them."""
    with tempfile.TemporaryDirectory(prefix="raymeta-job-") as made:
        folder = Path(made)
        for path in _own_files(here):
            _copy(here / path, folder / path)
        if not (folder / "raymeta" / "__main__.py").is_file():
            package = Path(str(files("raymeta")))
            for path in _walked(package):
                _copy(package / path, folder / "raymeta" / path)
            for name in ("clusters", "tune_spaces"):
                for path in _walked(shipped(name)[-1]):
                    _copy(shipped(name)[-1] / path, folder / "raymeta" / name / path)
        sizes = {path: (folder / path).stat().st_size for path in _walked(folder)}
        if sum(sizes.values()) > _LIMIT_MIB * 2**20:
            largest = sorted(sizes, key=lambda p: -sizes[p])[:3]
            raise UserError(
                f"{here} holds {sum(sizes.values()) / 2**20:.0f} MiB, more than the {_LIMIT_MIB} MiB that a job may bring along (largest: "
                f"{', '.join(f'{p} {sizes[p] / 2**20:.0f} MiB' for p in largest)}); let .gitignore name what the job does not need, "
                "and put data where the cluster sees it"
            )
        yield folder


def _own_files(here: Path) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=here, capture_output=True, check=False,
    ) if shutil.which("git") else None  # fmt: skip
    if listed is None or listed.returncode:
        return _walked(here)
    return [
        Path(os.fsdecode(name)) for name in listed.stdout.split(b"\0") if name and (here / os.fsdecode(name)).is_file()
    ]


def _walked(folder: Path) -> list[Path]:
    found = []
    for above, names, inside in os.walk(folder):
        names[:] = [n for n in names if n not in _IGNORED]
        found += [(Path(above) / name).relative_to(folder) for name in inside]
    return found


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, to)


def environment(profile: Profile, folder: Path) -> dict[str, Any]:
    """Ray's runtime environment of a job: an image, or the packed folder and packages, as the profile says; and the named
    secrets."""
    missing = [name for name in profile.secrets if name not in os.environ]
    if missing:
        raise UserError(
            f"cluster.secrets: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in this environment; set it here, or leave it out"
        )
    found: dict[str, Any] = {
        "env_vars": {
            "RAY_JOB_STOP_WAIT_TIME_S": _STOP_WAIT_S, "PYTHONUNBUFFERED": "1",
            **{name: os.environ[name] for name in profile.secrets},
        },
    }  # fmt: skip
    if profile.image:  # Ray gives a container no working directory
        return {**found, "image_uri": profile.image}
    return {**found, "working_dir": str(folder), **({"pip": pins()} if profile.runtime == "pip" else {})}


def pins() -> list[str]:
    """The packages that raymeta depends on, each at the version that is installed here; without Ray, which the cluster has."""
    try:
        needed = [Requirement(text) for text in importlib.metadata.requires("raymeta") or []]
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            "cluster.runtime: pip asks for the packages that raymeta needs, and raymeta is not installed here; pip install -e . first, or set "
            "cluster.runtime=there"
        ) from error
    return [_pin(r) for r in needed if r.name != "ray" and (r.marker is None or r.marker.evaluate({"extra": ""}))]


def _pin(needed: Requirement) -> str:
    """A package at the version installed here (without a build's own suffix, like +cpu); as it is asked for, where it is not."""
    try:
        return f"{needed.name}=={importlib.metadata.version(needed.name).partition('+')[0]}"
    except importlib.metadata.PackageNotFoundError:
        return f"{needed.name}{needed.specifier}"


def client(profile: Profile) -> Any:
    """The Jobs API of the profile's cluster; raises UserError where it is not there, or does not let us in."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)  # each sets its own when it is imported
    address = os.environ.get("RAY_API_SERVER_ADDRESS") or profile.dashboard
    if address is None:
        raise UserError(
            "cluster.dashboard: nothing says where jobs go; set it in the profile (dashboard: http://127.0.0.1:8265), or RAY_API_SERVER_ADDRESS in "
            "the environment"
        )
    try:
        try:
            return JobSubmissionClient(address)
        except AuthenticationError:
            if "RAY_AUTH_MODE" in os.environ:
                raise
            os.environ["RAY_AUTH_MODE"] = "token"  # Ray's clients send one only when told to
            return JobSubmissionClient(address)
    except ConnectionError as error:
        raise UserError(
            f"cluster.dashboard: no Ray cluster answers at {address}; start it, or let its port through (ray dashboard FILE, kubectl port-forward)"
        ) from error
    except AuthenticationError as error:
        raise UserError(
            f"cluster.dashboard: the cluster at {address} wants a token that is not this machine's; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the "
            "token (or RAY_AUTH_TOKEN_PATH to a file of it)"
        ) from error


def submit(
    verb: str, run: str, clusters: Sequence[str], words: Sequence[str], here: Path, called: str | None
) -> tuple[Any, str]:
    """Sends the job; gives the cluster's Jobs API and the job's id. Raises UserError for what would not work."""
    run, clusters = inside(run, here), [inside(name, here) for name in clusters]
    profile = check(run, clusters[0], words)
    jobs = client(profile)
    with packed(here) as folder:
        for name in (run, *clusters):
            if profile.image and (here / name).exists():
                raise UserError(
                    f"{name} is a file of this machine, and a job in an image ({profile.image}) gets none; name a recipe and a profile of the image"
                )
            if (here / name).exists() and not (folder / name).exists():
                raise UserError(f"{name} is ignored by git, so the job would not get it; let .gitignore keep it")
        try:
            job = jobs.submit_job(
                entrypoint=command(verb, run, clusters, words),
                submission_id=called,
                runtime_env=environment(profile, folder),
                metadata={"raymeta": f"{verb} {run}"},
            )
        except RuntimeError as error:
            raise UserError(f"the cluster did not take the job: {str(error).strip().splitlines()[-1]}") from error
    return jobs, str(job)


def follow(jobs: Any, job: str) -> int:
    """Prints the job's log until it ends; gives its exit status."""
    said = 0
    while True:
        try:
            said = asyncio.run(_tail(jobs, job, said))
        except RuntimeError:  # the connection was lost, which says nothing of the job
            time.sleep(_LOOK_S)
        info = jobs.get_job_info(job)
        if info.status.is_terminal():
            return status(info)
        time.sleep(_LOOK_S)


async def _tail(jobs: Any, job: str, said: int) -> int:
    """Prints what of the log is later than its first `said` characters; gives how many there are now."""
    at = 0
    async for text in jobs.tail_job_logs(job):
        new = text[max(0, said - at) :]
        at += len(text)
        said = max(said, at)
        print(new, end="", flush=True)
    return said


def status(info: Any) -> int:
    """The exit status that a finished job's own process had; 143 for a job that was stopped."""
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        return _STOPPED
    if info.driver_exit_code:
        return int(info.driver_exit_code)
    print(f"job {info.submission_id} failed: {str(info.message).strip()}")
    return 1


def stop(jobs: Any, job: str) -> None:
    """Stops the job and waits until it has ended; raises UserError where there is none."""
    found(jobs, job)
    jobs.stop_job(job)
    while not jobs.get_job_info(job).status.is_terminal():
        time.sleep(_LOOK_S)


def found(jobs: Any, job: str) -> Any:
    """What the cluster knows of the job; raises UserError where there is none of this id."""
    try:
        return jobs.get_job_info(job)
    except RuntimeError as error:
        known = [str(j.submission_id) for j in jobs.list_jobs() if j.submission_id]
        raise UserError(f"no job {job!r} (jobs: {', '.join(known[:10]) or 'none'})") from error


def listed(jobs: Any) -> Iterator[str]:
    """A line a job, the newest first: its id, state, start and command."""
    told = sorted((j for j in jobs.list_jobs() if j.submission_id), key=lambda j: -(j.start_time or 0))
    for job in told:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime((job.start_time or 0) / 1000))
        yield f"{job.submission_id}  {job.status.value:<9}  {began}  {job.entrypoint}"


def profile_of(cluster: str) -> Profile:
    """The profile of a name or path; raises UserError."""
    return Profile.of(profile_values(cluster))
