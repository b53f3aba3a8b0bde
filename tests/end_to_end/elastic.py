"""A run on one to two workers that loses a node on its way, and gets another one.

    python -m tests.end_to_end.elastic [--steps 80]

Prints what the run said and how far its parameters are from those of a run that nothing happened to, and ends with status 1
unless it went on with one worker, and with two again, on the same path.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from raymeta.config import Run
from raymeta.stages.metatrain import finished, metatrain
from raymeta.track import rows
from tests.conftest import save_tiny_bert
from tests.end_to_end.commands import ended, start, written
from tests.end_to_end.conftest import small_run
from tests.end_to_end.outcome import furthest, metrics
from tests.end_to_end.simulated import Nodes

PACED = "tests.end_to_end.interrupted:Paced"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument(
        "--pace", type=float, default=0.5, help="seconds that each task takes at least, once it can be grown"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rm", dir="/tmp") as name:
        folder = Path(name)
        (folder / "model").mkdir()
        (folder / "ray").mkdir()
        os.environ["RAY_TMPDIR"] = f"{name}/ray"
        settings = small_run(save_tiny_bert(folder / "model"), f"{name}/results")
        settings |= {"outer": {"steps": asked.steps, "tasks_per_step": 4, "lr": 1e-3}, "save": {"every": 4}}
        alone = metatrain(Run.of({**settings, "name": "alone"}))
        algorithm = {**settings["algorithm"], "kind": PACED, "pace_s": asked.pace}
        run = {**settings, "name": "elastic", "algorithm": algorithm, "cluster": {"workers": [1, 2]}}
        file = Run.of(run).folder / "metrics.jsonl"

        def until(step: int) -> None:
            while process.poll() is None and not any(row["step"] >= step for row in rows(file)):
                time.sleep(0.1)

        with Nodes(2) as cluster:
            process = start("metatrain", written(run, folder / "run.yaml"), environment=cluster.environment)
            until(asked.steps // 6)
            cluster.shrink()
            until(asked.steps // 3)
            cluster.mend()
            status, said = ended(process)
        print(said)
        elastic = finished(Run.of(run))
        if status or elastic is None:
            sys.exit(1)
        counts = [int(n) for n in re.findall(r"the workers changed; (\d+) go on", said)]
        steps = [row["step"] for row in metrics(elastic.folder) if "split" not in row]
        far = furthest(alone, elastic)
        print(f"workers after changes: {counts}; parameters differ by at most {far:.1e}; {len(steps)} steps")
        sys.exit(counts[:1] != [1] or counts[-1:] != [2] or far > 1e-5 or steps != [*range(1, asked.steps + 1)])


if __name__ == "__main__":
    main()
