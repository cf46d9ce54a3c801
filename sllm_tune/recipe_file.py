"""The file of a recipe: its YAML, read with faults that name the place and the mend, and its dotted overrides."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from sllm_tune.errors import RecipeError
from sllm_tune.faults import Key, Problem, hint, shown

_MENDS = {
    "mapping values are not allowed": "put text that holds ': ' in quotes, and indent the keys of a mapping alike",
    r"'\t'": "indent with spaces, not with tabs",
    "expected a single document": "take out the '---' line; a recipe is one document",
    "undefined alias": "define it before with '&', or put text that starts with '*' in quotes",
    "could not determine a constructor": "take out the '!' tag; a recipe holds plain values",
    "": "look for a missing quote, bracket or colon there or on the line before",
}


def read_yaml(path: Path | str) -> tuple[dict[Any, Any], list[Problem]]:
    """The values of a recipe's file, which need not be a right recipe, and the keys that it gives twice.

    Raises:
        RecipeError: the file cannot be read, or does not hold a mapping of plain values in YAML.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        siblings = [str(sibling) for sibling in Path(path).parent.glob("*.yaml")]
        raise RecipeError(f"{path}: no such file{hint(str(path), siblings)}") from None
    except IsADirectoryError:
        example = Path(path) / "quickstart.yaml"
        raise RecipeError(f"{path}: is a folder; name a recipe file, such as {example}") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise RecipeError(f"{path}: not UTF-8: byte {byte:#04x} at offset {error.start}; save it as UTF-8") from None
    try:
        values, repeated = _parse(text)
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from None
    if values is None:
        raise RecipeError(f"{path}: empty; a recipe names at least name, domain, base_model, data, train and evaluate")
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: must be a mapping, such as 'name: my-recipe' (got {shown(values)})")
    return cast(dict[Any, Any], values), [Problem((), line) for line in repeated]


def apply_overrides(
    values: dict[Any, Any], overrides: Sequence[str]
) -> tuple[dict[Any, Any], list[Key], list[Problem]]:
    """`values` with each `key.path=value` set, as a copy; the keys that were set; the overrides that cannot be."""
    given, problems = list[Key](), list[Problem]()
    for override in overrides:
        dotted, equals, text = override.partition("=")
        key = tuple(dotted.strip().split("."))
        try:
            if not equals or not all(key):
                raise ValueError("write key.path=value")
            value, repeated = _parse(text)
            if repeated:
                raise ValueError(repeated[0])
            values = _with(values, key, value)
            given.append(key)
        except ValueError as error:
            problems.append(Problem((), f"override '{override}': {error}"))
    return values, given, problems


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that reads 1e-3 as a number and a date as text, and notes keys given twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012  PyYAML's own class attribute
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[str] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here and not in construct_mapping: a merge (<<) would by then look like repetition.
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line, first = key.start_mark.line + 1, lines.get(str(key.value))
            if first is not None:
                self.repeated.append(f"line {line}: key '{key.value}' is on line {first} already; keep one of them")
            lines.setdefault(str(key.value), line)
        return node


# YAML 1.1, which PyYAML follows, asks for a dot in front of the exponent: without this, 1e-3 is text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse(text: str) -> tuple[Any, list[str]]:
    """The value that YAML `text` holds, and its keys that are given twice. Raises ValueError with the place."""
    try:
        loader = _Loader(text)
        value = loader.get_single_data()
        json.dumps(value)  # a recipe is kept as JSON
        return value, loader.repeated
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: character {error.character:#x} is not allowed in YAML; take it out") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = str(error.problem)
        said = f"{error.context}, {problem}" if problem.startswith("but ") else problem
        mend = next(mend for part, mend in _MENDS.items() if part in said)
        raise ValueError(f"{place}{said}; {mend}") from None
    except (TypeError, ValueError, RecursionError) as error:
        plain = "text, numbers, true, false, null, lists and mappings, none inside itself"
        raise ValueError(f"cannot be kept as JSON ({error}); write {plain}") from None


def _with(values: dict[Any, Any], key: Key, value: Any, above: str = "") -> dict[Any, Any]:
    """`values` with `value` at `key`, as a copy: a mapping that YAML shares by alias changes in one place only."""
    head, rest = key[0], key[1:]
    if not rest:
        return {**values, head: value}
    inner = values.get(head)
    if not isinstance(inner, dict | None):
        raise ValueError(f"{above}{head} is not a mapping (got {shown(inner)})")
    return {**values, head: _with(cast(dict[Any, Any], inner or {}), rest, value, f"{above}{head}.")}
