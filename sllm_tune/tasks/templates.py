"""The templates of a task file over a row, as text: a prompt, its choices and its right answers.

lm-eval evaluates what a template makes as a Python literal wherever it looks like one: `["a", "b"]` becomes its first
element, `001` an error, and the class named `1` the second choice. Here text stays text, by these rules:

- A template prints text, and nothing that is missing (`render`).
- Choices are the one place where a template makes a list.
- The right answer of a choice is the choice's own text, or else its position from 0. A digit that stands in the row is
  the choice of that name where choices are named by digits; one that the template computes is a position. True and
  false are the choices of these names, and refused where there are none.
- Several answers are right where the template of a choice makes a list, or where the answer of a written task names a
  column that holds one.

A run folder's task files name columns that hold what was rendered here, so lm-eval reads there what was trained.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import unicodedata
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from jinja2 import TemplateSyntaxError, UndefinedError, nodes
from jinja2.exceptions import SecurityError

from sllm_tune.errors import TaskError
from sllm_tune.rows.read import Row
from sllm_tune.tasks.keys import TaskKeys
from sllm_tune.tasks.render import as_text, columns_read, is_null, present, render, sandbox
from sllm_tune.wording import as_seen, shown

FIELDS = ("doc_to_text", "doc_to_choice", "doc_to_target", "description", "gen_prefix")
_DIGITS = re.compile("0|[1-9][0-9]{0,8}")


class AmbiguousAnswer(TaskError):
    """A fault of the task file that no row can be skipped for."""


@dataclass(frozen=True)
class Rendered:
    """One row as text."""

    prompt: str
    choices: list[str] | None
    answers: list[str]
    """The right ones, in the row's order; the first is shown as an example."""
    positions: list[int]
    """Those of `answers` among `choices`; empty for a written answer."""
    respelled: bool = False
    """Whether an answer is its choice in another of Unicode's forms only."""


def prompt_of(config: TaskKeys, row: Row) -> str:
    """The prompt of a row: `doc_to_text` names a column, or is a template."""
    return _text_of(config["doc_to_text"], row)


def _text_of(field: str, row: Row) -> str:
    return as_text(present(field, row[field])) if field in row else render(field, row)


def choices_of(config: TaskKeys, row: Row) -> list[str]:
    """The choices of a row, as texts.

    Raises:
        ValueError: they are not a list of distinct texts.
    """
    field = config.get("doc_to_choice")
    made: object = field
    if isinstance(field, str):
        made = present(field, row[field]) if field in row else _parsed_list(render(field, row))
    if not isinstance(made, list):
        raise ValueError(f"doc_to_choice does not make a list of choices but {shown(made)}")
    choices = [as_text(choice) for choice in made]
    if len(choices) < 2:
        raise ValueError(f"{len(choices)} choice, where a choice needs two: {shown(choices)}")
    if len(set(choices)) < len(choices):
        twice = next(choice for choice in choices if choices.count(choice) > 1)
        raise ValueError(f"the choice {shown(twice)} is there twice, so no answer could be told from the other")
    looks = [as_seen(choice) for choice in choices]
    if len(set(looks)) < len(looks):
        alike = " and ".join(ascii(choices[at]) for at, look in enumerate(looks) if looks.count(look) > 1)
        raise ValueError(f"the choices {alike} differ only in white space or in what is not seen")
    return choices


def _parsed_list(text: str) -> object:
    """A list in JSON, as templates print one, or as a Python literal; else the text as it is."""
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = parse(text)
            if isinstance(found, list):
                return found
    return text


def render_row(config: TaskKeys, row: Row) -> Rendered:
    """A row as the model sees it and should answer it.

    Raises:
        Whatever a template raises on the row; ValueError: an answer is empty or is none of the choices;
        AmbiguousAnswer: as `chosen`.
    """
    asked = question_of(config, row)
    if asked.choices is None:
        return replace(asked, answers=written_answers(config, row))
    positions, respelled = chosen(config, row, asked.choices)
    answers = [asked.choices[position] for position in positions]
    return replace(asked, answers=answers, positions=positions, respelled=respelled)


