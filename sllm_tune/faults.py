"""Faults of a recipe in words: which key, what is wrong with it, what is wanted, and the nearest right name."""

import difflib
import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

from pydantic import BaseModel
from pydantic_core import ErrorDetails

Key = tuple[str | int, ...]


class Problem(NamedTuple):
    """One fault: the key that has it, () where the whole file or an override has it, and what to say of it."""

    key: Key
    text: str

    def line(self, given: list[Key]) -> str:
        """The fault in one line; `given` are the keys that overrides set, and a fault at or under one says so."""
        parts = [part if isinstance(part, int) or len(part) <= 60 else f"{part[:57]}..." for part in self.key]
        dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")
        from_command_line = any(self.key[: len(key)] == key for key in given)
        return f"{dotted}: " * bool(dotted) + self.text + " (from the command line)" * from_command_line


def nearest(name: str, names: Iterable[str]) -> str:
    """The text " did you mean 'x'?" with the one of `names` most like `name`; "" where none is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" did you mean '{near[0]}'?" if near else ""


def hint(name: str, names: Iterable[str]) -> str:
    """`nearest` as the end of a sentence: "; did you mean 'x'?" or ""."""
    near = nearest(name, names)
    return f";{near}" if near else ""


def listed(names: Iterable[object], last: str) -> str:
    """The names in quotes, `last` in front of the last one: "'a', 'b' and 'c'"."""
    *head, tail = [shown(name) for name in names]
    return f"{', '.join(head)} {last} {tail}" if head else tail


def shown(value: object) -> str:
    """A value as YAML writes it, cut to 60 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_EXPECTED = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "literal_error": "{expected}",
    "list_type": "a list, such as [a, b]",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def own_problem(error: ErrorDetails, model: type[BaseModel], patterns: Mapping[str, str]) -> Problem:
    """What pydantic found wrong with a key of `model`; `patterns` has the words for each regular expression of it."""
    (key, inside), kind, context = _walk(error["loc"], model), error["type"], error.get("ctx", {})
    got = f"(got {shown(error['input'])})"
    if kind == "missing":
        return Problem(key, "required")
    if kind == "extra_forbidden":
        return Problem(key, f"unknown key{hint(str(key[-1]), inside.model_fields)}")
    if kind == "union_tag_not_found":
        return Problem((*key, "kind"), "required")
    if kind == "union_tag_invalid":
        kinds = [name.strip(" '") for name in context["expected_tags"].split(",")]
        fix = hint(context["tag"], kinds) or f"; one of {listed(kinds, 'or')}"
        return Problem((*key, "kind"), f"unknown kind {shown(context['tag'])}{fix}")
    if kind in ("too_short", "string_too_short"):
        return Problem(key, "must not be empty")
    if key[-1:] == ("[key]",) or kind == "invalid_key":
        return Problem(key[:-1] if key[-1] == "[key]" else key, "a key must be text; put it in quotes")
    if kind == "string_pattern_mismatch":
        return Problem(key, f"must be {patterns[context['pattern']]} {got}")
    if kind not in _EXPECTED:  # raised by a validator of the model's own
        return Problem(context.get("key", key), error["msg"])
    quote = "; put it in quotes" if kind == "string_type" and isinstance(error["input"], int | float) else ""
    return Problem(key, f"must be {expected(error)} {got}{quote}")


def expected(error: ErrorDetails) -> str:
    """What pydantic wanted instead, in words: "greater than 0"."""
    context = {name: str(value).removesuffix(".0") for name, value in error.get("ctx", {}).items()}
    return _EXPECTED[error["type"]].format(**context)


def _walk(path: Key, model: type[BaseModel]) -> tuple[Key, type[BaseModel]]:
    """The keys of a pydantic path as the recipe has them, and the model that has the last one.

    In a list of sections of several kinds, pydantic puts the kind between the index and the key.
    """
    keys: list[str | int] = []
    inside: list[type[BaseModel]] = [model]
    for place, part in enumerate(path):
        kind = next((found for found in inside if len(inside) > 1 and _tag(found) == part), None)
        if kind is not None:
            inside = [kind]
            continue
        keys.append(part)
        if place < len(path) - 1 and isinstance(part, str) and part in inside[0].model_fields:
            inside = list(_models(inside[0].model_fields[part].annotation)) or inside
    return tuple(keys), inside[0]


def _models(annotation: Any) -> Iterable[type[BaseModel]]:
    """The sections that an annotation names, however deep."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)


def _tag(model: type[BaseModel]) -> str:
    return str(typing.get_args(model.model_fields["kind"].annotation)[0]) if "kind" in model.model_fields else ""


def position(values: Any, key: Key) -> list[int]:
    """Where `key` stands in the file: its index at each level; a key that is missing comes after its siblings."""
    place: list[int] = []
    for part in key:
        names = list(cast(dict[Any, Any], values)) if isinstance(values, dict) else []
        if part not in names:
            return [*place, len(names), *([part] if isinstance(part, int) else [])]
        place.append(names.index(part))
        values = values[part]
    return place


# Control characters but tabs and line ends, line separators, marks that turn the direction of text, half characters.
_UNSEEN = re.compile(
    "\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    r"""Text from data as a terminal or a report may show it: what would act there instead of being seen is written out.

    An escape sequence could rewrite what was said before, and a change of direction shows text in another order than
    the model reads it: `\x1b` and `\u202e` then stand in their places.
    """
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)


def without_secrets(text: str) -> str:
    """Text in which no address has a password or a query, where package indexes and hubs take their tokens."""
    text = re.sub(r"(?<=://)[^/@\s]+@", "****@", text)
    return re.sub(r"(://[^\s?#'\"]*\?)[^\s#'\"]+", r"\1****", text)
