"""Are evaluation items found that were planted in the training items, and nothing else?

The items are PrivacyQA's, split as the legal quickstart splits them: no clause and no question is on both sides.
Held-out items are pasted into the training items once as they are, once with a tenth of their words changed into
other words of the data, and once with only their clause, under a question of the training side. They are looked for
in the whole item and in each field of `split_by`. Then training and held-out items are paired at random, and each
pair is looked at alone. The curve says what other thresholds would catch and raise.

Acceptance: every planted item is caught in each of the three ways; 1,000 unrelated pairs raise none.
Budget: 2 minutes on two cores. Cut short, it starts again.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from benchmarks.common import QUICKSTART, Record, parse, parser, task_rows
from sllm_tune import load_recipe
from sllm_tune.data.overlap import leaks
from sllm_tune.data.splits import split_rows
from sllm_tune.tasks.find import find_task

TASK, CLAUSE, QUESTION = "privacy_qa", "context", "question"
THRESHOLDS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
Row = dict[str, Any]


def main() -> int:
    options = parser("planted_leaks", __doc__)
    options.add_argument("--items", type=int, default=400, help="held-out items planted a way (default: %(default)s)")
    options.add_argument("--pairs", type=int, default=1000, help="unrelated pairs (default: %(default)s)")
    given = parse(options)
    items, count = (6, 4) if given.smoke else (given.items, given.pairs)
    record = Record(given, {"items": items, "pairs": count})
    train, held_out = load_splits(given.smoke)
    rng = random.Random(0)
    chosen = rng.sample(held_out, min(items, len(held_out)))
    words = [word for row in train for word in view(row, "whole").split()]
    planted = {
        "as they are": chosen,
        "with a tenth of their words changed": [reworded(row, words, rng) for row in chosen],
        "with only their clause": [row | {QUESTION: rng.choice(train)[QUESTION]} for row in chosen],
    }
    claims: list[tuple[bool, str, str]] = []
    caught: dict[str, dict[str, int]] = {}
    for way, rows in planted.items():
        found = {where: flagged(rows, held_out, where) for where in ("whole", CLAUSE, QUESTION)}
        caught[way] = {where: len(rows_found) for where, rows_found in found.items()}
        total = len(set().union(*found.values()))
        figure = f"{total} of {len(rows)} ({', '.join(f'{where} {count}' for where, count in caught[way].items())})"
        claims.append((total == len(rows), f"caught, planted {way}", figure))
    pairs = [(rng.choice(train), rng.choice(held_out)) for _ in range(count)]
    raised = [pair for pair in pairs if any(flagged([pair[0]], [pair[1]], where) for where in caught["as they are"])]
    claims.append((not raised, "unrelated pairs that raise a leak", f"{len(raised)} of {len(pairs)}"))
    curve = [at_threshold(planted["with a tenth of their words changed"], train, held_out, at) for at in THRESHOLDS]
    record.save(rows={"train": len(train), "held_out": len(held_out)}, caught=caught, raised=raised, curve=curve)
    print("threshold  changed items caught as near  training items raised as near, of all pairs")
    for row in curve:
        print(f"{row['threshold']:9.2f}  {row['caught']:29.4f}  {row['raised']:44.5f}")
    return record.finish(claims)


def load_splits(smoke: bool) -> tuple[list[Row], list[Row]]:
    """Distinct training and held-out rows of PrivacyQA."""
    metadata = find_task(TASK, QUICKSTART.parent).metadata
    rows = task_rows(TASK, QUICKSTART.parent, smoke=smoke)
    distinct = list({view(row, "whole"): row for row in rows}.values())
    split = split_rows(distinct, metadata, load_recipe(QUICKSTART).seed, TASK)
    return split["train"], split["test"]


def view(row: Row, where: str) -> str:
    return f"{row[CLAUSE]}\n{row[QUESTION]}" if where == "whole" else row[where]


def reworded(row: Row, words: list[str], rng: random.Random) -> Row:
    """The item with a tenth of its words changed, wherever they are."""
    split = [(key, word) for key in (CLAUSE, QUESTION) for word in row[key].split()]
    for at in rng.sample(range(len(split)), max(1, round(len(split) / 10))):
        split[at] = (split[at][0], rng.choice(words))
    return row | {key: " ".join(word for of, word in split if of == key) for key in (CLAUSE, QUESTION)}


def flagged(train: list[Row], held_out: list[Row], where: str, **options: float) -> set[int]:
    """The training rows that raise a leak."""
    return {
        leak.train for leak in leaks(*([view(row, where) for row in side] for side in (train, held_out)), **options)
    }


def at_threshold(changed: list[Row], train: list[Row], held_out: list[Row], threshold: float) -> dict[str, float]:
    """Shares of the changed items that are caught, and of the training items that are raised, as near or exact."""
    shares: list[float] = []
    for rows in (changed, train):
        sides = ([view(row, "whole") for row in side] for side in (rows, held_out))
        near = [leak for leak in leaks(*sides, threshold=threshold) if leak.kind != "13-gram"]
        shares.append(len(near) / len(rows))
    return {"threshold": threshold, "caught": shares[0], "raised": shares[1]}


if __name__ == "__main__":
    sys.exit(main())
