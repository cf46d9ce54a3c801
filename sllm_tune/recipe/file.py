"""The file of a recipe: its YAML, read with faults that name the place and the fix, and its dotted overrides."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from sllm_tune.errors import RecipeError
from sllm_tune.recipe.faults import Key, Problem
from sllm_tune.wording import hint, shown

_FIXES = {
    "mapping values are not allowed": "put text that holds ': ' in quotes, and indent the keys of a mapping alike",
    r"'\t'": "indent with spaces, not with tabs",
    "expected a single document": "take out the '---' line; a recipe is one document",
    "undefined alias": "define it before with '&', or put text that starts with '*' in quotes",
    "could not determine a constructor": "take out the '!' tag; a recipe holds plain values",
    "values": "a recipe has far fewer, each counted as often as aliases repeat it",
    "is inside itself": "take out the alias",
    "characters long": "write a number that a recipe can mean",
    "no file can hold": "take it out",
    "": "look for a missing quote, bracket or colon there or on the line before",
}

# Far above any recipe; without them, a few lines of aliases grow beyond every memory.
_MOST_BYTES = 1_000_000
_MOST_VALUES = 5_000
_LONGEST_NUMBER = 400
_DEEPEST_OVERRIDE = 20


def find_recipe(name: Path | str) -> Path:
    """A file of that name, else the recipe that comes with the package under it, such as `legal/quickstart`."""
    path, shipped = Path(name), _shipped()
    if os.path.exists(path) or shipped is None or path.is_absolute() or len(path.parts) != 2:
        return path
    found = shipped / path.with_suffix(".yaml")
    return found if found.is_file() else path


def _shipped() -> Path | None:
    """The folder of the recipes that come with the package: inside it in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside, beside = package / "recipes", package.parent / "recipes"
    if inside.is_dir():
        return inside
    return beside if (package.parent / "pyproject.toml").is_file() and beside.is_dir() else None


def read_yaml(path: Path | str) -> tuple[dict[object, object], list[Problem]]:
    """The values of a recipe's file, which need not be a right recipe, and the keys that it gives twice.

    Raises:
        RecipeError: the file cannot be read, or does not hold a mapping of plain values in YAML.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        near = [str(sibling) for sibling in Path(path).parent.glob("*.yaml")]
        if shipped := _shipped():
            near += [str(file.relative_to(shipped).with_suffix("")) for file in shipped.glob("*/*.yaml")]
        raise RecipeError(f"{path}: no such file{hint(str(path), near)}") from None
    except IsADirectoryError:
        example = Path(path) / "quickstart.yaml"
        raise RecipeError(f"{path}: is a folder; name a recipe file, such as {example}") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # what no name of a file can hold, such as NUL or half an emoji
        raise RecipeError(f"{str(path)!a}: is not a file name: {error}") from None
    if len(raw) > _MOST_BYTES:
        raise RecipeError(f"{path}: more than {_MOST_BYTES:,} bytes; name a recipe, not a file of rows")
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
    return cast(dict[object, object], values), [Problem((), line) for line in repeated]


def as_yaml(value: object) -> str:
    """A value of Python as YAML on one line, so that it is held to what a file may hold.

    Raises:
        RecipeError: it cannot be written there.
    """
    try:
        return json.dumps(value, ensure_ascii=False, default=os.fspath)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"{shown(value)}: cannot be a value of a recipe ({error})") from None


def of_python(values: Mapping[str, object], name: str) -> dict[object, object]:
    """Values that were written in Python, as a file's.

    Raises:
        RecipeError: a recipe cannot hold them.
    """
    try:
        found, _ = _parse(as_yaml(dict(values)))
    except ValueError as error:
        raise RecipeError(f"{name}: {error}") from None
    return cast(dict[object, object], found)


def apply_overrides(
    values: dict[object, object], overrides: Sequence[str]
) -> tuple[dict[object, object], list[Key], list[Problem]]:
    """`values` with each `key.path=value` set, as a copy; the keys that were set; the overrides that cannot be.

    A relative path in the file starts at the file; one that is typed here starts at the working folder, which is why it
    is made absolute.
    """
    given, problems = list[Key](), list[Problem]()
    for override in overrides:
        dotted, equals, text = override.partition("=")
        key = tuple(dotted.strip().split("."))
        try:
            if not equals or not all(key) or len(key) > _DEEPEST_OVERRIDE:
                raise ValueError("write key.path=value")
            override.encode()
            value, repeated = _parse(text)
            if repeated:
                raise ValueError(repeated[0])
            values = _with(values, key, _typed_paths(key, value))
            given.append(key)
        except ValueError as error:
            problems.append(Problem((), f"override {shown(override)}: {error}"))
    return values, given, problems


def _typed_paths(key: tuple[object, ...], value: object) -> object:
    """The value with the relative paths in it made absolute; a hub id or a `pypi:` source is none."""
    if isinstance(value, dict):
        return {name: _typed_paths((*key, name), inner) for name, inner in cast(dict[object, object], value).items()}
    file = key == ("data", "leave_out") or (len(key) == 3 and key[:2] == ("data", "source"))
    if not isinstance(value, str) or not value or value.startswith(("/", "~", "pypi:")):
        return value
    if file or (key == ("base_model", "path") and (value.startswith(".") or value.endswith(".gguf"))):
        return os.path.abspath(value)
    return value


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


def _parse(text: str) -> tuple[object, list[str]]:
    """The value that YAML `text` holds, and its keys that are given twice. Raises ValueError with the place."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _require_bounded(node)
        value = None if node is None else loader.construct_document(node)
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
        fix = next(fix for part, fix in _FIXES.items() if part in said)
        raise ValueError(f"{place}{said}; {fix}") from None
    except Exception as error:  # PyYAML's constructors raise whatever they trip over, as `!!int ''` an IndexError
        plain = "text, numbers, true, false, null, lists and mappings, none inside itself"
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"cannot be kept as JSON ({reason}); write {plain}") from None


def _require_bounded(document: yaml.Node | None) -> None:
    """Raises what YAML raises for more values than a recipe has, aliases repeated, and for what no file can hold."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = 0  # until its members are known
            sizes[id(node)] = 1 + sum(map(size, _members(node)))
        total, fault = sizes[id(node)], ""
        if not total:
            fault = "a value is inside itself"
        elif total > _MOST_VALUES:
            fault = f"more than {_MOST_VALUES:,} values"
        elif isinstance(node, yaml.ScalarNode):
            fault = _fault_of_scalar(node)
        if fault:
            raise yaml.MarkedYAMLError(problem=fault, problem_mark=node.start_mark)
        return total

    if document is not None:
        size(document)


def _members(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _fault_of_scalar(node: yaml.ScalarNode) -> str:
    if node.tag.endswith((":int", ":float")) and len(node.value) > _LONGEST_NUMBER:
        return f"a number is {len(node.value):,} characters long"
    odd = next((character for character in node.value if character == "\0" or "\ud800" <= character <= "\udfff"), "")
    return f"the character {ord(odd):#x} is one that no file can hold" if odd else ""


def _with(values: dict[object, object], key: Key, value: object, above: str = "") -> dict[object, object]:
    """`values` with `value` at `key`, as a copy: a mapping that YAML shares by alias changes in one place only."""
    head, rest = key[0], key[1:]
    if not rest:
        return {**values, head: value}
    inner = values.get(head)
    if not isinstance(inner, dict | None):
        raise ValueError(f"{above}{head} is not a mapping (got {shown(inner)})")
    return {**values, head: _with(cast(dict[object, object], inner or {}), rest, value, f"{above}{head}.")}
