"""Fails unless a finished run's meta-trained interval lies wholly above both baselines'."""

import json
import sys

from raymeta.config import Run

run = Run.load(*sys.argv[1:])
for found in json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))["settings"]:
    trained, *baselines = (found[row][run.tasks.metric] for row in ("metrics", "untrained", "prototype"))
    lowest = trained["mean"] - trained["ci95"]
    highest = max(b["mean"] + b["ci95"] for b in baselines)
    print(
        f"{run.tasks.metric}, {found['shots']}-shot: meta-trained at least {lowest:.3f}, baselines at most {highest:.3f}"
    )
    if lowest <= highest:
        sys.exit(f"{run.folder}: the intervals overlap")
