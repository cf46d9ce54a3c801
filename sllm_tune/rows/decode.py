"""The text of a file of rows, or what kind of file it is instead."""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Generator, Iterator
from pathlib import Path

from sllm_tune.errors import TaskError

_PANDAS = "Convert it, for example with pandas: pandas.{}(FILE).to_json('rows.jsonl', orient='records', lines=True)"
_SPREADSHEET = "Save the sheet as .csv (in Excel: CSV UTF-8)."
_UNPACK = "Unpack it, and name the file inside."
_JSONL = "Convert it to .jsonl, .csv or .tsv in UTF-8."
# What a file of another kind begins with, its name, and what to do.
_KINDS = (
    (b"PK\x03\x04", "a zip file", _UNPACK),
    (b"\x1f\x8b", "packed with gzip", "Unpack it, for example with: gunzip --keep FILE"),
    (b"BZh", "packed with bzip2", _UNPACK),
    (b"\xfd7zXZ\x00", "packed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file", _UNPACK),
    (b"Rar!\x1a\x07", "a rar file", _UNPACK),
    (b"PAR1", "a Parquet file", _PANDAS.format("read_parquet")),
    (b"ARROW1", "an Arrow file", _PANDAS.format("read_feather")),
    (b"%PDF-", "a PDF", _JSONL),
    (b"SQLite format 3\x00", "an SQLite database", "Export its table as .csv, for example with: sqlite3 -csv -header"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file (.xls, .doc)", _SPREADSHEET),
    (b"\x89HDF", "an HDF5 file", _JSONL),
    (b"Obj\x01", "an Avro file", _JSONL),
    (b"version https://git-lfs", "a pointer of Git LFS", "Fetch what it stands for, with: git lfs pull"),
    (b"\x93NUMPY", "a NumPy array", _JSONL),
)
_INSIDE_ZIP = (
    (b"xl/", "an Excel workbook (.xlsx)", _SPREADSHEET),
    (b"word/", "a Word document (.docx)", _JSONL),
    (b"opendocument.spreadsheet", "an OpenDocument spreadsheet (.ods)", _SPREADSHEET),
    (b"[Content_Types].xml", "an Office file (.xlsx, .docx)", _SPREADSHEET),
)
_MARKS = (  # UTF-32's mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEAD_BYTES = 1 << 16


def read_bytes(path: Path) -> bytes:
    """The bytes of a file of rows.

    Raises:
        TaskError: it cannot be read, or is of a kind that holds no plain text, such as .xlsx or .parquet.
    """
    with _explained(path):
        data = path.read_bytes()
    _require_text(path, data)
    return data


def lines_of_text(path: Path) -> Iterator[str]:
    """The lines of a file of rows without the line feeds, read as they are needed.

    Raises:
        TaskError: as `read_bytes` and `decode`, where the fault is met.
    """
    with _explained(path), path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    _require_text(path, head)
    if head.startswith(tuple(mark for mark, _ in _MARKS)):
        yield from decode(path, read_bytes(path)).split("\n")
        return
    try:
        with _explained(path), path.open(encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                if "\0" in line:
                    break
                yield line.removesuffix("\n")
            else:
                return
    except UnicodeDecodeError:
        pass
    decode(path, read_bytes(path))  # says what and where


@contextlib.contextmanager
def _explained(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror}).\n  Name a file that you may read.") from error


def _require_text(path: Path, data: bytes) -> None:
    kinds = [kind for kind in _KINDS if data.startswith(kind[0])]
    if kinds and kinds[0][0] == b"PK\x03\x04":
        kinds = [kind for kind in _INSIDE_ZIP if kind[0] in data] + kinds
    if kinds:
        _, name, fix = kinds[0]
        raise TaskError(f"{path}: not a file of text but {name}.\n  {fix}")


def decode(path: Path, data: bytes) -> str:
    """The text of UTF-8, or of UTF-16 or UTF-32 that begins with a byte order mark.

    Raises:
        TaskError: it is in another encoding (names the first byte), or not text.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is 0x{error.object[error.start]:02x}"
        if encoding != "utf-8-sig":
            raise TaskError(
                f"{path}: begins as {encoding.upper()} but is not ({byte}).\n  Save it again as UTF-8."
            ) from error
        raise TaskError(f"{path}: not UTF-8 ({byte}).\n  {_conversion(data)}") from error
    if (at := text.find("\0")) >= 0:
        raise TaskError(f"{path}, line {text.count(chr(10), 0, at) + 1}: {_of_zeros(data)}")
    return text


def _conversion(data: bytes) -> str:
    """How to make UTF-8 of it; an encoding is named only where the bytes are text in it."""
    try:
        if re.search("[가-힣]", data.decode("cp949")):
            return "Convert it, for example with: iconv -f cp949 -t utf-8"
    except UnicodeDecodeError:
        pass
    return "Save it as UTF-8, or convert it with: iconv -f ITS_ENCODING -t utf-8"


def _of_zeros(data: bytes) -> str:
    """What to say of text with a zero byte: UTF-16 without its mark has one beside every Latin letter."""
    start = data[:2000]
    for name, zeros in (("utf-16le", start[1::2]), ("utf-16be", start[::2])):
        if zeros.count(0) > len(zeros) / 2:
            return f"UTF-16 without a byte order mark.\n  Convert it, for example with: iconv -f {name} -t utf-8"
    return "a zero byte, which no text has.\n  Remove it, or name a file of text."
