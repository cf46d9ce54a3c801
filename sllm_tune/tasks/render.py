"""One template over a row, as text: what it prints, which columns it reads, and the group that it names.

A template prints text. A list or an object is printed as JSON, and what is missing (null, NaN) is not printed: it is a
fault of the row, unless the template says what to do, as `{{ note or '' }}` and `{{ note | default('') }}` do.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache, lru_cache
from typing import NoReturn, TypeVar

from jinja2 import Template, TemplateSyntaxError, Undefined, UndefinedError, meta
from jinja2.exceptions import SecurityError
from jinja2.runtime import StrictUndefined

from sllm_tune.errors import DataError
from sllm_tune.growth import bounded
from sllm_tune.rows.read import Row
from sllm_tune.sandbox import Sandbox
from sllm_tune.sandbox import sandbox as bounded_sandbox
from sllm_tune.wording import as_seen

T = TypeVar("T")


class Missing(Undefined):
    """A null or NaN of a row: false, replaced by `default`, and an error where it would be printed or iterated."""

    def _said(self, *_: object) -> NoReturn:
        raise UndefinedError(f"{self._undefined_name!r} is missing (null or NaN)")

    __str__ = __iter__ = __len__ = __getitem__ = __call__ = __add__ = __radd__ = _said  # type: ignore[assignment]
    __int__ = __float__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = __sub__ = __rsub__ = _said  # type: ignore[assignment]
    __mul__ = __rmul__ = __mod__ = _said  # type: ignore[assignment]


def is_null(value: object) -> bool:
    """True for null and NaN, the two ways in which files say that there is no value."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: object) -> str:
    """What a template prints for a value."""
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=_null)
    return str(value)


def _null(value: object) -> None:
    if not isinstance(value, Missing):
        raise TypeError(f"{type(value).__name__} has no form in JSON")


def _finalize(value: object) -> object:
    bounded(value)
    if value is None:
        raise UndefinedError("a value that the template prints is missing (null)")
    if isinstance(value, float) and math.isnan(value):
        raise UndefinedError("a value that the template prints is not a number (NaN)")
    return as_text(value) if isinstance(value, list | tuple | dict) else value


def _is_none(value: object) -> bool:
    return value is None or isinstance(value, Missing)


@cache
def sandbox() -> Sandbox:
    """The one environment of this process: bounded in time and memory, with the one filter that lm-eval adds."""
    made = bounded_sandbox(undefined=StrictUndefined, filters={"regex_replace": re.sub})
    made.finalize = _finalize
    made.tests |= {"none": _is_none}
    return made


@lru_cache(maxsize=256)
def _compiled(template: str) -> Template:
    return sandbox().from_string(template)


def render(template: str, row: Row) -> str:
    """What a template prints for a row. Raises whatever Jinja and the template raise."""
    return _compiled(template).render(**_with_missing(row))


def _with_missing(row: Row) -> dict[str, object]:
    return {str(column): _marked(value, str(column)) for column, value in row.items()}


def _marked(value: object, name: str) -> object:
    """The value with each null and NaN, however deep, as `Missing`; the same object where there is none."""
    if is_null(value):
        return Missing(name=name)
    if isinstance(value, list) and any(_may_miss(item) for item in value):
        return [_marked(item, name) for item in value]
    if isinstance(value, dict) and any(_may_miss(item) for item in value.values()):
        return {key: _marked(item, f"{name}.{key}") for key, item in value.items()}
    return value


def _may_miss(value: object) -> bool:
    return isinstance(value, list | dict) or is_null(value)


def present(column: str, value: T) -> T:
    """The value of a column of a row.

    Raises:
        UndefinedError: it is null or NaN.
    """
    if is_null(value):
        raise UndefinedError(f"{column!r} is missing (null or NaN)")
    return value


@cache
def columns_read(template: str) -> set[str]:
    """The columns that a template reads, or the one that it names.

    Raises:
        TemplateSyntaxError: it is not valid Jinja.
    """
    return meta.find_undeclared_variables(sandbox().parse(template)) or {template}


def group_of(row: Row, key: str, name: str) -> str:
    """A row's value of a `metadata.split_by` entry: of the column of that name, or of a Jinja template over the row.

    Args:
        row: The row.
        key: Such as `code`, or `{{code[:3]}}`.
        name: The task's, for messages.

    Raises:
        DataError: there is no such column, or the template is not valid or does not fit the row.
    """
    if "{{" not in key and "{%" not in key:
        if key not in row:
            raise DataError(f"{name}: metadata.split_by names {key!r}, which is not a column; there are {sorted(row)}.")
        return _as_group(row[key])
    where = f"{name}: the template {key!r} in metadata.split_by"
    try:
        return _as_group(render(key, row))
    except SecurityError as error:
        raise DataError(f"{where} reaches for Python internals and was stopped ({error}).") from error
    except TemplateSyntaxError as error:
        raise DataError(f"{where} is not valid Jinja: {error.message}.") from error
    except Exception as error:  # whatever its arithmetic or its filters raise
        raise DataError(f"{where} does not fit a row with {sorted(row)} ({error}).") from error


def _as_group(value: object) -> str:
    """The group that a value names, however it is written: 1.0 is 1, and spelling differs only where it is seen."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, dict | list):
        value = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return " ".join(as_seen(str(value)).split())
