"""What a stage is: the inputs that it is given, which are all that it may read, and where it makes its outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue

from sllm_tune.runs.files import flatten
from sllm_tune.runs.folder import Run


class Inputs(BaseModel):
    """Everything that a stage may read of a recipe, and the content of the files that it reads.

    Its JSON is the stage's fingerprint and goes into its manifest; a field that is left out of the JSON (`exclude`) is
    one whose content is in `file`, or which changes nothing that is made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)

    file: dict[str, str | None] = {}
    """SHA-256 of each file that is read, by its name in the run folder or in the recipe; null: not there."""

    def flat(self) -> dict[str, JsonValue]:
        """By dotted names, as messages and manifests have them: `train.lora.r`, `file.data/train.jsonl`."""
        values: dict[str, JsonValue] = self.model_dump(mode="json", exclude={"file"})
        flat: dict[str, JsonValue] = {}
        for name, value in values.items():
            sections = [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
            if isinstance(value, dict) and value:
                flat.update(flatten(value, name))
            elif isinstance(value, list) and value and len(sections) == len(value):
                for number, section in enumerate(sections):
                    flat.update(flatten(section, f"{name}[{number}]"))
            else:
                flat[name] = value
        return flat | {f"file.{name}": content for name, content in self.file.items()}


@dataclass(frozen=True)
class Making:
    """One making of a stage: the run that it belongs to, and the folder in which it works."""

    run: Run
    stage: str
    given: Inputs
    work: Path
    """Holds what an interrupted making with the same inputs left."""

    record: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """What the stage adds to its manifest."""

    def made(self, name: str) -> Path:
        """A file or folder that another stage made in the run folder, which the inputs name.

        Raises:
            KeyError: they do not, so that a change of it would go unseen.
        """
        if not any(file == name or file.startswith(f"{name}/") for file in self.given.file):
            raise KeyError(f"{self.stage}: reads {name}, which is not among its inputs")
        return self.run.dir / name

    def is_finished(self) -> bool:
        """Whether the first process has made the stage, for one that waits for it."""
        return self.run.why(self.stage, self.given.flat()) is None
