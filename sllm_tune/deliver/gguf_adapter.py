"""A LoRA adapter as a GGUF file, which llama.cpp puts on the GGUF file of its base."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from sllm_tune.deliver.gguf_model import (
    F16,
    Config,
    Tensor,
    architecture_of,
    gguf_names,
    heads_of,
    in_pairs,
    read_config,
)
from sllm_tune.deliver.half_made import half_made, require_space
from sllm_tune.errors import ModelError
from sllm_tune.wording import listed, shown

_KEY = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
# Options of an adapter that llama.cpp has no counterpart for, and their value where they are not used.
_UNUSED: dict[str, object] = {
    **{"use_dora": False, "lora_bias": False, "fan_in_fan_out": False, "bias": "none", "modules_to_save": None},
    **{"trainable_token_indices": None, "target_parameters": None, "alora_invocation_tokens": None},
    **{"alpha_pattern": {}, "rank_pattern": {}, "layer_replication": None},
}


class Lora(TypedDict):
    """What `adapter_config.json` says of how much an adapter counts."""

    r: int
    lora_alpha: float
    use_rslora: bool


def adapter_to_gguf(adapter: Path, base: Path, out: Path) -> None:
    """Write a LoRA adapter as GGUF in float16.

    Args:
        adapter: A folder of PEFT.
        base: The checkpoint it was trained on, for its sizes; only `config.json` is read.
        out: The file to make.

    Raises:
        ModelError: it is not a plain LoRA adapter, or llama.cpp does not know the base's architecture.
        JobFailed: the disk has no room.
    """
    from gguf import GGUFWriter
    from safetensors import safe_open

    options = _plain_lora(adapter)
    config = read_config(base)
    architecture = architecture_of(config, base)
    name = gguf_names(architecture, config)
    weights = adapter / "adapter_model.safetensors"
    require_space(out.parent, weights.stat().st_size + (1 << 20))
    with half_made(out) as scratch:
        writer = GGUFWriter(scratch, architecture.name)
        writer.add_type("adapter")
        writer.add_file_type(F16)
        writer.add_string("adapter.type", "lora")
        # llama.cpp divides by the rank.
        writer.add_float32(
            "adapter.lora.alpha", options["lora_alpha"] * (math.sqrt(options["r"]) if options["use_rslora"] else 1)
        )
        with safe_open(weights, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118  not a dict
                place, tensor = _placed(key, opened.get_tensor(key).float().numpy(), config, name, architecture.pairs)
                writer.add_tensor(place, tensor.astype(np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _plain_lora(adapter: Path) -> Lora:
    file = adapter / "adapter_config.json"
    try:
        options = json.loads(file.read_text(encoding="utf-8"))
        kind, _, _ = options["peft_type"], options["r"] + 0, options["lora_alpha"] + 0
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{file}: not the configuration of a LoRA adapter ({error!r:.200}).") from error
    used = [key for key, unused in _UNUSED.items() if (options.get(key) or unused) != unused]
    if kind != "LORA" or used:
        what = f"uses {listed(used, 'and')}" if used else f"is a {shown(kind)} adapter"
        raise ModelError(
            f"{adapter}: the adapter {what}, which llama.cpp does not put on a base.\n"
            "  `--format gguf` exports it merged."
        )
    return cast(Lora, {"use_rslora": False, **options})


def _placed(key: str, tensor: Tensor, config: Config, name: Callable[[str], str], pairs: bool) -> tuple[str, Tensor]:
    """llama.cpp's name and order of a tensor of the adapter."""
    found = _KEY.fullmatch(key)
    if found is None:
        raise ModelError(
            f"the adapter's tensor {key} is none that llama.cpp puts on a base; `--format gguf` merges it."
        )
    inside = f"{found[1]}.weight"
    heads = heads_of(inside, config) if pairs and found[2] == "B" else None
    ordered = np.ascontiguousarray(in_pairs(tensor, heads) if heads else tensor)
    return f"{name(inside)}.lora_{found[2].lower()}", ordered
