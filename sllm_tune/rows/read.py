"""Rows of a file: a table, or the records inside a nested JSON or XML file that `metadata.records` describes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module without types

from sllm_tune.bounded import Pattern, compiled
from sllm_tune.errors import BadInput, TaskError
from sllm_tune.rows.decode import decode, lines_of_text, read_bytes
from sllm_tune.rows.json_rows import lines_of_json, list_of_json, whole_json
from sllm_tune.rows.separated import read_separated
from sllm_tune.wording import is_blank, listed, shown

Row = dict[str, Any]


class _Node(Protocol):
    """An element, as lxml has it."""

    tag: str
    sourceline: int


class _XPath(Protocol):
    """A path, as lxml has it."""

    path: str

    def __call__(self, node: _Node) -> object: ...


TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*TABLES, ".xml")

_JSON_RECORDS = "{key: COLUMN, columns: [COLUMN, ...]}, and skip: REGEX if need be"
_XML_RECORDS = "{each: XPATH, columns: {COLUMN: XPATH, ...}}"


def row_id(row: Row) -> str:
    """16 hex digits of the SHA-256 of the row's canonical JSON; names the row in every artefact."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()[:16]


def is_missing(value: object) -> bool:
    """True for what a row has nothing in: null, not a number, blank text, an empty list or object."""
    return value is None or value != value or (isinstance(value, str) and is_blank(value)) or value in ([], {})


def read_rows(
    path: Path, records: object = None, where: str = "metadata.records", bad: list[TaskError] | None = None
) -> list[Row]:
    """Rows of a .jsonl, .json (a list of objects), .csv or .tsv file, or of the records in a .json or .xml file.

    Args:
        path: The file; its suffix, in small or capital letters, says what it is.
        records: None for a table. `{key: COLUMN, columns: [COLUMN, ...], skip: REGEX}` for a JSON object of objects: a
            row is a key and these columns of its object; entries whose whole key fits `skip`, if given, are none.
            `{each: XPATH, columns: {COLUMN: XPATH, ...}}` for XML: a row is an element that `each` finds, a column the
            one value that its path finds from there.
        where: The file and key that `records` comes from; messages about it begin with it.
        bad: Takes the faults that are of one row alone, which is then left out: not an object, not JSON (in .jsonl), a
            number that JSON has not, half a character, too many or too few fields. None: the first is raised.

    Returns:
        The rows in the file's order.

    Raises:
        TaskError: of another kind than its suffix says, in an unknown encoding (names the byte), not parseable (names
            the line), not a table of objects, or `records` does not fit the file (names the record).
    """
    suffix = path.suffix.lower()
    data = read_bytes(path)
    if suffix not in SUFFIXES:
        kinds = listed(SUFFIXES, "or").replace("'", "")
        raise TaskError(f"{path}: a file of rows ends in {kinds}.\n  Name it by what is in it.")
    if suffix == ".xml":
        return _xml_records(path, records, where)
    if records is not None and suffix != ".json":
        raise TaskError(f"{where}: describes a .json or .xml file, and {path} is a table.\n  Leave it out.")
    text = decode(path, data)
    if records is not None:
        return _json_records(path, text, records, where)
    found: Iterator[Row | TaskError]
    if suffix in (".csv", ".tsv"):
        found = iter(read_separated(path, text, "\t" if suffix == ".tsv" else ","))
    else:
        found = list_of_json(path, text) if suffix == ".json" else lines_of_json(path, text.split("\n"))
    rows: list[Row] = []
    for row in found:
        if not isinstance(row, TaskError):
            rows.append(row)
        elif bad is None:
            raise row
        else:
            bad.append(row)
    return rows


