"""Splits that do not leak: whole groups of rows go to training, validation or test, by key or by date."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TypeGuard

from jinja2 import TemplateSyntaxError, meta

from sllm_tune.errors import DataError
from sllm_tune.rows.read import Row, is_missing, row_id
from sllm_tune.tasks.find import SPLITS
from sllm_tune.tasks.render import group_of
from sllm_tune.wording import shown

Split = dict[str, list[Row]]
DEFAULT_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def empty() -> Split:
    """Three empty splits."""
    return {name: [] for name in SPLITS}


def split_rows(rows: Sequence[Row], metadata: Mapping[str, object], seed: int, name: str) -> Split:
    """Rows by what a task's `metadata` asks: `split_after` a date, else `split_by` keys and `split` shares.

    Raises:
        DataError: as `by_date` and `by_groups`, or `split_by` is not a list of keys.
    """
    keys = metadata.get("split_by", [])
    if not isinstance(keys, list) or not all(isinstance(key, str) and key for key in keys):
        raise DataError(f"{name}: metadata.split_by must be a list of columns, such as [contract] (got {shown(keys)}).")
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise DataError(f"{name}: metadata.split_by names {shown(twice)} twice.\n  Name each key once.")
    if "split_after" in metadata:
        return by_date(rows, metadata["split_after"], keys, name)
    return by_groups(rows, keys, metadata.get("split", DEFAULT_SHARES), seed, name)


def groups_of(rows: Sequence[Row], key: str, name: str) -> list[str]:
    """The group of each row by one `split_by` key. A row that has none is a group of its own, named by its id.

    A row has none where it has nothing in the column (`is_missing`); by a template, where it has nothing in a column
    that the template reads, unless that provides for it (with `or`, `if` or `default`), or where it makes nothing.

    Raises:
        DataError: as `group_of`.
    """
    columns = _columns(key)
    found = ["" if _is_missing(row, key, columns) else group_of(row, key, name) for row in rows]
    return [group if group.strip() else _alone(row) for row, group in zip(rows, found, strict=True)]


def without_group(rows: Sequence[Row], keys: Sequence[str], name: str) -> int:
    """How many rows have no group by at least one of the `split_by` keys.

    Raises:
        DataError: as `groups_of`.
    """
    alone = [_alone(row) for row in rows]
    by_key = [groups_of(rows, key, name) for key in keys]
    return sum(own in groups for own, *groups in zip(alone, *by_key, strict=True))


def require_interval(items: int, groups: int | None, name: str) -> None:
    """Refuse a graded task whose score can have no interval, before anything is trained for it.

    Args:
        items: How many items will be graded.
        groups: In how many groups by the first `split_by` key; None where each item stands for itself.
        name: The task's, for messages.

    Raises:
        DataError: there are fewer than two items or groups.
    """
    if items < 2:
        raise DataError(
            f"{name}: {items} graded item{'s' * (items != 1)}, and an interval needs at least two.\n"
            "  Give it more rows, or raise data.limit.test, evaluate.limit_general or the test share of metadata.split."
        )
    if groups is not None and groups < 2:
        raise DataError(
            f"{name}: all {items} graded items are in one group of metadata.split_by, and an interval needs at least "
            "two.\n  Enlarge the test share in metadata.split, or name a key with more values first."
        )


def by_groups(rows: Sequence[Row], keys: Sequence[str], shares: object, seed: int, name: str) -> Split:
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
    if not _are_shares(shares):
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


def by_date(rows: Sequence[Row], after: object, keys: Sequence[str], name: str) -> Split:
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
    if not isinstance(after, Mapping) or set(after) != {"field", "validation", "test"}:
        raise DataError(f"{name}: metadata.split_after needs field, validation and test, got {shown(after)}.")
    if not any(isinstance(after["field"], str) and after["field"] in row for row in rows):
        raise DataError(
            f"{name}: metadata.split_after.field is {shown(after['field'])}, which is not a column; there are "
            f"{sorted(rows[0]) if rows else []}."
        )
    first = {part: _date(after[part], f"{name}: metadata.split_after.{part}") for part in ("validation", "test")}
    if first["validation"] > first["test"]:
        raise DataError(
            f"{name}: metadata.split_after.validation is after test ({first['validation']}, {first['test']}).\n"
            "  Rows from validation on are not trained on, and rows from test on are graded: test is the later one."
        )
    split = empty()
    for number, row in enumerate(rows, 1):
        day = _date(row.get(after["field"]), f"{name}, row {number}: {after['field']!r}")
        part = "test" if day >= first["test"] else "validation" if day >= first["validation"] else "train"
        split[part].append(row)
    for key in keys:
        later: set[str] = set()
        values = dict(zip(map(id, rows), _filled_groups(rows, key, name), strict=True))
        for part in reversed(SPLITS):
            split[part] = [row for row in split[part] if values[id(row)] not in later]
            later |= {values[id(row)] for row in split[part]}
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


def _places(rows: Sequence[Row], key: str, shares: Mapping[str, float], order: random.Random, name: str) -> list[str]:
    """The split that each row's value of one key falls into."""
    values = _filled_groups(rows, key, name) if key else [row_id(row) for row in rows]
    groups = sorted(set(values))
    if len(groups) < 2:
        raise DataError(
            f"{name}: split_by {key!r} leaves fewer than two groups ({len(groups)}), so nothing can be held out.\n"
            "  Name a column with more values in metadata.split_by."
        )
    order.shuffle(groups)
    place = _deal(groups, shares)
    return [place[value] for value in values]


