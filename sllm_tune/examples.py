"""Rows into examples, one JSON object a line: what the model sees and should answer; and the data card's counts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sllm_tune.audit import Part
from sllm_tune.encode import Encoder
from sllm_tune.errors import DataError
from sllm_tune.recipe import Recipe
from sllm_tune.rows import Row, row_id
from sllm_tune.run import write_jsonl
from sllm_tune.splits import groups_of
from sllm_tune.tasks import examples

QUANTILES = {"median": 0.5, "p95": 0.95, "max": 1.0}
MOST_LABELS = 50  # free text has about as many answers as rows, which no card should list


@dataclass
class _Seen:
    """What is counted of a task's examples while they are written."""

    lengths: Counter[int] = field(default_factory=Counter[int])
    labels: Counter[str] = field(default_factory=Counter[str])

    def describe(self) -> dict[str, Any]:
        """Tokens in all, their distribution over rows, and rows by label."""
        if not self.lengths:
            return {}
        total = sum(length * count for length, count in self.lengths.items())
        described: dict[str, Any] = {
            "tokens": total,
            "tokens_by_row": {name: self._quantile(share) for name, share in QUANTILES.items()},
        }
        if len(self.labels) <= MOST_LABELS:
            described["labels"] = dict(sorted(self.labels.items()))
        return described

    def refuse_longer_than(self, max_length: int, name: str) -> None:
        """Raise DataError for rows that a trainer would cut or drop silently, with their number."""
        over = sum(count for length, count in self.lengths.items() if length > max_length)
        if over:
            raise DataError(
                f"{name}: {over} of {self.lengths.total()} rows are longer than data.max_length {max_length} "
                f"(the longest has {max(self.lengths)} tokens).\n"
                "  Raise data.max_length, or shorten the prompt in the task file."
            )

    def _quantile(self, share: float) -> int:
        """The shortest length that at least `share` of the rows do not exceed."""
        below, rows = 0, self.lengths.total()
        for length in sorted(self.lengths):
            below += self.lengths[length]
            if below >= share * rows:
                return length
        return 0


def write_examples(parts: Sequence[Part], split: str, encoder: Encoder, recipe: Recipe, path: Path) -> None:
    """Write one split's training examples of all tasks in a seeded order, and describe them in the tasks' cards.

    Examples are made one at a time, so that a million of them need no more memory than their rows.

    Raises:
        DataError: the training split is empty, or rows are longer than `data.max_length`.
        ModelError: a row's prompt and answer cannot be told apart in tokens.
    """
    learned = [(part, row) for part in parts if part.role != "grade" for row in part.split[split]]
    if split == "train" and not learned:
        raise DataError(
            "the training split is empty.\n  Raise data.limit.train, or name tasks that have training rows."
        )
    random.Random(recipe.seed).shuffle(learned)
    seen = {part.task.name: _Seen() for part in parts}
    write_jsonl(path, _examples(learned, encoder, seen))
    for part in parts:
        if part.split[split]:
            counted = seen[part.task.name]
            counted.refuse_longer_than(recipe.data.max_length, part.task.name)
            part.card.setdefault("splits", {})[split] = {**_rows(part, part.split[split]), **counted.describe()}


def _examples(learned: Sequence[tuple[Part, Row]], encoder: Encoder, seen: dict[str, _Seen]) -> Iterator[Row]:
    for part, row in learned:
        name = part.task.name
        for shown in examples(part.built, row, encoder.template):
            made = {"id": row_id(row), "task": name, **shown}
            tokens = len(encoder.supervise(made["context"], made["target"]).input_ids)
            seen[name].lengths[tokens] += 1
            if len(seen[name].labels) <= MOST_LABELS:
                seen[name].labels[made["label"]] += 1
            yield {**made, "tokens": tokens}


def _rows(part: Part, rows: Sequence[Row]) -> dict[str, Any]:
    keys: list[str] = part.task.metadata.get("split_by", [])
    groups = {key: len(set(groups_of(rows, key, part.task.name))) for key in keys}
    return {"rows": len(rows), "groups": groups}
