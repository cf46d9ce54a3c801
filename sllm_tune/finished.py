"""A finished run as a notebook has it: what was made, what it says, and the model to ask."""

from __future__ import annotations

import html
from functools import cached_property
from pathlib import Path

from sllm_tune.data.card import Card
from sllm_tune.deliver.specialist import Specialist
from sllm_tune.evaluate.plain import as_plain
from sllm_tune.evaluate.schema import Results
from sllm_tune.report.sentences import sentences
from sllm_tune.report.words import Words, verdict_sentence


class FinishedRun:
    """A run folder that has its report.

    Attributes:
        dir: The run folder.
    """

    def __init__(self, folder: Path | str) -> None:
        """Take up a run that was made before.

        Args:
            folder: The run folder.

        Raises:
            RunFolderError: the run has no scores, or another version of sllm-tune made them.
        """
        self.dir = Path(folder)
        self.results  # noqa: B018  a run without them is refused here

    @cached_property
    def results(self) -> Results:
        """Every figure."""
        return Results.read(self.dir / "scores" / "results.json", "evaluate")

    @cached_property
    def card(self) -> Card:
        """Where the rows come from, and how many were left out and why."""
        return Card.read(self.dir / "data" / "card.json", "prepare")

    @property
    def report(self) -> Path:
        """The page that compares the specialist with its base and the controls."""
        return self.dir / "report.html"

    @property
    def adapter(self) -> Path:
        """A folder that `PeftModel.from_pretrained` loads."""
        return self.dir / "adapter"

    @property
    def merged(self) -> Path:
        """A folder that `AutoModelForCausalLM.from_pretrained` loads."""
        return self.dir / "merged"

    def model(self) -> Specialist:
        """The specialist, to be asked through the very prompts that were measured.

        Raises:
            BadInput: the run's outputs are not as its stages left them.
        """
        return Specialist(self.dir)

    def verdict(self) -> str:
        """The report's opening sentence."""
        results = as_plain(self.results)
        return verdict_sentence(results, Words(sentences(results["language"]), results["models"]))

    def __repr__(self) -> str:
        return f"FinishedRun({str(self.dir)!r}): {self.verdict()}"

    def _repr_html_(self) -> str:
        return f"<p><strong>{html.escape(self.verdict())}</strong></p>{self.results.as_html()}"
