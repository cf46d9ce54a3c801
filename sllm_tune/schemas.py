"""JSON schemas (draft 2020-12) of what a user writes and of what a run folder holds."""

from __future__ import annotations

from sllm_tune.data.card import Card
from sllm_tune.errors import BadInput
from sllm_tune.evaluate.exported import Exported
from sllm_tune.evaluate.schema import Results
from sllm_tune.model.steps import Steps
from sllm_tune.recipe.recipe import recipe_schema
from sllm_tune.runs.manifest import Manifest
from sllm_tune.runs.record import Record
from sllm_tune.wording import hint, listed

FILES: dict[str, tuple[type[Record], str]] = {
    "results": (Results, "scores/results.json"),
    "card": (Card, "data/card.json"),
    "steps": (Steps, "resize/steps.json"),
    "export": (Exported, "formats/<format>-<kind>.json"),
    "manifest": (Manifest, "<stage>/manifest.json"),
}


def schema(of: str) -> dict[str, object]:
    """The schema of a recipe, or of one of the files that others read.

    Raises:
        BadInput: there is none of that name.
    """
    if of == "recipe":
        return recipe_schema()
    if of not in FILES:
        names = ["recipe", *FILES]
        raise BadInput(f"schema: no {of!r}; there are {listed(names, 'and')}{hint(of, names)}")
    shape, file = FILES[of]
    made = shape.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": f"sllm_tune {file}"}
