"""Healing: how much of what pruning lost a short training brings back, with the original as teacher and without.

The legal quickstart's base loses a fifth of its layers (30 to 24, by Block Influence on the training rows) and is then
trained for 100 steps of 16 training rows, every token of them: once half on the teacher's probabilities and half on the
text, once on the text alone. Perplexity is of validation rows, whose questions and clauses are in no training row.
Training on the field's rows also teaches what they have in common, so more than was lost may come back: the whole
model, trained alike on the text, is shown beside the two.

Acceptance: with the teacher, at least 60 % of the perplexity that pruning added is gone again after at most a million
tokens; the same training without a teacher is shown.
Budget: half an hour on two cores. Cut short, it goes on from the last checkpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import QUICKSTART, Record, add_work, parse, parser, run_command

LEAST_RECOVERED, MOST_TOKENS = 0.6, 1_000_000
SFT = {
    "learning_rate": 3e-4,
    "max_steps": 100,
    "per_device_train_batch_size": 16,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
}
LAYERS = [30, 24]  # before and after
CUT = {"kind": "prune_depth", "keep": LAYERS[1]}
RUNS: dict[str, list[dict[str, Any]]] = {
    "with a teacher": [CUT, {"kind": "distill", "share": 0.5, "sft": SFT}],
    "text alone": [CUT, {"kind": "distill", "share": 0.0, "sft": SFT}],
    "whole model, text alone": [{"kind": "distill", "share": 0.0, "sft": SFT}],
}


def main() -> int:
    options = parser("resize_heal", __doc__)
    add_work(options)
    given = parse(options)
    record = Record(given, {"steps": RUNS})
    runs: dict[str, Any] = record.raw.get("runs", {})
    for name, steps in RUNS.items():
        if name not in runs:
            folder = given.work / name.replace(",", "").replace(" ", "-")
            asked = [f"resize={json.dumps(steps)}", *["--smoke"] * given.smoke, "--run-dir", folder]
            if status := run_command("resize", QUICKSTART, *asked, smoke=given.smoke):
                print(f"{name}: exit status {status}", file=sys.stderr)
                return 1
            runs[name] = look(folder)
            record.save(runs=runs)
    record.save(layers=LAYERS)
    taught = runs["with a teacher"]
    claims = [(True, f"{name}: perplexity after each step, shown", told(found)) for name, found in runs.items()]
    recovered = f"{taught['recovered']:.1%} with {taught['tokens']:,} tokens"
    claims.append((taught["tokens"] <= MOST_TOKENS, f"at most {MOST_TOKENS:,} tokens", f"{taught['tokens']:,}"))
    claims.append((taught["recovered"] >= LEAST_RECOVERED, f"at least {LEAST_RECOVERED:.0%} recovered", recovered))
    return record.finish(claims)


def look(folder: Path) -> dict[str, Any]:
    base, *cut, healed = json.loads((folder / "resize" / "steps.json").read_text(encoding="utf-8"))["steps"]
    perplexity = [step["perplexity"] for step in (base, *cut, healed)]
    found: dict[str, Any] = {
        "perplexity": perplexity,
        "tokens": healed["healed_tokens"],
        "seconds": healed["heal_seconds"],
        "scores": [step["scores"] for step in (base, *cut, healed)],
    }
    if cut:
        found["recovered"] = (perplexity[1] - perplexity[2]) / (perplexity[1] - perplexity[0])
    return found


def told(found: dict[str, Any]) -> str:
    recovered = f", {found['recovered']:.1%} recovered" if "recovered" in found else ""
    return f"{', '.join(f'{value:.2f}' for value in found['perplexity'])}{recovered} in {found['seconds']:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
