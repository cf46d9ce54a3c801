"""Does a finished quickstart keep its promises of time, held-out data and gain?

Reads a run folder's manifests and results.json, runs the same command again to time the skipping, asks which stages
another learning rate would run again, and times `sllm-tune --help`. Nothing is trained: a run folder that is out of
date fails the claim, and is left as it is.

Acceptance: training and evaluation under 720 s together; at least 400 test items that share neither a question nor a
clause with the training items; the specialist ahead of its base by at least 0.10 with p < 0.01; the figures of all
three controls; forgetting with its interval; all stages skipped in under 15 s; another learning rate runs again from
`train` on; help in under 0.5 s.
Budget: 1 minute. Cut short, it starts again.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.common import QUICKSTART, SLLM_TUNE, Record, finished_run, parse, parser
from sllm_tune import load_recipe
from sllm_tune.model.find import Base
from sllm_tune.pipeline import STAGES
from sllm_tune.run.folder import Run
from sllm_tune.smoke import smoke as tiny

TASK, CONTROLS = "privacy_qa", ("majority", "tfidf", "base_fewshot")
LEARNING_RATE, HELP_RUNS = "train.sft.learning_rate=5e-4", 5


def main() -> int:
    options = parser("quickstart_budget", __doc__)
    options.add_argument("--run-dir", type=Path, default=Path("runs/legal-quickstart"), help="default: %(default)s")
    given = parse(options)
    run = Run(finished_run(options, given))
    results = json.loads((run.dir / "scores" / "results.json").read_text(encoding="utf-8"))
    stages = [stage for stage in STAGES if run.manifest(stage)]  # a recipe that does not resize has one less
    seconds = {stage: (run.manifest(stage) or {})["seconds"] for stage in stages}
    claims = [time_claim(seconds), *data_claims(run.dir), *score_claims(results)]
    claims += [again_claim(run, stages, given.smoke), learning_rate_claim(run, given.smoke)]
    helps = [timed([*SLLM_TUNE, "--help"])["seconds"] for _ in range(1 if given.smoke else HELP_RUNS)]
    median = statistics.median(helps)
    claims.append((median < 0.5, "sllm-tune --help in under 0.5 s", f"{median:.2f} s, median of {len(helps)}"))
    record = Record(given, {"run_made_at": results["made_at"]})
    record.save(seconds=seconds, help_seconds=helps)
    return record.finish(claims)


def time_claim(seconds: dict[str, float]) -> tuple[bool, str, str]:
    both = seconds["train"] + seconds["evaluate"]
    figure = f"{both:.0f} s ({seconds['train']:.0f} and {seconds['evaluate']:.0f})"
    return both < 720, "training and evaluation under 720 s together", figure


def data_claims(folder: Path) -> list[tuple[bool, str, str]]:
    train, test = (pq.read_table(folder / "tasks" / TASK / f"{s}.parquet").to_pylist() for s in ("train", "test"))
    # A row's `group` has its values of the task's split_by: a clause and a question.
    clauses, questions = (len({row["group"][i] for row in train} & {row["group"][i] for row in test}) for i in (0, 1))
    figure = f"{questions} questions, {clauses} clauses"
    return [
        (len(test) >= 400, "at least 400 test items", str(len(test))),
        (not questions and not clauses, "none shared between training and test", figure),
    ]


def score_claims(results: dict[str, Any]) -> list[tuple[bool, str, str]]:
    task = results["tasks"][TASK]
    gain = task["differences"]["specialised vs base"]
    better = gain["value"] >= 0.10 and gain["p_value"] < 0.01
    claims = [(better, "ahead of the base by at least 0.10, p < 0.01", f"{shown(gain)}, p {gain['p_value']:.1e}")]
    for name in ("specialised", "base", *CONTROLS):
        score = task["scores"].get(name)
        claims.append((score is not None, f"the score of {name}", shown(score) if score else "none"))
    lost = results["forgetting"]
    return [*claims, (lost is not None, "forgetting with its interval", shown(lost) if lost else "none")]


def again_claim(run: Run, stages: list[str], smoke: bool) -> tuple[bool, str, str]:
    claim = "run again: all stages skipped in under 15 s"
    stale = {stage: why for stage, why in reasons_to_run(run, smoke=smoke).items() if why}
    if stale:
        return False, claim, f"not tried, for it would make {stale}"
    again = timed([*SLLM_TUNE, "run", str(QUICKSTART), *["--smoke"] * smoke, "--run-dir", str(run.dir)])
    skipped = sum(f"{stage}: skipped, nothing it depends on changed" in again["stderr"] for stage in stages)
    figure = f"{skipped} of {len(stages)} in {again['seconds']:.1f} s"
    return skipped == len(stages) and again["seconds"] < 15, claim, figure


def reasons_to_run(run: Run, *overrides: str, smoke: bool = False) -> dict[str, str | None]:
    """What the pipeline would say of each stage, without doing it."""
    recipe = load_recipe(QUICKSTART, overrides)
    recipe = tiny(recipe) if smoke else recipe
    made = [stage for stage in STAGES if STAGES[stage].is_in(recipe)]
    base = Base(section=recipe.base_model, folder=recipe.folder)
    return {stage: run.why(stage, STAGES[stage].inputs(recipe, base, run).flat()) for stage in made}


def learning_rate_claim(run: Run, smoke: bool = False) -> tuple[bool, str, str]:
    reasons = reasons_to_run(run, LEARNING_RATE, smoke=smoke)
    right = reasons["prepare"] is None and "learning_rate changed" in str(reasons["train"])
    return right, f"{LEARNING_RATE}: from train on", f"prepare: {reasons['prepare'] or 'skipped'}; {reasons['train']}"


def timed(command: list[str]) -> dict[str, Any]:
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"seconds": time.monotonic() - started, "status": done.returncode, "stderr": done.stderr}


def shown(interval: dict[str, Any]) -> str:
    low, high = interval["ci95"]
    return f"{interval['value']:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
