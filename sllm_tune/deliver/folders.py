"""The specialist as folders that transformers, peft and vLLM load: merged, or as an adapter with its base beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sllm_tune.deliver.half_made import half_made, require_space
from sllm_tune.errors import ModelError
from sllm_tune.model.checkpoint import readable_elsewhere
from sllm_tune.model.lineage import ADAPTER_FILE, base_sha256, lineage_of, require_same_base
from sllm_tune.runs.files import write_json

BASE = "base"  # the folder inside an adapter's
CHECKPOINT = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "chat_template.jinja", "vocab.json", "merges.txt")


def write_merged(merged: Path, out: Path) -> None:
    """Copy a run's merged checkpoint to a folder.

    Raises:
        BadInput: `out` holds something. JobFailed: the disk has no room.
    """
    require_space(out.parent, _size(merged))
    with half_made(out) as scratch:
        copy_files(merged, scratch, (*CHECKPOINT, *TOKENIZER, ADAPTER_FILE))
        readable_elsewhere(scratch)


def write_adapter(adapter: Path, merged: Path, out: Path, base: Path | None) -> None:
    """Write an adapter that `PeftModel` and, started in its folder, `AutoPeftModelForCausalLM` load.

    Args:
        adapter: The run's.
        merged: The run's, for its tokenizer and where an answer ends.
        out: The folder to make.
        base: What the adapter was trained on, where that is no model of a hub: it is copied to `base/` in the
            folder, the adapter names it so, and its content hash is recorded.

    Raises:
        ModelError: the adapter was trained on another base, or is on no hub and not given.
        BadInput: `out` holds something. JobFailed: the disk has no room.
    """
    if base is not None:
        require_same_base(adapter, str(base), None)
    require_space(out.parent, _size(adapter) + (_size(base) if base else 0))
    with half_made(out) as scratch:
        copy_files(adapter, scratch, ("adapter_config.json", "adapter_model.safetensors", ADAPTER_FILE))
        copy_files(merged, scratch, ("generation_config.json", *TOKENIZER))
        if base is None:
            _require_hub_id(adapter)
            return
        copy_files(base, scratch / BASE, (*CHECKPOINT, *TOKENIZER))
        copy_files(merged, scratch / BASE, ("generation_config.json",))
        readable_elsewhere(scratch / BASE)
        file = scratch / "adapter_config.json"
        options = json.loads(file.read_text(encoding="utf-8"))
        write_json(file, {**options, "base_model_name_or_path": f"./{BASE}", "revision": None})
        lineage = {**lineage_of(adapter), "base_sha256": base_sha256(str(scratch / BASE), None)}
        write_json(scratch / ADAPTER_FILE, lineage)


def _require_hub_id(adapter: Path) -> None:
    name = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not isinstance(name, str) or name.startswith((".", "pypi:")) or "/" not in name:
        raise ModelError(
            f"{adapter}: its base, {name}, is on no hub, so it has to be written beside it.\n"
            "  Name its folder with --base; of a run that resizes it is the run's model/."
        )


def copy_files(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """Copy the files of a folder that any of the patterns names."""
    target.mkdir(exist_ok=True)
    for file in sorted({found for pattern in patterns for found in source.glob(pattern) if found.is_file()}):
        shutil.copyfile(file, target / file.name)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
