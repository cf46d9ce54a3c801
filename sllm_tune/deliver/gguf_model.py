"""A plain checkpoint as one GGUF file, the format of llama.cpp, with its tokenizer, template and stop token inside.

Written by the `gguf` package, which knows the names of tensors; what differs from transformers is the order of the rows
of Llama's queries and keys, which llama.cpp rotates in neighbouring pairs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import NotRequired

from sllm_tune.deliver.gguf_vocabulary import add_vocabulary, stop_token, strips_as_phi
from sllm_tune.deliver.half_made import half_made, require_space
from sllm_tune.errors import ModelError
from sllm_tune.model.load import load_tokenizer
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.wording import listed, shown

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerFast

F16 = 1  # llama.cpp's number for "mostly float16"
Tensor = NDArray[np.float32]


class Architecture(NamedTuple):
    """What llama.cpp calls an architecture, and what it expects of it otherwise than transformers stores it."""

    name: str
    pairs: bool = False  # queries and keys are rotated in neighbouring pairs, not in halves
    adds_one: bool = False  # norms multiply by the weight, not by one more


class Rope(TypedDict):
    """Rotary embeddings; those of Gemma 3 are of two kinds."""

    rope_theta: float
    rope_type: NotRequired[str]
    partial_rotary_factor: NotRequired[float]
    full_attention: NotRequired[Rope]
    sliding_attention: Rope
    """Of Gemma 3."""

    factor: float
    """Of the types linear and llama3."""

    original_max_position_embeddings: int
    low_freq_factor: float
    high_freq_factor: float
    """Of the type llama3."""


class Config(TypedDict):
    """`config.json` of a checkpoint, as far as a GGUF file says the same."""

    architectures: NotRequired[list[str] | None]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: NotRequired[int | None]
    head_dim: NotRequired[int | None]
    max_position_embeddings: int
    original_max_position_embeddings: NotRequired[int | None]
    rms_norm_eps: float
    rope_parameters: NotRequired[Rope | None]
    rope_theta: NotRequired[float]
    partial_rotary_factor: NotRequired[float]
    sliding_window: int | None
    use_sliding_window: NotRequired[bool]
    query_pre_attn_scalar: NotRequired[float]
    layer_types: list[str]
    """Of Gemma 3."""

    tie_word_embeddings: NotRequired[bool]


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", pairs=True),
    "MistralForCausalLM": Architecture("llama", pairs=True),
    "Qwen2ForCausalLM": Architecture("qwen2"),
    "Qwen3ForCausalLM": Architecture("qwen3"),
    "Gemma3ForCausalLM": Architecture("gemma3", adds_one=True),
    "Phi3ForCausalLM": Architecture("phi3"),
}


def to_gguf(checkpoint: Path, out: Path, name: str = "specialist", stop: int | None = None) -> None:
    """Write the checkpoint as GGUF in float16, norms in float32.

    Args:
        checkpoint: A folder that `save_pretrained` wrote, safetensors.
        out: The file to make.
        name: What the file calls the model.
        stop: The token that ends an answer; None is what the checkpoint's `generation_config.json` names first.

    Raises:
        ModelError: llama.cpp cannot read this architecture, tokenizer or rotary scaling as it is here.
        JobFailed: the disk has no room for it.
    """
    from gguf import GGUFWriter

    config = read_config(checkpoint)
    architecture = architecture_of(config, checkpoint)
    section = BaseModelSection(path=str(checkpoint), chat_template=False)
    tokenizer = cast("PreTrainedTokenizerFast", load_tokenizer(str(checkpoint), section))
    stop = stop_token(checkpoint) if stop is None else stop
    mapped = gguf_names(architecture, config)
    require_space(out.parent, sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")) + (64 << 20))
    with half_made(out) as scratch:
        writer = GGUFWriter(scratch, architecture.name)
        writer.add_type("model")
        writer.add_name(f"{name} (phi-3)" if strips_as_phi(tokenizer) else name)
        writer.add_file_type(F16)
        add_shape(writer, config, architecture)
        add_vocabulary(writer, tokenizer, config["vocab_size"], stop)
        tensors = list(_tensors(checkpoint, config, architecture, mapped))
        for tensor_name, shape, dtype, _ in tensors:
            nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            writer.add_tensor_info(tensor_name, shape, np.dtype(dtype), nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, _, dtype, read in tensors:  # one in memory at a time
            writer.write_tensor_data(np.ascontiguousarray(read().astype(dtype)))
        writer.close()


def read_config(checkpoint: Path) -> Config:
    """`config.json` of a checkpoint.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    file = checkpoint / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found["num_hidden_layers"], int) or not isinstance(found["vocab_size"], int):
            raise ValueError("num_hidden_layers and vocab_size must be whole numbers")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{file}: not the configuration of a language model ({error!r:.200}).") from error
    return found


def architecture_of(config: Config, checkpoint: Path) -> Architecture:
    """The architecture of a configuration.

    Raises:
        ModelError: it is none that is exported.
    """
    name = (config.get("architectures") or [None])[0]
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{checkpoint}: a {shown(name)} is not exported to GGUF; {listed(ARCHITECTURES, 'and')} are.\n"
            "  `--format merged` exports any model."
        )
    return ARCHITECTURES[name]


