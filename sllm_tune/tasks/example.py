"""Rows as a model sees them and should answer them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from sllm_tune.errors import TaskError
from sllm_tune.rows.read import Row
from sllm_tune.tasks.find import TaskFile
from sllm_tune.tasks.keys import TaskKeys
from sllm_tune.tasks.render import render
from sllm_tune.tasks.templates import Rendered, explained, prompt_values, question_of, render_row
from sllm_tune.wording import is_blank

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

Template = Callable[..., str]


def check_row(task: TaskFile, row: Row, where: str) -> Rendered:
    """A row as the model will see it and should answer it.

    Args:
        task: The task file.
        row: As it was read.
        where: The task, the row's number and its source.

    Raises:
        TaskError: the task file does not fit the row: the field and the columns that the row has are named.
    """
    return _checked(task, row, where, render_row)


def check_question(task: TaskFile, row: Row, where: str) -> Rendered:
    """As `check_row`, of a row that need not have an answer, and without one."""
    return _checked(task, row, where, question_of)


def _checked(task: TaskFile, row: Row, where: str, rendering: Callable[[TaskKeys, Row], Rendered]) -> Rendered:
    with explained(task.config, task.path, row, where):
        found = rendering(task.config, row)
        values = prompt_values(task.config["doc_to_text"], row)
        for field in ("description", "gen_prefix"):
            if template := task.config.get(field):
                render(template, row)
    if any(map(is_blank, found.choices or found.answers)):
        raise TaskError(f"{where}: an answer is empty.\n  Fix the row or {task.path}.")
    if is_blank(found.prompt) or (values and all(map(is_blank, values))):
        raise TaskError(f"{where}: nothing is in what the prompt shows of it.\n  Fill the row in, or take it out.")
    return found


def check_rows(task: TaskFile, rows: Iterable[Row], source: str, *, first: int = 1) -> None:
    """Every row as `check_row`.

    Args:
        task: The task file.
        rows: As they were read.
        source: Where they come from, for messages.
        first: Number of the first of them in the source.

    Raises:
        TaskError: the first row that the task file does not fit.
    """
    for number, row in enumerate(rows, first):
        check_row(task, row, f"{task.name}, row {number} of {source}")


def example(built: ConfigurableTask, doc: Row, template: Template | None) -> Row:
    """The first of `examples`."""
    return next(examples(built, doc, template))


def examples(built: ConfigurableTask, doc: Row, template: Template | None) -> Iterator[Row]:
    """What the model is shown and what it should answer, once for each right answer: what the harness would grade.

    Yields:
        `prompt` (the user's text), `context` (prompt as the model gets it, template applied), `target` (with the
        delimiter the harness puts before an answer) and `label` (the answer without it).
    """
    context = prompt_of(built, doc, template)
    request = built.construct_requests(
        doc=doc, ctx=context, apply_chat_template=template is not None, metadata=("", 0, 1)
    )
    target = built.doc_to_target(doc)
    if isinstance(request, list) and built.multiple_input:
        raise TaskError(f"task {built.task_name!r} puts its choices into the prompt; it can be graded, not trained on.")
    for right in target if isinstance(target, list) else [target]:
        if isinstance(request, list):
            choices = built.doc_to_choice(doc)
            index = right if isinstance(right, int) else choices.index(right)
            label, answer = choices[index], request[index].arguments[1]
        else:
            label = str(right)
            answer = label if template is not None else f"{built.config.target_delimiter}{label}"
        yield {"prompt": str(built.doc_to_text(doc)), "context": context, "target": answer, "label": label}


def prompt_of(built: ConfigurableTask, doc: Row, template: Template | None, num_fewshot: int = 0) -> str:
    """The prompt as the model gets it, with so many worked examples in it."""
    prefix = built.doc_to_prefix(doc)
    return str(built.fewshot_context(doc, num_fewshot, None, template is not None, False, template, prefix))


def item_text(built: ConfigurableTask, row: Row) -> str:
    """What is particular to an item: the columns that its prompt is made of, without the words around them."""
    task = getattr(built, "file", None)
    if isinstance(task, TaskFile):
        return "\n".join(prompt_values(task.config["doc_to_text"], row))
    template = built.config.doc_to_text
    if not isinstance(template, str):  # a function of lm-eval's own
        return str(built.doc_to_text(row))
    return "\n".join(prompt_values(template, row))
