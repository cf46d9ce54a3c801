"""A file of answers that is written chunk by chunk, taken up where it was cut off, and named when it is whole."""

from __future__ import annotations

import csv
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO

from sllm_tune.deliver.specialist import Answer
from sllm_tune.errors import BadInput, JobFailed
from sllm_tune.runs.files import sync

SUFFIXES = (".csv", ".jsonl")


class AnswersFile:
    """Answers to the rows of one input, in order, beside `path` until all of them are there.

    The file beside it is JSON lines whatever `path` is: a header that says what is asked of which run, then a row each.
    A line that a kill tore is cut off. With another header it begins anew.

    Args:
        path: The file to make, a .csv or .jsonl.
        header: What the answers depend on.

    Raises:
        BadInput: it is there already, of another kind, or cannot be written.
        JobFailed: another process writes it.
    """

    def __init__(self, path: Path, header: Mapping[str, object]) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise BadInput(f"{path}: answers are written as .csv or .jsonl.\n  Name it so.")
        if path.exists():
            raise BadInput(f"{path}: there is something already.\n  Name another --output, or remove it.")
        self.path, self.beside = path, path.with_name(f".{path.name}.part")
        self.done = self.errors = 0
        self.first_error: Answer | None = None
        self.reset: list[str] = []
        """What of the header was another in what was found and given up."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise BadInput(f"{path}: cannot be written ({error.strerror}).\n  Name another --output.") from error
        self._file = os.fdopen(handle, "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise JobFailed(f"{path}: another process writes it.\n  Wait until it is done.") from error
        self._take_up(header)

    def __enter__(self) -> AnswersFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, answers: Iterable[Answer]) -> None:
        """Write a chunk; when this returns, the disk has it."""
        lines = bytearray()
        for answer in answers:
            self._count(answer)
            lines += _line({key: value for key, value in asdict(answer).items() if value is not None})
        self._file.write(lines)
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Give the whole file its name."""
        whole = self.path.with_name(f".{self.path.name}.whole")
        self._file.seek(0)
        self._file.readline()
        if self.path.suffix.lower() == ".csv":
            _write_csv(self._file, whole)
        else:
            with whole.open("wb") as file:
                while block := self._file.read(1 << 20):
                    file.write(block)
        sync(whole)
        os.replace(whole, self.path)
        sync(self.path.parent)
        self.beside.unlink()

    def _take_up(self, header: Mapping[str, object]) -> None:
        first = self._file.readline()
        found = _parsed(first) if first.endswith(b"\n") else None
        if found != header:
            if found is not None:
                self.reset = [key for key in {**found, **header} if found.get(key) != header.get(key)]
            self._file.seek(0)
            self._file.truncate()
            self._file.write(_line(header))
            self.append(())
            return
        end = self._file.tell()
        for line in self._file:
            values = _parsed(line) if line.endswith(b"\n") else None
            if values is None or values.get("row") != self.done + 1:
                break
            error = values.get("error")
            self._count(Answer(self.done + 1, str(values.get("id")), None, error=None if error is None else str(error)))
            end += len(line)
        self._file.seek(end)
        self._file.truncate()

    def _count(self, answer: Answer) -> None:
        self.done += 1
        if answer.error is not None:
            self.errors += 1
            self.first_error = self.first_error or answer


def _line(values: Mapping[str, object]) -> bytes:
    # Half a character, as a model can write one, stays the escape that it is.
    return json.dumps(values, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"


def _parsed(line: bytes) -> dict[str, object] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _write_csv(lines: IO[bytes], path: Path) -> None:
    names = [field.name for field in fields(Answer)]
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_rows(lines))


def _rows(lines: IO[bytes]) -> Iterator[dict[str, object]]:
    for line in lines:
        yield json.loads(line)
