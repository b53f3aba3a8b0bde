"""Checkpoints are whole or not there, the best is kept, and a damaged one is passed over with a word."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raymeta import checkpoint
from raymeta.errors import UserError


def save(root: Path, step: int, best: int | None = None, keep: int = 2) -> checkpoint.Checkpoint:
    params = {"w": torch.full((2, 3), float(step)), "b": torch.arange(3.0)[::2]}
    state = {"best": None if best is None else {"step": best, "accuracy": 0.5}, "metric": "accuracy"}
    return checkpoint.snapshot(root, step, params, {"0.exp_avg": torch.ones(4) / 3}, state, "seed: 0\n", keep)()


def names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, 10)
    found = checkpoint.load(tmp_path / "step_000010")
    assert found.step == 10
    assert torch.equal(found.params()["w"], torch.full((2, 3), 10.0))
    assert torch.equal(found.params()["b"], torch.tensor([0.0, 2.0]))
    assert torch.equal(found.outer()["0.exp_avg"], torch.ones(4) / 3)
    assert (found.folder / "run.yaml").read_text() == "seed: 0\n"
    assert found.state["metric"] == "accuracy"


def test_the_newest_are_kept_and_the_best(tmp_path):
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        save(tmp_path, step, best)
    assert names(tmp_path) == ["step_000002", "step_000004", "step_000005"]
    save(tmp_path, 6, best=6)
    assert names(tmp_path) == ["step_000005", "step_000006"]


def test_a_million_steps_are_newer_than_fewer(tmp_path):
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        save(tmp_path, step)
    assert names(tmp_path) == ["step_1000000", "step_1000001"]
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.step == 1_000_001


def test_there_is_no_newest_where_there_is_none(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "nowhere") is None
    (tmp_path / "step_notes").mkdir()
    assert checkpoint.newest(tmp_path) is None


DAMAGES = {
    "truncated weights": lambda f: (f / "params.safetensors").write_bytes(b"x"),
    "a flipped bit": lambda f: _flip(f / "outer.safetensors"),
    "missing weights": lambda f: (f / "params.safetensors").unlink(),
    "missing state": lambda f: (f / "state.json").unlink(),
    "empty state": lambda f: (f / "state.json").write_text(""),
    "half a state": lambda f: (f / "state.json").write_text((f / "state.json").read_text()[:40]),
    "a state of another kind": lambda f: (f / "state.json").write_text("[1]"),
    "a state without sums": lambda f: (f / "state.json").write_text('{"step": 3}'),
    "a state without step": lambda f: (f / "state.json").write_text('{"sha256": {}}'),
    "a changed run": lambda f: (f / "run.yaml").write_text("seed: 1\n"),
}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_word(damage, tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    DAMAGES[damage](tmp_path / "step_000003")
    said: list[str] = []
    found = checkpoint.newest(tmp_path, said.append)
    assert found is not None
    assert found.step == 2
    assert len(said) == 1
    assert "step_000003" in said[0]
    assert "the checkpoint before it is used" in said[0]
    with pytest.raises(UserError, match="step_000003"):
        checkpoint.load(tmp_path / "step_000003")


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "step_000002" / "params.safetensors").write_bytes(b"x")
    save(tmp_path, 2)
    assert checkpoint.load(tmp_path / "step_000002").step == 2


@pytest.mark.parametrize("moment", ["save_file", "_write_synced", "rename"])
def test_a_process_that_is_ended_while_saving_leaves_the_checkpoint_before(moment, tmp_path, monkeypatch):
    save(tmp_path, 1)

    class Ended(BaseException):
        """Stands for a signal."""

    def end(*_: object) -> None:
        raise Ended

    with monkeypatch.context() as patched:
        if moment == "rename":
            patched.setattr(Path, "rename", end)
        else:
            patched.setattr(checkpoint, moment, end)
        with pytest.raises(Ended):
            save(tmp_path, 2)
    assert [p for p in names(tmp_path) if not p.startswith(".")] == ["step_000001"]
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    save(tmp_path, 2)
    assert names(tmp_path) == ["step_000001", "step_000002"]


def test_a_file_or_another_folder_is_no_checkpoint(tmp_path):
    file = tmp_path / "params.safetensors"
    file.write_bytes(b"x")
    for place in (tmp_path, file, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"is not a checkpoint: .* give a folder like"):
            checkpoint.load(place)


def test_a_run_folder_belongs_to_one_process_at_a_time(tmp_path):
    folder = tmp_path / "run"
    with (
        checkpoint.locked(folder),
        pytest.raises(UserError, match=r"another raymeta .* is working on this run"),
        checkpoint.locked(folder),
    ):
        pass
    with checkpoint.locked(folder):
        assert (folder / "lock").read_text().startswith("process ")


def test_the_next_worker_writes_only_when_the_one_before_has_ended(tmp_path):
    code = f"from pathlib import Path; from raymeta import checkpoint\nwith checkpoint.writer(Path({str(tmp_path)!r})): print('writes', flush=True); input()"
    before = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert before.stdout is not None
    assert before.stdout.readline() == "writes\n"
    with pytest.raises(RuntimeError, match="a worker that was given up still writes"), checkpoint.writer(tmp_path, 0.1):
        pass
    before.kill()
    with checkpoint.writer(tmp_path, 30):
        pass
    before.communicate()


def test_all_workers_start_from_the_first_ones_newest_checkpoint(tmp_path):
    assert checkpoint.agreed(tmp_path, 0, lambda mine: [mine]) is None
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    first = checkpoint.agreed(tmp_path, 0, lambda mine: [mine, None])
    other = checkpoint.agreed(tmp_path, 1, lambda mine: [2, mine])
    assert first is not None
    assert other is not None
    assert (first.step, other.step) == (3, 2)
    with pytest.raises(UserError, match="step_000009"):
        checkpoint.agreed(tmp_path, 1, lambda mine: [9, mine], patience_s=0.1)
