"""What must not leave this machine: keys, tokens, local paths and code, looked for in every byte that would be sent."""

from __future__ import annotations

import json
import mmap
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

# By what each begins with: a literal is found at the speed of memory, and only then looked at. The shapes are those of
# their makers: Hugging Face, OpenAI and Anthropic, GitHub, GitLab, AWS, Google, Slack, npm, PyPI, PEM files.
KEYS = {
    b"hf_": rb"hf_[A-Za-z0-9]{20,}",
    b"api_org_": rb"api_org_[A-Za-z0-9]{20,}",
    b"sk-": rb"sk-[A-Za-z0-9_-]{20,}",
    b"ghp_": rb"ghp_[A-Za-z0-9]{30,}",
    b"gho_": rb"gho_[A-Za-z0-9]{30,}",
    b"ghs_": rb"ghs_[A-Za-z0-9]{30,}",
    b"github_pat_": rb"github_pat_[A-Za-z0-9_]{30,}",
    b"glpat-": rb"glpat-[A-Za-z0-9_-]{20,}",
    b"AKIA": rb"AKIA[0-9A-Z]{16}(?![0-9A-Z])",
    b"AIza": rb"AIza[0-9A-Za-z_-]{35}",
    b"xox": rb"xox[abeprs]-[A-Za-z0-9-]{10,}",
    b"npm_": rb"npm_[A-Za-z0-9]{30,}",
    b"pypi-AgE": rb"pypi-AgE[A-Za-z0-9_-]{30,}",
    b"-----BEGIN ": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".npy", ".npz", ".msgpack", ".h5"}
CODE = {".py", ".pyc", ".so", ".sh"}

_OF_A_SECRET = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|KEY)$", re.IGNORECASE)
_SHORTEST_SECRET = 12
_HEADER_LIMIT = 100_000_000  # of the safetensors format, in bytes


def find_leaks(name: str, content: Path | bytes, run_dir: Path, secrets: Mapping[str, bytes]) -> list[str]:
    """Why a file must not be published, one line each: what, and where in the file; nothing of a secret is repeated.

    In a safetensors file shapes of keys and paths are looked for in the header, since its tensors are numbers; this
    machine's own secrets are looked for everywhere.

    Args:
        name: As messages show it; its end tells the format.
        content: Where it lies, or the bytes themselves.
        run_dir: Its own path is a local one.
        secrets: As `own_secrets` finds them.
    """
    if isinstance(content, bytes):
        return _leaks(name, content, content, run_dir, secrets)
    if content.stat().st_size == 0:
        return []
    with content.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        if PurePosixPath(name).suffix != ".safetensors":
            return _leaks(name, whole, whole, run_dir, secrets)
        try:
            return _leaks(name, whole, _safetensors_header(whole), run_dir, secrets)
        except ValueError as error:
            return [f"{name}: not a safetensors file ({error}).\n    Take it out, or make it again."]


def _leaks(
    name: str, whole: bytes | mmap.mmap, text: bytes | mmap.mmap, run_dir: Path, secrets: Mapping[str, bytes]
) -> list[str]:
    found: list[str] = []
    suffix = PurePosixPath(name).suffix
    if suffix in PICKLED or (text is whole and re.match(rb"\x80[\x02-\x05]|PK\x03\x04", whole[:4])):
        found.append(
            f"{name}: a pickle or another format that can run code when it is read.\n"
            "    Save the weights as safetensors, and take this file out."
        )
    if suffix in CODE:
        found.append(f"{name}: code, which the reader of a model would have to trust.\n    Take it out.")
    for variable, secret in secrets.items():
        if (place := whole.find(secret)) >= 0:
            found.append(f"{name}{_line(text, place)}: holds the secret of {variable}.\n    {_MEND}")
    place = next((place for start, shape in KEYS.items() for place in _places(text, start, shape)), None)
    if place is not None:
        found.append(f"{name}{_line(text, place)}: holds what has the shape of a key or token.\n    {_MEND}")
    local = next(((folder, place) for folder in _local_folders(run_dir) for place in _paths(text, folder)), None)
    if local is not None:
        folder, place = local
        found.append(
            f"{name}{_line(text, place)}: holds a path of this machine, below {folder}.\n"
            "    Replace it by a name, where the file was made, and run again."
        )
    return found


_MEND = "Take it out where the file was made, run again, and revoke it if it was ever shared."


def own_secrets() -> dict[str, bytes]:
    """The hub's token and whatever else the environment has under the name of a secret, by where it is from."""
    from huggingface_hub import get_token

    found = {name: value for name, value in os.environ.items() if _OF_A_SECRET.search(name)}
    if token := get_token():
        found.setdefault("the hub's login", token)
    return {name: value.encode() for name, value in found.items() if len(value) >= _SHORTEST_SECRET}


def _local_folders(run_dir: Path) -> list[str]:
    named = [Path.home(), Path.cwd(), run_dir.absolute(), run_dir.resolve(), Path(tempfile.gettempdir()), Path("/tmp")]
    return sorted({str(folder) for folder in named if folder != Path(folder.anchor)})


def _places(text: bytes | mmap.mmap, start: bytes, shape: bytes) -> Iterator[int]:
    """Where a key begins that is not the end of a longer word."""
    pattern = re.compile(shape)
    for place in _all(text, start):
        if not re.match(rb"[A-Za-z0-9]", text[max(place - 1, 0) : place]) and pattern.match(text, place):
            yield place


def _paths(text: bytes | mmap.mmap, folder: str) -> Iterator[int]:
    """Where a path below a folder begins; the folder's name alone is a word of many vocabularies."""
    for written in {folder.encode(), json.dumps(folder)[1:-1].encode()}:
        for place in _all(text, written):
            before, after = text[max(place - 1, 0) : place], text[place + len(written) : place + len(written) + 2]
            if not re.match(rb"[\w.~-]", before) and re.match(rb"[/\\][\w.~-]", after):
                yield place


def _all(text: bytes | mmap.mmap, part: bytes) -> Iterable[int]:
    place = text.find(part)
    while place >= 0:
        yield place
        place = text.find(part, place + 1)


def _line(text: bytes | mmap.mmap, place: int) -> str:
    """The line of a text, the byte of anything else, after a comma."""
    before = text[:place] if place < 10_000_000 else b"\0"
    return f", byte {place:,}" if b"\0" in before else f", line {before.count(10) + 1}"


def _safetensors_header(whole: mmap.mmap) -> bytes:
    """The JSON before the tensors. Raises ValueError where the file is not a header and its tensors, end to end."""
    length = int.from_bytes(whole[:8], "little")
    if not 2 <= length <= min(len(whole) - 8, _HEADER_LIMIT):
        raise ValueError("its header is cut")
    header = whole[8 : 8 + length]
    tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
    try:
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (TypeError, KeyError, IndexError, AttributeError):
        raise ValueError("its header names no tensors") from None
    if end != len(whole) - 8 - length:
        raise ValueError("it holds more or less than its tensors")
    return header
