"""An adapter on its base: beside it, or merged into one plain checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from sllm_tune.errors import JobFailed, ModelError
from sllm_tune.model.checkpoint import is_finite, readable_elsewhere, save_plain, some, tensors
from sllm_tune.model.load import compute_dtype, load_model, load_tokenizer
from sllm_tune.model.probe import Probe, require_same
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.tasks.encode import Encoder

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


def load_adapted(path: str, base: BaseModelSection, adapter: Path, *, dtype: torch.dtype | None = None) -> PeftModel:
    """The base with the adapter beside it, unmerged, as it was trained (quantised where the recipe says so)."""
    return _with_adapter(load_model(path, base, quantized=True, dtype=dtype), adapter).eval()


def _with_adapter(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """The model under the adapter of a folder, each tensor of whose file has its place and each place its tensor.

    PEFT leaves a place without a tensor as it began, which is an adapter that does nothing there, and only warns of it.

    Raises:
        ModelError: a tensor is missing or left over.
    """
    from peft import PeftModel, get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # named below
        adapted = PeftModel.from_pretrained(model, str(adapter))
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        held = set(file.keys())
    placed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    # Adapters from elsewhere may bring the base's embeddings along, which are placed as well.
    faults = {"no tensor for": placed - held, "tensors without a place:": {k for k in held - placed if "lora_" in k}}
    if found := [f"{what} {some(sorted(names))}" for what, names in faults.items() if names]:
        raise ModelError(
            f"{adapter}: the adapter does not fit the base, or is damaged. It has {' and '.join(found)}.\n"
            "  Take the adapter that was trained on this base, or train again."
        )
    return adapted


def merge(path: str, base: BaseModelSection, adapter: Path, out: Path, trained: Probe | None = None) -> None:
    """Write base plus adapter as one plain checkpoint to `out`, in `compute_dtype`.

    It has to make of the rows in `trained` what the model made of them at the end of training.

    The product is computed in float32 and rounded once. A quantised base is dequantised first: merging into 4-bit
    weights would quantise the adapter too, and was seen to change 3 to 5 answers in 10.

    Raises:
        ModelError: as `load_model`, or a tensor of the adapter is missing or left over.
        JobFailed: the merged model is not the trained one.
    """
    import torch

    model: Any = load_model(path, base, quantized=True)
    if getattr(model, "is_quantized", False):
        model = model.dequantize()
        model._weight_conversions = None  # how a stored quantised model is read; transformers cannot turn it round
    adapted = _with_adapter(model.to("cpu", torch.float32), adapter)
    init = getattr(adapted.peft_config["default"], "init_lora_weights", None)
    merged = adapted.merge_and_unload().to(compute_dtype())
    if broken := [name for name, tensor in tensors(merged) if not is_finite(tensor)]:
        raise JobFailed(f"merge: the merged model has NaN or infinite numbers in {some(broken)}.\n  Train again.")
    if trained:
        require_same(merged, trained, init)
    tokenizer = load_tokenizer(path, base)
    if merged.generation_config is not None:  # what serves it reads there where an answer ends
        Encoder(tokenizer, chat_template=base.chat_template).stop_at_taught(merged.generation_config)
    save_plain(merged, tokenizer, out)
    readable_elsewhere(out)