def _filled_groups(rows: Sequence[Row], key: str, name: str) -> list[str]:
    """The groups of all rows, by a key that at least one of them has something in."""
    groups = groups_of(rows, key, name)
    if rows and all(group == _alone(row) for group, row in zip(groups, rows, strict=True)):
        group_of(rows[0], key, name)  # says so if there is no such column
        raise DataError(
            f"{name}: metadata.split_by names {key!r}, and no row has anything in it.\n  Name a column that is filled."
        )
    return groups


def _alone(row: Row) -> str:
    return f"row {row_id(row)}"


def _deal(values: Sequence[str], shares: Mapping[str, float]) -> dict[str, str]:
    """Each value's split: consecutive runs of the shuffled values, by share."""
    place: dict[str, str] = {}
    start = 0.0
    for part in SPLITS:
        end = start + shares[part] * len(values)
        place |= dict.fromkeys(values[round(start) : round(end)], part)
        start = end
    return place


def _are_shares(shares: object) -> TypeGuard[Mapping[str, float]]:
    if not isinstance(shares, Mapping) or set(shares) != set(SPLITS):
        return False
    values = list(shares.values())
    if not all(isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 for value in values):
        return False
    return abs(sum(values) - 1) <= 1e-6


def _columns(key: str) -> list[str]:
    """The columns that a row must have something in to have a group by a `split_by` key."""
    from lm_eval import utils

    if not is_template(key):
        return [key]
    if re.search(r"\b(or|if|default|d)\b", key):  # it provides for what is missing
        return []
    try:
        return sorted(meta.find_undeclared_variables(utils.env.parse(key)))
    except TemplateSyntaxError:
        return []  # said when it is rendered


def _is_missing(row: Row, key: str, columns: Sequence[str]) -> bool:
    """True where a row has nothing in one of the columns; a template that reads no column is refused later."""
    return any(is_missing(row.get(column)) for column in columns if column in row or not is_template(key))


_DATES = re.compile(
    r"(\d{4})(?:-(\d{1,2})-(\d{1,2})|/(\d{1,2})/(\d{1,2})|\.\s*(\d{1,2})\.\s*(\d{1,2})\.?|(\d\d)(\d\d)"
    r"|\s*년\s*(\d{1,2})\s*월\s*(\d{1,2})\s*일)(?=T\d|[^\w./-]|[가-힣]|$)"
)


def _date(value: object, where: str) -> date:
    found = _DATES.match(str(value).strip())
    try:
        if found:
            return date(*(int(part) for part in found.groups() if part))
    except ValueError:
        pass
    raise DataError(
        f"{where} is not a date such as 2024-03-01 (got {shown(value)}).\n"
        "  These forms are read: 2024-03-01, 2024/3/1, 20240301, 2024. 3. 1. and 2024년 3월 1일; the year comes first."
    )
