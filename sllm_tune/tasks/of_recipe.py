"""The tasks that a recipe names, and where each has its rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sllm_tune.recipe.recipe import Recipe
from sllm_tune.sources import fetch
from sllm_tune.tasks.find import TaskFile, find_task
from sllm_tune.tasks.shipped import build_shipped

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


def task_files(recipe: Recipe) -> dict[str, TaskFile]:
    """Every task that the recipe names, once, in its order."""
    replayed = recipe.data.replay.tasks if recipe.data.replay else []
    names = [*recipe.data.tasks, *replayed, *recipe.evaluate.domain, *recipe.evaluate.general]
    return {name: find_task(name, recipe.folder) for name in dict.fromkeys(names)}


def rows_source(recipe: Recipe, task: TaskFile) -> tuple[str, Path, str] | None:
    """Where a task's rows are, the folder that a relative path starts at, and the key that says so.

    A path starts at the file that it is in. None for a task whose rows lm-eval or the task file takes from a hub.
    """
    if (source := recipe.data.source.get(task.name)) is None:
        if "source" not in task.metadata:
            return None
        return str(task.metadata["source"]), Path(task.path or ".").parent, f"{task.path}: metadata"
    return source, recipe.folder, f"data.source.{task.name}"


def shipped_task(recipe: Recipe, name: str) -> ConfigurableTask:
    """A task that lm-eval ships, over the rows of `data.source.<name>` where the recipe has it, else over the hub's.

    Raises:
        SourceError, TaskError: the rows are not available, or do not fit the task.
    """
    rows = rows_source(recipe, TaskFile(name, None, {"task": name}))
    if rows is None:
        return build_shipped(name)
    source, base_dir, where = rows
    return build_shipped(name, fetch(source, sha256=None, where=where, base_dir=base_dir))
