"""Heal, and store in fewer bits: the steps that change a model's weights and not its shape."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from sllm_tune.model.checkpoint import save_plain
from sllm_tune.model.load import load_model
from sllm_tune.recipe.resize import Distill, Quantize
from sllm_tune.resize.source import Source
from sllm_tune.train.assemble import Job
from sllm_tune.train.distil import distill


def heal(step: Distill, source: Source, out: Path) -> dict[str, JsonValue]:
    """Train the checkpoint to predict as the base did; every process of a launcher takes part."""
    answers_only = step.tokens == "answer"
    where = (str(source.folder), source.base, source.data, source.work)
    job = Job(*where, step.sft, step.lora, source.seed, source.key, answers_only)
    return {**distill(step, job, source.original, out)}


def quantize(step: Quantize, source: Source, out: Path) -> dict[str, JsonValue]:
    """Write the checkpoint in the bits that the step asks for."""
    base = source.base.model_copy(update={"quantization": step.quantization})
    save_plain(load_model(str(source.folder), base, quantized=True), source.tokenizer, out)
    return {}
