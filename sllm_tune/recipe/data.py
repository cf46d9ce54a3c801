"""`data` of a recipe."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from sllm_tune.recipe.section import Section, Text, distinct


class LimitSection(Section):
    """How many rows of each task are used at most, by split."""

    train: int | None = Field(default=None, gt=0)
    """Most training examples; null uses all."""

    validation: int | None = Field(default=None, gt=0)
    """Most validation examples, on which settings are chosen; null uses all."""

    test: int | None = Field(default=None, gt=0)
    """Most test examples, scored once a run; null uses all."""


class ReplaySection(Section):
    """General examples mixed into the training, against forgetting."""

    tasks: list[Text] = Field(default=[])
    """Tasks whose training rows are mixed in; none that the recipe trains on or grades."""

    replies: int | None = Field(default=None, gt=0)
    """How many replies the base itself writes to everyday instructions, to be mixed in; null asks for none."""

    share: float = Field(gt=0, lt=1)
    """Their share of all training examples, divided evenly over the tasks and the replies, which may come again."""

    _tasks_distinct = field_validator("tasks")(distinct)

    @field_validator("share")
    @classmethod
    def _of_something(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("tasks") == [] and info.data.get("replies", 1) is None:
            raise PydanticCustomError("replay", "needs something to mix in: replies, tasks, or both")
        return value


class DataSection(Section):
    """What the specialist learns from."""

    tasks: list[Text] = Field(min_length=1)
    """Tasks to train on: task files of the domain, or names that lm-evaluation-harness ships."""

    source: dict[str, Text] = Field(default={})
    """For a task, the local file to read instead of its own source, or of the hub for a task of lm-eval."""

    limit: LimitSection = LimitSection()
    """Upper bounds on the sizes of the splits."""

    max_length: int = Field(default=1024, gt=0)
    """Most tokens of prompt plus answer of a training row; the base's window where that is less."""

    on_long: Literal["refuse", "drop"] = "refuse"
    """Whether a row that is too long to be trained on or graded ends the run, or is left out and counted."""

    replay: ReplaySection | None = None
    """General examples mixed in against forgetting; null mixes in none."""

    on_leak: Literal["refuse", "drop"] = "refuse"
    """Whether a training row that gives away a graded one ends the run, or is left out and counted."""

    allow_leaks: list[Text] = Field(default=[])
    """Graded tasks whose items may be among the training rows; the report lists what was found of them."""

    pii: Literal["report", "redact", "refuse"] | None = None
    """What is done about personal data in rows: counted, replaced as well, or the run ends; null does not look."""

    leave_out: Text | None = None
    """File with ids of rows that must not be used, one a line, as after a deletion request."""

    @property
    def replays_replies(self) -> bool:
        """Whether the base's own replies are learned beside the domain."""
        return self.replay is not None and self.replay.replies is not None

    _tasks_distinct = field_validator("tasks")(distinct)
