"""`formats/*.json` of a run: how each exported file answers beside what was scored, and what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from sllm_tune.errors import RunFolderError
from sllm_tune.runs.files import sha256
from sllm_tune.runs.record import Record

FOLDER = "formats"  # of a run


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Difference(_Part):
    """An item answered otherwise."""

    id: str
    scored: int | str | None
    exported: int | str | None
    margin_nats: float
    """By how much the export prefers its answer to the one scored."""


class TaskParity(_Part):
    """How an export answers a task, beside what was scored."""

    n: int
    """Graded items."""

    agreement: float
    """Share of the items that are answered alike."""

    accuracy: float
    """Mean of the task's first metric."""

    scored_accuracy: float
    scored_ci95: tuple[float, float]
    prompts_alike: float
    """Share of the prompts that are, in tokens, those that were scored."""

    differences: list[Difference]


class Speed(_Part):
    """What a file takes in a process of its own."""

    bytes: int
    """On disk."""

    threads: int
    load_s: float
    prompt_tokens_per_s: float
    """Of 256 tokens."""

    generation_tokens_per_s: float
    """Of 32 tokens."""

    resident_bytes: int


class Exported(Record):
    """One exported file."""

    SCHEMA: ClassVar[int] = 1

    schema_number: int = Field(default=1, alias="schema")
    """Which shape the file has; another number is another shape."""

    format: Literal["gguf", "adapter-gguf", "openvino", "base"]
    """"base" is the model that the run began with, as a GGUF file beside; it is not asked."""

    kind: str
    """Of the numbers, such as f16, as llama.cpp names it."""

    importance_rows: int
    """Training rows that the scales were weighed by."""

    tasks: dict[str, TaskParity]
    speed: Speed
    results_sha256: str
    """Of the `scores/results.json` that it was held against."""

    sha256: str | None = None
    """Of the file; null of a base, which is not kept."""

    adapter_sha256: str | None = None
    """Of the adapter's weights, of an adapter."""


def formats_of(run_dir: Path) -> dict[str, Path]:
    """Of a run's scores as they are now, where each exported file is told of, by its name in the run folder.

    Raises:
        RunFolderError: one cannot be read.
    """
    results = run_dir / "scores" / "results.json"
    if not results.is_file():
        return {}
    scored = sha256(results)
    files = {f"{FOLDER}/{file.name}": file for file in sorted((run_dir / FOLDER).glob("*.json"))}
    return {name: file for name, file in files.items() if _read(file).results_sha256 == scored}


def _read(file: Path) -> Exported:
    try:
        return Exported.read(file, "export")
    except RunFolderError as error:
        fault = str(error).splitlines()[0]
        raise RunFolderError(f"{fault}\n  Remove it, and export again if the report is to show it.") from error
