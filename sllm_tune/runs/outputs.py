"""What a stage made, file by file: recorded when it is finished, and told from what was edited, cut or removed since.

Nothing that lies in a run folder is believed: a manifest and a list of renames are read as if a stranger wrote them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import cast

from sllm_tune.errors import RunFolderError
from sllm_tune.runs.files import sha256, sync
from sllm_tune.runs.manifest import FileFound, Found

# The names that each stage makes in a run folder, besides those in the stage's own folder.
MADE = {
    "prepare": ("data", "tasks"),
    "replay": (),
    "resize": ("model",),
    "train": ("adapter",),
    "merge": ("merged",),
    "evaluate": ("scores", "merged"),  # the latter by an earlier version
    "report": ("report.html", "report.md"),
}
OWN_FOLDERS = (".work", *MADE)


def record_files(outputs: Mapping[str, Path]) -> dict[str, FileFound]:
    """Size, time and SHA-256 of every file in `outputs`, by its name in the run folder. All is on the disk then."""
    found: dict[str, FileFound] = {}
    for name, path in outputs.items():
        for file in _files(path):
            sync(file)
            state = file.stat()
            inside = file.relative_to(path).as_posix() if file != path else ""
            found[f"{name}/{inside}" if inside else name] = {
                "size": state.st_size,
                "mtime_ns": state.st_mtime_ns,
                "sha256": sha256(file),
            }
        if path.is_dir():
            for folder in [path, *(inner for inner in path.rglob("*") if inner.is_dir() and not inner.is_symlink())]:
                sync(folder)
    return found


def deviation(folder: Path, manifest: Found) -> str | None:
    """The first output in a run `folder` that is not what its manifest says; None where all are.

    Only a file whose time is not the recorded one is read.
    """
    missing = [name for name in manifest["outputs"] if not (folder / name).exists()]
    if missing:
        return f"{missing[0]} is missing"
    if "files" not in manifest:
        return "made by an older version, which did not record what its files held"
    for name, was in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        state = path.stat()
        same_time = state.st_mtime_ns == was["mtime_ns"]
        if state.st_size != was["size"] or (not same_time and sha256(path) != was["sha256"]):
            return f"{name} was changed since {manifest['stage']} made it"
    return None


def read_manifest(path: Path, stage: str) -> Found | None:
    """What `stage` recorded in the file `path`; None where there is no such file.

    Raises:
        RunFolderError: it is not what a stage records.
    """
    manifest = _read_object(path)
    return None if manifest is None else _checked(manifest, path, stage)


def read_pending(path: Path, folder: Path, stage: str) -> tuple[dict[str, str], list[str], Found] | None:
    """The renames of a commit that was cut short, the outputs they replace, and its manifest; None without one.

    Raises:
        RunFolderError: it is not what a commit writes, or it would rename anything but the stage's own outputs.
    """
    commit = _read_object(path)
    if commit is None:
        return None
    moves, manifest, replaced = commit.get("moves"), commit.get("manifest"), commit.get("replaced", [])
    if not isinstance(moves, dict) or not isinstance(manifest, dict) or not _is_names(replaced, stage):
        raise _damaged(path, "it has no moves, no manifest or no list of what is replaced")
    checked = _checked(cast(dict[str, object], manifest), path, stage)
    for name, source in cast(dict[str, object], moves).items():
        worked = isinstance(source, str) and re.fullmatch(rf"\.work/{stage}-[^/]+/.+", source) and _is_plain(source)
        if not isinstance(source, str) or not worked or not _is_name(name, stage):
            raise _damaged(path, f"it would move {source!r} to {name!r}, which {stage} never makes")
        for place in (folder / source, folder / name):
            if not place.parent.resolve().is_relative_to(folder.resolve()):
                raise _damaged(path, f"{place} leads out of the run folder")
    return cast(dict[str, str], moves), cast(list[str], replaced), checked


def _files(path: Path) -> Iterable[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _read_object(path: Path) -> dict[str, object] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(value, dict):
        raise _damaged(path, "it holds no JSON object")
    return cast(dict[str, object], value)


def _checked(manifest: dict[str, object], path: Path, stage: str) -> Found:
    right = {
        "stage": manifest.get("stage") == stage,
        "inputs": isinstance(manifest.get("inputs"), dict),
        "outputs": _is_names(manifest.get("outputs"), stage),
        "files": "files" not in manifest or _is_record(manifest["files"], stage),
        "seed": isinstance(manifest.get("seed"), int),
        "finished_at": isinstance(manifest.get("finished_at"), str),
        "seconds": isinstance(manifest.get("seconds"), int | float | None),
    }
    if wrong := [key for key, is_right in right.items() if not is_right]:
        raise _damaged(path, f"its {wrong[0]!r} is not what {stage} records")
    return cast(Found, manifest)


def _is_record(files: object, stage: str) -> bool:
    kinds = {"size": int, "mtime_ns": int, "sha256": str}
    return _is_names(list(files) if isinstance(files, dict) else None, stage) and all(
        isinstance(was, dict) and all(isinstance(was.get(key), kind) for key, kind in kinds.items())
        for was in cast(dict[str, object], files).values()
    )


def _is_names(names: object, stage: str) -> bool:
    return isinstance(names, list) and all(_is_name(name, stage) for name in cast(list[object], names))


def _is_name(name: object, stage: str) -> bool:
    return isinstance(name, str) and _is_plain(name) and PurePosixPath(name).parts[0] in (*MADE.get(stage, ()), stage)


def _is_plain(name: str) -> bool:
    """A path that goes down from the run folder, at least one step and never up or by itself to another place."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\0" not in name


def _damaged(path: Path, why: str) -> RunFolderError:
    stage = path.parent.name
    return RunFolderError(
        f"{path}: not a file that sllm-tune wrote, or damaged ({why}).\n"
        f"  Remove it, and {stage} is made again; or name another run folder with --run-dir."
    )
