"""Pre-training on Ray's workers walks the path that it walks in this process."""

import os
import signal
from pathlib import Path

import pytest

from raymeta import checkpoint
from raymeta.config import Run
from raymeta.pretraining.rows import Rows, from_table
from raymeta.pretraining.tokens import tokenized
from raymeta.stages.pretrain import Result, finished, own_text, pretrain
from raymeta.stream import numbered
from raymeta.track import rows
from tests.end_to_end.commands import ended, start, wait_for, written
from tests.end_to_end.conftest import workers
from tests.pretrained import frame_of, run_of, silent, text_of, values


def furthest(one: Result, other: Result) -> float:
    """The largest difference of any parameter after the last step."""
    ours, theirs = (checkpoint.newest(r.folder / "checkpoints").params() for r in (one, other))  # type: ignore[union-attr]
    return max(float((ours[n] - theirs[n]).abs().max()) for n in ours)


@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_pretrain_as_one_process_does(tmp_path: Path) -> None:
    section = {"lr": 1e-3, "batch_size": 9}  # shared unevenly
    alone = pretrain(run_of("bert", tmp_path / "alone", **section))
    two = pretrain(Run.of({**values("bert", tmp_path / "two", **section), "cluster": workers(2)}))
    # float32: gradients of about 1 summed in another order differ by 1e-7, which AdamW carries along for 20 steps
    assert furthest(alone, two) < 1e-5
    assert furthest(alone, pretrain(run_of("bert", tmp_path / "first", **section, steps=1))) > 1e-3
    assert (alone.model / "tokenizer.json").read_bytes() == (two.model / "tokenizer.json").read_bytes()
    for one, other in zip(*(rows(r.folder / "metrics.jsonl") for r in (alone, two)), strict=True):
        assert one.keys() == other.keys()
        numbers = [{k: v for k, v in r.items() if isinstance(v, float) and not k.endswith("_s")} for r in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-5)
        assert [one.get(k) for k in ("step", "tokens", "rows")] == [other.get(k) for k in ("step", "tokens", "rows")]
    ours, theirs = alone.measured, two.measured
    assert ours["text"] == theirs["text"]
    assert ours["after"]["perplexity"] == pytest.approx(theirs["after"]["perplexity"], rel=1e-5)


@pytest.mark.usefixtures("ray_cluster")
def test_text_and_rows_are_the_same_through_ray_data(tmp_path: Path) -> None:
    run = run_of("gpt2", tmp_path)
    here = text_of(run)
    assert run.pretrain
    there = tokenized(run.pretrain, run.model, own_text(run), run.seed, tmp_path / "there", True, silent)
    assert there.folder.name == here.folder.name
    for name in ("train.start.npy", "train.tokens.npy", "train.flags.npy", "validation.tokens.npy"):
        assert (here.folder / name).read_bytes() == (there.folder / name).read_bytes()
    train = Rows(str(here.folder), "train", frame_of(run, here), True, 0)
    for rank in range(2):
        found = [row for table in numbered(train.table, 3, 9, 5, rank, 2) for row in from_table(table)]
        wanted = [train.row(n) for step in range(3, 9) for n in range(step * 5 + rank, step * 5 + 5, 2)]
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert {k: v.tolist() for k, v in one.items()} == {k: v.tolist() for k, v in other.items()}


@pytest.mark.slow
def test_a_killed_pretraining_on_two_workers_started_again_ends_where_an_unbroken_one_does(
    tmp_path: Path, ray_folder: Path
) -> None:
    section = {"steps": 160, "save_every": 20, "validation_every": 0, "dropout": 0.1}
    environment = {"RAY_TMPDIR": str(ray_folder)}
    results = []
    for name in ("broken", "whole"):
        settings = {**values("gpt2", tmp_path / name, **section), "cluster": workers(2)}
        command = ("pretrain", written(settings, tmp_path / f"{name}.yaml"))
        run = Run.of(settings)
        process = start(*command, environment=environment)
        if name == "broken":
            wait_for(run.pretrained / "checkpoints" / "step_000040", process)
            os.kill(process.pid, signal.SIGKILL)
            ended(process)
            assert finished(run) is None
            process = start(*command, environment=environment)
        status, said = ended(process)
        assert status == 0, said
        assert ("going on from step" in said) == (name == "broken")
        result = finished(run)
        assert result is not None
        results.append((result.model / "model.safetensors").read_bytes())
    assert results[0] == results[1]
