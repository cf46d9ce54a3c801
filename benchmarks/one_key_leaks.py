"""What a split by question alone would leak: the quickstart's rows, counted and split as `prepare` does.

PrivacyQA pairs questions with clauses of policies. Shown are its rows, distinct questions and distinct clauses, and the
share of held-out rows whose clause is in training as well, for a split by either key and for the task's own.

Acceptance: no row of the task's own split.
Budget: 1 minute on two cores.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.common import QUICKSTART, Record, parse, parser, task_rows
from sllm_tune import load_recipe
from sllm_tune.data.splits import split_rows
from sllm_tune.tasks.find import find_task

TASK = "privacy_qa"


def main() -> int:
    given = parse(parser("one_key_leaks", __doc__))
    recipe = load_recipe(QUICKSTART)
    record = Record(given, {"task": TASK, "seed": recipe.seed})
    metadata = find_task(TASK, QUICKSTART.parent).metadata
    rows = task_rows(TASK, QUICKSTART.parent, smoke=given.smoke)
    clause, question = metadata["split_by"]
    keys = [question, clause]
    counts = {key: len({str(row[key]) for row in rows}) for key in keys}
    leaked = {
        " and ".join(by): shared(rows, {**metadata, "split_by": by}, recipe.seed, keys) for by in ([keys[0]], keys)
    }
    record.save(rows=len(rows), distinct=counts, leaked=leaked)
    distinct = ", ".join(f"{count:,} distinct in {key}" for key, count in counts.items())
    own = leaked[" and ".join(keys)]
    shown = [(True, f"split by {by}: test rows whose {keys[1]} is in training", f"{v:.1%}") for by, v in leaked.items()]
    return record.finish(
        [(True, "rows", f"{len(rows):,}; {distinct}"), *shown, (own == 0, "none by the task's own keys", f"{own:.1%}")]
    )


def shared(rows: list[dict[str, Any]], metadata: dict[str, Any], seed: int, keys: list[str]) -> float:
    """Share of the test rows whose value of the second key is in training."""
    split = split_rows(rows, metadata, seed, TASK)
    seen = {row[keys[1]] for row in split["train"]}
    return sum(row[keys[1]] in seen for row in split["test"]) / len(split["test"])


if __name__ == "__main__":
    sys.exit(main())
