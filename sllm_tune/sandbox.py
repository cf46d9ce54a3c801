"""Templates of others, stopped in bounded time and memory.

A template is bounded by what it does, not by a clock, so that the same template is refused on every machine: each value
that it makes has a limit, and each rendering has one on all of them together and on its steps.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from types import BuiltinMethodType, MethodType
from typing import Any, TypeVar, cast

from jinja2 import BaseLoader, Template, Undefined, nodes
from jinja2.runtime import Context, LoopContext, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

from sllm_tune.bounded import TooLarge, compiled
from sllm_tune.growth import (
    BINOPS,
    CALL,
    RENDERING_LIMIT,
    STEP_LIMIT,
    bounded,
    bounded_filter,
    budget,
    growth,
    paid,
    refuse,
    size,
    step,
)

T = TypeVar("T")


def sandbox(
    loader: BaseLoader | None = None,
    undefined: type[Undefined] = Undefined,
    filters: Mapping[str, Callable[..., object]] | None = None,
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


class _Bounded(Template):
    def render(self, *args: object, **kwargs: object) -> str:
        """As in Jinja, with a budget of its own."""
        before = budget.made, budget.steps
        budget.made, budget.steps = RENDERING_LIMIT, STEP_LIMIT
        try:
            return super().render(*args, **kwargs)
        except RecursionError:
            raise TooLarge("a template calls itself without an end and was stopped.") from None
        finally:
            budget.made, budget.steps = before


class _Filters(dict[str, Callable[..., object]]):
    """Filters that are bounded when they are taken out, by whomever they were put in."""

    def __getitem__(self, name: str) -> Callable[..., object]:
        return bounded_filter(name, super().__getitem__(name))

    def get(self, name: str, default: T = None) -> Callable[..., object] | T:
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


def _through(method: str, *given: nodes.Node) -> nodes.Call:
    call = nodes.Call(nodes.EnvironmentAttribute(method), list(given), [], None, None)
    call.set_lineno(given[0].lineno, override=False)
    return call


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
        return "".join(paid(parts))

    @staticmethod
    def bounded(value: T) -> T:
        """The value itself, if it is not too large."""
        return bounded(value)

    @staticmethod
    def concatenated(*values: object) -> str:
        """As `~` does."""
        bounded(values)
        return bounded(str_join(values))

    @staticmethod
    def counted(values: Iterable[object]) -> Iterable[object]:
        """What a loop goes over, each round counted."""
        return _Rounds(values)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """The result, if it cannot be too large."""
        refuse(BINOPS[operator](left, right))
        return bounded(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: object, *args: object, **kwargs: object) -> object:
        """The result of a call, counted as a step."""
        for own in _OWN:
            if __obj is own:
                return own(*args)
        step(CALL)
        if isinstance(__obj, LoopContext) and args:  # of a recursive loop
            args = (_Rounds(cast(Iterable[object], args[0])), *args[1:])
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str | bytes | int | dict | list | tuple):
            refuse(growth(name, owner, args, {key: value for key, value in kwargs.items() if key not in _FRAMES}))
        return bounded(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        """`str.format` with bounded widths."""
        wrapped = super().wrap_str_format(value)
        owner = value.__self__ if isinstance(value, MethodType | BuiltinMethodType) else None
        if wrapped is None or not isinstance(owner, str):
            return None

        def formatted(*args: object, **kwargs: object) -> str:
            if wrapped.__name__ == "format_map":
                args, kwargs = (), cast(dict[str, object], args[0])
            return type(owner)(_Formatter(self).vformat(str(owner), args, kwargs))

        return functools.update_wrapper(formatted, wrapped)

    def compile(self, source: str | nodes.Template, *args: Any, **kwargs: Any) -> Any:
        """As in Jinja, where the template is not too long and not nested too deeply."""
        if isinstance(source, str):
            size(source)
        try:
            return super().compile(source, *args, **kwargs)
        except RecursionError:
            raise TooLarge("a template is nested too deeply.") from None

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        return super()._generate(_Counting().visit(source), name, filename, defer_init)


_FRAMES = ("_loop_vars", "_block_vars", "caller")  # what Jinja passes beside the arguments
_OWN: tuple[Callable[..., object], ...] = (Sandbox.bounded, Sandbox.concatenated, Sandbox.counted)


class _Formatter(SandboxedFormatter):
    def format_field(self, value: object, format_spec: str) -> object:
        refuse(sum(int(number[:9]) for number in re.findall(r"\d+", format_spec)) + size(value))
        return bounded(super().format_field(value, format_spec))


class _Rounds:
    """Keeps what `loop.length` and the like ask for."""

    def __init__(self, values: Iterable[object]) -> None:
        self.values = values
        iter(values)  # says now that it is not a collection

    def __iter__(self) -> Iterator[object]:
        for value in self.values:
            step()
            yield value

    def __len__(self) -> int:
        return len(cast(Sized, self.values))
