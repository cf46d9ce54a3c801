"""`<stage>/manifest.json`: from what a stage made its outputs, and what they were."""

from __future__ import annotations

from typing import TypedDict

from pydantic import BaseModel, ConfigDict, JsonValue
from typing_extensions import NotRequired

from sllm_tune.runs.record import Record


class FileRecord(BaseModel):
    """A file of an output."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    size: int
    """In bytes."""

    mtime_ns: int
    """Its time of change: a file that has it still is not read again."""

    sha256: str


class Manifest(Record):
    """What a stage recorded when it was finished."""

    model_config = ConfigDict(extra="allow")

    stage: str
    fingerprint: str
    """SHA-256 of the inputs as canonical JSON."""

    inputs: dict[str, JsonValue]
    """All that the stage was given, by dotted names; `file.NAME` is the SHA-256 of a file."""

    outputs: list[str]
    """Names in the run folder."""

    files: dict[str, FileRecord]
    """Every file of the outputs."""

    versions: dict[str, str]
    seed: int
    seconds: float | None = None
    energy_wh: float | None = None
    """Null without a readable counter."""

    world_size: int | None = None
    """Processes that trained."""

    scoring: str | None = None
    """Of `evaluate`: fingerprint of what decides the scores."""

    answering: str | None = None
    """Of `evaluate`: fingerprint of what decides how a question is answered."""

    finished_at: str
    """In UTC."""


class FileFound(TypedDict):
    """A file of an output, as it is read: a `FileRecord`."""

    size: int
    mtime_ns: int
    sha256: str


class Found(TypedDict):
    """A manifest as it is read: an earlier version wrote less than a `Manifest`."""

    stage: str
    inputs: dict[str, JsonValue]
    outputs: list[str]
    seed: int
    finished_at: str
    files: NotRequired[dict[str, FileFound]]
    versions: NotRequired[dict[str, str]]
    seconds: NotRequired[float | None]
    world_size: NotRequired[int | None]
    scoring: NotRequired[str | None]
    answering: NotRequired[str | None]
