"""The command line: verbs over runs. The only place that prints errors and sets the exit status."""

import errno
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from raymeta.errors import UserError, did_you_mean

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Meta-train language models to learn new NLP tasks from a handful of examples, with Ray.",
)  # fmt: skip

_STORAGE_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""No space, no more of it for this user, and a file system that may only be read."""

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="a YAML file, a run's folder, or a recipe's name (raymeta ls recipes)")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings to change, e.g. outer.steps=200")
]


@app.command()
def run(run: RunName, overrides: Overrides = None) -> None:
    """Run every stage, resuming at the first unfinished one."""
    from raymeta.pipeline import run_all

    loaded = _load(run, overrides)
    _print_table(loaded, run_all(loaded))


@app.command()
def pretrain(run: RunName, overrides: Overrides = None) -> None:
    """Train the model on plain text, going on from the newest checkpoint."""
    from raymeta.stages.pretrain import pretrain as stage

    loaded = _load(run, overrides)
    if loaded.pretrain is None:
        raise UserError(f"pretrain: {run} has no such section, so there is nothing to pre-train; add one")
    print(stage(loaded).text())


@app.command()
def metatrain(run: RunName, overrides: Overrides = None) -> None:
    """Meta-train, going on from the newest checkpoint."""
    from raymeta.stages.metatrain import metatrain as stage

    result = stage(_load(run, overrides))
    print(f"best checkpoint: {result.best.folder}")


@app.command()
def finetune(
    run: RunName,
    overrides: Overrides = None,
    start: Annotated[
        str | None, typer.Option("--from", help="a checkpoint folder; absent: as finetune.start says")
    ] = None,
) -> None:
    """Train on a target task with fixed labels, and measure it, going on from the newest checkpoint."""
    from raymeta import checkpoint
    from raymeta.stages.finetune import finetune as stage

    trained = checkpoint.load(Path(start).expanduser()) if start else None
    for result in stage(_load(run, overrides), trained):
        print(f"\n{result.text()}\nwritten to {result.folder}; model: {result.checkpoint.folder}")


@app.command()
def evaluate(
    run: RunName,
    overrides: Overrides = None,
    start: Annotated[str | None, typer.Option("--from", help="a checkpoint folder; absent: the run's best")] = None,
) -> None:
    """Measure on held-out classes, beside two baselines."""
    from raymeta import checkpoint
    from raymeta.stages.evaluate import evaluate as stage
    from raymeta.stages.metatrain import finished

    loaded = _load(run, overrides)
    if start:
        trained = checkpoint.load(Path(start).expanduser())
    else:
        result = finished(loaded)
        if result is None:
            raise UserError(
                f"{loaded.folder} is not meta-trained to its end; run `raymeta run {run}` first, or name a checkpoint with --from"
            )
        trained = result.best
    _print_table(loaded, stage(loaded, trained))


@app.command()
def export(
    where: Annotated[str, typer.Argument(metavar="DIR", help="a run's folder, a checkpoint, or a fine-tuned model")],
    to: Annotated[str, typer.Option("--to", help="a new folder")],
) -> None:
    """Write a plain Hugging Face folder, with a model card, that transformers loads without raymeta."""
    from raymeta.learner import Learner

    Learner.from_pretrained(where, device="cpu").save_pretrained(to)
    print(f"written to {to}; its README.md says how to load it")


@app.command()
def serve(
    where: Annotated[str, typer.Argument(metavar="DIR", help="a run's folder, a checkpoint, or an exported folder")],
    host: Annotated[str, typer.Option(help="0.0.0.0: reachable from other machines, by anyone")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    keep: Annotated[int, typer.Option(min=1, help="adapted tasks kept, each as large as the model")] = 16,
) -> None:
    """Answer over HTTP: POST /adapt with a few examples, POST /predict with texts."""
    from raymeta.serve import serve as until_interrupted

    until_interrupted(where, host, port, keep)


@app.command()
def tune(
    run: RunName,
    overrides: Overrides = None,
    space: Annotated[str, typer.Option(help="what to search: a name (raymeta ls spaces) or a YAML file")] = "inner-loop",
    trials: Annotated[int, typer.Option(help="points of the space to try (with several clusters: on each)")] = 12,
    max_concurrent: Annotated[int | None, typer.Option(help="runs at once; absent: as many as have room")] = None,
    searcher: Annotated[str, typer.Option(help="random, grid or optuna (TPE)")] = "random",
    scheduler: Annotated[str, typer.Option(help="none; asha: stop runs that fall behind; pbt: let them take over from better ones")] = "none",
    grace_steps: Annotated[int | None, typer.Option(help="asha: steps that each run may take; absent: up to its first validation")] = None,
    interval_steps: Annotated[int | None, typer.Option(help="pbt: steps between comparisons; absent: between validations")] = None,
    objective: Annotated[str, typer.Option(help="a metric of a stage, e.g. evaluate.accuracy; absent: validation's, after the last stage that trains")] = "",
    mode: Annotated[str | None, typer.Option(help="max or min; absent: min for losses and durations")] = None,
    budget_s: Annotated[float | None, typer.Option(help="seconds after which the sweep ends")] = None,
    cluster: Annotated[list[str] | None, typer.Option(help="a profile to run on; several: side by side")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the sweep of these settings")] = False,
) -> None:  # fmt: skip
    """Search a space of settings, each trial a run of its own, by Ray Tune."""
    from raymeta.space import load
    from raymeta.sweep import Sweep
    from raymeta.tune import tune as sweep

    named = cluster or []
    asked = Sweep.of(
        {
            "run": _load(run, [*(f"cluster={name}" for name in named[:1]), *(overrides or [])], tell=False), "space": load(space), "space_name": space, "trials": trials,
            "max_concurrent": max_concurrent, "searcher": searcher, "scheduler": scheduler, "grace_steps": grace_steps,
            "interval_steps": interval_steps,
            "objective": objective, "mode": mode, "budget_s": budget_s, "clusters": named if len(named) > 1 else [],
        }
    )  # fmt: skip
    if not any(trial.state == "finished" for trial in sweep(asked, resume)):
        sys.exit(1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    run: RunName,
    cluster: Annotated[list[str], typer.Option(help="the profile of the cluster; with --verb tune, several may be compared")],
    verb: Annotated[str, typer.Option(help="what the job does: run, pretrain, metatrain, finetune, evaluate or tune")] = "run",
    name: Annotated[str | None, typer.Option(help="the job's id; absent: the cluster gives one")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="do not wait for the job, nor show its log")] = False,
    stop_on_interrupt: Annotated[bool, typer.Option("--stop-on-interrupt", help="Ctrl-C stops the job, and not only the log")] = False,
) -> None:  # fmt: skip
    """Run a verb on a cluster as a Ray job; options and KEY=VALUE that follow are the verb's."""
    from raymeta import submit as jobs

    verbs = {c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands} - {
        "submit",
        "jobs",
        "ls",
        "check",
        "serve",
    }
    if verb not in verbs:
        raise UserError(
            f"verb: {verb!r} is not one for a job{did_you_mean(verb, verbs)} (verbs: {', '.join(sorted(verbs))})"
        )
    there, job = jobs.submit(verb, run, cluster, context.args, Path.cwd(), name)
    print(f"job {job}", flush=True)
    if detach:
        return
    try:
        sys.exit(jobs.follow(there, job))
    except KeyboardInterrupt:
        if stop_on_interrupt:
            jobs.stop(there, job)
            print(f"job {job} is stopped", file=sys.stderr)
        else:
            at = f"raymeta jobs {job} --cluster {cluster[0]}"
            print(f"job {job} goes on; `{at} --follow` shows its log, `{at} --stop` stops it", file=sys.stderr)
        sys.exit(130)


