"""Fewer bits: llama.cpp's own mixes of types, and scales that weigh each channel by what the field's text puts through.

Source of the weighing: the importance matrix of llama.cpp (its pull request 4861, January 2024): the squared error of a
row is weighed by the mean square of the activations that each of its channels is multiplied with.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sllm_tune.deliver.engine import log, need
from sllm_tune.deliver.gguf_model import architecture_of, gguf_names, read_config
from sllm_tune.deliver.half_made import half_made, require_space
from sllm_tune.errors import JobFailed
from sllm_tune.model.load import load_model
from sllm_tune.recipe.base_model import BaseModelSection

if TYPE_CHECKING:
    import torch

KINDS = {"Q8_0": 7, "Q5_K_M": 17, "Q4_K_M": 15}  # llama.cpp's numbers
Importance = Mapping[str, NDArray[np.float32]]  # of a tensor by its GGUF name, the weight of each channel (n_in,)


def quantize(gguf: Path, kind: str, out: Path, importance: Importance | None = None) -> None:
    """Write a float16 GGUF file in fewer bits.

    Args:
        gguf: What `to_gguf` wrote.
        kind: One of `KINDS`.
        out: The file to make.
        importance: As `importance_of`; None weighs all channels alike.

    Raises:
        BadInput: the extra is missing. JobFailed: llama.cpp cannot quantise it, or the disk has no room.
    """
    llama = need("cyllama.llama.llama_cpp")
    require_space(out.parent, gguf.stat().st_size * 2 // 3)
    settings = llama.LlamaModelQuantizeParams()
    settings.ftype = KINDS[kind]
    settings.nthread = os.cpu_count() or 1
    kept: list[str] = []

    def tell(level: int, text: str) -> None:
        if "not divisible" in text:
            kept.append(text)
        elif "falling back" not in text:
            log(level, text)

    llama.set_log_callback(tell)
    with half_made(out) as scratch:
        try:
            llama.model_quantize(str(gguf), str(scratch), settings)
        except RuntimeError as error:
            raise JobFailed(f"{gguf}: llama.cpp cannot write it as {kind} ({error}).") from error
        finally:
            llama.set_log_callback(log)
        if importance:
            _weigh(gguf, scratch, importance)
    if kept:
        told = f"{len(kept)} of its tensors have rows that no block of 256 divides, which llama.cpp keeps in more bits"
        print(f"export: {kind}: {told}", file=sys.stderr, flush=True)


def importance_of(checkpoint: Path, rows: Iterable[list[int]]) -> dict[str, NDArray[np.float32]]:
    """Mean squares of what goes into each linear layer.

    Args:
        checkpoint: The folder that the GGUF file was made of.
        rows: Token ids of texts of the field, each at most as long as the window.

    Returns:
        Of each weight by its GGUF name the mean square of each of its channels, `(n_in,)`.

    Raises:
        ModelError: as `load_model` and `to_gguf`.
    """
    import torch

    config = read_config(checkpoint)
    name = gguf_names(architecture_of(config, checkpoint), config)
    model = load_model(str(checkpoint), BaseModelSection(path=str(checkpoint)))
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def watch(key: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            flat = inputs[0].detach().float().flatten(0, -2)
            squares = flat.square().sum(0).cpu()
            sums[key] = sums[key] + squares if key in sums else squares
            counts[key] = counts.get(key, 0) + len(flat)

        return hook

    layers = [(key, part) for key, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    hooks = [part.register_forward_pre_hook(watch(name(f"{key}.weight"))) for key, part in layers if key != "lm_head"]
    with torch.no_grad():
        for ids in rows:
            model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {key: (sums[key] / counts[key]).numpy().astype(np.float32) for key in sums}


def _weigh(gguf: Path, quantized: Path, importance: Importance) -> None:
    """Quantise the tensors that have weights again, each in the type that llama.cpp chose for it, in its place."""
    import gguf as package

    chunk = _chunk()
    whole = {tensor.name: tensor for tensor in package.GGUFReader(gguf).tensors}
    for tensor in package.GGUFReader(quantized, "r+").tensors:
        weights = importance.get(tensor.name)
        kind = tensor.tensor_type
        if weights is None or kind.name in ("F16", "F32", "Q8_0"):  # Q8_0 has no scales to choose
            continue
        source = np.ascontiguousarray(whole[tensor.name].data, dtype=np.float32)
        rows, columns = source.shape
        made = np.zeros(tensor.data.nbytes, dtype=np.uint8)
        used = np.ascontiguousarray(weights, dtype=np.float32)
        if used.shape != (columns,):
            raise JobFailed(f"{tensor.name}: {columns} channels, and weights for {used.shape}.")
        written = chunk(int(kind), source.ctypes.data, made.ctypes.data, 0, rows, columns, used.ctypes.data)
        if written != made.nbytes:
            raise JobFailed(f"{tensor.name}: llama.cpp wrote {written} bytes of {made.nbytes} in {kind.name}.")
        tensor.data[:] = made.reshape(tensor.data.shape).view(tensor.data.dtype)


def _chunk() -> Callable[..., int]:
    """`ggml_quantize_chunk` of the library in xllamacpp's wheel: plain numbers and addresses, the same for years.

    cyllama's quantiser takes no importance matrix (0.2.18), and its library does not export this function.
    """
    library = ctypes.CDLL(need("xllamacpp.xllamacpp").__file__)
    found = library.ggml_quantize_chunk
    size, address = ctypes.c_int64, ctypes.c_void_p
    found.argtypes, found.restype = [ctypes.c_int, address, address, size, size, size, address], ctypes.c_size_t
    return found