def table_rows(path: Path) -> Iterator[Row]:
    """As `read_rows` of a table; those of JSON lines are read as they are needed, so any number of them.

    Raises:
        TaskError: as `read_rows`, where the fault is met; for JSON lines this is after the rows above it.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise TaskError(f"{path}: a table ends in {listed(TABLES, 'or')}.\n  Save it as one.")
    if suffix not in (".jsonl", ".ndjson"):
        yield from read_rows(path)
        return
    for row in lines_of_json(path, lines_of_text(path)):
        if isinstance(row, TaskError):
            raise row
        yield row


def _json_records(path: Path, text: str, records: object, where: str) -> list[Row]:
    given = records if isinstance(records, dict) else {}
    columns = given.get("columns")
    named = isinstance(columns, list) and _are_names([given.get("key"), given.get("skip", "-"), *columns])
    if not named or not columns or given.keys() - {"key", "columns", "skip"}:
        raise TaskError(f"{where}: of a .json file it is {_JSON_RECORDS}, got {shown(records)}.")
    if given["key"] in columns:
        raise TaskError(f"{where}: {given['key']!r} is both the key and a column; give the key another name.")
    skipped = _pattern(given["skip"], f"{where}.skip") if "skip" in given else None

    entries = whole_json(path, text)
    if not isinstance(entries, dict):
        raise TaskError(f"{path}: {where} wants an object of objects, got {type(entries).__name__}.")
    if skipped and not any(map(skipped.fullmatch, entries)):
        raise TaskError(f"{where}.skip: {skipped.pattern} is not a key of {path}.\n  Fix it or leave it out.")
    rows: list[Row] = []
    for number, (key, entry) in enumerate(entries.items(), 1):
        if skipped and skipped.fullmatch(key):
            continue
        if not isinstance(entry, dict):
            raise TaskError(f"{path}, record {number} ({key!r}): expected an object, got {type(entry).__name__}.")
        if missing := [column for column in columns if column not in entry]:
            raise TaskError(
                f"{path}, record {number} ({key!r}): no {missing[0]!r}.\n"
                f"  {where} names it; this record has {sorted(entry)}."
            )
        rows.append({given["key"]: key} | {column: entry[column] for column in columns})
    return rows


def _pattern(skip: str, where: str) -> Pattern:
    try:
        return compiled(skip, where)
    except BadInput as error:
        raise TaskError(str(error)) from error


def _xml_records(path: Path, records: object, where: str) -> list[Row]:
    given = records if isinstance(records, dict) else {}
    columns = given.get("columns")
    named = isinstance(columns, dict) and _are_names([given.get("each"), *columns, *columns.values()])
    if not named or not columns or len(given) != 2:
        raise TaskError(f"{where}: of an .xml file it is {_XML_RECORDS}, got {shown(records)}.")
    each = _compiled(given["each"], f"{where}.each")
    paths = {column: _compiled(xpath, f"{where}.columns.{column}") for column, xpath in columns.items()}
    root = _parsed_xml(path)
    found = _found(each, root, f"{where}.each")
    if not isinstance(found, list) or not found or not all(etree.iselement(node) for node in found):
        raise TaskError(
            f"{path}: {where}.each ({given['each']}) finds no element; the root is {root.tag}.\n"
            "  Of names in a namespace, as {uri}name is, write *[local-name()='name']."
        )
    return [
        {column: _value(xpath, node, f"{path}, record {number}", column) for column, xpath in paths.items()}
        for number, node in enumerate(found, 1)
    ]


def _parsed_xml(path: Path) -> _Node:
    """The root element. Nothing outside the file is read: no DTD is loaded and no entity is expanded."""
    shut = {"resolve_entities": False, "no_network": True, "load_dtd": False}
    parser = etree.XMLParser(**shut, remove_comments=True, remove_pis=True)  # both would be read as text
    try:
        with path.open("rb") as file:
            root = etree.parse(file, parser).getroot()
    except etree.XMLSyntaxError as error:
        raise TaskError(f"{path}, line {error.lineno}: not XML ({error.msg}).") from error
    entity = next(root.iter(etree.Entity), None)
    if entity is not None:  # its text would be missing without a word
        raise TaskError(
            f"{path}, line {entity.sourceline}: the entity {entity.text} is not expanded, because one can read other "
            "files.\n  Write its text into the file."
        )
    return root


def _compiled(xpath: str, where: str) -> _XPath:
    try:
        return etree.XPath(xpath, smart_strings=False)
    except etree.XPathSyntaxError as error:
        raise TaskError(f"{where}: not an XPath ({error}): {xpath}") from error


def _found(xpath: _XPath, node: _Node, where: str) -> object:
    try:
        return xpath(node)
    except etree.XPathError as error:
        raise TaskError(f"{where}: {xpath.path} cannot be evaluated ({error}).") from error


def _value(xpath: _XPath, node: _Node, where: str, column: str) -> object:
    """The one value that a path finds from a node: an element's whole text, an attribute, or a number."""
    found = _found(xpath, node, f"{where}, column {column!r}")
    values = found if isinstance(found, list) else [found]
    if len(values) != 1:
        many = f"{len(values)} values, where one belongs" if values else "nothing"
        raise TaskError(
            f"{where} (line {node.sourceline}): no {column!r}; {xpath.path} finds {many}.\n"
            "  Fix the path, or let it choose: (PATH)[1] is the first."
        )
    if values[0] != values[0]:
        raise TaskError(f"{where} (line {node.sourceline}): {column!r} is not a number; {xpath.path} makes one of it.")
    if isinstance(values[0], str):
        return values[0].strip()
    itertext = getattr(values[0], "itertext", None)
    return "".join(itertext()).strip() if itertext else values[0]


def _are_names(values: Sequence[object]) -> bool:
    return len(values) > 1 and all(isinstance(value, str) and value for value in values)
