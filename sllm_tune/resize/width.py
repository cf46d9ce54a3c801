"""Width: narrower layers, by how strongly their parts answer to the field's own text.

Source: Muralidharan et al. 2024, "Compact Language Models via Pruning and Knowledge Distillation" (Minitron),
arXiv:2407.14679, and Sreenivas et al. 2024, arXiv:2408.11796: importance of neurons, heads and channels from
activations alone, the mean over a text's tokens and the length of the vector over texts; Nemotron-4 15B to 8B and 4B
with up to 40 times fewer training tokens than from scratch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from sllm_tune.answer.measure import Ids, place_of
from sllm_tune.errors import RecipeError
from sllm_tune.model.load import load_for_reading
from sllm_tune.recipe.resize import PruneWidth
from sllm_tune.resize.cut import Cut, group_size, head_dim, layers_of
from sllm_tune.resize.source import Source

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedConfig, PreTrainedModel


def take(step: PruneWidth, source: Source, out: Path) -> dict[str, JsonValue]:
    """Narrow every layer."""
    cut, parts = prune_width(
        load_for_reading(str(source.folder), source.base),
        source.calibration,
        intermediate_size=step.intermediate_size,
        num_attention_heads=step.num_attention_heads,
        hidden_size=step.hidden_size,
    )
    source.write(cut, out)
    kept: JsonValue = None if cut.kv_heads is None else [list(heads) for heads in cut.kv_heads]
    return {"kv_heads": kept, "importance_of_heads": parts["kv_heads"].tolist() if cut.kv_heads else None}


def plan(step: PruneWidth, config: PreTrainedConfig, where: str) -> Cut:
    """A cut to the sizes of the step."""
    neurons, heads, channels = step.intermediate_size, step.num_attention_heads, step.hidden_size
    require_width(config, neurons, heads, channels, f"{where}.")
    layers = config.num_hidden_layers
    return Cut(
        neurons=None if neurons is None else [range(neurons)] * layers,
        kv_heads=None if heads is None else [range(heads // group_size(config))] * layers,
        channels=None if channels is None else range(channels),
    )


def prune_width(
    model: PreTrainedModel,
    texts: Ids,
    *,
    intermediate_size: int | None = None,
    num_attention_heads: int | None = None,
    hidden_size: int | None = None,
) -> tuple[Cut, dict[str, Tensor]]:
    """The neurons, attention heads and hidden channels that count most on calibration texts, as many in every layer.

    Args:
        model: A causal language model of transformers.
        texts: Token ids of the field's own text.
        intermediate_size: Neurons to keep of each feed-forward layer; None keeps all.
        num_attention_heads: Query heads to keep of each layer; they go by groups that share a key-value head.
        hidden_size: Channels of the residual stream to keep.

    Returns:
        A cut, and the importance that it was chosen by: `neurons` `(layers, intermediate_size)`, `kv_heads`
        `(layers, key-value heads)` and `channels` `(hidden_size,)`.

    Raises:
        RecipeError: more than there are, or a number of heads that would break a group.
    """
    config = model.config
    require_width(config, intermediate_size, num_attention_heads, hidden_size, "prune_width.")
    found = importance(model, texts)
    heads = None if num_attention_heads is None else num_attention_heads // group_size(config)
    cut = Cut(
        neurons=None if intermediate_size is None else [_top(row, intermediate_size) for row in found["neurons"]],
        kv_heads=None if heads is None else [_top(row, heads) for row in found["kv_heads"]],
        channels=None if hidden_size is None else _top(found["channels"], hidden_size),
    )
    return cut, found


def require_width(
    config: PreTrainedConfig, neurons: int | None, heads: int | None, channels: int | None, prefix: str
) -> None:
    """Refuse to keep more than a model has, or a number of heads that would break a group.

    Raises:
        RecipeError: naming the key, which `prefix` stands before.
    """
    wanted = {"intermediate_size": neurons, "num_attention_heads": heads, "hidden_size": channels}
    for key, count in wanted.items():
        present = getattr(config, key)
        if count is not None and not 0 < count <= present:
            raise RecipeError(f"{prefix}{key}: must be between 1 and {present}, which the model has, got {count}")
    group = group_size(config)
    if heads is not None and heads % group:
        raise RecipeError(
            f"{prefix}num_attention_heads: must be a multiple of {group}, the query heads that share a key-value head, "
            f"got {heads}"
        )


def importance(model: PreTrainedModel, texts: Ids) -> dict[str, Tensor]:
    """Activations of the parts of a model on `texts`, as tensors; see `prune_width` for their shapes."""
    import torch

    config, decoder, layers = model.config, model.get_decoder(), layers_of(model)
    wide = group_size(config) * head_dim(config)
    totals: dict[str, list[Tensor | float]] = {"neurons": [0.0] * len(layers), "kv_heads": [0.0] * len(layers)}
    channels: list[Tensor | float] = [0.0]

    def neurons(layer: int) -> Callable[[Module, tuple[Tensor, ...]], None]:
        def see(_: Module, args: tuple[Tensor, ...]) -> None:
            totals["neurons"][layer] += args[0][0].float().abs().mean(0) ** 2

        return see

    def heads(layer: int) -> Callable[[Module, tuple[Tensor, ...]], None]:
        def see(_: Module, args: tuple[Tensor, ...]) -> None:
            by_head = args[0][0].float().unflatten(-1, (-1, wide))
            totals["kv_heads"][layer] += by_head.norm(dim=-1).mean(0) ** 2

        return see

    def norms(_: Module, __: object, out: Tensor) -> None:
        channels[0] += out[0].float().abs().mean(0) ** 2

    def root(total: Tensor | float) -> Tensor:
        return torch.as_tensor(total).sqrt().cpu()

    hooks: list[RemovableHandle] = []
    for i, layer in enumerate(layers):
        hooks.append(layer.get_submodule("mlp.down_proj").register_forward_pre_hook(neurons(i)))
        hooks.append(layer.get_submodule("self_attn.o_proj").register_forward_pre_hook(heads(i)))
        hooks.append(layer.get_submodule("input_layernorm").register_forward_hook(norms))
        hooks.append(layer.get_submodule("post_attention_layernorm").register_forward_hook(norms))
    try:
        with torch.no_grad():
            for ids in texts:
                decoder(input_ids=torch.tensor([ids], device=place_of(model)), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    found = {name: torch.stack([root(total) for total in rows]) for name, rows in totals.items()}
    return found | {"channels": root(channels[0])}


def _top(scores: Tensor, count: int) -> list[int]:
    """Indices of the `count` largest, in their old order."""
    return sorted(scores.topk(count).indices.tolist())
