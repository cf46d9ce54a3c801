"""Every folder of cases: what the product made of it beside what was expected before it was tried.

    python -m benchmarks.cases --cases FOLDER [NAME ...]

A case is a recipe with its task, its rows and `expected.txt`. Each is run as a user would, in a process and a run
folder of its own. Printed are the exit status, the last words, and what tells a silent mistake from a good result: rows
taught, the first answers, and the scores. Whether that is what was expected is for the reader to judge; a traceback is
exit status 1. About ten minutes on two cores for 60 cases.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import SLLM_TUNE, Record, parse, parser
from benchmarks.prepare_scaling import write_domain

SECONDS = 300


def main() -> int:
    options = parser("cases", __doc__)
    options.add_argument("--cases", type=Path, help="the folder of cases")
    options.add_argument("names", nargs="*", help="some of them; all by default")
    given = parse(options)
    if given.smoke:
        given.cases = smoke_cases(given.work)
    elif given.cases is None:
        options.error("--cases must name the folder of cases")
    found = {path.parent.name: path for path in sorted(given.cases.glob("*/recipe.yaml"))}
    record = Record(given, {"cases": given.names or list(found)})
    made: dict[str, Any] = {}
    for name in given.names or found:
        made[name] = one = tried(found[name].parent)
        print(f"\n== {name}: exit {one['status']}, {one['seconds']:.0f} s", flush=True)
        print(f"   expected: {one['expected']}")
        for line in [*one["said"], *one["made"]]:
            print(f"   {line}")
        record.save(cases=made)
    tracebacks = [name for name, one in made.items() if one["traceback"]]
    return record.finish([(not tracebacks, f"no traceback in {len(made)} cases", ", ".join(tracebacks) or "none")])


def smoke_cases(folder: Path) -> Path:
    """One that runs, and one with a key that no recipe has."""
    for name, expected in (("good", "a report"), ("unknown-key", "the key is named")):
        write_domain(folder / name, 40, smoke=True)
        (folder / name / "expected.txt").write_text(expected, encoding="utf-8")
    recipe = folder / "unknown-key" / "recipe.yaml"
    made = json.loads(recipe.read_text(encoding="utf-8")) | {"tasks": []}
    recipe.write_text(json.dumps(made), encoding="utf-8")
    return folder


def tried(case: Path) -> dict[str, Any]:
    """What one case ends with."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        command = [*SLLM_TUNE, "run", str(case / "recipe.yaml"), "--run-dir", str(run)]
        started = time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
            status, errors = done.returncode, done.stderr
        except subprocess.TimeoutExpired:
            status, errors = -1, f"no end in {SECONDS} s"
        return {
            "status": status,
            "seconds": time.monotonic() - started,
            "expected": " ".join((case / "expected.txt").read_text(encoding="utf-8").split()),
            "said": last_words(errors),
            "traceback": "Traceback (most recent call last)" in errors,
            "made": artefacts(run) if status == 0 else [],
        }


def last_words(errors: str) -> list[str]:
    """The message that a run ended with, or its last two lines."""
    lines = [line for line in errors.splitlines() if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith("sllm-tune:")]
    return [line[:300] for line in (lines[starts[-1] :] if starts else lines[-2:])][:6]


def artefacts(run: Path) -> list[str]:
    """Rows, answers and scores of a run that ended well."""
    card = json.loads((run / "data" / "card.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (run / "data" / "train.jsonl").read_text(encoding="utf-8").split("\n") if line]
    results = json.loads((run / "scores" / "results.json").read_text(encoding="utf-8"))
    log = (run / "train" / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    losses = [round(row["loss"], 3) for row in map(json.loads, filter(None, log)) if "loss" in row]
    generation = json.loads((run / "merged" / "generation_config.json").read_text(encoding="utf-8"))
    counted = {
        name: {key: value for key, value in entry.items() if isinstance(value, int) and value}
        for name, entry in card["tasks"].items()
    }
    scores = {
        name: {model: round(one["value"], 3) for model, one in task["scores"].items()}
        for name, task in results["tasks"].items()
    }
    return [
        f"rows: {counted}",
        f"taught: {[row['label'][:60] for row in rows[:4]]}, {len(rows)} examples; prompt {rows[0]['prompt'][:80]!r}",
        f"scores: {scores}; losses {losses[:2]} to {losses[-1:]}; stops at {generation.get('eos_token_id')}",
    ]


if __name__ == "__main__":
    sys.exit(main())
