"""Templates of others, stopped in bounded time and memory.

A template is bounded by what it does, not by a clock, so that the same template is refused on every machine: each value
that it makes has a limit, and each rendering has one on all of them together and on its steps.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from jinja2 import Template, Undefined, nodes
from jinja2.runtime import LoopContext, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from sllm_tune.bounded import VALUE_LIMIT, TooLarge, compiled
from sllm_tune.errors import BadInput

RENDERING_LIMIT = 20_000_000
"""The same of everything that one rendering makes, its text included."""

STEP_LIMIT = 100_000
"""Rounds of loops in one rendering; a call counts as four."""

_CALL = 4
_INT_BITS = 10_000
_WIDTH = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d+)?(?:\.(\*|\d+))?")


def sandbox(
    loader: Any = None, undefined: type[Undefined] = Undefined, filters: Mapping[str, Callable[..., Any]] | None = None
) -> Sandbox:
    """An environment whose templates reach no Python internals, change nothing and stop in bounded time and memory.

    Rendering one raises TooLarge where it does not. A `regex_replace` filter among `filters` is replaced by one that
    stops too. What renders whole chunks of rows should be inside one `within`.

    Args:
        loader: For templates that include others.
        undefined: What a name without a value is.
        filters: Beside the ones of Jinja.
    """
    made = Sandbox(loader=loader, undefined=undefined, keep_trailing_newline=True)
    made.filters.update(filters or {})
    if "regex_replace" in made.filters:
        made.filters["regex_replace"] = _regex_replace
    return made


def _regex_replace(string: str, pattern: str, repl: str, count: int = 0) -> str:
    return compiled(pattern, "the filter regex_replace").sub(repl, string, count)


class _Budget(threading.local):
    """What the rendering of this thread may still make and do; None outside of one."""

    made: int | None = None
    steps: int = 0


_budget = _Budget()


class _Bounded(Template):
    def render(self, *args: Any, **kwargs: Any) -> str:
        """As in Jinja, with a budget of its own."""
        before = _budget.made, _budget.steps
        _budget.made, _budget.steps = RENDERING_LIMIT, STEP_LIMIT
        try:
            return super().render(*args, **kwargs)
        except RecursionError:
            raise TooLarge("a template calls itself without an end and was stopped.") from None
        finally:
            _budget.made, _budget.steps = before


class _Filters(dict[str, Callable[..., Any]]):
    """Filters that are bounded when they are taken out, by whomever they were put in."""

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return _bounded_filter(name, super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401  it is that method


class _Counting(NodeTransformer):
    """Puts a count around what a template loops over and around the lists and texts that it makes."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through("counted", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through("concatenated", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _through("bounded", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _through("bounded", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _through("bounded", node) if node.ctx == "load" else node


def _through(method: str, *given: nodes.Node) -> Any:
    call = nodes.Call(nodes.EnvironmentAttribute(method), cast(Any, list(given)), [], None, None)
    return call.set_lineno(given[0].lineno, override=False)


class Sandbox(ImmutableSandboxedEnvironment):
    """What `sandbox` makes; a class so that transformers can make one as well."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    template_class = _Bounded

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, finalize=bounded, **kwargs)
        self.filters = _Filters(self.filters)
        del self.globals["lipsum"]

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """The text of a rendering or a macro."""
        return "".join(_paid(parts))

    @staticmethod
    def bounded(value: Any) -> Any:
        """The value itself, if it is not too large."""
        return bounded(value)

    @staticmethod
    def concatenated(*values: Any) -> str:
        """As `~` does."""
        bounded(values)
        return bounded(str_join(values))

    @staticmethod
    def counted(values: Iterable[Any]) -> Any:
        """What a loop goes over, each round counted."""
        return _Rounds(values)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The result, if it cannot be too large."""
        _refuse(_BINOPS[operator](left, right))
        return bounded(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of a call, counted as a step."""
        if any(__obj is own for own in _OWN):
            return __obj(*args)
        _step(_CALL)
        if isinstance(__obj, LoopContext) and args:  # of a recursive loop
            args = (_Rounds(args[0]), *args[1:])
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str | bytes | int | dict | list | tuple):
            _refuse(_growth(name, owner, args, {key: value for key, value in kwargs.items() if key not in _FRAMES}))
        return bounded(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` with bounded widths."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text, mapped = str(value.__self__), value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            if mapped:
                args, kwargs = (), args[0]
            return type(value.__self__)(_Formatter(self).vformat(text, args, kwargs))

        return functools.update_wrapper(formatted, wrapped)

    def compile(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Jinja, where the template is not too long and not nested too deeply."""
        if isinstance(source, str):
            size(source)
        try:
            return super().compile(source, *args, **kwargs)
        except RecursionError:
            raise TooLarge("a template is nested too deeply.") from None

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Counting().visit(source), *args, **kwargs)