def question_of(config: TaskKeys, row: Row) -> Rendered:
    """A row as the model sees it, without answers, which the row need not have.

    Raises:
        Whatever a template raises on the row; ValueError: as `choices_of`.
    """
    prompt = prompt_of(config, row)
    return Rendered(prompt, choices_of(config, row) if config["output_type"] == "multiple_choice" else None, [], [])


def written_answers(config: TaskKeys, row: Row) -> list[str]:
    """The right answers of a written task: the text of `doc_to_target`, or the texts of the list in its column."""
    field = config["doc_to_target"]
    if field in row and isinstance(row[field], list):
        values = [present(field, value) for value in row[field]]
        if not values or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{field!r} is a list, so of right answers, but not of texts: {shown(values)}")
        return list(dict.fromkeys(values))
    if isinstance(field, int):
        raise ValueError(f"doc_to_target is {field}, a position, where a written answer needs a column or a template")
    return [_text_of(field, row)]


def chosen(config: TaskKeys, row: Row, choices: Sequence[str]) -> tuple[list[int], bool]:
    """Positions of the right choices, and whether one is written there in another of Unicode's forms.

    Raises:
        ValueError: an answer is none of the choices.
        AmbiguousAnswer: choices are named by digits and the template computes one that may be a name or a position; or
            the answer is true or false, which no choice is named.
    """
    field = config["doc_to_target"]
    if isinstance(field, int):
        return [_position(str(field), choices, "position")], False
    value: object
    if field in row:
        value, kind = present(field, row[field]), "name"
        if isinstance(value, bool):
            value = _named_by(value, field, choices)
    else:
        printed, kind = render(field, row), _kind(field)
        text = printed.strip()
        value = _parsed_list(text) if text.startswith("[") and _same(text, choices) is None else printed
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("no choice is right")
    texts = [as_text(present(field, one)) for one in values]
    positions = list(dict.fromkeys(_position(text, choices, kind) for text in texts))
    composed = {unicodedata.normalize("NFC", choice) for choice in choices}
    respelled = any(text not in choices and unicodedata.normalize("NFC", text) in composed for text in texts)
    return positions, respelled


def _named_by(value: bool, column: str, choices: Sequence[str]) -> str:
    """The choice named True or False. lm-eval would take true for the second choice, whatever that is."""
    named = [choice for choice in choices if choice.casefold() == str(value).casefold()]
    if len(named) != 1:
        raise AmbiguousAnswer(
            f"{column!r} is {shown(value)}, and no choice of {shown(list(choices))} is named so.\n"
            f"  Say which position it means, as {{{{ 0 if {column} else 1 }}}} does."
        )
    return named[0]


def _position(text: str, choices: Sequence[str], kind: str) -> int:
    """The position of the choice that an answer means; `kind` is what `_kind` says of the template that made it."""
    same = _same(text, choices)
    named_by_digits = any(_DIGITS.fullmatch(choice) for choice in choices)
    is_place = bool(_DIGITS.fullmatch(text)) and int(text) < len(choices)
    if is_place and (kind == "position" or not named_by_digits):
        return int(text)
    if is_place and kind == "unknown" and same != int(text):
        raise AmbiguousAnswer(
            f"doc_to_target computes {text}, which may be the choice named {shown(text)} or the one at position "
            f"{text}, which is {shown(choices[int(text)])}.\n"
            "  Write the column itself, as {{rating}}, which is always a name, or a position as {{ rating - 1 }} or "
            "{{ names.index(rating) }}."
        )
    if same is not None:
        return same
    why = "; choices are named by digits here, so a digit is a name and not a position" if is_place else ""
    raise ValueError(f"the answer {shown(text)} is none of the choices {shown(list(choices))}{why}")


