"""What a training will need, before it starts: memory, time and money on the hardware that the recipe names.

Rules of thumb, good to about a factor of two. Sources:
    Kaplan et al. 2020, arXiv:2001.08361, section 2.1: 2 FLOPs a parameter and token forward, twice that backward; with
        the weights frozen, half of the backward is left.
    Korthikanti et al. 2022, arXiv:2205.05198, equation 2 and section 5: bytes of activations of a transformer layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm_tune.errors import ModelError
from sllm_tune.model.adapter import bare_model, try_adapter
from sllm_tune.model.find import Base
from sllm_tune.model.load import load_config
from sllm_tune.recipe.recipe import HardwareSection
from sllm_tune.recipe.train import TrainSection

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

UTILISATION = 0.35  # of the peak: what LoRA training reached on two CPU cores, and an ordinary figure for one GPU
FLOPS_PER_PARAMETER_AND_TOKEN = 4
BYTES_PER_TRAINED_PARAMETER = 16  # float32 weight, gradient and AdamW's two moments
DEFAULTS = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_train_epochs": 3.0}  # TRL's


@dataclass(frozen=True)
class Estimate:
    """Of one training, in one process."""

    parameters: int
    trained_parameters: int
    tokens: int
    memory_bytes: float
    seconds: float | None
    usd: float | None


@dataclass(frozen=True)
class Size:
    """Of the training examples."""

    rows: int
    tokens: int
    """Of all of them together."""

    longest_tokens: int


def estimate(
    base: Base,
    train: TrainSection,
    size: Size,
    hardware: HardwareSection | None = None,
    usd_per_hour: float | None = None,
) -> Estimate:
    """Memory, time and cost of a training; without hardware no time, without its price no cost.

    Raises:
        ModelError: the base's configuration is not available. RecipeError: the adapter does not fit the base.
    """
    config, parameters, trained = _shape(base, train)
    sft = DEFAULTS | train.sft
    batch = int(sft["per_device_train_batch_size"])
    trained_tokens = size.tokens * float(sft["num_train_epochs"])
    if sft.get("max_steps", -1) > 0:
        trained_tokens = sft["max_steps"] * batch * int(sft["gradient_accumulation_steps"]) * size.tokens / size.rows
    quantization = base.section.quantization or {}
    weight_bytes = 0.55 if quantization.get("load_in_4bit") else 1.0 if quantization.get("load_in_8bit") else 2.0
    memory = parameters * weight_bytes + trained * BYTES_PER_TRAINED_PARAMETER
    memory += _activation_bytes(config, batch, size.longest_tokens)
    seconds = usd = None
    if hardware is not None:
        flops = FLOPS_PER_PARAMETER_AND_TOKEN * parameters * trained_tokens
        seconds = flops / (hardware.teraflops * 1e12 * UTILISATION)
        usd = None if usd_per_hour is None else seconds / 3600 * usd_per_hour
    return Estimate(parameters, trained, round(trained_tokens), memory, seconds, usd)


def describe(found: Estimate, hardware: HardwareSection | None) -> list[str]:
    """The estimate in sentences, and whether it fits the hardware."""
    millions = f"{found.parameters / 1e6:,.0f} M parameters, {found.trained_parameters / 1e6:,.1f} M of them trained"
    lines = [f"estimate, good to a factor of two: {millions}; {found.tokens:,} training tokens"]
    gigabytes = f"{found.memory_bytes / 1e9:,.1f} GB of memory"
    if hardware is None or found.seconds is None:
        return [
            *lines,
            f"  {gigabytes}; for time and cost, set hardware: {{name: ..., memory_gb: ..., teraflops: ...}}",
        ]
    cost = "no price set (evaluate.usd_per_hour)" if found.usd is None else f"${found.usd:,.2f}"
    fits = "fits" if found.memory_bytes <= hardware.memory_gb * 1e9 else "DOES NOT FIT"
    machine = f"{hardware.name} ({hardware.memory_gb:g} GB)"
    return [*lines, f"  {machine}: {gigabytes}, {fits}; {found.seconds / 60:,.1f} minutes; {cost}"]


def _shape(base: Base, train: TrainSection) -> tuple[PreTrainedConfig, int, int]:
    """The base's configuration, its parameters and the adapter's, without its weights."""
    config = load_config(base.path, base.section)
    try:
        _, model = bare_model(base.path, base.section)
    except Exception as error:  # of a configuration that is wrong somewhere, whatever its own layers trip over
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"base_model.path: {base.section.path}: no model can be made of its config.json ({first})."
        ) from error
    parameters = sum(p.numel() for p in model.parameters())
    return config.get_text_config(), parameters, try_adapter(model, train.lora, "train.lora")


def _activation_bytes(config: PreTrainedConfig, batch: int, length: int) -> float:
    """Of all layers in 16 bits: 34 bytes a token and hidden unit, and 5 a head and pair of tokens."""
    hidden, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    if length > 2048:  # train.py recomputes activations then: only each layer's input is kept
        return 2.0 * length * batch * hidden * layers
    return layers * (34.0 * length * batch * hidden + 5.0 * heads * length * length * batch)
