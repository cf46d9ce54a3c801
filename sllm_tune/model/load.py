"""The base model, its tokenizer and its adapter: where they come from and how they are loaded."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm_tune.errors import ModelError
from sllm_tune.model.checkpoint import explained, is_finite, size_of, some, tensors
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.runs.machine import available_memory_bytes
from sllm_tune.runs.processes import local_rank
from sllm_tune.sandbox import Sandbox
from sllm_tune.tasks.encode import Encoder
from sllm_tune.wording import shown

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Up to this many tokens a row, eager attention was faster on a CPU than the fused kernel (training 837 against 716
# tokens/s at 8 x 128); it materialises the attention matrix, so it is not used for long rows or on an accelerator.
EAGER_MAX_TOKENS = 512
NO_WINDOW = 1e9  # tokenizers that know no limit say 1e30

# Far above any model; transformers builds the layers, and the labels, that a configuration names one by one.
_SIZES = {
    "layers": 10_000,
    "layer": 10_000,
    "experts": 10_000,
    "heads": 100_000,
    "num_labels": 100_000,
    "_size": 10**8,
    "_dim": 10**8,
}


def load_tokenizer(path: str, base: BaseModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer of `find_base`'s result.

    Raises:
        ModelError: none is there, or `chat_template: true` and it has no template.
    """
    from transformers import AutoTokenizer
    from transformers.utils import chat_template_utils

    chat_template_utils.ImmutableSandboxedEnvironment = Sandbox  # whatever the template does, it comes to an end
    load_config(path, base)
    with explained(base, "tokenizer_config.json or tokenizer.json"):
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=_revision(base), trust_remote_code=base.trust_remote_code
        )
        tokenizer.decode(tokenizer.encode("a b"))  # some settings are of a wrong type until they are used
    if not isinstance(tokenizer.chat_template, str | dict | None):
        raise ModelError(
            f"base_model.path: {base.path}: chat_template in tokenizer_config.json must be text "
            f"(got {shown(tokenizer.chat_template)})."
        )
    if base.chat_template and not tokenizer.chat_template:
        raise ModelError(
            f"base_model.chat_template: the tokenizer of {base.path} has no chat template.\n"
            "  Set base_model.chat_template: false to train, score and serve on plain text."
        )
    return tokenizer


def load_encoder(path: str, base: BaseModelSection) -> Encoder:
    """What turns the base's prompts into tokens, with its window and the rows that it has for tokens.

    Raises:
        ModelError: as `load_tokenizer`, or the chat template cannot be used.
    """
    tokenizer = load_tokenizer(path, base)
    config = load_config(path, base)
    rows = getattr(config.get_text_config(), "vocab_size", None)
    return Encoder(tokenizer, chat_template=base.chat_template, window=window_of(config, tokenizer), rows=rows)


