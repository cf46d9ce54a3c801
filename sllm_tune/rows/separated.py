"""Tables of separated values: RFC 4180, and what is in real files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sllm_tune.errors import TaskError

_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"(?!")')
_WRAPPED_AND_DOUBLED = re.compile(r'"[^"]*(?:""[^"]*)+"')
_BREAK = re.compile(r"\r\n|\r|\n")
_LINE = re.compile(r"[^\r\n]*")
_SURELY_ROWS = 4  # lines in one field that each have as many fields as the header
_MEND_QUOTES = 'A quote sign inside a field is written twice, and the field in quotes: "a ""quoted"" word".'


class _Record(NamedTuple):
    line: int
    fields: list[str]
    text: str  # as it is in the file
    bare: bool  # no field of it is in quotes


class _Unpaired(Exception):
    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")


def read_separated(path: Path, text: str, delimiter: str) -> list[dict[str, str] | TaskError]:
    """Rows of a table whose first line names its columns; in place of one with too many or too few fields, its fault.

    A field that begins with a quote sign is in quotes: it ends with one before a delimiter or the end of a line, may
    hold both, and has the quote signs in it twice. A quote sign elsewhere is text. In a .tsv quote signs are often text
    at the beginning, too. They are read so throughout the file where one is unpaired, or where a field is in quotes for
    no reason: nothing in it needs them, and the header has none.

    Args:
        path: For messages.
        text: The whole file.
        delimiter: "," or a tab.

    Raises:
        TaskError: rows might be lost in a field, because a quote is unpaired or the lines of a quoted field are rows
            themselves; a column has no name or one that another has; or the file has another separator.
    """
    quoted = True
    try:
        records = list(_scan(text, delimiter))
        if delimiter == "\t" and '"' in text:
            quoted = not _needless(records, delimiter) and not _swallowed(records, delimiter)
    except _Unpaired as error:
        if delimiter != "\t":
            raise TaskError(f"{path}, {error}\n  {_MEND_QUOTES}") from error
        records, quoted = [], False
    if not quoted:
        records = _split(path, text)
    elif delimiter != "\t" and (found := _swallowed(records, delimiter)):
        raise TaskError(
            f"{path}, line {found.line}: a quote opens here and closes {len(_BREAK.findall(found.text))} lines below, "
            f"and each of these lines looks like a row of its own.\n  {_MEND_QUOTES}\n"
            "  If it is one field, save the table as .jsonl, which leaves no doubt."
        )
    if not records:
        return []
    header, *others = records
    _check_header(path, header, others, delimiter)
    return _rows(path, header.fields, others, quoted)


def _rows(path: Path, names: list[str], records: Sequence[_Record], quoted: bool) -> list[dict[str, str] | TaskError]:
    rows: list[dict[str, str] | TaskError] = []
    for record in records:
        if len(record.fields) == len(names):
            rows.append(dict(zip(names, record.fields, strict=True)))
            continue
        many = "more" if len(record.fields) > len(names) else "fewer"
        fault = TaskError(f"{path}, line {record.line}: {many} fields than the first line names.")
        if not quoted:  # it may be the rest of a field with a line end in it, of which the row above has the beginning
            raise TaskError(f"{fault}\n  Quote signs of this .tsv are text, since not all of them are paired.")
        rows.append(fault)
    return rows


def _scan(text: str, delimiter: str) -> Iterator[_Record]:
    """Records of the file without its blank lines.

    Raises:
        _Unpaired: a field begins with a quote sign and does not end with one.
    """
    plain = re.compile(f"[^{delimiter}\r\n]*")
    position, line = 0, 1
    while position < len(text):
        start = position
        end = _end(_LINE, text, position)
        bare = '"' not in text[start:end]
        fields = text[start:end].split(delimiter) if bare else []
        while not bare:
            if text.startswith('"', position):
                found = _QUOTED.match(text, position)
                end = found.end() if found else len(text)
                if not found or text[end : end + 1] not in ("", delimiter, "\r", "\n"):
                    at = line + len(_BREAK.findall(text, start, position))
                    raise _Unpaired(at, _unpaired(text, position, bool(found)))
                fields.append(text[position + 1 : end - 1].replace('""', '"'))
            else:
                end = _end(plain, text, position)
                fields.append(text[position:end])
            if text[end : end + 1] != delimiter:
                break
            position = end + 1
        position = end + (2 if text.startswith("\r\n", end) else 1)
        if end > start:
            yield _Record(line, fields, text[start:end], bare)
        line += 1 if bare else len(_BREAK.findall(text, start, position)) or 1


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    """Where what a pattern finds here ends; it may find nothing, but it always fits."""
    found = pattern.match(text, position)
    assert found
    return found.end()


def _unpaired(text: str, position: int, closed: bool) -> str:
    begins = repr(text[position : position + 30].splitlines()[0])
    fault = "is closed in the middle of one" if closed else "is never closed"
    return f"the quote sign that begins a field here ({begins}) {fault}, so that rows would be lost in it."


def _needless(records: Sequence[_Record], delimiter: str) -> bool:
    """Whether a field is in quotes though nothing in it needs them: then the quotes are its own."""
    if '"' in records[0].text:
        return False
    fields = [field for record in records if not record.bare for field in record.text.split(delimiter)]
    wrapped = [field[1:-1] for field in fields if len(field) > 2 and field[0] == field[-1] == '"']
    return any(not re.search(r'[",;\r\n]|^\s|\s$', field) for field in wrapped)


def _swallowed(records: Sequence[_Record], delimiter: str) -> _Record | None:
    """The first record of several lines of which each seems to be a record: two stray quotes can make one of many.

    A field may hold such lines by chance. They are rows if they are many, or if the values of a column are all values
    that this column has elsewhere.
    """
    width = len(records[0].fields) if records else 0
    suspects: list[tuple[_Record, list[list[str]]]] = []
    for record in records if width > 1 else ():
        lines = [line.split(delimiter) for line in _BREAK.split(record.text)] if not record.bare else []
        if len(lines) > 1 and all(len(line) == width for line in lines):
            suspects.append((record, lines))
    if not suspects:
        return None
    strange = {record.line for record, _ in suspects}
    known = [record.fields for record in records[1:] if len(record.fields) == width and record.line not in strange]
    values = [{fields[column] for fields in known} - {""} for column in range(width)]
    for record, lines in suspects:
        of_columns = [{line[column].strip('"') for line in lines[1:]} for column in range(width)]
        if len(lines) >= _SURELY_ROWS or any(map(set.issubset, of_columns, values)):
            return record
    return None


def _split(path: Path, text: str) -> list[_Record]:
    """Records of a .tsv whose quote signs are text.

    Raises:
        TaskError: a field looks as if they were not: it is in quotes and has quote signs twice.
    """
    records = [_Record(n, line.split("\t"), line, True) for n, line in enumerate(_BREAK.split(text), 1) if line]
    for record in records:
        if odd := next((field for field in record.fields if _WRAPPED_AND_DOUBLED.fullmatch(field)), None):
            raise TaskError(
                f"{path}, line {record.line}: {odd[:30]!r} is written as a field in quotes, and elsewhere in the file "
                "quote signs are text.\n  Write them one way, or save the table as .jsonl."
            )
    return records


def _check_header(path: Path, header: _Record, records: Sequence[_Record], delimiter: str) -> None:
    """Refuse a first line that does not give every column with data a name of its own."""
    names, where = header.fields, f"{path}, line {header.line}"
    for other in ";\t|,":
        count = header.text.count(other)
        if len(names) == 1 and count and other != delimiter and all(r.text.count(other) == count for r in records[:1]):
            raise TaskError(
                f"{where}: the separator is {other!r}, and {path.suffix} has {delimiter!r}.\n"
                "  Save the table with ',' as .csv or with tabs as .tsv."
            )
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise TaskError(
            f"{where}: two columns are named {twice!r}, and only one could be kept.\n  Rename one, or remove it."
        )
    nameless = [column for column, name in enumerate(names) if not name.strip()]
    for record in records if nameless else ():
        filled = [column for column in nameless if column < len(record.fields) and record.fields[column].strip()]
        if filled:
            raise TaskError(
                f"{where}: column {filled[0] + 1} has no name, and line {record.line} has something in it.\n"
                "  Name it, or remove the column (pandas writes its row numbers so, unless index=False)."
            )
