"""Each kind of step: what it does to a model's shape, and how it is taken. Its own file has the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import JsonValue

from sllm_tune.recipe.resize import Step
from sllm_tune.resize import depth, heal, search, vocabulary, width
from sllm_tune.resize.cut import Cut
from sllm_tune.resize.source import Source

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Kind(NamedTuple):
    """A kind of step."""

    take: Callable[[Any, Source, Path], dict[str, JsonValue]]
    """Writes what the step makes of the source to a folder; returns what it kept, and why."""

    plan: Callable[[Any, PreTrainedConfig, str], Cut] = lambda *_: Cut()
    """A cut of the size that the step will make of a model, or a RecipeError that names the key."""


KINDS = {
    "trim_vocabulary": Kind(vocabulary.take),
    "prune_depth": Kind(depth.take_pruning, depth.plan_pruning),
    "upscale_depth": Kind(depth.take_upscaling, depth.plan_upscaling),
    "prune_width": Kind(width.take, width.plan),
    "fit": Kind(search.take),
    "distill": Kind(heal.heal),
    "quantize": Kind(heal.quantize),
}


def kind_of(step: Step) -> Kind:
    """The kind of a step."""
    return KINDS[step.kind]
