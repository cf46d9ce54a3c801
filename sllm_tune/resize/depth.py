"""Depth: which layers a field can do without, and a deeper model out of copies of its layers.

Sources:
    Men et al. 2024, ShortGPT, arXiv:2403.03853: Block Influence; a quarter of the layers of Llama 2 7B and 13B
        removed, about nine tenths of MMLU kept.
    Gromov et al. 2024, "The Unreasonable Ineffectiveness of the Deeper Layers", arXiv:2403.17887: angular distance over
        a block; up to half of the layers of Llama 2 70B removed, and healed with QLoRA, before answers collapse.
    Kim et al. 2023, SOLAR 10.7B, arXiv:2312.15166: depth up-scaling, 32 layers to 48 by two copies that overlap.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from sllm_tune.answer.measure import Ids, mean_loss, place_of
from sllm_tune.errors import RecipeError
from sllm_tune.model.load import load_for_reading
from sllm_tune.recipe.resize import PruneDepth, UpscaleDepth
from sllm_tune.resize.cut import Cut, cut_model, layers_of
from sllm_tune.resize.source import Source

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

DepthMethod = Literal["block_influence", "angular_distance", "loss"]


def take_pruning(step: PruneDepth, source: Source, out: Path) -> dict[str, JsonValue]:
    """Drop the layers that count least."""
    model = load_for_reading(str(source.folder), source.base)
    cut, scores = prune_depth(model, source.calibration, step.keep, step.method)
    source.write(cut, out)
    importance: list[JsonValue] = [None if math.isinf(value) else value for value in scores]
    return {"layers": list(cut.layers or []), "importance": importance}


def plan_pruning(step: PruneDepth, config: PreTrainedConfig, where: str) -> Cut:
    """A cut to as many layers as the step keeps."""
    require_layers(step.keep, config.num_hidden_layers, f"{where}.keep")
    return Cut(layers=range(step.keep))


def take_upscaling(step: UpscaleDepth, source: Source, out: Path) -> dict[str, JsonValue]:
    """Put two overlapping copies of the layers on top of each other."""
    cut = plan_upscaling(step, source.config, source.key)
    source.write(cut, out)
    return {"layers": list(cut.layers or [])}


def plan_upscaling(step: UpscaleDepth, config: PreTrainedConfig, where: str) -> Cut:
    """The cut itself: it depends on the number of layers alone."""
    return upscale_depth(config.num_hidden_layers, step.overlap, f"{where}.overlap")


def prune_depth(
    model: PreTrainedModel, texts: Ids, keep: int, method: DepthMethod = "block_influence"
) -> tuple[Cut, list[float]]:
    """The layers that count most on calibration texts.

    Args:
        model: A causal language model of transformers.
        texts: Token ids of the field's own text.
        keep: Number of layers to keep.
        method: `block_influence` removes the layers that change their input least, `angular_distance` the one block of
            layers whose input and output are nearest, `loss` one layer after the other, that whose removal costs least.

    Returns:
        A cut of layers, and what each layer counts by `method`: for `block_influence` 1 - cosine, from 0; for
        `angular_distance` the angle over pi across the block that begins there (infinite where none fits); for `loss`
        the nats a token that the model has lost when the layer goes (infinite for those that stay).

    Raises:
        RecipeError: `keep` is not between 1 and the number of layers.
    """
    count = int(model.config.num_hidden_layers)
    require_layers(keep, count, "prune_depth.keep")
    removed = count - keep
    if method == "block_influence":
        scores = block_influence(model, texts)
        gone = set(sorted(range(count), key=lambda layer: scores[layer])[:removed])
    elif method == "angular_distance":
        scores = angular_distance(model, texts, removed) if removed else [math.inf] * count
        start = min(range(keep + 1), key=lambda layer: scores[layer]) if removed else 0
        gone = set(range(start, start + removed))
    else:
        scores, gone = _by_loss(model, texts, removed)
    return Cut(layers=[layer for layer in range(count) if layer not in gone]), scores


def upscale_depth(count: int, overlap: int, key: str = "upscale_depth.overlap") -> Cut:
    """SOLAR's depth up-scaling: two copies of the layers on top of each other, 2 * (count - overlap) in all.

    Args:
        count: Layers of the model.
        overlap: Layers left out at the end of the first copy, and at the beginning of the second.
        key: How messages name `overlap`.

    Raises:
        RecipeError: `overlap` is not between 1 and `count` - 1.
    """
    if not 0 < overlap < count:
        raise RecipeError(f"{key}: must be between 1 and {count - 1} for {count} layers, got {overlap}")
    return Cut(layers=[*range(count - overlap), *range(overlap, count)])


def require_layers(keep: int, count: int, key: str) -> None:
    """Refuse to keep no layer, or more than there are."""
    if not 0 < keep <= count:
        raise RecipeError(f"{key}: must be between 1 and {count}, the layers of the model, got {keep}")


def block_influence(model: PreTrainedModel, texts: Ids) -> list[float]:
    """1 - the mean cosine of each layer's input and output, over all tokens of `texts`."""
    from torch.nn.functional import cosine_similarity

    totals, tokens = [0.0] * model.config.num_hidden_layers, 0
    for states in _residual_streams(model, texts):
        tokens += states[0].shape[0]
        for layer, (before, after) in enumerate(pairwise(states)):
            totals[layer] += float((1 - cosine_similarity(before.float(), after.float(), dim=-1)).sum())
    return [total / tokens for total in totals]


def angular_distance(model: PreTrainedModel, texts: Ids, block: int) -> list[float]:
    """Arccos of the cosine of the last token's state before and after each run of `block` layers, over pi.

    Returns:
        One value a first layer of such a run, infinite where the run would leave the model.
    """
    import torch
    from torch.nn.functional import cosine_similarity

    count = int(model.config.num_hidden_layers)
    totals = [0.0] * (count - block + 1)
    for states in _residual_streams(model, texts):
        for start in range(count - block + 1):
            cosine = cosine_similarity(states[start][-1].float(), states[start + block][-1].float(), dim=-1)
            totals[start] += float(torch.arccos(cosine.clamp(-1, 1))) / math.pi
    return [total / len(texts) for total in totals] + [math.inf] * (block - 1)


def _by_loss(model: PreTrainedModel, texts: Ids, removed: int) -> tuple[list[float], set[int]]:
    left = list(range(model.config.num_hidden_layers))
    scores = [math.inf] * len(left)
    before = mean_loss(model, texts) if removed else 0.0
    for _ in range(removed):
        tried = {
            layer: mean_loss(cut_model(model, Cut(layers=[kept for kept in left if kept != layer])), texts)
            for layer in left
        }
        cheapest = min(tried, key=lambda layer: tried[layer])
        scores[cheapest] = tried[cheapest] - before
        left.remove(cheapest)
    return scores, {*range(model.config.num_hidden_layers)} - {*left}


def _residual_streams(model: PreTrainedModel, texts: Ids) -> Generator[list[Tensor]]:
    """For each text the residual stream before every layer and after the last, `(tokens, hidden)` each."""
    import torch

    states: list[Tensor] = []
    layers = layers_of(model)
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: states.append((args[0] if args else kwargs["hidden_states"])[0]), with_kwargs=True
        )
        for layer in layers
    ]
    hooks.append(layers[-1].register_forward_hook(lambda _, __, out: states.append(_hidden(out)[0])))
    try:
        with torch.no_grad():
            for ids in texts:
                states.clear()
                model.get_decoder()(input_ids=torch.tensor([ids], device=place_of(model)), use_cache=False)
                yield list(states)
    finally:
        for hook in hooks:
            hook.remove()


def _hidden(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
