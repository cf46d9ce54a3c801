"""What to say of an exception that nobody foresaw: one line, a fix where the system's word for it is known, a log."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import tempfile
import traceback

from sllm_tune.wording import without_secrets

_FULL = "Free some space there, or name a folder on another disk: --run-dir, SLLM_TUNE_CACHE, HF_HOME, TMPDIR."
_RIGHTS = "Give yourself the rights to it, or name another folder: --run-dir, SLLM_TUNE_CACHE, HF_HOME, TMPDIR."
_FIXES = {
    errno.ENOSPC: f"The disk is full. {_FULL}",
    errno.EDQUOT: f"Your share of the disk is used up. {_FULL}",
    errno.EFBIG: f"The file is larger than is allowed here. {_FULL}",
    errno.EROFS: f"It cannot be written to. {_RIGHTS}",
    errno.EACCES: f"It may not be read or written. {_RIGHTS}",
    errno.EPERM: f"It may not be read or written. {_RIGHTS}",
    errno.ENAMETOOLONG: "A path is too long. Give a shorter one, or a shorter name in the recipe.",
    errno.EMFILE: "Too many files are open. Raise the limit with `ulimit -n 4096`.",
    errno.EIO: "The disk cannot be read or written. Look whether it is damaged, or use another.",
    errno.EPIPE: "What read the output has ended. Run it again without that reader.",
}
_MEMORY = (
    "Out of memory. Make train.sft.per_device_train_batch_size smaller and gradient_accumulation_steps larger by as "
    "much, make data.max_length smaller, set train.sft.gradient_checkpointing, or take a smaller base."
)


def fix(error: BaseException) -> str | None:
    """What to do about a full disk, a path without rights, too little memory and the like; None for anything else."""
    for cause in _causes(error):
        said = str(cause)
        if isinstance(cause, OSError) and cause.errno in _FIXES:
            return _FIXES[cause.errno]
        if "No space left on device" in said:  # libraries in Rust and C++ have no errno
            return _FIXES[errno.ENOSPC]
        is_memory = isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError"
        if is_memory or re.search(r"out of memory|can't allocate memory|Cannot allocate memory", said):
            return _MEMORY
    return None


def one_line(error: BaseException) -> str:
    """Its type and message, with what a terminal would act on made visible, and without secrets."""
    said = " ".join(without_secrets(str(error)).split())
    visible = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in said[:500])
    return f"{type(error).__name__}: {visible}" if visible else type(error).__name__


def log(error: BaseException, doing: str) -> str:
    """Write the traceback to a file that its owner alone can read; returns where, or that it could not be written."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="sllm-tune-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"sllm-tune {doing}, Python {sys.version}\n{without_secrets(text)}")
        return path
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    at = f"{os.path.basename(frame[0].filename)}, line {frame[0].lineno}" if frame else "nowhere"
    return f"no file, as none could be written (it ends in {at})"


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return found
