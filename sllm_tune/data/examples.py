"""Rows into examples, one JSON object a line: what the model sees and should answer; and the data card's counts."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sllm_tune.data.card import SplitDict
from sllm_tune.data.part import Part
from sllm_tune.data.splits import groups_of
from sllm_tune.errors import DataError
from sllm_tune.recipe.data import DataSection
from sllm_tune.rows.read import Row, row_id
from sllm_tune.runs.files import write_jsonl
from sllm_tune.tasks.encode import Encoder
from sllm_tune.tasks.example import examples, prompt_of

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

MOST_LABELS = 50  # free text has about as many answers as rows, which no card should list


@dataclass
class _Seen:
    """What is counted of a task's examples while they are written."""

    lengths: Counter[int] = field(default_factory=Counter[int])
    labels: Counter[str] = field(default_factory=Counter[str])

    def describe(self) -> SplitDict:
        """Tokens in all, their distribution over rows, and rows by label."""
        if not self.lengths:
            return {}
        total = sum(length * count for length, count in self.lengths.items())
        described: SplitDict = {
            "tokens": total,
            "tokens_by_row": {
                "median": self._quantile(0.5),
                "p95": self._quantile(0.95),
                "max": self._quantile(1.0),
            },
        }
        if len(self.labels) <= MOST_LABELS:
            described["labels"] = dict(sorted(self.labels.items()))
        return described

    def _quantile(self, share: float) -> int:
        """The shortest length that at least `share` of the rows do not exceed."""
        below, rows = 0, self.lengths.total()
        for length in sorted(self.lengths):
            below += self.lengths[length]
            if below >= share * rows:
                return length
        return 0


@dataclass
class _Limit:
    """Most tokens of a row, which setting says so, and whether longer rows are left out or end the run."""

    tokens: float
    named: str
    fix: str
    drop: bool
    longer: Counter[int] = field(default_factory=Counter[int])
    dropped: set[str] = field(default_factory=set[str])

    def excludes(self, row: Row, length: int) -> bool:
        """Whether a row is too long, which is counted."""
        if length <= self.tokens:
            return False
        self.longer[length] += 1
        self.dropped.add(row_id(row))
        return True

    def settle(self, part: Part, split: str) -> None:
        """Take the rows that are too long out of a split and count them in the task's card, or raise DataError."""
        rows, over = part.split[split], self.longer.total()
        part.card["too_long_dropped"] = part.card.get("too_long_dropped", 0) + over
        if over and (not self.drop or over == len(rows)):
            leave_out = "" if self.drop else "\n  Or leave such rows out, counted, with data.on_long: drop."
            raise DataError(
                f"{part.task.name}: {over} of {len(rows)} rows are longer than {self.named} "
                f"(the longest has {max(self.longer)} tokens).\n  {self.fix}{leave_out}"
            )
        part.split[split] = [row for row in rows if row_id(row) not in self.dropped] if over else rows


def write_examples(
    parts: Sequence[Part], split: str, encoder: Encoder, data: DataSection, seed: int, path: Path
) -> None:
    """Write one split's training examples of all tasks in a seeded order, and describe them in the tasks' cards.

    Examples are made one at a time, so that a million of them need no more memory than their rows. Rows that are too
    long to be trained on (`data.max_length`, the base's window) or to be graded (the window) are refused, or are left
    out of the tasks' split as well and counted.

    Raises:
        DataError: the training split is empty, or rows are too long.
        ModelError: a row's prompt and answer cannot be told apart in tokens.
    """
    learned = [(part, row) for part in parts if part.role != "grade" for row in part.split[split]]
    if split == "train" and not learned:
        raise DataError(
            "the training split is empty.\n  Raise data.limit.train, or name tasks that have training rows."
        )
    random.Random(seed).shuffle(learned)
    seen = {part.task.name: _Seen() for part in parts}
    limits = {part.task.name: _limit(part, encoder, data) for part in parts}
    write_jsonl(path, _examples(learned, split, encoder, seen, limits))
    for part in parts:
        limit = limits[part.task.name]
        if part.role == "grade" and (encoder.window or encoder.lacks_rows):
            for row in part.split[split]:
                limit.excludes(row, graded_length(part.built, row, encoder))
        if part.split[split]:
            limit.settle(part, split)
            described = seen[part.task.name].describe()
            part.card.setdefault("splits", {})[split] = {**_rows(part, part.split[split]), **described}


