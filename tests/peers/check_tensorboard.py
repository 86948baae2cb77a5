"""Reads a run's event files with TensorBoard's own reader, and compares them with its metrics.jsonl.

python check_tensorboard.py RUN
  RUN   a run's folder: metrics.jsonl, and event files in it or in tensorboard/
metrics.jsonl calls a figure NAME; TensorBoard shows train/NAME, and eval_NAME as eval/NAME (transformers' habit).
Prints one JSON line; exit status 1 where a figure is missing or differs.
"""

import json
import math
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main():
    run = pathlib.Path(sys.argv[1])
    folder = next((f.parent for f in sorted(run.rglob("events.out.tfevents.*"))), None)
    if folder is None:
        sys.exit(f"{run}: no event files")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    scalars = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    times = {event.step: event.wall_time for tag in scalars for event in events.Scalars(tag)}
    problems, compared, expected = [], 0, set()
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name == "step" or not isinstance(value, (int, float)) or isinstance(value, bool):
                continue
            if name == "time":  # every event carries it
                found = times.get(row["step"], 0.0)
                if not math.isclose(found, value, abs_tol=60):
                    problems.append(f"step {row['step']} was at {value}, in the event files at {found}")
                continue
            tag = f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"
            expected.add(tag)
            found = scalars.get(tag, {}).get(row["step"])
            compared += 1
            if found is None:
                problems.append(f"{tag} at step {row['step']} is missing")
            elif not math.isclose(found, value, rel_tol=1e-6, abs_tol=1e-30) and math.isfinite(value):
                problems.append(f"{tag} at step {row['step']}: {found}, not {value}")
    problems += [f"{tag} is in the event files alone" for tag in sorted(set(scalars) - expected)]
    if compared == 0:
        problems.append("metrics.jsonl has no figures")
    print(json.dumps(dict(run=str(run), tags={tag: len(points) for tag, points in scalars.items()}, compared=compared,
                          problems=problems[:10], n_problems=len(problems))))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