def gguf_names(architecture: Architecture, config: Config) -> Callable[[str], str]:
    """A function from transformers' name of a tensor to llama.cpp's. It raises ModelError for one that has none."""
    import gguf

    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture.name)
    known = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])

    def name(tensor: str) -> str:
        found = known.get_name(tensor, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(f"GGUF: {architecture.name} of llama.cpp has no place for the tensor {tensor}.")
        return found

    return name


def in_pairs(tensor: Tensor, heads: int) -> Tensor:
    """Rows `(heads * head_dim, ...)` of queries or keys in llama.cpp's order: both halves of a head interleaved."""
    shape = tensor.shape
    return tensor.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def heads_of(tensor: str, config: Config) -> int | None:
    """Heads in the rows of a tensor of queries or keys by its name in transformers; None for any other."""
    if ".q_proj." in tensor:
        return config["num_attention_heads"]
    if ".k_proj." in tensor:
        return config.get("num_key_value_heads") or config["num_attention_heads"]
    return None


def head_dim(config: Config) -> int:
    """Channels of an attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def add_shape(writer: GGUFWriter, config: Config, architecture: Architecture) -> None:
    """Write the sizes of the model and how it counts positions.

    Raises:
        ModelError: llama.cpp would compute something else.
    """
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or cast(Rope, {"rope_theta": config.get("rope_theta", 10000.0)})
    whole = rope.get("full_attention", rope)
    share = whole.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    writer.add_rope_dimension_count(int(head_dim(config) * share))
    writer.add_rope_freq_base(whole["rope_theta"])
    _add_scaling(writer, whole)
    if architecture.name == "gemma3":
        _add_gemma(writer, config, rope)
    elif architecture.name == "phi3":
        writer.add_sliding_window(config.get("sliding_window") or 0)
        writer.add_rope_scaling_orig_ctx_len(
            config.get("original_max_position_embeddings") or config["max_position_embeddings"]
        )
    elif config.get("sliding_window") and config.get("use_sliding_window", True):
        raise ModelError("GGUF: llama.cpp reads the whole window where this model has a sliding one; not exported.")


def _add_scaling(writer: GGUFWriter, rope: Rope) -> None:
    from gguf import RopeScalingType

    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind not in ("default", "llama3"):  # Llama 3's is a tensor
        raise ModelError(
            f"GGUF: rotary embeddings of type {shown(kind)} are not exported; default, linear, llama3 are."
        )


def _add_gemma(writer: GGUFWriter, config: Config, rope: Rope) -> None:
    """Which layers slide; llama.cpp has every nth see everything."""
    if config.get("query_pre_attn_scalar", head_dim(config)) != head_dim(config):
        raise ModelError("GGUF: llama.cpp scales attention by the head's size, this model by query_pre_attn_scalar.")
    slides = [kind == "sliding_attention" for kind in config["layer_types"]]
    every = next((n for n in range(1, 100) if slides == [i % n < n - 1 for i in range(len(slides))]), None)
    if every is None:
        raise ModelError(
            f"GGUF: llama.cpp has every nth layer of a Gemma see everything; here they are {_positions(slides)} of "
            f"{len(slides)}.\n  Keep whole groups of layers when pruning, or use `--format merged`."
        )
    if config["sliding_window"] is None:
        raise ModelError("GGUF: the model has layers that slide and no sliding_window; not exported.")
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern(every)
    writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])


def _positions(slides: list[bool]) -> str:
    return ", ".join(str(number) for number, slid in enumerate(slides, 1) if not slid) or "none"


def _tensors(
    checkpoint: Path, config: Config, architecture: Architecture, mapped: Callable[[str], str]
) -> Iterator[tuple[str, tuple[int, ...], str, Callable[[], Tensor]]]:
    """Of each tensor llama.cpp's name, shape and type, and a function that reads it."""
    from safetensors import safe_open

    tied = config.get("tie_word_embeddings", False)
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118  not a dict
                if key.endswith("rotary_emb.inv_freq") or (tied and key == "lm_head.weight"):
                    continue
                heads = heads_of(key, config) if architecture.pairs else None
                plus = 1.0 if architecture.adds_one and key.endswith("norm.weight") else 0.0
                shape = tuple(opened.get_slice(key).get_shape())
                read = _reader(file, key, heads, plus)
                yield mapped(key), shape, "float32" if len(shape) == 1 else "float16", read
    rope = config.get("rope_parameters")
    if rope and rope.get("rope_type") == "llama3":
        factors = _llama3_factors(rope, head_dim(config))
        yield "rope_freqs.weight", factors.shape, "float32", lambda: factors


def _reader(file: Path, key: str, heads: int | None, plus: float) -> Callable[[], Tensor]:
    from safetensors import safe_open

    def read() -> Tensor:
        with safe_open(file, "pt") as opened:
            tensor = opened.get_tensor(key).float().numpy() + plus
        if tensor.ndim > 1 and np.abs(tensor).max() > np.finfo(np.float16).max:
            raise ModelError(f"GGUF: {key} has weights beyond float16's range; not exported.")
        return in_pairs(tensor, heads) if heads else tensor

    return read


def _llama3_factors(rope: Rope, dim: int) -> NDArray[np.float32]:
    """By what each rotary frequency is divided, as `transformers.modeling_rope_utils` computes it for Llama 3."""
    original = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    made: list[float] = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / dim)
        smooth = (original / wavelength - low) / (high - low)
        made.append(1 / ((1 - min(max(smooth, 0.0), 1.0)) / factor + min(max(smooth, 0.0), 1.0)))
    return np.array(made, dtype=np.float32)
