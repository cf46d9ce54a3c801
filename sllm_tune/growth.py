"""How large a value of a template is or can become, and what one rendering may make and do.

How large the result of a method, filter or operator can be is told from its arguments, before it is made.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import AnyStr, TypeVar

from jinja2.utils import Namespace

from sllm_tune.bounded import VALUE_LIMIT, TooLarge
from sllm_tune.errors import BadInput

RENDERING_LIMIT = 20_000_000
"""As VALUE_LIMIT, of everything that one rendering makes, its text included."""

STEP_LIMIT = 100_000
"""Rounds of loops in one rendering; a call counts as CALL."""

CALL = 4
_INT_BITS = 10_000
_WIDTH = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d+)?(?:\.(\*|\d+))?")

T = TypeVar("T")


class _Budget(threading.local):
    """What the rendering of this thread may still make and do; None outside of one."""

    made: int | None = None
    steps: int = 0


budget = _Budget()


def size(value: object) -> int:
    """Characters of a value and eight for each member, however deep.

    Raises:
        TooLarge: more than VALUE_LIMIT; the rest is not looked at.
    """
    if isinstance(value, str):  # what most values are
        return refuse(len(value))
    total = 0
    stack: list[object] = [value]
    while stack:
        item = stack.pop()
        total += 8
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, Namespace):
            stack.append(object.__getattribute__(item, "_Namespace__attrs"))
        elif isinstance(item, Mapping):
            refuse(total + 16 * len(item))
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            refuse(total + 8 * len(item))
            stack += item
        refuse(total)
    return total


def bounded(value: T) -> T:
    """The value itself, paid for from the rendering's budget.

    Raises:
        TooLarge: the value is too large, or all that the rendering made.
    """
    pay(size(value))
    return value


def refuse(amount: int) -> int:
    """The size of a value, if it is not too large.

    Raises:
        TooLarge: it is.
    """
    if amount > VALUE_LIMIT:
        raise TooLarge(f"a template makes a value of more than {VALUE_LIMIT:,} characters and was stopped.")
    return amount


def pay(amount: int) -> None:
    """Take what is made from the rendering's budget.

    Raises:
        TooLarge: it is used up.
    """
    if budget.made is not None:
        budget.made -= amount
        if budget.made < 0:
            raise TooLarge(f"a template makes more than {RENDERING_LIMIT:,} characters and was stopped.")


def step(count: int = 1) -> None:
    """Take steps from the rendering's budget.

    Raises:
        TooLarge: it is used up.
    """
    if budget.made is not None:
        budget.steps -= count
        if budget.steps < 0:
            raise TooLarge(f"a template takes more than {STEP_LIMIT:,} rounds of loops and calls and was stopped.")


def paid(parts: Iterable[str]) -> Iterator[str]:
    """Parts of a text, each paid for."""
    for part in parts:
        pay(len(part))
        yield part


def bounded_filter(name: str, made: Callable[..., object]) -> Callable[..., object]:
    """The filter with its arguments looked at before it works, and its result after."""
    handed = 1 if getattr(made, "jinja_pass_arg", None) else 0  # Jinja's own argument comes first

    @functools.wraps(made)
    def filtered(*args: object, **kwargs: object) -> object:
        step(CALL)
        value, *rest = args[handed:]
        pay(size(value) + size(rest))
        refuse(growth(name, value, rest, kwargs))
        return bounded(made(*args, **kwargs))

    return filtered


def _plus(left: object, right: object) -> int:
    return size(left) + size(right)


def _times(left: object, right: object) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return _bits(left.bit_length() + right.bit_length())
    number, value = (left, right) if isinstance(left, int) else (right, left)
    return size(value) * max(number, 0) if isinstance(number, int) else 0


def _power(left: object, right: object) -> int:
    if not isinstance(left, int) or not isinstance(right, int) or abs(left) <= 1:
        return 0
    return _bits(left.bit_length() * max(right, 0))


def _bits(count: int) -> int:
    return VALUE_LIMIT + 1 if count > _INT_BITS else 0


def _percent(left: object, right: object) -> int:
    if not isinstance(left, str | bytes):
        return 0
    text = left if isinstance(left, str) else left.decode("latin-1")
    widths = [number for found in _WIDTH.findall(text) for number in found if number]
    if "*" in widths:
        return VALUE_LIMIT + 1
    again = text.count("%(")  # a name can be asked for many times
    return len(text) + sum(int(number[:9]) for number in widths) + size(right) * max(1, again)


BINOPS: dict[str, Callable[[object, object], int]] = {"+": _plus, "*": _times, "**": _power, "%": _percent}
"""By operator, as `growth`."""


def _width(value: object, width: object = 80, *_: object, **__: object) -> int:
    return width if isinstance(width, int) else 0


def _each(count: int, by: object) -> int:
    return count * (by if isinstance(by, int) else size(by))


def _replaced(value: AnyStr, old: AnyStr, new: AnyStr, *_: object, **__: object) -> int:
    places = len(value) + 1 if not old else len(value) // len(old)
    return places * len(new) if places * len(new) > VALUE_LIMIT and value.count(old) * len(new) > VALUE_LIMIT else 0


_GROWTHS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "batch", "slice"), _width),
    "linecount": _width,
    "to_bytes": _width,
    "round": lambda value, precision=0, *_, **__: _bits(4 * precision),
    "expandtabs": lambda value, tabsize=8: _each(value.count("\t" if isinstance(value, str) else b"\t"), tabsize),
    "indent": lambda value, width=4, *_, **__: _each(value.count("\n") + 1, width),
    "replace": _replaced,
    "translate": lambda value, table: _each(len(value), table),
    "tojson": lambda value, indent=None, **__: _each(size(value) // 8, (indent or 0) if indent != "" else 0),
    "wordwrap": lambda value, width=79, long=True, by=None, *_, **__: _each(len(value) // max(1, width) + 1, by or 1),
    "urlize": lambda value, *rest, **named: _each(sum(map(value.count, ".:@")), [*rest, *named.values()]),
    "format": lambda value, *args, **named: _percent(str(value), named or args),
}


def growth(name: str, value: object, args: Iterable[object], kwargs: Mapping[str, object]) -> int:
    """About how large the result of a method or filter can be, which is known before it is made; 0 if no matter.

    The names of the arguments that can be named are Jinja's: only filters take them by name.
    """
    if name == "join":
        return _joined(value, *args, **kwargs)
    if name not in _GROWTHS:
        return 0
    names = {"linecount": "width", "slices": "width", "wrapstring": "by", "break_long_words": "long"}
    try:
        return _GROWTHS[name](value, *args, **{names.get(key, key): given for key, given in kwargs.items()})
    except BadInput:
        raise
    except (TypeError, AttributeError, ValueError):  # arguments that do not fit: the call itself says so
        return 0


def _joined(value: object, items: object = "", *_: object, **kwargs: object) -> int:
    """Of the method, whose value is the separator, and of the filter, whose value is the items."""
    by, members = (value, items) if isinstance(value, str | bytes) and not isinstance(items, str) else (items, value)
    by = kwargs.get("d", by)
    count = len(members) if isinstance(members, Sized) else 0
    return size(members) + count * size(by)
