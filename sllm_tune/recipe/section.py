"""What every section of a recipe and of a task file shares."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from sllm_tune.wording import listed

SHA256 = r"^[0-9a-fA-F]{64}$"
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A part of a recipe: what it does not know, it refuses."""

    # strict: a quoted "12" where a number belongs is a slip to report, not to guess at.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def distinct(names: list[str]) -> list[str]:
    """The names, if none is there twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PydanticCustomError("repeated", "names {names} more than once", {"names": listed(twice, "and")})
    return names
