"""Task files by their names: of the recipe's domain, of `general/`, or of lm-eval."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from sllm_tune.errors import TaskError
from sllm_tune.tasks.file import read_task_file
from sllm_tune.tasks.keys import MetadataKeys, TaskKeys

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

SPLITS = ("train", "validation", "test")


class RowsSource(NamedTuple):
    """Where the rows of a task are."""

    source: str
    folder: Path
    """That a relative path starts at: the one of the file that names it."""

    key: str
    """That names it, for messages."""

    is_own: bool
    """Whether the recipe names it, in place of the task file."""


@dataclass(frozen=True)
class TaskFile:
    """A task by name; `path` is None when it ships with lm-eval."""

    name: str
    path: Path | None
    config: TaskKeys
    rows: RowsSource | None = None
    """None where lm-eval or the task file takes them from a hub."""

    @property
    def metadata(self) -> MetadataKeys:
        """What the harness has no field for: source, sha256, licence, split_by, split."""
        return self.config.get("metadata") or {}

    @property
    def dataset_path(self) -> str:
        """The data set of a hub that its rows are of, where `rows` is None."""
        return str(self.config.get("dataset_path"))

    @property
    def data_files(self) -> list[str]:
        """Files that one of `datasets`' readers reads for it, as the harness's own words name them."""
        named = (self.config.get("dataset_kwargs") or {}).get("data_files") or []
        groups = named.values() if isinstance(named, dict) else [named]
        return [str(file) for group in groups for file in (group if isinstance(group, list) else [group])]

    @property
    def sha256(self) -> str:
        """Of the file's content; a task that ships with lm-eval is pinned by its version instead."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode()).hexdigest()


def find_task(name: str, recipe_dir: Path) -> TaskFile:
    """The task file `name` of the recipe's domain, of `general/`, or of lm-eval.

    Raises:
        TaskError: no such task (the nearest names are offered), or its file cannot be read.
    """
    folders = [recipe_dir / "tasks", recipe_dir.parent / "general" / "tasks"]
    for folder in folders:
        if "/" not in name and (path := folder / f"{name}.yaml").is_file():
            return TaskFile(name, path, read_task_file(path))
    index = manager()
    if name in index.all_subtasks:
        return TaskFile(name, None, cast(TaskKeys, {"task": name}))  # lm-eval has its other keys
    ours = [path.stem for folder in folders for path in folder.glob("*.yaml")]
    near = difflib.get_close_matches(name, [*ours, *index.all_subtasks], n=3, cutoff=0.5)
    if name in index.all_groups or name in index.all_tags:
        raise TaskError(f"task {name!r} is a group of tasks in lm-eval; name its tasks one by one, such as {near}.")
    offered = f" Nearest: {', '.join(near)}." if near else ""
    looked = ", ".join(map(str, folders))
    raise TaskError(f"task {name!r} is neither in {looked} nor one that lm-eval ships.{offered}")


@cache
def manager() -> TaskManager:
    """lm-eval's index of the tasks it ships; reading its thousands of files takes seconds, so once a process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()
