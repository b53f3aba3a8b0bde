"""A mixed run on Ray's workers: the parts' episodes, whose rows differ in their columns, arrive as they were drawn."""

from pathlib import Path

import pytest

from raymeta.config import Run
from raymeta.stages.metatrain import metatrain
from tests.end_to_end.conftest import workers
from tests.end_to_end.outcome import furthest, metrics
from tests.test_mixed import values


@pytest.mark.usefixtures("ray_cluster")
def test_a_mixed_run_on_two_workers_walks_the_path_of_one(tiny_tokenizer_folder: str, tmp_path: Path) -> None:
    settings = values(tiny_tokenizer_folder, tmp_path)
    alone = metatrain(Run.of(settings))
    on_two = metatrain(Run.of({**settings, "name": "on-two", "cluster": workers(2)}))
    # float32: gradients of about 1 summed in another order differ by 1e-7, which AdamW carries along for 6 steps
    assert furthest(alone, on_two) < 1e-5
    lines = [metrics(r.folder) for r in (alone, on_two)]
    assert [[*row] for row in lines[0]] == [[*row] for row in lines[1]]
    for one, two in zip(*lines, strict=True):
        numbers = [{k: v for k, v in row.items() if not isinstance(v, str)} for row in (one, two)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-5)
