"""A JSON file of a run folder that others read: its shape is a model, and says which version of the shape it has."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import ClassVar, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from typing_extensions import Self

from sllm_tune.errors import RunFolderError
from sllm_tune.runs.files import write_json
from sllm_tune.wording import visible

LISTED = 10  # parts of a list that a table shows


def as_table(value: object) -> str:
    """Plain JSON values as nested HTML tables, every text escaped."""
    if isinstance(value, dict):
        rows = "".join(
            f"<tr><th>{html.escape(str(key))}</th><td>{as_table(inner)}</td></tr>"
            for key, inner in cast(dict[str, object], value).items()
        )
        return f"<table>{rows}</table>"
    if isinstance(value, list):
        items = [as_table(inner) for inner in cast(list[object], value)]
        return ", ".join(items) if len(items) <= LISTED else f"{', '.join(items[:LISTED])}, ... ({len(items)})"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else html.escape(visible(str(value)))


class Record(BaseModel):
    """What a file of a run folder holds.

    A file without a number of its shape is of the first one, which had none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, serialize_by_alias=True)

    SCHEMA: ClassVar[int] = 1

    schema_number: int = Field(default=1, alias="schema")
    """Which shape the file has; another number is another shape."""

    @classmethod
    def read(cls, path: Path, stage: str) -> Self:
        """Read a file.

        Args:
            path: The file.
            stage: The command that makes it again.

        Raises:
            RunFolderError: it is not there, is not what this version writes, or has a shape that it does not know.
        """
        again = f"\n  Make it again with: sllm-tune {stage} RECIPE"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            finish = "\n  Finish it with: sllm-tune run RECIPE"
            raise RunFolderError(f"{path}: not there, so the run is not finished.{finish}") from None
        except (OSError, ValueError, RecursionError) as problem:
            raise RunFolderError(f"{path}: cannot be read ({problem}).{again}") from problem
        number = value.get("schema", 1) if isinstance(value, dict) else None
        if number != cls.SCHEMA:
            raise RunFolderError(f"{path}: schema is {number!r}, this version reads {cls.SCHEMA}.{again}")
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise RunFolderError(f"{path}: {place}: {first['msg']}; sllm-tune did not write this.{again}") from error

    def write(self, path: Path) -> None:
        """Write what was set, through a temporary name."""
        write_json(path, self.as_json())

    def __dir__(self) -> list[str]:
        """Its fields and what it can do, for tab completion; pydantic's own names are left out."""
        return sorted([*type(self).model_fields, "as_html", "as_json", "read", "write"])

    def as_html(self) -> str:
        """What it holds, as tables."""
        return as_table(self.as_json())

    def _repr_html_(self) -> str:
        return self.as_html()

    def as_json(self) -> dict[str, JsonValue]:
        """What the file holds, as plain JSON values."""
        return {"schema": self.SCHEMA, **self.model_dump(mode="json", exclude_unset=True, exclude={"schema_number"})}