def graded_length(built: ConfigurableTask, doc: Row, encoder: Encoder, num_fewshot: int = 0) -> int:
    """Tokens of an item's prompt and its longest choice, or its longest right answer where text is generated.

    Texts of fewer bytes than the longest are not encoded where none can reach the window: a token has at least a byte.
    """
    templated = encoder.chat_template
    context = prompt_of(built, doc, encoder.template, num_fewshot)
    made = built.construct_requests(doc=doc, ctx=context, apply_chat_template=templated, metadata=("", 0, 1))
    requests = made if isinstance(made, list) else [made]
    texts: list[str] = []
    for request in requests:
        if request.request_type == "loglikelihood":
            texts.append("".join(request.args))
        elif request.request_type == "generate_until":
            right = built.doc_to_target(doc)
            texts += [f"{context}{answer}" for answer in (right if isinstance(right, list) else [right])]
    texts.sort(key=lambda text: -len(text.encode("utf-8", "surrogatepass")))
    if texts and not encoder.lacks_rows and len(texts[0].encode("utf-8", "surrogatepass")) < (encoder.window or 0):
        texts = texts[:1]
    return max((len(encoder.ids(text)) for text in texts), default=0)


def too_long(built: ConfigurableTask, docs: Sequence[Row], encoder: Encoder) -> list[int]:
    """Places in `docs` of the items that the base cannot read whole."""
    if encoder.window is None:
        return []
    return [place for place, doc in enumerate(docs) if graded_length(built, doc, encoder) > encoder.window]


def shots_that_fit(built: ConfigurableTask, docs: Sequence[Row], encoder: Encoder, num_fewshot: int) -> int:
    """The most worked examples, up to `num_fewshot`, with which the base reads every item whole.

    Args:
        built: lm-eval's object for the task; its draw of examples is set back, so that grading draws the same ones.
        docs: The graded items, in the order in which they will be graded.
        encoder: Of the base, with its window.
        num_fewshot: As the recipe asks for.
    """
    for shots in range(num_fewshot, 0, -1):
        built.set_config("num_fewshot", shots)
        built.set_fewshot_seed(0)
        lengths = (graded_length(built, doc, encoder, shots) for doc in docs)
        if encoder.window is None or all(length <= encoder.window for length in lengths):
            return shots
    return 0


def _limit(part: Part, encoder: Encoder, data: DataSection) -> _Limit:
    window, most = encoder.window or math.inf, data.max_length
    drop = data.on_long == "drop" or part.task.metadata.get("on_bad_row") == "skip"
    if part.role != "grade" and most <= window:
        fix = "Raise data.max_length, or shorten the prompt in the task file."
        return _Limit(most, f"data.max_length {most}", fix, drop)
    fix = "Shorten the prompt in the task file, or choose a base that reads more."
    return _Limit(window, f"the base's window of {window} tokens", fix, drop)


def _examples(
    learned: Sequence[tuple[Part, Row]],
    split: str,
    encoder: Encoder,
    seen: dict[str, _Seen],
    limits: dict[str, _Limit],
) -> Iterator[Row]:
    for part, row in learned:
        name = part.task.name
        graded = split != "train" and (encoder.window or encoder.lacks_rows)  # validation items are graded as well
        longest = graded_length(part.built, row, encoder) if graded else 0
        made = list(examples(part.built, row, encoder.template))
        tokens = [len(encoder.supervise(one["context"], one["target"]).input_ids) for one in made]
        if limits[name].excludes(row, max(longest, *tokens)):
            continue
        for one, length in zip(made, tokens, strict=True):
            seen[name].lengths[length] += 1
            if len(seen[name].labels) <= MOST_LABELS:
                seen[name].labels[one["label"]] += 1
            yield {"id": row_id(row), "task": name, **one, "tokens": length}


def _rows(part: Part, rows: Sequence[Row]) -> SplitDict:
    keys: list[str] = part.task.metadata.get("split_by", [])
    groups = {key: len(set(groups_of(rows, key, part.task.name))) for key in keys}
    return {"rows": len(rows), "groups": groups}
