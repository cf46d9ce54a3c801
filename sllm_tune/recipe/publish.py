"""`publish` of a recipe: where its specialist is pushed to, so that no command has to repeat it."""

from typing import Literal

from sllm_tune.recipe.section import Section, Text


class PublishSection(Section):
    """What `sllm-tune publish` does unless its options say otherwise. Running the recipe pushes nothing."""

    repo: Text | None = None
    """Repository on the hub as `owner/name`; null has to be named in the command."""

    format: Literal["adapter", "merged"] = "adapter"
    """What is pushed."""

    private: bool = True
    """Whether a repository that is made is visible to its owner only."""

    licence: Text | None = None
    """Of what is published, as the hub names it; null takes the base's, where the hub knows it."""

    base_id: Text | None = None
    """The base's id on the hub, where the recipe has it from elsewhere."""
