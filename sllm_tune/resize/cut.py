"""A model of another size, as a choice of what is kept of its layers, neurons, heads, channels and tokens.

Every step of `resize` that changes a shape ends in a `Cut`. It is applied to a model in memory, or to a checkpoint
shard by shard, tensor by tensor, so that a model need not fit into memory to be made smaller.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import safe_open

from sllm_tune.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedConfig, PreTrainedModel

Configuration = TypeVar("Configuration")  # of a model, of its generation, or none

# The dimensions of each parameter, by the end of its name. `query` and `key` are rows of attention heads; a fused
# projection has one block of rows after the other.
AXES = {
    "embed_tokens.weight": ("token", "channel"),
    "lm_head.weight": ("token", "channel"),
    "norm.weight": ("channel",),
    "input_layernorm.weight": ("channel",),
    "post_attention_layernorm.weight": ("channel",),
    "pre_feedforward_layernorm.weight": ("channel",),
    "post_feedforward_layernorm.weight": ("channel",),
    "q_norm.weight": ("head_dim",),
    "k_norm.weight": ("head_dim",),
    "q_proj.weight": ("query", "channel"),
    "k_proj.weight": ("key", "channel"),
    "v_proj.weight": ("key", "channel"),
    "q_proj.bias": ("query",),
    "k_proj.bias": ("key",),
    "v_proj.bias": ("key",),
    "qkv_proj.weight": ("query key key", "channel"),
    "o_proj.weight": ("channel", "query"),
    "gate_proj.weight": ("neuron", "channel"),
    "up_proj.weight": ("neuron", "channel"),
    "gate_up_proj.weight": ("neuron neuron", "channel"),
    "down_proj.weight": ("channel", "neuron"),
}
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text")
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_LAYER = re.compile(r"(?<=\blayers\.)\d+(?=\.)")


@dataclass(frozen=True)
class Cut:
    """Old indices of what is kept, in their new order; None keeps all.

    `neurons` and `kv_heads` have one list for each layer of the old model, all of one length. A query head goes with
    the key-value head that it reads. An index of `layers` that comes twice makes two layers.
    """

    layers: Sequence[int] | None = None
    neurons: Sequence[Sequence[int]] | None = None
    kv_heads: Sequence[Sequence[int]] | None = None
    channels: Sequence[int] | None = None
    tokens: Sequence[int] | None = None

    def token_places(self) -> dict[int, int]:
        """The new id of each old one that is kept; empty where all are."""
        return {old: new for new, old in enumerate(self.tokens or [])}


def require_mapping(config: PreTrainedConfig) -> None:
    """Refuse an architecture whose dimensions are not known.

    Raises:
        ModelError: with those that are.
    """
    if config.model_type not in MODEL_TYPES:
        raise ModelError(
            f"resize: no mapping of the dimensions of a {config.model_type!r} model; there is one for "
            f"{', '.join(MODEL_TYPES)}.\n  Take a base of one of these, or leave resize out."
        )


def head_dim(config: PreTrainedConfig) -> int:
    """Width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def kv_heads(config: PreTrainedConfig) -> int:
    """Number of key-value heads of a layer."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def group_size(config: PreTrainedConfig) -> int:
    """Query heads that share a key-value head."""
    return int(config.num_attention_heads // kv_heads(config))


def layers_of(model: PreTrainedModel) -> list[Module]:
    """The layers of its decoder, from the first to the last."""
    return list(model.get_decoder().get_submodule("layers").children())


def cut_model(model: PreTrainedModel, cut: Cut) -> PreTrainedModel:
    """A new model of the same class with what `cut` keeps; the one given is left as it is.

    Raises:
        ModelError: an architecture without a mapping, or one that has other parameters than it should.
    """
    from transformers.initialization import no_init_weights

    config = cut_config(model.config, cut)
    tied: set[str] = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = {
        new: tensor
        for name, old in model.state_dict().items()
        if name not in tied
        for new, tensor in cut_tensor(name, old, cut, model.config)
    }
    with no_init_weights():
        made: Any = type(model)(config)  # transformers hides the arguments of `to`
        made = made.to(model.dtype)
    missing, unexpected = made.load_state_dict(state, strict=False)
    made.tie_weights()
    lost = set(missing) - set(getattr(made, "all_tied_weights_keys", None) or ())
    if lost or unexpected:
        raise ModelError(f"resize: the smaller model lacks {sorted(lost)} and does not know {unexpected}.")
    made.generation_config = renumbered(model.generation_config, cut)
    return made.to(model.device).train(model.training)


def cut_checkpoint(source: Path, out: Path, cut: Cut) -> None:
    """Write the checkpoint folder `out` with what `cut` keeps of the one in `source`, a part of a shard at a time.

    Writing holds tensors twice, as they are and as bytes, so a checkpoint in shards is written in smaller ones, of a
    quarter of the largest. The tokenizer is not copied: a cut of tokens needs another one.

    Args:
        source: Holds `config.json` and safetensors weights, whole or in shards with their index.
        out: A folder to make.
        cut: What is kept.

    Raises:
        ModelError: an architecture without a mapping, or no safetensors weights.
    """
    from safetensors.torch import save_file
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(source)
    smaller = cut_config(config, cut)
    out.mkdir(parents=True)
    files = shards(source)
    most = max(file.stat().st_size for file in files) // 4 if len(files) > 1 else math.inf
    where: dict[str, str] = {}
    kept: dict[str, Tensor] = {}
    sizes: list[int] = []

    def write() -> None:
        name = f"model-{len(sizes) + 1:05}.safetensors" if len(files) > 1 else "model.safetensors"
        save_file(kept, out / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(kept, name))
        sizes.append(sum(tensor.nbytes for tensor in kept.values()))
        kept.clear()

    for shard in files:
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  not a mapping
                for new, tensor in cut_tensor(name, file.get_tensor(name), cut, config):
                    if kept and sum(other.nbytes for other in kept.values()) + tensor.nbytes > most:
                        write()
                    kept[new] = tensor.clone()  # safetensors refuses tensors that share memory
    if kept:
        write()
    if len(files) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": where}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    smaller.save_pretrained(out)
    if (source / "generation_config.json").exists():
        renumbered(GenerationConfig.from_pretrained(source), cut).save_pretrained(out)


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder.

    Raises:
        ModelError: there are none.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    if not (folder / "model.safetensors").exists():
        raise ModelError(f"{folder}: no safetensors weights; pickled ones are not read.\n  Convert it first.")
    return [folder / "model.safetensors"]


def cut_config(config: PreTrainedConfig, cut: Cut) -> PreTrainedConfig:
    """The configuration of the model that `cut` makes.

    Raises:
        ModelError: an architecture without a mapping.
    """
    require_mapping(config)
    made = copy.deepcopy(config)
    if cut.layers is not None:
        # Whatever has a value a layer, such as Gemma's `layer_types`.
        for key, value in config.to_dict().items():
            if isinstance(value, list) and len(value) == config.num_hidden_layers and key != "eos_token_id":
                setattr(made, key, [value[i] for i in cut.layers])
        made.num_hidden_layers = len(cut.layers)
    if cut.neurons is not None:
        made.intermediate_size = len(cut.neurons[0])
    if cut.kv_heads is not None or cut.channels is not None:
        made.head_dim = head_dim(config)  # else it would follow from the two that change
    if cut.kv_heads is not None:
        made.num_key_value_heads = len(cut.kv_heads[0])
        made.num_attention_heads = group_size(config) * len(cut.kv_heads[0])
    if cut.channels is not None:
        made.hidden_size = len(cut.channels)
    if cut.tokens is not None:
        made.vocab_size = len(cut.tokens)
    return renumbered(made, cut)


def renumbered(config: Configuration, cut: Cut) -> Configuration:
    """A model's or a generation's configuration with its token ids as `cut` numbers them; one that is gone is None."""
    if cut.tokens is None or config is None:
        return config
    place = cut.token_places()
    made = copy.deepcopy(config)
    for key in SPECIAL_IDS:
        value = getattr(config, key, None)
        if isinstance(value, list):
            setattr(made, key, [place[old] for old in value if old in place])
        elif value is not None:
            setattr(made, key, place.get(value))
    return made


def cut_tensor(name: str, tensor: Tensor, cut: Cut, config: PreTrainedConfig) -> Iterator[tuple[str, Tensor]]:
    """The parameters that one of the old model becomes: none, one, or several where its layer is repeated.

    Raises:
        ModelError: a parameter without a mapping.
    """
    import torch

    found = _LAYER.search(name)
    layer = int(found[0]) if found else None
    if layer is not None and cut.layers is not None and layer not in cut.layers:
        return
    axes = AXES.get(".".join(name.split(".")[-2:]))
    if axes is None:
        raise ModelError(f"resize: no mapping of the dimensions of the parameter {name}.")
    for dim, axis in enumerate(axes):
        kept = _kept(axis, layer, cut, config)
        if kept is not None:
            tensor = tensor.index_select(dim, torch.tensor(kept, device=tensor.device))
    if found is None or cut.layers is None:
        yield name, tensor
        return
    for new, old in enumerate(cut.layers):
        if old == layer:
            yield f"{name[: found.start()]}{new}{name[found.end() :]}", tensor


def _kept(axis: str, layer: int | None, cut: Cut, config: PreTrainedConfig) -> list[int] | None:
    """Old indices that are kept of one dimension, or None for all."""
    if axis == "token":
        return None if cut.tokens is None else list(cut.tokens)
    if axis == "channel":
        return None if cut.channels is None else list(cut.channels)
    if axis == "head_dim":
        return None
    kept: list[int] = []
    start = 0
    for block in axis.split():
        width = _width(block, config)
        chosen = _rows(block, layer, cut, config)
        if chosen is None:
            return None
        kept += [start + row for row in chosen]
        start += width
    return kept


def _width(block: str, config: PreTrainedConfig) -> int:
    heads = {"query": config.num_attention_heads, "key": kv_heads(config)}
    return config.intermediate_size if block == "neuron" else heads[block] * head_dim(config)


def _rows(block: str, layer: int | None, cut: Cut, config: PreTrainedConfig) -> list[int] | None:
    assert layer is not None
    if block == "neuron":
        return None if cut.neurons is None else list(cut.neurons[layer])
    if cut.kv_heads is None:
        return None
    group = group_size(config) if block == "query" else 1
    wide = group * head_dim(config)
    return [head * wide + i for head in cut.kv_heads[layer] for i in range(wide)]