@app.command()
def jobs(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="a job's id; absent: list all")] = None,
    cluster: Annotated[str, typer.Option(help="the profile of the cluster")] = "local",
    follow: Annotated[bool, typer.Option("--follow", help="show the job's log until it ends; its exit status is the job's")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="stop the job, and wait until it has ended")] = False,
) -> None:  # fmt: skip
    """List a cluster's jobs, or show, follow or stop one."""
    from raymeta import submit as jobs

    there = jobs.client(jobs.profile_of(cluster))
    if job is None:
        for line in jobs.listed(there):
            print(line)
        return
    info = jobs.found(there, job)
    if stop:
        jobs.stop(there, job)
    elif follow:
        sys.exit(jobs.follow(there, job))
    print(f"{job}  {jobs.found(there, job).status.value}  {info.entrypoint}")


@app.command()
def report(
    where: Annotated[
        list[str],
        typer.Argument(metavar="DIR...", help="folders of runs, or folders that hold some; or one sweep's folder"),
    ],
    to: Annotated[
        str | None, typer.Option("--to", help="a folder; absent: `report`, in the run's folder or here")
    ] = None,
    episodes: Annotated[
        int, typer.Option(min=0, help="episodes on which each inner step is measured, where it was not yet; 0: none")
    ] = 100,
) -> None:
    """Write report.md with plots of one or several runs, or of a sweep, and print their tables."""
    from raymeta import report as of_runs
    from raymeta import sweep_report as of_sweep

    there = Path(to).expanduser() if to else None
    sweeps = [folder for name in where if of_sweep.is_sweep(folder := Path(name).expanduser())]
    if sweeps and len(where) > 1:
        raise UserError(f"report: {sweeps[0]} is a sweep's folder, and {len(where)} are named; name it alone")
    text, path = of_sweep.report(sweeps[0], there) if sweeps else of_runs.report(where, there, episodes)
    print(text)
    print(f"\nwritten to {path}")


