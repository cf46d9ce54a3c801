"""From an artefact back to its rows and its base, by hash; and rows that must be left out of what is made next."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from sllm_tune.errors import DataError, ModelError
from sllm_tune.runs.files import fingerprint, read_jsonl, sha256, write_json

ADAPTER_FILE = "sllm_tune.json"
_ROW_ID = re.compile("[0-9a-f]{16}")


def left_out(path: Path | None) -> set[str]:
    """Row ids of the file of `data.leave_out`, one a line, as `data/train.jsonl` and `scores/samples` name rows.

    Raises:
        DataError: the file is not there, or a line of it is not a row id.
    """
    if path is None:
        return set()
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")  # a pipe would be waited for
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:  # not UTF-8 is a ValueError, and so is NUL in the name
        raise DataError(f"data.leave_out: {path} cannot be read ({error}).") from error
    ids = [line.strip() for line in lines]
    for number, row in enumerate(ids, 1):
        if row and not _ROW_ID.fullmatch(row):
            raise DataError(f"{path}, line {number}: {row!r} is not a row id; one has 16 hexadecimal digits.")
    return {row for row in ids if row}


def trained_on(out: set[str], runs: Path) -> dict[Path, int]:
    """Run folders in `runs` whose adapter was trained on rows of `out`, with their number."""
    found: dict[Path, int] = {}
    for file in sorted(runs.glob("*/train/lineage.json")):
        try:
            rows: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))["rows"]
            count = sum(len(out.intersection(ids)) for ids in rows.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            print(f"{file}: cannot be read, so what was trained there is not known ({error!r:.200}).", file=sys.stderr)
            continue
        if count:
            found[file.parent.parent] = count
    return found


def warn_of_trained_artefacts(out: set[str], run_dir: Path) -> None:
    """Say which adapters, in this run folder and in those beside it, were trained on rows that are to be left out."""
    for folder, count in trained_on(out, run_dir.absolute().parent).items():
        made = [name for name in ("adapter", "merged", "scores") if (folder / name).exists()]
        print(
            f"prepare: {count} of the rows left out were trained on in {folder}: delete {', '.join(made)} there, "
            "or train and evaluate that run again without the rows.",
            file=sys.stderr,
        )


def record(base: str, revision: str | None, name: str, train: Path, out: Path, adapter: Path) -> None:
    """Write what an adapter comes from: `out` with every row's id, and a short file inside the adapter itself."""
    rows: dict[str, list[str]] = {}
    for row in read_jsonl(train):
        rows.setdefault(row["task"], []).append(row["id"])
    source = {"base": name, "base_sha256": base_sha256(base, revision), "train_sha256": sha256(train)}
    write_json(out, {**source, "rows": {task: sorted(ids) for task, ids in sorted(rows.items())}})
    write_json(adapter / ADAPTER_FILE, source)


def lineage_of(artefact: Path) -> dict[str, str]:
    """What an adapter, or the checkpoint that it was merged into, says of its base and rows; empty if nothing.

    Raises:
        ModelError: the file that says so is damaged.
    """
    file = artefact / ADAPTER_FILE
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file) from error
    named = ("base", "base_sha256", "train_sha256")
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in named):
        raise _damaged(file)
    return found


def _damaged(file: Path) -> ModelError:
    return ModelError(f"{file}: does not say what the adapter was trained on.\n  Restore it, or train again.")


def require_same_base(adapter: Path, base: str, revision: str | None) -> None:
    """Refuse an adapter on another base than the one it was trained on: it would answer, and answer badly.

    Raises:
        ModelError: the base's content hash is not the recorded one.
    """
    recorded = lineage_of(adapter)
    if not recorded:  # made by other means
        return
    got = base_sha256(base, revision)
    if got != recorded["base_sha256"]:
        raise ModelError(
            f"{adapter}: this adapter was trained on another base ({recorded['base']}).\n"
            f"  content hash of its base {recorded['base_sha256']}\n  of the base at hand       {got}\n"
            "  Name the base it was trained on in base_model, or train again."
        )


def base_sha256(path: str, revision: str | None) -> str:
    """Content hash of a base's weights and configuration: of its safetensors files and `config.json`, by name.

    Args:
        path: A folder, or a hub id whose files are in the hub's cache.
        revision: Of the hub id; None is the default branch.

    Raises:
        ModelError: there are no such files.
    """
    folder = Path(path) if Path(path).is_dir() else _hub_folder(path, revision)
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")])
    if not files:
        raise ModelError(f"{path}: no safetensors weights to take the content hash of.")
    return fingerprint({file.name: _content(file) for file in files})


def _content(file: Path) -> str:
    """SHA-256; the hub's cache names a large file by it."""
    name = file.resolve().name
    return name if re.fullmatch("[0-9a-f]{64}", name) else sha256(file)


def _hub_folder(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "config.json"]
    return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=True))
