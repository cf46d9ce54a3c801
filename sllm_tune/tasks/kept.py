"""The task files of a run folder as their domain has them, for rows whose answers are not known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sllm_tune.errors import TaskError
from sllm_tune.rows.read import Row
from sllm_tune.tasks.build import (
    ID,
    LABEL,
    PROMPT,
    TARGET,
    build_over_docs,
    question_doc,
    read_resolved,
    resolve,
    split_files,
)
from sllm_tune.tasks.file import checked
from sllm_tune.tasks.find import TaskFile
from sllm_tune.tasks.render import columns_read
from sllm_tune.tasks.templates import Rendered

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


def authored_path(run_dir: Path, name: str) -> Path:
    """Where a run folder keeps a task file as its domain has it, with its templates."""
    return run_dir / "tasks" / name / "task.json"  # JSON: YAML would read a choice such as 1e3 back as a number


def read_authored(run_dir: Path, name: str) -> TaskFile:
    """A task file as the run's domain had it when its rows were made.

    Raises:
        TaskError: it is not kept, or not the one that the task's rows were made with.
    """
    resolved, file = read_resolved(run_dir / "tasks" / f"{name}.yaml"), authored_path(run_dir, name)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        task = TaskFile(name, file, checked(values if isinstance(values, dict) else {}, file))
    except FileNotFoundError:
        raise TaskError(
            f"{run_dir}: made by an older version, which did not keep the templates of {name}.\n"
            f"  Remove {run_dir / 'prepare'} and run the recipe again; what is trained stays."
        ) from None
    except TaskError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise TaskError(f"{file}: cannot be read ({error}).\n  Run the recipe again.") from error
    if resolve(task, split_files(resolved), scored=str(resolved.get("doc_to_choice"))) != resolved:
        raise TaskError(f"{file}: is not the task file that {name}'s rows were made with.\n  Run the recipe again.")
    return task


class AskedColumns(NamedTuple):
    """The columns that a row's prompt and choices are made of."""

    read: set[str]
    """All of them, those that a template may do without included."""

    named: set[str]
    """Those that a field names: without its column, the name itself would be the prompt."""


def asked_columns(run_dir: Path, task: TaskFile) -> AskedColumns:
    """The columns that are read to ask a row of a run's task."""
    import pyarrow.parquet as pq

    config = task.config
    fields = [field for field in (config["doc_to_text"], config.get("doc_to_choice")) if isinstance(field, str)]
    named = {field for field in fields if columns_read(field) == {field}}
    files = split_files(read_resolved(run_dir / "tasks" / f"{task.name}.yaml"))
    prompts = pq.read_table(run_dir / next(iter(files.values())), columns=[PROMPT]).column(PROMPT).unique()
    if prompts.to_pylist() == [config["doc_to_text"]]:
        named -= {config["doc_to_text"]}  # a text that is the same for every row
    printed = [field for field in (config.get("description"), config.get("gen_prefix")) if field]
    read = named.union(*(columns_read(template) - {template} for template in (*fields, *printed)))
    return AskedColumns(read, named)


def unanswered(task: TaskFile, row: Row, asked: Rendered, scored: str, stop: str) -> Row:
    """A row as lm-eval reads it for its question alone: as `materialised` makes it, with a blank for the answer.

    Args:
        task: The task file.
        row: As it was read.
        asked: What its templates make of it.
        scored: The column of the choices that are scored, as the run has it.
        stop: Text of the stop token.
    """
    blank = {TARGET: 0 if asked.choices else "", LABEL: ""}
    return question_doc(task.config, row, asked, stop if scored == "scored_choices" else None) | blank


def build_unanswered(task: TaskFile, scored: str) -> ConfigurableTask:
    """lm-eval's own task object that asks rows of `unanswered`, whichever they are."""
    from datasets import Dataset

    columns = dict.fromkeys((ID, PROMPT, LABEL, "description", "gen_prefix"), "?")
    choices = {"choices": ["a", "b"], "scored_choices": ["a", "b"], TARGET: 0}
    written = task.config["output_type"] != "multiple_choice"
    doc: Row = {**columns, **({TARGET: "?"} if written else choices)}
    return build_over_docs(resolve(task, {}, scored=scored), {"test": Dataset.from_list([doc])})
