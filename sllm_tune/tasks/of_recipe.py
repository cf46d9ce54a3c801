"""The tasks that a recipe names, and where each has its rows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sllm_tune.run.files import sha256
from sllm_tune.sources import fetch
from sllm_tune.tasks.find import RowsSource, TaskFile, find_task
from sllm_tune.tasks.shipped import build_shipped

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


def task_files(names: Iterable[str], sources: dict[str, str], folder: Path) -> dict[str, TaskFile]:
    """Tasks by their names.

    Args:
        names: `Recipe.task_names`.
        sources: `data.source` of the recipe.
        folder: The recipe's.
    """
    found = {name: find_task(name, folder) for name in names}
    return {name: replace(task, rows=_rows(task, sources, folder)) for name, task in found.items()}


def _rows(task: TaskFile, sources: dict[str, str], folder: Path) -> RowsSource | None:
    if (source := sources.get(task.name)) is not None:
        return RowsSource(source, folder, f"data.source.{task.name}", is_own=True)
    if "source" not in task.metadata:
        return None
    return RowsSource(str(task.metadata["source"]), Path(task.path or ".").parent, f"{task.path}: metadata", False)


def files_of(tasks: Iterable[TaskFile]) -> dict[str, str | None]:
    """The content of the tasks' files and of their local files of rows, by the names that the recipe has for them."""
    tasks = list(tasks)
    files: dict[str, str | None] = {str(task.path or task.name): task.sha256 for task in tasks}
    return files | rows_of(tasks)


def rows_of(tasks: Iterable[TaskFile]) -> dict[str, str | None]:
    """The content of the tasks' local files of rows; None for one that is not there."""
    files: dict[str, str | None] = {}
    for task in tasks:
        if rows := task.rows:
            files[rows.source] = content(rows.folder / os.path.expanduser(rows.source))
        else:
            files |= {file: content(Path(file)) for file in task.data_files}
    return files


def graded_files(run_dir: Path) -> dict[str, str | None]:
    """The content of the tasks that a run's models are scored on."""
    files = sorted(path for path in (run_dir / "tasks").rglob("*") if path.is_file())
    return {str(path.relative_to(run_dir)): sha256(path) for path in files}


def content(path: Path) -> str | None:
    """SHA-256 of a file's content, or None where it is not there yet."""
    return sha256(path) if os.path.isfile(path) else None  # not of Path, which raises for a name that is too long


def shipped_task(task: TaskFile) -> ConfigurableTask:
    """A task that lm-eval ships, over the rows of `data.source.<name>` where the recipe has it, else over the hub's.

    Raises:
        SourceError, TaskError: the rows are not available, or do not fit the task.
    """
    if task.rows is None:
        return build_shipped(task.name)
    return build_shipped(
        task.name, fetch(task.rows.source, sha256=None, where=task.rows.key, base_dir=task.rows.folder)
    )
