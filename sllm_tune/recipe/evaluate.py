"""`evaluate` of a recipe."""

from typing import TypeVar

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from sllm_tune.recipe.section import Section, Text, distinct
from sllm_tune.wording import listed

Part = TypeVar("Part", bound="GradedSection")


class GateSection(Section):
    """What must hold for the run to succeed; each is compared with the bound of the 95 % interval, not its middle."""

    min_gain: float
    """Least gain over the base on each domain task, in units of its metric (0.05 is five points of accuracy)."""

    max_forgetting: float | None = Field(default=None, ge=0)
    """Most loss against the base on the general tasks, in units of their metric; null does not look."""

    max_instruction_loss: float | None = Field(default=None, ge=0)
    """Most loss against the base of everyday instructions that are followed, as a share of them; null does not look."""

    max_label_collapse: float | None = Field(default=None, ge=0)
    """Largest share of everyday instructions replied to with a label of the domain; null does not look."""


class GradedSection(Section):
    """The tasks that models answer."""

    domain: list[Text] = Field(min_length=1)
    """Tasks of the domain that are scored."""

    general: list[Text] = Field(default=[])
    """Tasks of general ability, to measure what was forgotten."""

    limit_general: int | None = Field(default=None, gt=0)
    """Items of each general task, the first in a seeded order; null uses all."""

    _tasks_distinct = field_validator("domain", "general")(distinct)

    @field_validator("general")
    @classmethod
    def _not_of_the_domain(cls, value: list[str], info: ValidationInfo) -> list[str]:
        both = [name for name in value if name in info.data.get("domain", [])]
        if both:
            raise PydanticCustomError(
                "both_kinds", "names {names}, which evaluate.domain names too", {"names": listed(both, "and")}
            )
        return value


class ScoredSection(GradedSection):
    """And how they are answered."""

    batch_size: int = Field(default=16, gt=0)
    """Items scored together."""


class EvaluateSection(ScoredSection):
    """What the specialist, its base and the controls are scored on."""

    num_fewshot: int = Field(default=5, ge=0)
    """Worked examples in the prompt of the `base_fewshot` control; 0 leaves the control out."""

    limit_instructions: int | None = Field(default=None, ge=10)
    """Everyday instructions that specialist and base reply to, the first in a seeded order; null uses all 100."""

    usd_per_hour: float | None = Field(default=None, ge=0)
    """Price of this hardware in US dollars an hour, from which `usd_per_million_tokens` follows."""

    gate: GateSection | None = None
    """Conditions that decide the exit status; null sets none."""

    @field_validator("gate")
    @classmethod
    def _can_be_measured(cls, value: GateSection | None, info: ValidationInfo) -> GateSection | None:
        if value and value.max_forgetting is not None and info.data.get("general") == []:
            key = ("evaluate", "gate", "max_forgetting")
            raise PydanticCustomError("gate", "needs at least one task in evaluate.general", {"key": key})
        return value

    def only(self, part: type[Part]) -> Part:
        """What a stage that compares nothing is given of it."""
        return part(**{name: getattr(self, name) for name in part.model_fields})
