"""What a recipe's steps make of a model's shape, before any of them is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sllm_tune.errors import RecipeError
from sllm_tune.model.find import Base
from sllm_tune.model.load import load_config
from sllm_tune.recipe.resize import Step
from sllm_tune.resize.cut import cut_config, require_mapping
from sllm_tune.resize.steps import kind_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def plan(base: Base, steps: Sequence[Step]) -> list[PreTrainedConfig]:
    """The configuration after each step of `resize`; of a trimmed vocabulary the size is not known yet.

    Raises:
        RecipeError: a step asks for what the model does not have.
        ModelError: the base's configuration is not available, or its architecture has no mapping.
    """
    config = load_config(base.path, base.section)
    require_mapping(config)
    for number, step in enumerate(steps[:-1]):
        if step.kind == "quantize":
            raise RecipeError(
                f"resize[{number}]: quantize must be the last step; what it makes cannot be cut or healed"
            )
    if base.section.quantization and steps and steps[-1].kind == "quantize":
        raise RecipeError("base_model.quantization: the last step of resize quantizes the base already; leave one out")
    made: list[PreTrainedConfig] = []
    for number, step in enumerate(steps):
        config = cut_config(config, kind_of(step).plan(step, config, f"resize[{number}]"))
        made.append(config)
    return made