def _same(text: str, choices: Sequence[str]) -> int | None:
    """The choice of this text, whichever of Unicode's forms (composed or not) either is written in."""
    if text in choices:
        return list(choices).index(text)
    plain = [unicodedata.normalize("NFC", choice) for choice in choices]
    composed = unicodedata.normalize("NFC", text)
    return plain.index(composed) if composed in plain else None


@cache
def _kind(template: str) -> str:
    """Whether a digit that a template prints is a "name", a "position", or either ("unknown").

    A column as it stands, at most through filters ({{rating}}, {{ rating | trim }}), prints names. A position is what
    `index` finds, what has a number taken from it ({{ rating - 1 }}), and a number of the template's own
    ({{ 0 if binding else 1 }}).
    """
    body = sandbox().parse(template.strip()).body
    if len(body) != 1 or not isinstance(body[0], nodes.Output) or len(body[0].nodes) != 1:
        return "unknown"
    node: nodes.Node | None = body[0].nodes[0]
    while isinstance(node, nodes.Filter | nodes.Getattr | nodes.Getitem):
        node = node.node
    return "name" if isinstance(node, nodes.Name) else "position" if _is_position(node) else "unknown"


def _is_position(node: nodes.Node | None) -> bool:
    if isinstance(node, nodes.CondExpr):
        return _is_position(node.expr1) and _is_position(node.expr2)
    if isinstance(node, nodes.Call):
        return isinstance(node.node, nodes.Getattr) and node.node.attr in ("index", "find")
    if isinstance(node, nodes.Sub):
        return isinstance(node.right, nodes.Const)
    return isinstance(node, nodes.Const) and isinstance(node.value, int)


def prompt_values(template: str, row: Row) -> list[str]:
    """What is particular to a row: the values of the columns that its prompt is made of, without the words around."""
    read = columns_read(template)
    return ["" if is_null(value) else str(value) for column, value in row.items() if column in read]


@contextlib.contextmanager
def explained(config: Mapping[str, object], file: object, row: Row, where: str) -> Generator[None]:
    """Turns what a template can raise on a row into a TaskError that names the row, the field and the fix.

    Args:
        config: The task file's keys.
        file: The task file, for messages.
        row: The row.
        where: The task, the row and its source.
    """
    try:
        yield
    except AmbiguousAnswer as error:
        raise AmbiguousAnswer(f"{where}: {error}\n  {file} has doc_to_target and doc_to_choice.") from error
    except SecurityError as error:
        raise TaskError(f"{file}: a template reaches for Python internals and was stopped ({error}).") from error
    except TemplateSyntaxError as error:
        raise TaskError(f"{file}: a template is not valid Jinja: {error.message} (line {error.lineno}).") from error
    except (UndefinedError, KeyError) as error:
        missing, fields = _missing_column(config, row, str(error))
        null = " (it is null)" if missing in row else ""
        raise TaskError(
            f"{where}: no {missing or str(error)!r}{null}.\n"
            f"  {fields or 'A template'} in {file} reads it; this row has {sorted(map(str, row))}.\n"
            "  Fix the row or the template, or say what a missing value is, as {{ note or '' }} does."
        ) from error
    except TaskError:
        raise
    except ValueError as error:
        raise TaskError(f"{where}: {error}.\n  Fix the row or {file}.") from error
    except Exception as error:  # a template raises whatever its arithmetic or its filters raise
        raise TaskError(f"{where}: {file} does not fit it ({type(error).__name__}: {error}).") from error


def _missing_column(config: Mapping[str, object], row: Row, said: str) -> tuple[str, str]:
    """The column that `row` lacks, or has as null, by what was said of it; and the fields that read it."""
    templates = [template for field in FIELDS if isinstance(template := config.get(field), str)]
    read = sorted({column for template in templates for column in columns_read(template)})
    lacking = [column for column in read if is_null(row.get(column)) and column not in templates]
    named = [column for column in lacking if said.startswith(f"'{column}'")] or lacking
    if not named:
        return "", ""
    readers = [field for field in FIELDS if named[0] in str(config.get(field))]
    return named[0], " and ".join(readers)
