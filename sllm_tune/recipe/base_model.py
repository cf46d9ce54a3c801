"""`base_model` of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from sllm_tune.recipe.section import SHA256, Section, Text


class BaseModelSection(Section):
    """The general model that is specialised."""

    path: Text
    """Where the model is: `pypi:NAME==VERSION/path/in/wheel`, a hub id, a local folder or a local .gguf file."""

    revision: Text | None = None
    """Revision (commit, tag or branch) of a hub id."""

    sha256: Annotated[str, Field(pattern=SHA256)] | None = Field(default=None, validate_default=True)
    """SHA-256 of the wheel in 64 hexadecimal digits; required where `path` starts with `pypi:`."""

    family: Literal["smollm2", "llama3", "solar", "midm", "phi3", "gemma3", "hyperclovax"] | None = None
    """Whose architecture and chat template a `--smoke` run imitates; nothing else looks at it."""

    chat_template: bool = True
    """Whether prompts go through the model's chat template: one choice for training, scoring and serving."""

    quantization: dict[str, Any] | None = None
    """Options of `transformers.BitsAndBytesConfig`; `{load_in_4bit: true, bnb_4bit_quant_type: nf4}` is QLoRA."""

    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run on this machine."""

    @field_validator("sha256")
    @classmethod
    def _recorded_for_wheels(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and str(info.data.get("path", "")).startswith("pypi:"):
            raise PydanticCustomError("sha256", "required for a pypi: path; record the SHA-256 of the wheel")
        return None if value is None else value.lower()
