"""The run folder: one lock, one manifest a stage, and nothing half-written that looks finished.

A stage works in `.work/<stage>-<fingerprint>/`, so what an interrupted run left there can only be taken up by the same
stage with the same inputs. When it is done, `Run.commit` writes down what it will rename, removes the old manifest,
renames the outputs into place and writes the new manifest last: a kill at any moment leaves the old artefact with its
manifest, or a commit that the next run finishes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sllm_tune.errors import RunFolderError

PACKAGES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes"),
    *("lm-eval", "scikit-learn", "sllm-tune"),
)
PENDING = "pending.json"  # beside a manifest: a commit that is being made


def write_json(path: Path, value: object) -> None:
    """Write through a temporary name in the same folder, so that `path` is never half-written."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write through a temporary name in the same folder, so that `path` is never half-written."""
    _write(path, [text])


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, through a temporary name."""
    _write(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write(path: Path, parts: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(parts)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a file that `write_jsonl` made."""
    # Not splitlines(): it also breaks at U+2028 and friends, which JSON leaves unescaped inside strings.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def sha256(path: Path) -> str:
    """Of a file's content, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Python and the libraries that decide a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of the inputs as canonical JSON, 64 hex digits."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def flatten(value: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """`{"train": {"lora": {"r": 8}}}` as `{"train.lora.r": 8}`; the names that skip messages and manifests use."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}.{key}"
        flat |= flatten(item, name) if isinstance(item, Mapping) and item else {name: item}
    return flat


@dataclass(frozen=True)
class Run:
    """A run folder that this process may write. Made by `open_run`."""

    dir: Path

    def manifest(self, stage: str) -> dict[str, Any] | None:
        """What `stage` recorded when it finished, or None."""
        path = self.dir / stage / "manifest.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def why(self, stage: str, inputs: Mapping[str, Any]) -> str | None:
        """The reason `stage` has to run, or None when its artefact is there and was made from the same inputs."""
        manifest = self.manifest(stage)
        if manifest is None:
            return "not made yet"
        missing = [name for name in manifest["outputs"] if not (self.dir / name).exists()]
        if missing:
            return f"{missing[0]} is missing"
        before: dict[str, Any] = manifest["inputs"]
        changed = [key for key in {**before, **inputs} if before.get(key) != inputs.get(key)]
        if not changed:
            return None
        key = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        if key.startswith("file."):
            return f"{key.removeprefix('file.')} changed{more}"
        return f"{key} changed from {_short(before.get(key))} to {_short(inputs.get(key))}{more}"

    def work(self, stage: str, inputs: Mapping[str, Any]) -> Path:
        """The folder where `stage` works on exactly these inputs; holds what an interrupted run left."""
        folder = self.work_folder(stage, inputs)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def work_folder(self, stage: str, inputs: Mapping[str, Any]) -> Path:
        """Where `work` makes it."""
        return self.dir / ".work" / f"{stage}-{fingerprint(inputs)[:16]}"

    def commit(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        *,
        outputs: Mapping[str, Path],
        seed: int,
        cost: Mapping[str, float | None],
        **more: Any,
    ) -> None:
        """Rename finished `outputs` (name in the run folder: where it lies now) into place, manifest last.

        What is going to be renamed is written down first, so that a kill in between costs nothing: `open_run` goes on.
        """
        record = {
            "stage": stage,
            "fingerprint": fingerprint(inputs),
            "inputs": dict(inputs),
            "outputs": list(outputs),
            "versions": versions(),
            "seed": seed,
            **cost,
            **more,
            "finished_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        moves = {name: str(path.relative_to(self.dir)) for name, path in outputs.items()}
        write_json(self.dir / stage / PENDING, {"moves": moves, "manifest": record})
        self.finish_commit(stage)

    def finish_commit(self, stage: str) -> None:
        """Make the renames of a commit that are not made yet, and write its manifest; nothing where none is pending."""
        pending = self.dir / stage / PENDING
        if not pending.exists():
            return
        manifest = self.dir / stage / "manifest.json"
        manifest.unlink(missing_ok=True)
        commit = json.loads(pending.read_text(encoding="utf-8"))
        for name, source in commit["moves"].items():
            path, target = self.dir / source, self.dir / name
            if path.exists():  # else it was renamed before
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.is_dir() and not target.is_symlink():
                    shutil.rmtree(target)
                os.replace(path, target)
        write_json(manifest, commit["manifest"])
        pending.unlink()
        for folder in (self.dir / ".work").glob(f"{stage}-*"):
            shutil.rmtree(folder)


@contextlib.contextmanager
def open_run(folder: Path) -> Generator[Run]:
    """Make `folder` readable by its owner only, and hold its lock; the kernel drops the lock with the process.

    Raises:
        RunFolderError: another process holds the lock (named by its id), or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise RunFolderError(
            f"{folder}: cannot be written ({error.strerror}).\n  Name another with --run-dir."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise RunFolderError(
                f"{folder}: in use by process {lock.read().strip() or 'unknown'}.\n"
                "  Wait until it is done, or name another run folder with --run-dir."
            ) from error
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        run = Run(folder)
        for pending in folder.glob(f"*/{PENDING}"):
            run.finish_commit(pending.parent.name)
        yield run


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
