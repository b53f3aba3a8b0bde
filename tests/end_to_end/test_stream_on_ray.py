"""Episodes through Ray Data are the same as without, whoever takes them and wherever the stream begins."""

import time
from contextlib import closing
from typing import Any

import pytest

from raymeta import stream
from raymeta.config import Run
from raymeta.episodes import Episode
from raymeta.prepare import prepare
from raymeta.stream import Source, share, steps
from tests.end_to_end.conftest import MakeRun

TASKS = 4
"""Tasks a step."""


def source_of(run: Run) -> Source:
    prepared = prepare(run.corpus, run.tasks, run.model, run.seed, run.root / "prepared", on_ray=False)
    return Source(str(prepared.folder), run.tasks, "train", run.seed)


def drawn(source: Source, start: int, stop: int, workers: int, on_ray: bool) -> dict[int, list[Episode]]:
    """Step -> its episodes, put together from all workers."""
    found: dict[int, list[Episode]] = {step: [] for step in range(start, stop)}
    for rank in range(workers):
        taken = steps(source, start, stop, TASKS, rank, workers, on_ray)
        for step, episodes in zip(range(start, stop), taken, strict=True):
            found[step] += episodes
    return found


def plain(episode: Episode) -> dict[str, Any]:
    """All that an episode holds, in a form that compares."""
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in episode.to_row().items()}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_an_episode_is_the_same_on_ray_as_in_this_process(make_run: MakeRun, workers: int) -> None:
    source = source_of(make_run("stream"))
    start, stop = 5, 45  # more than one block of the stream, and none of its edges
    on_ray = drawn(source, start, stop, workers, on_ray=True)
    for step in range(start, stop):
        numbers = sorted(e.number for e in on_ray[step])
        assert numbers == list(range(step * TASKS, (step + 1) * TASKS))
        for episode in on_ray[step]:
            assert plain(episode) == plain(source.episode(episode.number))


@pytest.mark.usefixtures("ray_cluster")
def test_a_stream_that_begins_at_step_a_million_gives_the_episodes_of_that_step(make_run: MakeRun) -> None:
    source = source_of(make_run("stream"))
    start = 1_000_000
    for rank in range(2):
        with closing(steps(source, start, 2 * start, TASKS, rank, 2, on_ray=True)) as taken:
            for step in range(start, start + 3):
                episodes = next(taken)
                assert [e.number for e in episodes] == list(share(step * TASKS, TASKS, rank, 2))
                assert [plain(e) for e in episodes] == [plain(source.episode(e.number)) for e in episodes]


@pytest.mark.usefixtures("ray_cluster")
def test_while_nobody_takes_episodes_the_loop_of_ray_data_rests(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    rest = stream._unhurried().on_execution_step

    def counted(self: Any, executor: Any) -> None:
        rests.append(time.monotonic())
        rest(self, executor)

    monkeypatch.setattr(stream._unhurried(), "on_execution_step", counted)
    with closing(steps(source_of(make_run("stream")), 0, 100_000, TASKS, on_ray=True)) as episodes:
        next(episodes)
        time.sleep(2)  # until it has drawn ahead what it may
        before = len(rests)
        time.sleep(1)
        assert 1 <= len(rests) - before <= 12  # unhindered, it goes round hundreds of times
        assert len(list(zip(range(200), episodes, strict=False))) == 200
