"""What a recipe's steps make of a model's shape, before any of them is taken."""

from __future__ import annotations

from typing import Any

from sllm_tune.errors import RecipeError
from sllm_tune.model.find import find_base
from sllm_tune.model.load import load_config
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.recipe.resize import PruneDepth, PruneWidth, Quantize, Step, UpscaleDepth
from sllm_tune.resize.cut import Cut, cut_config, group_size, require_mapping
from sllm_tune.resize.depth import require_layers, upscale_depth
from sllm_tune.resize.width import require_width


def plan(recipe: Recipe) -> list[Any]:
    """The configuration after each step of `recipe.resize`; of a trimmed vocabulary the size is not known yet.

    Raises:
        RecipeError: a step asks for what the model does not have.
        ModelError: the base's configuration is not available, or its architecture has no mapping.
    """
    base = recipe.base_model
    config = load_config(find_base(base, recipe.folder), base)
    require_mapping(config)
    for number, step in enumerate(recipe.resize[:-1]):
        if isinstance(step, Quantize):
            raise RecipeError(
                f"resize[{number}]: quantize must be the last step; what it makes cannot be cut or healed"
            )
    if base.quantization and recipe.resize and isinstance(recipe.resize[-1], Quantize):
        raise RecipeError("base_model.quantization: the last step of resize quantizes the base already; leave one out")
    made: list[Any] = []
    for number, step in enumerate(recipe.resize):
        config = cut_config(config, _shape(step, config, f"resize[{number}]"))
        made.append(config)
    return made


def _shape(step: Step, config: Any, where: str) -> Cut:
    """A cut of the size that the step will make."""
    layers = config.num_hidden_layers
    if isinstance(step, PruneDepth):
        require_layers(step.keep, layers, f"{where}.keep")
        return Cut(layers=range(step.keep))
    if isinstance(step, UpscaleDepth):
        return upscale_depth(layers, step.overlap, f"{where}.overlap")
    if isinstance(step, PruneWidth):
        require_width(config, step.intermediate_size, step.num_attention_heads, step.hidden_size, f"{where}.")
        neurons, heads, channels = step.intermediate_size, step.num_attention_heads, step.hidden_size
        return Cut(
            neurons=None if neurons is None else [range(neurons)] * layers,
            kv_heads=None if heads is None else [range(heads // group_size(config))] * layers,
            channels=None if channels is None else range(channels),
        )
    return Cut()
