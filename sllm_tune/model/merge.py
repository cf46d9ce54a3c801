"""An adapter on its base: beside it, or merged into one plain checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sllm_tune.errors import JobFailed
from sllm_tune.model.checkpoint import is_finite, save_plain, some, tensors
from sllm_tune.model.load import compute_dtype, load_model, load_tokenizer
from sllm_tune.model.probe import Probe, require_same
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.tasks.encode import Encoder


def load_adapted(path: str, base: BaseModelSection, adapter: Path) -> Any:
    """The base with the adapter beside it, unmerged, as it was trained (quantised where the recipe says so)."""
    from peft import PeftModel

    model = load_model(path, base, quantized=True)
    return PeftModel.from_pretrained(model, str(adapter)).eval()


def merge(path: str, base: BaseModelSection, adapter: Path, out: Path, trained: Probe | None = None) -> None:
    """Write base plus adapter as one plain checkpoint to `out`, in `compute_dtype`.

    It has to make of the rows in `trained` what the model made of them at the end of training.

    The product is computed in float32 and rounded once. A quantised base is dequantised first: merging into 4-bit
    weights would quantise the adapter too, and was seen to change 3 to 5 answers in 10.

    Raises:
        ModelError: as `load_model`. JobFailed: the merged model is not the trained one.
    """
    import torch
    from peft import PeftModel

    model: Any = load_model(path, base, quantized=True)
    if getattr(model, "is_quantized", False):
        model = model.dequantize()
        model._weight_conversions = None  # how a stored quantised model is read; transformers cannot turn it round
    adapted: Any = PeftModel.from_pretrained(model.to("cpu", torch.float32), str(adapter))
    init = adapted.peft_config["default"].init_lora_weights
    merged: Any = adapted.merge_and_unload().to(compute_dtype())
    if broken := [name for name, tensor in tensors(merged) if not is_finite(tensor)]:
        raise JobFailed(f"merge: the merged model has NaN or infinite numbers in {some(broken)}.\n  Train again.")
    if trained:
        require_same(merged, trained, init)
    tokenizer = load_tokenizer(path, base)
    if merged.generation_config is not None:  # what serves it reads there where an answer ends
        Encoder(tokenizer, chat_template=base.chat_template).stop_at_taught(merged.generation_config)
    save_plain(merged, tokenizer, out)
