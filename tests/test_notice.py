"""A run that is told to end writes a checkpoint of its last whole step first, and of no step that is half done."""

import threading
import time
from collections.abc import Callable

import pytest

from raymeta import notice


class Steps:
    """Steps that are taken and saved."""

    def __init__(self) -> None:
        self.step, self.saved = 0, []

    def snapshot(self) -> Callable[[], None]:
        step = self.step
        return lambda: self.saved.append(step)


def saves(folder, steps: Steps, first: bool = True) -> notice.Saves:
    return notice.Saves(folder, first, lambda: steps.step, steps.snapshot)


def test_steps_are_saved_when_they_are_due(tmp_path):
    steps = Steps()
    with saves(tmp_path, steps) as kept:
        for steps.step in range(1, 6):
            kept.done(due=steps.step % 2 == 0)
    assert steps.saved == [2, 4]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("moment", "expected"), [("in a step", [2, 3]), ("in an update", [2]), ("after a save", [2])])
def test_an_interrupt_saves_the_last_whole_step_once(moment, expected, tmp_path):
    steps = Steps()

    def interrupted() -> None:
        with saves(tmp_path, steps) as kept:
            for steps.step in (1, 2, 3):
                kept.done(due=steps.step == 2)
                if moment == "after a save" and steps.step == 2:
                    raise KeyboardInterrupt
            if moment == "in an update":
                steps.step = 4
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps.saved == expected
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_is_about_to_go_has_steps_saved_every_few_seconds(tmp_path, monkeypatch, capsys):
    steps, clock = Steps(), iter(range(0, 1000, 4))
    monkeypatch.setattr(notice.time, "monotonic", lambda: next(clock))
    leaves = {3, 4, 5, 6, 7, 8}
    with notice.Saves(tmp_path, True, lambda: steps.step, steps.snapshot, lambda: steps.step in leaves) as kept:
        for steps.step in range(1, 10):
            kept.done(due=steps.step == 2)
    assert steps.saved == [2, 3, 6]
    assert capsys.readouterr().out.count("taken away") == 1


def test_notice_waits_until_the_step_is_saved(tmp_path):
    steps, go, found = Steps(), threading.Event(), []
    with saves(tmp_path, steps) as kept:
        giver = threading.Thread(target=lambda: (go.set(), found.append(notice.give(tmp_path, within_s=30))))
        giver.start()
        go.wait()
        while not notice.given(tmp_path):
            time.sleep(0.01)
        steps.step = 7
        kept.done(due=False)
        giver.join()
    assert found == [True]
    assert steps.saved == [7]


def test_other_workers_neither_save_nor_heed(tmp_path):
    steps = Steps()

    def interrupted() -> None:
        with saves(tmp_path, steps, first=False) as kept:
            steps.step = 1
            kept.done(due=True)
            assert not notice.give(tmp_path, within_s=0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps.saved == []


def test_notice_that_nobody_heeds_comes_back(tmp_path):
    assert not notice.give(tmp_path, within_s=30)
    notice.heed(tmp_path)
    assert not notice.give(tmp_path, within_s=0.1)
    notice.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_step_is_written_while_the_next_are_taken_and_all_are_there_at_the_end(tmp_path):
    go, written = threading.Event(), []

    def snapshot() -> Callable[[], None]:
        step = at.step

        def write() -> None:
            assert go.wait(30)
            written.append(step)

        return write

    at = Steps()
    with notice.Saves(tmp_path, True, lambda: at.step, snapshot) as kept:
        at.step = 1
        kept.done(due=True)
        at.step = 2
        kept.done(due=False)
        assert written == []
        go.set()
        at.step = 3
        kept.done(due=True)
    assert written == [1, 3]


@pytest.mark.parametrize("more", [0, 1, 2])
def test_what_goes_wrong_as_a_step_is_written_ends_the_run(more, tmp_path):
    def snapshot() -> Callable[[], None]:
        raise_it = OSError("the disk is full")

        def write() -> None:
            raise raise_it

        return write

    at = Steps()

    def run() -> None:
        with notice.Saves(tmp_path, True, lambda: at.step, snapshot) as kept:
            for at.step in range(1, 2 + more):
                kept.done(due=at.step == 1)
                time.sleep(0.1)

    with pytest.raises(OSError, match="the disk is full"):
        run()
    assert at.step <= 2
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_run_is_told_and_what_is_being_written_is(tmp_path):
    steps = Steps()

    def run() -> None:
        with saves(tmp_path, steps) as kept:
            steps.step = 1
            kept.done(due=True)
            raise ValueError("of the run")

    with pytest.raises(ValueError, match="of the run"):
        run()
    assert steps.saved == [1]
