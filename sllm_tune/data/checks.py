"""What prepare looks for in the rows of a task: those that the task file does not fit, and personal data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from sllm_tune.bounded import within
from sllm_tune.data.card import PersonalDict
from sllm_tune.data.pii import finder, redact
from sllm_tune.errors import DataError, TaskError
from sllm_tune.rows.read import Row
from sllm_tune.tasks.build import build_in_memory
from sllm_tune.tasks.example import check_row
from sllm_tune.tasks.find import TaskFile
from sllm_tune.tasks.templates import AmbiguousAnswer, Rendered

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

SECONDS_A_CLOCK = 60.0
_ROWS_A_CLOCK = 100  # and so many rows may not fit before any does; after that the task file is at fault


def fitting_rows(
    task: TaskFile,
    rows: Sequence[Row],
    source: str,
    *,
    skip: bool,
    fault: Callable[[Rendered], str | None] = lambda _: None,
) -> tuple[ConfigurableTask, list[int]]:
    """lm-eval's task object for rows as they were read, and the places of those that the task file fits.

    Args:
        task: The task file.
        rows: As they were read.
        source: Where they come from, for messages.
        skip: Whether rows that do not fit are left out.
        fault: What else is wrong with a row, or None.

    Raises:
        TaskError: a row does not fit; with `skip`, no row fits, or the task file itself is at fault.
    """
    fitting, first = list[int](), ""
    for start in range(0, len(rows), _ROWS_A_CLOCK):
        chunk = range(start, min(start + _ROWS_A_CLOCK, len(rows)))
        with within(SECONDS_A_CLOCK, f"{task.path}: rendering {len(chunk)} rows"):
            faults = [
                _fault_of(task, rows[place], f"{task.name}, row {place + 1} of {source}", fault) for place in chunk
            ]
        fitting += [place for place, wrong in zip(chunk, faults, strict=True) if wrong is None]
        wrong = next(filter(None, faults), None)
        if wrong is not None and not skip:
            raise wrong
        first = first or str(wrong or "")
        if not fitting:
            break  # of so many rows, one would fit
    if not fitting:
        raise TaskError(f"{task.name}: no row of {source} fits {task.path}.\n  {first}")
    return build_in_memory(task, [rows[place] for place in fitting], source), fitting


def _fault_of(task: TaskFile, row: Row, where: str, fault: Callable[[Rendered], str | None]) -> TaskError | None:
    """What is wrong with a row. Raises AmbiguousAnswer, which no row can be skipped for."""
    try:
        if wrong := fault(check_row(task, row, where)):
            return TaskError(f"{where}: {wrong}.\n  metadata.on_bad_row: skip leaves such rows out and counts them.")
    except AmbiguousAnswer:
        raise
    except TaskError as error:
        return error
    return None


def personal_data(rows: Sequence[Row], policy: str, language: str, name: str) -> tuple[list[Row], PersonalDict]:
    """The rows, redacted where the policy asks for it, and how much personal data was found in how many of them.

    Args:
        rows: All texts in them are looked at, in nested lists and objects as well.
        policy: `report` counts, `redact` also replaces, `refuse` also raises.
        language: "en" or "ko": both countries' numbers are always looked for; it chooses the words around them.
        name: The task's, for messages.

    Raises:
        DataError: the policy is `refuse` and there is some; the first row is named, its text is not shown.
    """
    find = finder(language=language)
    kinds: Counter[str] = Counter()

    def redacted(text: str) -> str:
        found = find(text)
        kinds.update(one.kind for one in found)
        return redact(text, found) if found else text

    kept: list[Row] = []
    found_in: list[int] = []
    for number, row in enumerate(rows, 1):
        before = kinds.total()
        changed = {key: _mapped(item, redacted) for key, item in row.items()}
        found_in += [number] if kinds.total() > before else []
        kept.append(changed if policy == "redact" else row)
    if found_in and policy == "refuse":
        listed = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        raise DataError(
            f"{name}: personal data in {len(found_in)} of {len(rows)} rows ({listed}), first in row {found_in[0]}.\n"
            "  Take it out of the rows, or set data.pii: redact."
        )
    return kept, {"policy": policy, "rows": len(found_in), "kinds": dict(sorted(kinds.items()))}


def _mapped(value: object, change: Callable[[str], str]) -> object:
    """A copy of nested lists and objects with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list | tuple) else value
