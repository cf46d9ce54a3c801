"""`train` of a recipe."""

from typing import Any, Literal

from pydantic import Field

from sllm_tune.recipe.section import Section


class TrainSection(Section):
    """How the adapter is trained."""

    method: Literal["sft"] = "sft"
    """Supervised fine-tuning on the answers."""

    lora: dict[str, Any] = Field(default={})
    """Options of `peft.LoraConfig`."""

    sft: dict[str, Any] = Field(default={})
    """Options of `trl.SFTConfig`."""