@app.command()
def check(run: RunName, overrides: Overrides = None) -> None:
    """Validate a run, print it with its defaults, its sizes and a sample episode; starts no cluster."""
    from raymeta.checks import check as look

    look(_load(run, overrides, tell=False))


@app.command()
def ls(
    what: Annotated[
        str, typer.Argument(help="recipes, algorithms, tasks, corpora, heads, clusters, spaces, runs")
    ] = "recipes",
) -> None:
    """List what there is."""
    from raymeta.checks import LISTS

    if what not in LISTS:
        raise UserError(f"ls: {what!r} is not a list{did_you_mean(what, LISTS)} (lists: {', '.join(LISTS)})")
    found = list(LISTS[what]())
    width = max((len(name) for name, _ in found), default=0)
    for name, text in found:
        print(f"{name:<{width}}  {text}".rstrip())


def _load(run: str, overrides: list[str] | None, tell: bool = True):  # type: ignore[no-untyped-def]  # heavy import below
    from raymeta.config import Run

    loaded = Run.load(run, *(overrides or []))
    try:
        loaded.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"storage: {loaded.root} cannot be made a folder ({error.strerror}); name another place"
        ) from error
    if not os.access(loaded.root, os.W_OK):
        raise UserError(f"storage: {loaded.root} may not be written to; name another place")
    if tell:
        from raymeta.checks import changed_settings

        for line in changed_settings(loaded):
            print(line)
    return loaded


def _print_table(run, evaluation) -> None:  # type: ignore[no-untyped-def]
    from raymeta.stages.evaluate import text

    print()
    print(text(run, evaluation))
    print(f"\nwritten to {run.folder / 'evaluation.json'}")


def main() -> None:
    """Runs the command line; a user's mistake is one message and exit status 2."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # so that `kind: my_module:MyClass` finds a file beside the run
    received: list[int] = []

    def stop(signum: int, frame: object) -> None:
        received.append(signum)
        raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    try:
        app()
    except UserError as error:
        print(f"raymeta: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _STORAGE_FAILS:
            raise
        print(
            f"raymeta: storage: {error.filename or 'a file'} could not be written ({error.strerror}); what was written before is kept. "
            "Make room, or name another place for storage, and start again",
            file=sys.stderr,
        )
        sys.exit(2)
    except BaseException:
        if not received:
            raise
        print("stopped; the same command goes on from the newest checkpoint", file=sys.stderr)
        sys.exit(128 + received[0])
