"""Files and folders that get their name when they are whole."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from sllm_tune.errors import BadInput, JobFailed


@contextlib.contextmanager
def half_made(out: Path) -> Generator[Path]:
    """A free name beside `out` for what becomes it; whatever goes wrong, nothing is left there.

    What it becomes is readable by others: a serving container runs as another user.

    Raises:
        BadInput, JobFailed: as `folder_beside`.
    """
    with folder_beside(out) as folder:
        yield folder / out.name
        _let_others_read(folder / out.name)
        os.replace(folder / out.name, out)


@contextlib.contextmanager
def folder_beside(out: Path) -> Generator[Path]:
    """A folder on the disk of `out` for what is not finished; gone at the end, whatever goes wrong.

    Raises:
        BadInput: `out` is a file, or a folder that holds something, or its name cannot be used.
        JobFailed: the disk is full.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise BadInput(f"{out}: there is something already.\n  Name another --out, or remove it.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".half-made-", dir=out.parent))
    except (OSError, ValueError) as error:
        raise BadInput(f"{out}: nothing can be written there ({error}).\n  Name another --out.") from error
    try:
        yield folder
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full(out.parent, None) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_space(folder: Path, needed: int) -> None:
    """Raises JobFailed where the disk that `folder` is, or will be, on has fewer bytes left than are `needed`."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if shutil.disk_usage(there).free < needed:
        raise _full(folder, needed)


def _full(folder: Path, needed: int | None) -> JobFailed:
    asked = f"; {needed / 1e6:,.0f} MB are needed" if needed else ""
    return JobFailed(f"{folder}: no room on the disk{asked}.\n  Make room, or name another --out.")


def _let_others_read(path: Path) -> None:
    for one in [path, *path.rglob("*")] if path.is_dir() else [path]:
        one.chmod(0o755 if one.is_dir() else 0o644)
