"""Faults of a recipe in words: which key, what is wrong with it, what is wanted, and the nearest right name."""

import inspect
import typing
from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from sllm_tune.wording import hint, listed, shown

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


def _models(annotation: object) -> Iterable[type[BaseModel]]:
    """The sections that an annotation names, however deep."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)


def _tag(model: type[BaseModel]) -> str:
    return str(typing.get_args(model.model_fields["kind"].annotation)[0]) if "kind" in model.model_fields else ""


def position(values: object, key: Key) -> list[int]:
    """Where `key` stands in the file: its index at each level; a key that is missing comes after its siblings."""
    place: list[int] = []
    for part in key:
        inside = cast(dict[object, object], values) if isinstance(values, dict) else {}
        names = list(inside)
        if part not in names:
            return [*place, len(names), *([part] if isinstance(part, int) else [])]
        place.append(names.index(part))
        values = inside[part]
    return place
