"""`resize/steps.json`: the base, what each step left of it, and at what price."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from sllm_tune.runs.record import Record


class StepScore(BaseModel):
    """How a checkpoint answers some items of one task."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["domain", "general"]
    value: float
    """Mean score."""

    n: int
    """Items."""


class StepRecord(BaseModel):
    """The base, or one step: its keys in the recipe, what it did, and the checkpoint that it left.

    What a step did is named by its kind: the `layers` that a cut of depth keeps and their `importance`, for instance.
    """

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    kind: str
    """As in the recipe; `base` is the model before any step."""

    parameters: int
    bytes: int
    """Of the weights."""

    tokens_per_second: float
    """Read one text after the other."""

    perplexity: float
    """Of validation text."""

    scores: dict[str, StepScore] = {}
    """By task; none of a checkpoint that is read from disk."""

    seconds: float | None = None
    """What the step took."""


class Steps(Record):
    """What `resize` says of its steps, in their order."""

    steps: list[StepRecord]
    model_sha256: str
    """Content hash of the last checkpoint."""
