"""`data/card.json`: where the rows of a run come from, how many were left out and why, and what is left."""

from __future__ import annotations

from typing import Literal, TypedDict

from pydantic import BaseModel, ConfigDict

from sllm_tune.runs.record import Record


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TokensByRow(_Part):
    """Tokens of prompt and answer together."""

    median: int
    p95: int
    """95 of 100 rows have at most so many."""

    max: int


class SplitCard(_Part):
    """One split of a task."""

    rows: int
    groups: dict[str, int]
    """Different values of each `split_by` key."""

    tokens: int | None = None
    """Of all rows together; of splits that are trained or graded with the base's tokenizer."""

    tokens_by_row: TokensByRow | None = None
    labels: dict[str, int] | None = None
    """Rows by answer; not where there are too many answers, or items are not to be shown."""


class PersonalData(_Part):
    """Personal data that was found in rows."""

    policy: Literal["report", "redact", "refuse"]
    rows: int
    """Rows that hold some."""

    kinds: dict[str, int]
    """Findings by kind."""


class TaskCard(_Part):
    """The rows of one task."""

    source: str
    licence: str
    commercial_use: bool = True
    """Whether the licence allows it, as the task file says."""

    rows: int
    """As they were read."""

    split_by: list[str | int]
    """Keys whose values are in one split only."""

    personal_data: PersonalData | None = None
    bad_rows_skipped: int | None = None
    """Rows that the task file does not fit."""

    rows_without_group: int | None = None
    duplicates_dropped: int | None = None
    left_out: int | None = None
    """Rows that `data.leave_out` names."""

    mixed_rows_dropped: int | None = None
    """Rows whose groups are on both sides of the split."""

    near_duplicates: int | None = None
    answers_respelled: int | None = None
    """Answers that were taken for a choice that only looks the same."""

    choices_begin_another: int | None = None
    """Items in which one choice begins another."""

    rows_with_control_tokens: int | None = None
    leaks_dropped: int | None = None
    """Training rows that are too close to a graded item."""

    over_limit_dropped: int | None = None
    """Rows beyond `data.limit`."""

    too_long_dropped: int | None = None
    splits: dict[str, SplitCard] = {}


class Leaks(_Part):
    """What of the training rows was found in a graded task."""

    found: dict[str, dict[str, int]]
    """By column, or the whole item, and then by kind of likeness: the number of training rows."""

    allowed: bool
    """Whether such rows stayed, because the recipe allows it."""


class Replayed(_Part):
    """Rows of other tasks among the training rows."""

    share: float
    examples: int
    replies: int = 0
    """Of these, replies of the base itself, which are made after the card."""


class Card(Record):
    """What `prepare` says of the data of a run."""

    tasks: dict[str, TaskCard]
    leaks: dict[str, Leaks]
    """By the name of the graded task."""

    replayed: Replayed | None


class TokensDict(TypedDict):
    """`TokensByRow`, as it is counted."""

    median: int
    p95: int
    max: int


class SplitDict(TypedDict, total=False):
    """`SplitCard`, as it is filled in."""

    rows: int
    groups: dict[str, int]
    tokens: int
    tokens_by_row: TokensDict
    labels: dict[str, int]


class PersonalDict(TypedDict):
    """`PersonalData`, as it is counted."""

    policy: str
    rows: int
    kinds: dict[str, int]


class TaskCardDict(TypedDict, total=False):
    """`TaskCard`, as it is filled in."""

    source: str
    licence: str
    commercial_use: bool
    rows: int
    split_by: list[str]
    personal_data: PersonalDict
    bad_rows_skipped: int
    rows_without_group: int
    duplicates_dropped: int
    left_out: int
    mixed_rows_dropped: int
    near_duplicates: int
    answers_respelled: int
    choices_begin_another: int
    rows_with_control_tokens: int
    leaks_dropped: int
    over_limit_dropped: int
    too_long_dropped: int
    splits: dict[str, SplitDict]


class LeaksDict(TypedDict):
    """`Leaks`, as they are found."""

    found: dict[str, dict[str, int]]
    allowed: bool
