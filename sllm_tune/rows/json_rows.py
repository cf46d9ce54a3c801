"""JSON kept as it is written: what Python's reader would change, lose or fall over is a fault with its line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from sllm_tune.errors import TaskError
from sllm_tune.wording import listed, shown

DEEPEST = 100  # levels of lists and objects; what copies and writes rows goes down by recursion
MOST_DIGITS = 4300  # of a whole number; Python turns no longer one into text
_NAME_JSON = "\n  If the file is one JSON list, name it .json."


def lines_of_json(path: Path, lines: Iterable[str]) -> Iterator[dict[str, object] | TaskError]:
    """The object of each line; in place of a line that is none, its fault."""
    number = 0
    for line, part in enumerate(lines, 1):
        if not part.strip():
            continue
        number += 1
        try:
            value = _DECODER.decode(part)
        except json.JSONDecodeError as error:
            whole = (
                "\n  If the file is one JSON list, name it .json." if number == 1 and part.lstrip()[0] in "[{" else ""
            )
            yield TaskError(f"{path}, line {line}, column {error.colno}: not JSON ({error.msg}).{whole}")
        except (_NoValue, RecursionError) as error:
            yield TaskError(f"{path}, line {line}: {_why(error)}")
        else:
            yield _checked(value, part, path, line, number)


def list_of_json(path: Path, text: str) -> Iterator[dict[str, object] | TaskError]:
    """The objects of a JSON list, one at a time, so that a fault in one of them, in its place, has its line.

    Raises:
        TaskError: the text is not JSON, or not a list.
    """
    if not text.strip():
        return
    position = _after_blanks(text, 0)
    if text[position] != "[":
        raise TaskError(_no_list(path, text))
    position, number, line, counted = _after_blanks(text, position + 1), 0, 1, 0
    more = text[position : position + 1] != "]"
    while more:
        number += 1
        line, counted = line + text.count("\n", counted, position), position
        start = position
        try:
            _, position = _LENIENT.raw_decode(text, start)
            value = _DECODER.decode(text[start:position])
        except json.JSONDecodeError as error:
            raise _not_json(path, error) from error
        except RecursionError as error:
            raise TaskError(f"{path}, line {line}: {_why(error)}") from error
        except _NoValue as error:
            yield TaskError(f"{path}, line {line}: {_why(error)}")
        else:
            yield _checked(value, text[start:position], path, line, number)
        position = _after_blanks(text, position)
        more = text[position : position + 1] == ","
        if more:
            position = _after_blanks(text, position + 1)
    if text[position : position + 1] != "]" or text[position + 1 :].strip():
        error = json.JSONDecodeError("Expecting ',' delimiter", text, position)
        if text[position : position + 1] == "]":
            error = json.JSONDecodeError("Extra data", text, _after_blanks(text, position + 1))
        raise _not_json(path, error)


def whole_json(path: Path, text: str) -> object:
    """The value that a file of JSON is.

    Raises:
        TaskError: it is not JSON, or cannot be kept as it is written.
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _not_json(path, error) from error
    except (_NoValue, RecursionError) as error:
        raise TaskError(f"{path}: {_why(error)}") from error
    if fault := _fault(value, text):
        raise TaskError(f"{path}: {fault}")
    return value


def _no_list(path: Path, text: str) -> str:
    """What to say of a .json file that does not begin as a list does."""
    value, end = _first_value(path, text)
    if text[end:].strip():
        if isinstance(value, dict):
            return f"{path}: one JSON object a line, which is JSON lines.\n  Name the file .jsonl."
        return str(_not_json(path, json.JSONDecodeError("Extra data", text, _after_blanks(text, end))))
    said = f"{path}: expected a list of objects, got {type(value).__name__}."
    if not isinstance(value, dict):
        return said
    lists = [key for key, inner in value.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    if lists:
        return (
            f"{said}\n  It has one under {listed(lists, 'and')}: write that list alone into a file, "
            f"for example with: jq '.[{json.dumps(lists[0], ensure_ascii=False)}]' {path.name} > rows.json"
        )
    if value and all(isinstance(inner, dict) for inner in value.values()):
        return f"{said}\n  If each entry is a row, say so in metadata.records: {{key: COLUMN, columns: [COLUMN, ...]}}."
    return said


def _first_value(path: Path, text: str) -> tuple[object, int]:
    try:
        return _LENIENT.raw_decode(text, _after_blanks(text, 0))
    except json.JSONDecodeError as error:
        raise _not_json(path, error) from error
    except RecursionError as error:
        raise TaskError(f"{path}: {_why(error)}") from error


def _after_blanks(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\n", "\r"):
        position += 1
    return position


class _NoValue(Exception):
    """What JSON writes here cannot be kept, or is no JSON."""


def _refuse_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NoValue(f"an object has {twice!r} twice, and only one of them could be kept.")
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise _NoValue(f"{name} is not JSON.\n  Write null where there is no number.")


def _int(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _NoValue(f"a number of {len(digits):,} digits.\n  Put it in quotes, as text.")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _NoValue(f"the number {shown(digits)[1:-1]} is too large.\n  Put it in quotes, as text.")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_refuse_twice, parse_constant=_refuse_constant, parse_int=_int, parse_float=_float
)
_LENIENT = json.JSONDecoder(parse_int=str)  # finds where a value ends, whatever is in it


def _why(error: Exception) -> str:
    return _TOO_DEEP if isinstance(error, RecursionError) else str(error)


_TOO_DEEP = f"lists and objects more than {DEEPEST} deep.\n  Write what is so deep as text."


def _checked(value: object, text: str, path: Path, line: int, number: int) -> dict[str, object] | TaskError:
    """A row, if it is one that can be copied and written again."""
    if not isinstance(value, dict):
        named = _NAME_JSON if isinstance(value, list) and number == 1 else ""
        return TaskError(f"{path}, row {number}: expected an object, got {type(value).__name__}.{named}")
    fault = _fault(value, text)
    return TaskError(f"{path}, line {line}: {fault}") if fault else value


def _fault(value: object, text: str) -> str:
    """What of a parsed value cannot be kept as it is, or ""; `text` is what it was parsed from."""
    if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
        return _TOO_DEEP
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            return (
                f"half a character (\\u{ord(half):04x}), as is left where a text was cut inside an emoji.\n"
                "  Remove it, or write the whole character."
            )
    return ""


def _depth(value: object) -> int:
    """Levels of lists and objects, counted without recursion."""
    depth = 0
    level: list[object] = [value]
    while nested := [inner for inner in level if isinstance(inner, (list, dict))]:
        depth += 1
        level = [one for inner in nested for one in (inner.values() if isinstance(inner, dict) else inner)]
    return depth


def _not_json(path: Path, error: json.JSONDecodeError) -> TaskError:
    return TaskError(f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}).")
