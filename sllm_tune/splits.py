"""Splits that do not leak: whole groups of rows go to training, validation or test, by key or by date."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from sllm_tune.errors import DataError
from sllm_tune.rows import Row, row_id
from sllm_tune.tasks import SPLITS
from sllm_tune.templates import group_of

Split = dict[str, list[Row]]
DEFAULT_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def empty() -> Split:
    """Three empty splits."""
    return {name: [] for name in SPLITS}


def split_rows(rows: Sequence[Row], metadata: Mapping[str, Any], seed: int, name: str) -> Split:
    """Rows by what a task's `metadata` asks: `split_after` a date, else `split_by` keys and `split` shares.

    Raises:
        DataError: as `by_date` and `by_groups`.
    """
    keys: list[str] = metadata.get("split_by", [])
    if after := metadata.get("split_after"):
        return by_date(rows, after, keys, name)
    return by_groups(rows, keys, metadata.get("split", DEFAULT_SHARES), seed, name)


def by_groups(rows: Sequence[Row], keys: Sequence[str], shares: dict[str, float], seed: int, name: str) -> Split:
    """Rows whose every key falls into the same split; a row whose keys disagree would leak, so it is dropped.

    Args:
        rows: Distinct rows.
        keys: Columns, or Jinja templates over a row, held out whole: no value of any of them is in two splits. None:
            each row is its own group.
        shares: Share of the groups of each key, by split; sums to 1.
        seed: Decides which group goes where.
        name: The task's, for messages.

    Raises:
        DataError: a key is not a column, has fewer than two values, or a split ends up empty.
    """
    if set(shares) != set(SPLITS) or abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise DataError(
            f"{name}: metadata.split must give train, validation and test shares that sum to 1, got {shares}."
        )
    places = [_places(rows, key, shares, random.Random(f"{seed}/{n}"), name) for n, key in enumerate(keys or [""])]
    split = empty()
    for position, row in enumerate(rows):
        at = {place[position] for place in places}
        if len(at) == 1:
            split[at.pop()].append(row)
    reason = f"no row has all of {list(keys)} in it" if keys else f"{len(rows)} rows are too few"
    for part in SPLITS:
        if not split[part] and (part != "validation" or shares["validation"]):
            raise DataError(
                f"{name}: the {part} split is empty: {reason}.\n"
                f"  Enlarge its share in metadata.split ({shares}), or split by fewer keys."
            )
    return split


def by_date(rows: Sequence[Row], after: Mapping[str, Any], keys: Sequence[str], name: str) -> Split:
    """Older rows to training, newer ones to validation and test, as for law and codes that change.

    Args:
        rows: Distinct rows.
        after: `field`, the column with an ISO 8601 date, and the first dates of `validation` and `test`. Rows from
            `validation` on are not trained on, rows from `test` on are graded.
        keys: A value of any of them that a later split holds is dropped from the earlier ones.
        name: The task's, for messages.

    Raises:
        DataError: the dates or a row's date cannot be read, or training or test ends up empty.
    """
    if set(after) != {"field", "validation", "test"}:
        raise DataError(f"{name}: metadata.split_after needs field, validation and test, got {dict(after)}.")
    first = {part: _date(after[part], f"{name}: metadata.split_after.{part}") for part in ("validation", "test")}
    split = empty()
    for number, row in enumerate(rows, 1):
        day = _date(row.get(after["field"]), f"{name}, row {number}: {after['field']!r}")
        part = "test" if day >= first["test"] else "validation" if day >= first["validation"] else "train"
        split[part].append(row)
    for key in keys:
        later: set[str] = set()
        for part in reversed(SPLITS):
            values = {id(row): group_of(row, key, name) for row in split[part]}
            split[part] = [row for row in split[part] if values[id(row)] not in later]
            later |= set(values.values())
    for part in ("train", "test"):
        if not split[part]:
            raise DataError(f"{name}: the {part} split is empty: metadata.split_after leaves no row in it ({first}).")
    return split


def is_template(key: str) -> bool:
    """True for a `split_by` key that is written as a template."""
    return "{{" in key or "{%" in key


def limited(split: Split, limits: Mapping[str, int | None], seed: int) -> Split:
    """Each split in a seeded order, cut to its limit."""
    return {part: random.Random(seed).sample(split[part], len(split[part]))[: limits[part]] for part in SPLITS}


def _places(rows: Sequence[Row], key: str, shares: dict[str, float], order: random.Random, name: str) -> list[str]:
    """The split that each row's value of one key falls into."""
    values = [group_of(row, key, name) if key else row_id(row) for row in rows]
    groups = sorted(set(values))
    if len(groups) < 2:
        raise DataError(
            f"{name}: split_by {key!r} leaves fewer than two groups ({len(groups)}), so nothing can be held out.\n"
            "  Name a column with more values in metadata.split_by."
        )
    order.shuffle(groups)
    place = _deal(groups, shares)
    return [place[value] for value in values]


def _deal(values: Sequence[str], shares: dict[str, float]) -> dict[str, str]:
    """Each value's split: consecutive runs of the shuffled values, by share."""
    place: dict[str, str] = {}
    start = 0.0
    for part in SPLITS:
        end = start + shares[part] * len(values)
        place |= dict.fromkeys(values[round(start) : round(end)], part)
        start = end
    return place


def _date(value: Any, where: str) -> date:
    found = re.match(r"(\d{4})\D?(\d{1,2})\D?(\d{1,2})(?!\d)", str(value).strip())
    try:
        if found:
            return date(*map(int, found.groups()))
    except ValueError:
        pass
    raise DataError(f"{where} is not a date such as 2024-03-01 (got {value!r}).")
