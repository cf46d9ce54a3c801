"""The rows of a task, read, checked and split, with every row that was left out counted in its card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sllm_tune.data.card import TaskCardDict
from sllm_tune.data.checks import fitting_rows, personal_data
from sllm_tune.data.hub import hub_rows
from sllm_tune.data.leaks import count_near_duplicates
from sllm_tune.data.part import Part
from sllm_tune.data.rehearse import answer_faults
from sllm_tune.data.splits import Split, empty, limited, split_rows, without_group
from sllm_tune.errors import DataError, TaskError
from sllm_tune.recipe.data import DataSection
from sllm_tune.rows.read import Row, read_rows, row_id
from sllm_tune.sources import fetch, is_pypi
from sllm_tune.tasks.build import begins_another
from sllm_tune.tasks.encode import Encoder
from sllm_tune.tasks.example import item_text
from sllm_tune.tasks.find import SPLITS, TaskFile
from sllm_tune.tasks.of_recipe import shipped_task
from sllm_tune.tasks.templates import Rendered

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

USED = {"train": SPLITS, "replay": ("train",), "grade": ("test",)}


@dataclass(frozen=True)
class Rules:
    """What holds for the rows of every task."""

    data: DataSection
    language: str
    """Of the words around personal data."""

    seed: int
    left_out: frozenset[str]
    """Ids of the rows that must not be used."""


def collect(task: TaskFile, role: str, rules: Rules, encoder: Encoder) -> Part:
    """A task with its rows in splits.

    Args:
        task: Its file, or its name where lm-eval ships it.
        role: `train`, `replay` or `grade`.
        rules: Of the recipe.
        encoder: Of the base.

    Raises:
        SourceError, TaskError, DataError: its rows are not available, or do not fit.
    """
    if task.path is None:
        return _shipped(task, role, rules, encoder)
    skip, unreadable = task.metadata.get("on_bad_row") == "skip", list[TaskError]()
    rows, given, source = _read(task, role, unreadable if skip else None)
    if not rows:
        first = f"\n  {unreadable[0]}" if unreadable else ""
        raise DataError(f"{task.name}: no rows in {source}.{first}")
    keys: list[str] = task.metadata.get("split_by", [])
    card: TaskCardDict = {
        "source": source if task.rows is None or is_pypi(source) else Path(source).name,
        "licence": task.metadata.get("licence", "not stated"),
        "commercial_use": task.metadata.get("commercial_use", True),
        "rows": len(rows) + len(unreadable),
        "split_by": keys,
    }
    if rules.data.pii:
        rows, card["personal_data"] = personal_data(rows, rules.data.pii, rules.language, task.name)
    faults, respelled = answer_faults(task.config, encoder), list[bool]()

    def fault(row: Rendered) -> str | None:
        respelled.append(row.respelled)
        return faults(row)

    built, fitting = fitting_rows(task, rows, source, skip=skip, fault=fault)
    # Each with the split that the data set puts it into, if it does.
    distinct: dict[str, tuple[str, Row]] = {}
    for place in fitting:
        distinct.setdefault(row_id(rows[place]), (given[place], rows[place]))
    kept = [entry for name, entry in distinct.items() if name not in rules.left_out]
    split = _split(task, role, kept, rules.seed)
    kept_rows = [row for _, row in kept]
    counted: TaskCardDict = {
        "bad_rows_skipped": len(unreadable) + len(rows) - len(fitting),
        "rows_without_group": without_group(kept_rows, keys, task.name),
        "duplicates_dropped": len(fitting) - len(distinct),
        "left_out": len(distinct) - len(kept),
        "mixed_rows_dropped": len(kept) - sum(map(len, split.values())),
        "near_duplicates": count_near_duplicates(kept_rows, built),
    }
    card.update(counted)
    if any(respelled):
        card["answers_respelled"] = sum(respelled)
    return Part(task, role, built, split, card)


def _read(task: TaskFile, role: str, unreadable: list[TaskError] | None) -> tuple[list[Row], list[str], str]:
    """The rows, the split that the data set puts each into (or ""), and where they are from.

    Rows that cannot be read are put into `unreadable`, or are an error without it.
    """
    if task.rows is None:
        return *hub_rows(task, USED[role]), task.dataset_path
    place = task.rows
    pinned, records = (None, None) if place.is_own else (task.metadata.get("sha256"), task.metadata.get("records"))
    file = fetch(place.source, sha256=pinned, where=place.key, base_dir=place.folder)
    rows = read_rows(file, records, f"{place.key}.records", unreadable)
    return rows, [""] * len(rows), place.source


def _split(task: TaskFile, role: str, kept: list[tuple[str, Row]], seed: int) -> Split:
    if kept and kept[0][0]:
        return {name: [row for place, row in kept if place == name] for name in SPLITS}
    rows = [row for _, row in kept]
    if role == "train":
        return split_rows(rows, task.metadata, seed, task.name)
    return {**empty(), USED[role][0]: rows}


def _shipped(task: TaskFile, role: str, rules: Rules, encoder: Encoder) -> Part:
    """A task that lm-eval ships: its own splits; what it grades is graded in place."""
    built = shipped_task(task)
    split = empty()
    local = f", rows of {Path(task.rows.source).name}" if task.rows else ""
    card: TaskCardDict = {"source": f"lm-eval: {task.name}{local}", "licence": "see the data set", "split_by": []}
    if role != "grade":
        train, validation = _training_rows(built, role, rules.seed, task.name)
        kept = [row for row in train if row_id(row) not in rules.left_out]
        card["left_out"] = len(train) - len(kept)
        if rules.data.pii:  # of the rows that are learned; those that the harness grades stay as they are
            kept, card["personal_data"] = personal_data(kept, rules.data.pii, rules.language, task.name)
        split |= {"train": kept, "validation": validation}
    if role != "replay":
        split["test"] = _rows(built.eval_docs)
    if built.OUTPUT_TYPE == "multiple_choice" and not built.multiple_input:
        # lm-eval's own files score the choices as they are
        begin = sum(begins_another([str(choice) for choice in built.doc_to_choice(row)]) for row in split["test"])
        if begin:
            card["choices_begin_another"] = begin
    texts = (item_text(built, row) for rows in split.values() for row in rows)
    held = [found for text in texts if (found := encoder.control_tokens(text))]
    card["rows"], card["rows_with_control_tokens"] = sum(map(len, split.values())), len(held)
    if held and role != "grade":
        raise TaskError(
            f"{task.name}: {len(held)} rows hold control tokens of the tokenizer, such as {held[0][0]!r}, which the "
            "model would read as a turn or its end.\n"
            f"  Give the rows without them as a local file: data.source.{task.name}."
        )
    return Part(task, role, built, split, card)


def _rows(docs: Iterable[object]) -> list[Row]:
    """As lm-eval hands them over, of a data set or of a list."""
    return cast("list[Row]", list(docs))


def _training_rows(built: ConfigurableTask, role: str, seed: int, name: str) -> tuple[list[Row], list[Row]]:
    """Training and validation rows of a task that lm-eval ships, apart from those that the harness grades."""
    if not built.has_training_docs():
        raise DataError(f"{name}: lm-eval has no training rows for it, so it can only be graded (evaluate.domain).")
    train = limited({**empty(), "train": _rows(built.training_docs())}, dict.fromkeys(SPLITS), seed)["train"]
    if role == "replay":
        return train, []
    apart = built.has_validation_docs() and built.config.test_split not in (None, built.config.validation_split)
    validation = _rows(built.validation_docs()) if apart else list[Row]()
    if not validation:  # the harness grades the validation rows, so ours are training rows
        cut = max(1, len(train) // 10)
        validation, train = train[:cut], train[cut:]
    return train, validation
