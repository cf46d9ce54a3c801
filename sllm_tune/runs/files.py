"""Files of a run: written whole or not at all, read back, hashed; and the versions that made them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import JsonValue

    from sllm_tune.rows.read import Row

PACKAGES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes"),
    *("lm-eval", "scikit-learn", "sllm-tune"),
)


def write_json(path: Path, value: object) -> None:
    """Write through a temporary name in the same folder, so that `path` is never half-written."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write through a temporary name in the same folder, so that `path` is never half-written."""
    _write(path, [text])


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """One JSON object a line, through a temporary name."""
    _write(path, (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def _write(path: Path, parts: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a file that `write_jsonl` made."""
    # Not splitlines(): it also breaks at U+2028 and friends, which JSON leaves unescaped inside strings.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def versions() -> dict[str, str]:
    """Python and the libraries that decide a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def fingerprint(inputs: Mapping[str, object]) -> str:
    """SHA-256 of the inputs as canonical JSON, 64 hex digits."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def flatten(value: Mapping[str, JsonValue], prefix: str) -> dict[str, JsonValue]:
    """`{"train": {"lora": {"r": 8}}}` as `{"train.lora.r": 8}`; the names that skip messages and manifests use."""
    flat: dict[str, JsonValue] = {}
    for key, item in value.items():
        name = f"{prefix}.{key}"
        flat |= flatten(item, name) if isinstance(item, Mapping) and item else {name: item}
    return flat


def sha256(path: Path) -> str:
    """Of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return digest(file)


def digest(file: IO[bytes]) -> str:
    """SHA-256 of what is left to read of an open file, 64 hex digits."""
    found = hashlib.sha256()
    while chunk := file.read(1 << 20):
        found.update(chunk)
    return found.hexdigest()


def sync(path: Path) -> None:
    """Return when the disk holds a file's bytes, or a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