def window_of(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Most tokens that a model reads: its positions, or what its tokenizer says if that is less; None is no limit."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    said = [limit for limit in (positions, tokenizer.model_max_length) if limit and 0 < limit < NO_WINDOW]
    return min(said, default=None)


def load_config(path: str, base: BaseModelSection) -> PreTrainedConfig:
    """The configuration of `find_base`'s result, in sizes that a model can have; no code of the base is run.

    Raises:
        ModelError: none is there, or it is wrong; with the key where one is.
    """
    from transformers import AutoConfig, PreTrainedConfig

    revision = _revision(base) if path == base.path else None
    with explained(base, "config.json"):
        values, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
        _require_sane(values, base)
        return AutoConfig.from_pretrained(path, trust_remote_code=base.trust_remote_code, revision=revision)


def _require_sane(values: Mapping[str, object], base: BaseModelSection, inside: str = "") -> None:
    """Raises ModelError for a size that no model has, and for code of the hub that it asks for beside its own."""
    for key, value in values.items():
        where = f"base_model.path: {base.path}: {inside}{key} in config.json"
        if isinstance(value, dict):
            _require_sane(value, base, f"{inside}{key}.")
        limit = next((limit for part, limit in _SIZES.items() if part in str(key)), None)
        if limit is not None and isinstance(value, int) and not 0 <= value <= limit:
            raise ModelError(f"{where} must be at most {limit:,} (got {shown(value)}); no model is as large.")
        if str(key).endswith("_implementation") and "/" in str(value) and not base.trust_remote_code:
            raise ModelError(
                f"{where} names code on the hub ({shown(value)}), which would run on this machine.\n"
                "  Read that code; then set base_model.trust_remote_code: true and pin base_model.revision."
            )


def load_model(
    path: str,
    base: BaseModelSection,
    *,
    longest_tokens: int | None = None,
    quantized: bool = False,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """The causal language model at `path`, on the accelerator where there is one.

    Args:
        path: What `find_base` found, or a folder that `save_pretrained` wrote.
        base: Where the recipe says it comes from.
        longest_tokens: The longest row it will be trained on; decides the attention kernel on a CPU. None for scoring,
            which takes the kernel that lm-eval takes, so that rounding is the same.
        quantized: Load in the recipe's `base_model.quantization` (QLoRA).
        dtype: None is `compute_dtype`.

    Raises:
        ModelError: not found, no safetensors, unknown architecture, damaged weights, or it demands code that the recipe
            does not trust.
    """
    import torch
    from transformers import BitsAndBytesConfig

    _require_as_large(path, base, load_config(path, base))
    on_cpu = not torch.cuda.is_available()
    short = longest_tokens is not None and longest_tokens <= EAGER_MAX_TOKENS
    options: dict[str, Any] = {"attn_implementation": "eager" if on_cpu and short else "sdpa"}
    if quantized and base.quantization:
        options["quantization_config"] = BitsAndBytesConfig(**base.quantization)
    if not on_cpu:
        options["device_map"] = {"": local_rank()}
    revision = _revision(base) if path == base.path else None
    code = base.trust_remote_code
    return _whole(path, base, revision=revision, dtype=dtype or compute_dtype(), trust_remote_code=code, **options)


def _require_as_large(path: str, base: BaseModelSection, config: PreTrainedConfig) -> None:
    """Refuse a configuration of a model far larger than the weights: transformers would make room for all of it.

    Raises:
        ModelError: a local checkpoint has less than two bits for each parameter that its configuration describes.
    """
    held = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    if not held:
        return
    described = _parameters(base, config)
    if described > 4 * held:
        raise ModelError(
            f"base_model.path: {base.path}: config.json describes a model of {described:,} parameters, and its weights "
            f"are {held:,} bytes.\n  Take the config.json that belongs to them."
        )


def _parameters(base: BaseModelSection, config: PreTrainedConfig) -> int:
    """Of the model that a configuration describes."""
    import torch
    from transformers import AutoModelForCausalLM

    with explained(base, "config.json"), torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config, trust_remote_code=base.trust_remote_code)
    return size_of(made)["parameters"]


def _whole(path: str, base: BaseModelSection, **options: Any) -> PreTrainedModel:
    """What `from_pretrained` makes of `path`, where every tensor has its place and every place its finite tensor.

    Raises:
        ModelError: a tensor is missing, left over, of another shape or holds a number that is none; or as `load_model`.
    """
    from transformers import AutoModelForCausalLM

    from sllm_tune.model.head import with_exact_head

    # Other shapes would be an error without the names; `loading` has them.
    options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with explained(base):
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, **options)
    model, loading = loaded
    shapes = sorted(key for key, *_ in loading["mismatched_keys"])
    faults = {
        "has no tensor for": sorted(loading["missing_keys"]),
        "has tensors that its config.json has no place for:": sorted(loading["unexpected_keys"]),
        "has tensors of another shape than its config.json says:": shapes,
        "has NaN or infinite numbers in": [name for name, tensor in tensors(model) if not is_finite(tensor)],
    }
    if found := [f"{what} {some(names)}" for what, names in faults.items() if names]:
        said = "".join(f"\n  It {line}." for line in found)
        raise ModelError(
            f"base_model.path: {base.path}: this checkpoint is damaged or not whole.{said}\n"
            "  Fetch or convert it again, with the config.json that belongs to it."
        )
    return with_exact_head(model).eval()


def load_for_reading(path: str, base: BaseModelSection) -> PreTrainedModel:
    """The model at a local folder, to be run and not to be trained, however large it is.

    Where the memory does not hold it, its layers stay in the safetensors files and each is read when it is its turn.

    Raises:
        ModelError: as `load_model`.
    """
    import torch

    if fits_memory(path):
        return load_model(path, base)
    config = load_config(path, base)
    with explained(base):
        layers = {f"model.layers.{number}": "disk" for number in range(config.num_hidden_layers)}
        places = {"model.embed_tokens": "disk", **layers, "model.norm": "cpu", "model.rotary_emb": "cpu"}
        where = {**places, "lm_head": "disk"}
    dtype = config.dtype or torch.bfloat16  # another one would have to be written to disk first
    return _whole(path, base, dtype=dtype, device_map=where)


def fits_memory(path: str) -> bool:
    """Whether the weights in a local folder go into what is free of the memory that would run them, with a margin."""
    import torch

    size = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else available_memory_bytes()
    return size <= 0.7 * free


def compute_dtype() -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32."""
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def scoring_dtype(path: str, base: BaseModelSection) -> torch.dtype:
    """What a model answers in when answers are compared: float32 on a CPU whose memory holds it, else `compute_dtype`.

    In bfloat16 the answers to near ties are those of the rounding: of another processor, another batch, another engine.
    float32 takes a CPU twice the time; on an accelerator it would be many times.
    """
    import torch

    if torch.cuda.is_available() or compute_dtype() == torch.float32:
        return compute_dtype()
    needed = 4 * _parameters(base, load_config(path, base))
    if needed <= 0.7 * available_memory_bytes():
        return torch.float32
    print(
        f"{base.path}: answers in {str(compute_dtype()).removeprefix('torch.')}: float32 would need "
        f"{needed / 1e9:.1f} GB of memory, and near ties may be answered otherwise elsewhere",
        file=sys.stderr,
        flush=True,
    )
    return compute_dtype()


def _revision(base: BaseModelSection) -> str:
    return base.revision or "main"
