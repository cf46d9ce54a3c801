"""A finished run as a notebook has it: what was made, what it says, and the model to ask."""

from __future__ import annotations

import html
from functools import cached_property
from pathlib import Path

from sllm_tune.answer.items import probability_of, samples_path
from sllm_tune.answer.kept import answers_path
from sllm_tune.data.card import Card
from sllm_tune.deliver.specialist import Specialist
from sllm_tune.errors import BadInput
from sllm_tune.evaluate.plain import as_plain
from sllm_tune.evaluate.schema import Results
from sllm_tune.report.sentences import sentences
from sllm_tune.report.words import Words, verdict_sentence
from sllm_tune.rows.read import Row
from sllm_tune.runs.files import read_jsonl
from sllm_tune.wording import hint, listed


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

    def items(self, task: str) -> list[dict[str, object]]:
        """The graded items of a task, each with what everybody answered: rows for a pandas DataFrame.

        Keys are `id`, `prompt`, `target`, the names of those who answered (`specialised`, `base`, the controls) with
        their answers in words, `NAME is right` with their scores, and `probability`: of the specialist's choice among
        the choices, or None of a written answer.

        Args:
            task: One of `results.tasks` whose rows are kept in the run folder; lm-eval's own are not.

        Raises:
            BadInput: no such task, or its rows are not in the folder.
        """
        from pyarrow.parquet import read_table

        rows = self.dir / "tasks" / task / "test.parquet"
        if task not in self.results.tasks or not rows.is_file():
            kept = [name for name in self.results.tasks if (self.dir / "tasks" / name / "test.parquet").is_file()]
            raise BadInput(f"{self.dir}: no rows of {task!r}; it has {listed(kept, 'and')}{hint(task, kept)}.")
        answers = self._answers(task)
        nats = self._log_likelihoods(task)
        items: list[dict[str, object]] = []
        for doc in read_table(rows).to_pylist():
            choices: list[str] | None = doc.get("choices")
            told = {who: given[doc["id"]] for who, given in answers.items() if doc["id"] in given}
            if not told:  # a limit left it out
                continue
            item = {"id": doc["id"], "prompt": doc["prompt"], "target": _in_words(doc["target"], choices)}
            item |= {who: _in_words(answer["prediction"], choices) for who, answer in told.items()}
            item |= {f"{who} is right": answer["score"] for who, answer in told.items()}
            among, chosen = nats.get(doc["id"], []), told["specialised"]["prediction"]
            whole = isinstance(chosen, int) and len(among) == len(choices or [])
            items.append({**item, "probability": probability_of(chosen, among) if whole else None})
        return items

    def _answers(self, task: str) -> dict[str, dict[str, Row]]:
        """By who answered and by item; those of a control are in the order of the specialist's, and name none."""
        paths = {who: samples_path(self.dir / "scores", task, who) for who in self.results.tasks[task].scores}
        kept = {who: read_jsonl(path) for who, path in paths.items() if path.is_file()}
        ids = [row["id"] for row in kept["specialised"]]
        return {who: dict(zip(ids, rows, strict=True)) for who, rows in kept.items()}

    def _log_likelihoods(self, task: str) -> dict[str, list[float]]:
        """What the specialist gave each choice, in the order of the choices, by item."""
        path = answers_path(self.dir / "scores", task, "specialised")
        nats: dict[str, list[float]] = {}
        for row in read_jsonl(path) if path.is_file() else []:
            if isinstance(row["said"], list):
                nats.setdefault(row["id"], []).append(row["said"][0])
        return nats

    def verdict(self) -> str:
        """The report's opening sentence."""
        results = as_plain(self.results)
        return verdict_sentence(results, Words(sentences(results["language"]), results["models"]))

    def __repr__(self) -> str:
        return f"FinishedRun({str(self.dir)!r}): {self.verdict()}"

    def _repr_html_(self) -> str:
        return f"<p><strong>{html.escape(self.verdict())}</strong></p>{self.results.as_html()}"


def _in_words(answer: object, choices: list[str] | None) -> object:
    return choices[answer] if choices and isinstance(answer, int) else answer
