"""A task on its way into a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sllm_tune.data.card import TaskCardDict
from sllm_tune.data.splits import Split, is_template
from sllm_tune.tasks.find import TaskFile

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


@dataclass
class Part:
    """A task on its way into a run: lm-eval's object for it, its rows by split, and its entry in the data card."""

    task: TaskFile
    role: str  # "train", "replay" or "grade"
    built: ConfigurableTask
    split: Split
    card: TaskCardDict = field(default_factory=lambda: TaskCardDict())

    @property
    def keys(self) -> list[str]:
        """Columns that are held out whole, in the order of the task file."""
        return [key for key in self.task.metadata.get("split_by", []) if not is_template(key)]
