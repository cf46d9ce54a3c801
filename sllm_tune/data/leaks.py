"""Rows that give others away: near duplicates within a task, and training rows that leak into what is graded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sllm_tune.data.card import LeaksDict
from sllm_tune.data.overlap import leaks, near_duplicates
from sllm_tune.data.part import Part
from sllm_tune.errors import DataError
from sllm_tune.rows.read import Row, is_missing
from sllm_tune.tasks.example import item_text

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

WHOLE = "the whole item"


def count_near_duplicates(rows: Sequence[Row], built: ConfigurableTask) -> int:
    """Rows that are a near duplicate of an earlier one of the same task."""
    groups = near_duplicates([item_text(built, row) for row in rows])
    return len(groups) - len(set(groups))


def drop_leaks(parts: Sequence[Part], *, on_leak: str, allowed: Iterable[str]) -> dict[str, LeaksDict]:
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
    report: dict[str, LeaksDict] = {}
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
