"""A plain checkpoint as OpenVINO's files, for Intel processors, in the layout that OpenVINO GenAI and Optimum load.

The model takes `input_ids`, `attention_mask`, `position_ids` and `beam_idx`, keeps keys and values as its own state,
and gives `logits`. It is made by OpenVINO's front end alone: its converter would report to Intel that it was used.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sllm_tune.deliver.engine import need
from sllm_tune.deliver.folders import TOKENIZER, copy_files
from sllm_tune.deliver.half_made import half_made, require_space
from sllm_tune.errors import ModelError
from sllm_tune.model.load import load_model, load_tokenizer
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.wording import shown

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

MODEL, READS, WRITES = "openvino_model.xml", "openvino_tokenizer.xml", "openvino_detokenizer.xml"
# OpenVINO keeps the cache in 8 bits unless the file says otherwise, which moves logits by half a nat.
CACHE = "f16"
TRACED = (2, 3, 4)  # rows, new tokens and cached tokens of the example that is traced: three sizes that differ


def to_openvino(checkpoint: Path, out: Path) -> None:
    """Write the folder `out`: model in float16, tokenizer both as OpenVINO's and as transformers', stop token.

    Args:
        checkpoint: A folder that `save_pretrained` wrote, safetensors.
        out: The folder to make.

    Raises:
        BadInput: the extra `openvino` is missing, or `out` holds something.
        ModelError: OpenVINO cannot express this architecture or its tokenizer.
        JobFailed: the disk has no room for it.
    """
    ov, tokenizers = need("openvino", "openvino"), need("openvino_tokenizers", "openvino")
    section = BaseModelSection(path=str(checkpoint), chat_template=False)
    tokenizer = load_tokenizer(str(checkpoint), section)
    require_space(out.parent, sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")) + (64 << 20))
    with half_made(out) as scratch:
        scratch.mkdir()
        flat = _with_flat_cache(checkpoint, section)
        decoder = _decoder(flat, checkpoint)  # in whose memory the weights are until they are written
        model = _converted(decoder, flat.model.config, checkpoint)
        model.set_rt_info(CACHE, ["runtime_options", "KV_CACHE_PRECISION"])
        ov.save_model(model, scratch / MODEL, compress_to_fp16=True)
        try:
            reads, writes = tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
        except Exception as error:  # it raises whatever its parts raise
            raise ModelError(f"{checkpoint}: OpenVINO cannot express its tokenizer ({error!s:.200}).") from error
        ov.save_model(reads, scratch / READS)
        ov.save_model(writes, scratch / WRITES)
        copy_files(checkpoint, scratch, ("config.json", "generation_config.json", *TOKENIZER))


class _FlatCache:
    """What is traced: the model with its cache as plain tensors, two a layer, after three other inputs."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> Any:
        """Logits, and keys and values of each layer with the new tokens."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        layers: list[Any] = cache.layers
        for layer, keys, values in zip(layers, past[::2], past[1::2], strict=True):
            layer.keys, layer.values, layer.is_initialized = keys, values, True
            layer.dtype, layer.device = keys.dtype, keys.device
        new, all_tokens = input_ids.shape[1], attention_mask.shape[1]
        places = torch.arange(new).unsqueeze(1) + (all_tokens - new)
        sees = (torch.arange(all_tokens).unsqueeze(0) <= places)[None, None] & (attention_mask > 0)[:, None, None, :]
        made = self.model(
            input_ids=input_ids,
            attention_mask=torch.where(sees, 0.0, torch.finfo(torch.float32).min),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return made.logits, *(part for layer in layers for part in (layer.keys, layer.values))


def _with_flat_cache(checkpoint: Path, section: BaseModelSection) -> _FlatCache:
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    model = load_model(str(checkpoint), section, dtype=torch.float32).cpu()
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if kinds != {DynamicLayer}:
        raise ModelError(
            f"{checkpoint}: a {shown(model.config.model_type)} with layers that do not see all of the text is not "
            "exported to OpenVINO.\n  `--format gguf` or `--format merged` exports it."
        )
    return _FlatCache(model)


def _decoder(flat: _FlatCache, checkpoint: Path) -> Any:
    """What OpenVINO reads the traced model from."""
    import torch
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    rows, new, cached = TRACED
    config: Any = flat.model.config
    heads, size = _cache_shape(config)
    ids, seen = torch.ones(rows, new, dtype=torch.int64), torch.ones(rows, new + cached, dtype=torch.int64)
    past = [torch.zeros(rows, heads, cached, size) for _ in range(2 * config.num_hidden_layers)]
    example = (ids, seen, torch.arange(cached, cached + new).expand(rows, new).clone(), *past)

    class Module(torch.nn.Module):
        """Tracing takes a module."""

        def __init__(self) -> None:
            super().__init__()
            self.model = flat.model

        def forward(self, *inputs: Tensor) -> Any:
            return flat(*inputs)

    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Sizes that tracing takes as fixed would be warned of; that none is, the answers show.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+` is deprecated")  # OpenVINO's to change
            return TorchScriptPythonDecoder(Module().eval(), example_input=example)
    except RuntimeError as error:
        raise _not_expressed(checkpoint, error) from error


def _converted(decoder: Any, config: Any, checkpoint: Path) -> Any:
    """OpenVINO's model of it, with the cache inside."""
    from openvino.frontend import FrontEndManager

    front = FrontEndManager().load_by_framework("pytorch")
    try:
        model = front.convert(front.load(decoder))
    except RuntimeError as error:
        raise _not_expressed(checkpoint, error) from error
    return _with_state(model, config.num_hidden_layers, *_cache_shape(config))


def _cache_shape(config: Any) -> tuple[int, int]:
    """Heads of keys and values, and channels of each."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_key_value_heads, size


def _not_expressed(checkpoint: Path, error: Exception) -> ModelError:
    return ModelError(f"{checkpoint}: OpenVINO cannot express this model ({str(error).strip()[:300]}).")


def _with_state(model: Any, layers: int, heads: int, size: int) -> Any:
    """Keys and values as state that `beam_idx` reorders, empty at first."""
    import openvino as ov
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    parts = [f"{number}.{part}" for number in range(layers) for part in ("key", "value")]
    inputs = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{part}" for part in parts)]
    outputs = ["logits", *(f"present.{part}" for part in parts)]
    for place, name in zip(model.inputs, inputs, strict=True):
        place.get_tensor().set_names({name})
        place.get_node().set_friendly_name(name)
        shape = [-1, heads, -1, size] if name.startswith("past") else [-1, -1]
        place.get_node().set_partial_shape(ov.PartialShape(shape))
    for place, name in zip(model.outputs, outputs, strict=True):
        place.get_tensor().set_names({name})
    beam = ops.parameter([-1], dtype=np.int32, name="beam_idx")
    beam.output(0).get_tensor().set_names({"beam_idx"})
    model.add_parameters([beam])
    for name in inputs[3:]:
        place = model.input(name)
        readers = place.get_target_inputs()
        gathered = ops.gather(place.node, beam, ops.constant(0, dtype=np.int64))
        for reader in readers:
            reader.replace_source_output(gathered.output(0))
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, dict(zip(inputs[3:], outputs[1:], strict=True)))
    axis = ops.constant(0, dtype=np.int64)
    rows = ops.gather(ops.shape_of(model.input("input_ids")), ops.constant([0], dtype=np.int64), axis)
    empty = ops.broadcast(
        ops.constant(0.0, dtype=np.float32), ops.concat([rows, ops.constant([heads, 0, size], dtype=np.int64)], 0)
    )
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([empty])
    model.validate_nodes_and_infer_types()
    return model
