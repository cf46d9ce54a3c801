"""What a checkpoint holds, how it is written, and what is said of one that cannot be read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from sllm_tune.errors import ModelError, SllmTuneError
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.runs.files import write_json
from sllm_tune.wording import without_secrets

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write a checkpoint that `from_pretrained` loads, with its tokenizer and without a local path."""
    model.config.name_or_path = ""  # else the local path of the base travels with the checkpoint
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def readable_elsewhere(folder: Path) -> None:
    """Let vLLM, converters and plain `generate` read a checkpoint that transformers 5 wrote, as it was scored.

    They look for `rope_theta` and `rope_scaling`, which transformers 5 calls `rope_parameters`. Answers are scored as
    the most likely ones, so none is drawn at random.
    """
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    whole = rope.get("full_attention", rope)
    if "rope_theta" in whole:
        config["rope_theta"] = whole["rope_theta"]
        if whole.get("rope_type", "default") != "default":
            config["rope_scaling"] = {key: value for key, value in whole.items() if key != "rope_theta"}
    if "sliding_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    write_json(file, config)
    file = folder / "generation_config.json"
    if file.exists():
        drawn = ("temperature", "top_p", "top_k", "min_p", "typical_p")
        generation = json.loads(file.read_text(encoding="utf-8"))
        write_json(file, {key: value for key, value in generation.items() if key not in drawn} | {"do_sample": False})


def size_of(model: torch.nn.Module) -> dict[str, int]:
    """`parameters`, tied ones once, and the `bytes` that hold them."""
    parameters = list(model.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
    }


def tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name, and of a weight in 4 or 8 bits its scales, which a NaN in it spoils."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        yield name, tensor
        state = getattr(tensor, "quant_state", None)
        inner = getattr(state, "state2", None)  # of scales that are quantised themselves
        scales = [getattr(state, "absmax", None), getattr(state, "offset", None), getattr(inner, "absmax", None)]
        yield from ((name, part) for part in [*scales, getattr(tensor, "SCB", None)] if part is not None)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number of it is NaN or infinite; a tensor that is not in memory has none."""
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return True
    # Not isfinite().all(), which makes a mask as long as the tensor; bits fewer than 16 have no order of their own.
    low, high = (tensor if tensor.element_size() > 1 else tensor.float()).detach().aminmax()
    return bool(low.isfinite() & high.isfinite())


def some(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def first_line(error: BaseException) -> str:
    """What an error says first, without secrets."""
    return without_secrets(next(iter(str(error).splitlines()), "no reason given"))[:300]


@contextlib.contextmanager
def explained(base: BaseModelSection, file: str = "") -> Generator[None]:
    """Turns what transformers raises for a base model that cannot be used into a ModelError with the fix.

    Its configurations and tokenizers raise whatever they trip over, down to a panic in Rust; `file` is what is read.
    """
    import torch

    try:
        yield
    except (SllmTuneError, MemoryError, torch.OutOfMemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        text = str(error)
        head = f"base_model.path: {base.path}"
        if "trust_remote_code" in text:
            raise ModelError(
                f"{head} brings its own Python code, which would run on this machine.\n"
                "  Read that code; then set base_model.trust_remote_code: true and pin base_model.revision."
            ) from error
        if isinstance(error, SafetensorError):
            raise ModelError(
                f"{head}: its weights are damaged ({first_line(error)}).\n  Fetch or convert it again."
            ) from error
        if isinstance(error, FileNotFoundError) and text.endswith(".safetensors"):
            name = Path(text).name
            raise ModelError(f"{head}: a part of its weights, {name}, is missing.\n  Fetch it again.") from error
        if "safetensors" in text:
            raise ModelError(
                f"{head} has no safetensors weights; pickled ones are not loaded.\n  Convert it first."
            ) from error
        if isinstance(error, OSError) and "JSON" not in text:
            raise ModelError(
                f"{head}: not found as a folder here or a model on the hub ({first_line(error)}).\n"
                "  Check the name and base_model.revision; a private or gated model needs `hf auth login`."
            ) from error
        where = f": {file}" if file else ""
        raise ModelError(f"{head}{where}: cannot be loaded ({type(error).__name__}: {first_line(error)}).") from error
