"""What prepare looks for in rows before they are trained on: bad rows, personal data, leaks into what is graded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sllm_tune.bounded import within
from sllm_tune.data.overlap import leaks, near_duplicates
from sllm_tune.data.pii import finder, redact
from sllm_tune.data.splits import Split, is_template
from sllm_tune.errors import DataError, TaskError
from sllm_tune.rows.read import Row, is_missing
from sllm_tune.tasks.build import build_in_memory
from sllm_tune.tasks.example import check_row, item_text
from sllm_tune.tasks.find import TaskFile
from sllm_tune.tasks.templates import AmbiguousAnswer, Rendered

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

WHOLE = "the whole item"
SECONDS_A_CLOCK = 60.0
_ROWS_A_CLOCK = 100  # and so many rows may not fit before any does; after that the task file is at fault


@dataclass
class Part:
    """A task on its way into a run: lm-eval's object for it, its rows by split, and its entry in the data card."""

    task: TaskFile
    role: str  # "train", "replay" or "grade"
    built: Any
    split: Split
    card: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def keys(self) -> list[str]:
        """Columns that are held out whole, in the order of the task file."""
        return [key for key in self.task.metadata.get("split_by", []) if not is_template(key)]


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


def personal_data(rows: Sequence[Row], policy: str, language: str, name: str) -> tuple[list[Row], dict[str, Any]]:
    """The rows, redacted where the policy asks for it, and how much personal data was found in how many of them.

    Args:
        rows: Any texts in them are looked at, in nested lists and objects as well.
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
        changed = _mapped(row, redacted)
        found_in += [number] if kinds.total() > before else []
        kept.append(changed if policy == "redact" else row)
    if found_in and policy == "refuse":
        listed = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        raise DataError(
            f"{name}: personal data in {len(found_in)} of {len(rows)} rows ({listed}), first in row {found_in[0]}.\n"
            "  Take it out of the rows, or set data.pii: redact."
        )
    return kept, {"policy": policy, "rows": len(found_in), "kinds": dict(sorted(kinds.items()))}


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of nested lists and objects with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list | tuple) else value


def count_near_duplicates(rows: Sequence[Row], built: ConfigurableTask) -> int:
    """Rows that are a near duplicate of an earlier one of the same task."""
    groups = near_duplicates([item_text(built, row) for row in rows])
    return len(groups) - len(set(groups))


def drop_leaks(parts: Sequence[Part], *, on_leak: str, allowed: Iterable[str]) -> dict[str, Any]:
    """Compare every training row with every row that is validated or graded, and drop those that leak.

    Compared are whole items, and each column that a task of the graded rows holds out (`metadata.split_by`), with the
    column of that name where the training row has it.

    Args:
        parts: All tasks of the recipe; training rows are taken out of `split["train"]` in place.
        on_leak: `refuse` raises, `drop` takes the training row out and counts it.
        allowed: Tasks whose items may be in the training rows; what is found of them is counted and kept.

    Returns:
        For each graded task with a leak: `found` (by what was compared, then by kind), `allowed`, `dropped`.

    Raises:
        DataError: a leak that is neither allowed nor dropped, with the two rows.
    """
    allowed = set(allowed)
    report: dict[str, Any] = {}
    leaking: set[int] = set()
    trained = [(part, row) for part in parts if part.role != "grade" for row in part.split["train"]]
    for graded in parts:
        rows = [row for name in ("validation", "test") for row in graded.split[name]]
        if graded.role == "replay" or not rows:
            continue
        for what in (WHOLE, *graded.keys):
            ours = [(place, _compared(part, row, what)) for place, (part, row) in enumerate(trained)]
            ours = [(place, text) for place, text in ours if text is not None]
            theirs = [_compared(graded, row, what) or "" for row in rows]
            found = leaks([text for _, text in ours], theirs)
            if not found:
                continue
            entry = report.setdefault(graded.task.name, {"found": {}, "allowed": graded.task.name in allowed})
            entry["found"][what] = dict(sorted(Counter(leak.kind for leak in found).items()))
            if entry["allowed"]:
                continue
            if on_leak == "refuse":
                place, text = ours[found[0].train]
                raise _refusal(graded, trained[place][0], what, text, theirs[found[0].held_out], len(found))
            leaking |= {ours[leak.train][0] for leak in found}
    dropped = {id(trained[place][1]) for place in leaking}
    for part in parts:
        part.card["leaks_dropped"] = sum(id(row) in dropped for row in part.split["train"])
        part.split["train"] = [row for row in part.split["train"] if id(row) not in dropped]
        if part.role == "train" and not part.split["train"]:
            raise DataError(f"{part.task.name}: every training row leaks into what is graded, so none is left.")
    return report


def _compared(part: Part, row: Row, what: str) -> str | None:
    if what == WHOLE:
        return item_text(part.built, row)
    return None if is_missing(row.get(what)) else str(row[what])


def _refusal(graded: Part, trained: Part, what: str, text: str, held_out: str, count: int) -> DataError:
    name = graded.task.name
    return DataError(
        f"{trained.task.name}: {count} training rows leak into what {name} grades ({what}), for example\n"
        f"  trained: {text[:100]!r}\n  graded:  {held_out[:100]!r}\n"
        f"  Set data.on_leak: drop to leave such training rows out, or allow them with data.allow_leaks: [{name}]; "
        "the report will list them."
    )