_FRAMES = ("_loop_vars", "_block_vars", "caller")  # what Jinja passes beside the arguments
_OWN = (Sandbox.bounded, Sandbox.concatenated, Sandbox.counted)


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        _refuse(sum(int(number[:9]) for number in re.findall(r"\d+", format_spec)) + size(value))
        return bounded(super().format_field(value, format_spec))


class _Rounds:
    """Keeps what `loop.length` and the like ask for."""

    def __init__(self, values: Iterable[Any]) -> None:
        self.values = values
        iter(values)  # says now that it is not a collection

    def __iter__(self) -> Iterator[Any]:
        for value in self.values:
            _step()
            yield value

    def __len__(self) -> int:
        return len(cast(Any, self.values))


def size(value: Any) -> int:
    """Characters of a value and eight for each member, however deep.

    Raises:
        TooLarge: more than VALUE_LIMIT; the rest is not looked at.
    """
    if isinstance(value, str):  # what most values are
        return _refuse(len(value))
    total, stack = 0, [value]
    while stack:
        item = stack.pop()
        total += 8
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, Namespace):
            stack.append(object.__getattribute__(item, "_Namespace__attrs"))
        elif isinstance(item, Mapping):
            _refuse(total + 16 * len(cast(Any, item)))
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            _refuse(total + 8 * len(cast(Any, item)))
            stack += item
        _refuse(total)
    return total


def bounded(value: Any) -> Any:
    """The value itself, paid for from the rendering's budget.

    Raises:
        TooLarge: the value is too large, or all that the rendering made.
    """
    _pay(size(value))
    return value


def _refuse(amount: int) -> int:
    if amount > VALUE_LIMIT:
        raise TooLarge(f"a template makes a value of more than {VALUE_LIMIT:,} characters and was stopped.")
    return amount


def _pay(amount: int) -> None:
    if _budget.made is not None:
        _budget.made -= amount
        if _budget.made < 0:
            raise TooLarge(f"a template makes more than {RENDERING_LIMIT:,} characters and was stopped.")


def _step(count: int = 1) -> None:
    if _budget.made is not None:
        _budget.steps -= count
        if _budget.steps < 0:
            raise TooLarge(f"a template takes more than {STEP_LIMIT:,} rounds of loops and calls and was stopped.")


def _paid(parts: Iterable[str]) -> Iterator[str]:
    for part in parts:
        _pay(len(part))
        yield part


def _bounded_filter(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    """The filter with its arguments looked at before it works, and its result after."""
    handed = 1 if getattr(made, "jinja_pass_arg", None) else 0  # Jinja's own argument comes first

    @functools.wraps(made)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        _step(_CALL)
        value, *rest = args[handed:]
        _pay(size(value) + size(rest))
        _refuse(_growth(name, value, rest, kwargs))
        return bounded(made(*args, **kwargs))

    return filtered


def _plus(left: Any, right: Any) -> int:
    return size(left) + size(right)


def _times(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return _bits(left.bit_length() + right.bit_length())
    number, value = (left, right) if isinstance(left, int) else (right, left)
    return size(value) * max(number, 0) if isinstance(number, int) else 0


def _power(left: Any, right: Any) -> int:
    both = isinstance(left, int) and isinstance(right, int)
    return _bits(left.bit_length() * max(right, 0)) if both and abs(left) > 1 else 0


def _bits(count: int) -> int:
    return VALUE_LIMIT + 1 if count > _INT_BITS else 0


def _percent(left: Any, right: Any) -> int:
    if not isinstance(left, str | bytes):
        return 0
    text = left if isinstance(left, str) else left.decode("latin-1")
    widths = [number for found in _WIDTH.findall(text) for number in found if number]
    if "*" in widths:
        return VALUE_LIMIT + 1
    again = text.count("%(")  # a name can be asked for many times
    return len(text) + sum(int(number[:9]) for number in widths) + size(right) * max(1, again)


_BINOPS: dict[str, Callable[[Any, Any], int]] = {"+": _plus, "*": _times, "**": _power, "%": _percent}


def _width(value: Any, width: Any = 80, *_: Any, **__: Any) -> int:
    return width if isinstance(width, int) else 0


def _each(count: int, by: Any) -> int:
    return count * (by if isinstance(by, int) else size(by))


def _replaced(value: Any, old: Any, new: Any, *_: Any, **__: Any) -> int:
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


def _growth(name: str, value: Any, args: Iterable[Any], kwargs: Mapping[str, Any]) -> int:
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


def _joined(value: Any, items: Any = "", *_: Any, **kwargs: Any) -> int:
    """Of the method, whose value is the separator, and of the filter, whose value is the items."""
    by, members = (value, items) if isinstance(value, str | bytes) and not isinstance(items, str) else (items, value)
    by = kwargs.get("d", by)
    count = len(members) if hasattr(members, "__len__") else 0
    return size(members) + count * size(by)
