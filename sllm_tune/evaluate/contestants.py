"""Who answers: the specialist, its base and the controls, one after the other, each on the tasks that it can answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sllm_tune.answer.items import Graded, score
from sllm_tune.answer.kept import KeptLM
from sllm_tune.evaluate.controls import majority, tfidf
from sllm_tune.model.load import compute_dtype, load_encoder, load_model, load_tokenizer, scoring_dtype
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.rows.read import Row
from sllm_tune.runs.files import read_jsonl
from sllm_tune.tasks.encode import Encoder

if TYPE_CHECKING:
    import torch

    from sllm_tune.answer.local import PackedLM

SPECIALIST, BASE = "specialised", "base"
Rows = tuple[list[Row], int]


@dataclass(frozen=True)
class Contestant:
    """One who answers, by the name that results and samples have."""

    name: str
    tasks: Sequence[Graded]
    answer: Callable[[Graded, Path | None], Rows]
    """What it says to a task: `score` and `prediction` of each item, in order, and how often it was itself asked.

    The path is of the file in which its answers are kept apart from their grades; None keeps none."""

    model: LocalModel | None = None
    """Whose size and speed are measured."""

    about: Mapping[str, int] = field(default_factory=dict[str, int])
    """What results say of it besides."""


@dataclass(frozen=True)
class LocalModel:
    """A model that answers here; loaded when it is asked for the first time."""

    path: str
    base: BaseModelSection
    batch_size: int

    @cached_property
    def lm(self) -> PackedLM:
        """The model in lm-eval's terms, in the precision that answers are compared in."""
        return self._load(scoring_dtype(self.path, self.base))

    def as_shipped(self) -> PackedLM:
        """The model in the precision that it is shipped in; what answered in another is out of memory then."""
        if "lm" in self.__dict__ and self.lm.model.dtype == compute_dtype():
            return self.lm
        self.__dict__.pop("lm", None)
        return self._load(compute_dtype())

    def _load(self, dtype: torch.dtype) -> PackedLM:
        from sllm_tune.answer.local import PackedLM

        tokenizer = load_tokenizer(self.path, self.base)
        model = load_model(self.path, self.base, dtype=dtype)
        return PackedLM(model, tokenizer, self.batch_size, chat_template=self.base.chat_template)

    @cached_property
    def encoder(self) -> Encoder:
        """What makes its prompts, without the model."""
        return load_encoder(self.path, self.base)

    def answer(self, name: str, task: Graded, kept: Path | None, shots: int = 0) -> Rows:
        """With so many worked examples in the prompt."""
        print(f"evaluate: {name} on {task.name}, {len(task.docs)} items", file=sys.stderr, flush=True)
        answers = KeptLM(kept, task.ids(), self.encoder, lambda: self.lm)
        rows = score(answers, task, chat_template=self.base.chat_template, num_fewshot=shots)
        answers.keep()
        return rows, answers.asked


def models(
    base: LocalModel, merged: Path, domain: Sequence[Graded], general: Sequence[Graded], shots: dict[str, int]
) -> Iterator[Contestant]:
    """The base, the base with worked examples (a number for each task that has any), and the specialist.

    One is in memory at a time: let go of a contestant before you take the next.
    """
    everything = [*domain, *general]
    yield Contestant(BASE, everything, lambda task, kept: base.answer(BASE, task, kept), base)
    if shown := [task for task in domain if shots.get(task.name)]:
        name = "base_fewshot"
        about = {"num_fewshot": min(shots.values())}
        yield Contestant(name, shown, lambda task, kept: base.answer(name, task, kept, shots[task.name]), about=about)
    batch_size, section = base.batch_size, base.base
    base.__dict__.pop("lm", None)  # its memory
    ours = LocalModel(str(merged), section, batch_size)
    yield Contestant(SPECIALIST, everything, lambda task, kept: ours.answer(SPECIALIST, task, kept), ours)


def controls(data: Path, domain: Sequence[Graded], seed: int) -> Iterator[Contestant]:
    """Majority answer and TF-IDF on the specialist's own training rows, for tasks whose answers are choices.

    Args:
        data: Holds `train.jsonl` and `validation.jsonl`.
        domain: The tasks.
        seed: Of the regression.
    """
    rows = {split: read_jsonl(data / f"{split}.jsonl") for split in ("train", "validation")}
    trained = {row["task"] for row in rows["train"]}
    tasks = [task for task in domain if task.name in trained and task.built.OUTPUT_TYPE == "multiple_choice"]

    def columns(split: str, task: Graded) -> tuple[list[str], list[str]]:
        of_task = [row for row in rows[split] if row["task"] == task.name]
        return [row["prompt"] for row in of_task], [row["label"] for row in of_task]

    def by_majority(task: Graded, _: Path | None) -> Rows:
        items = task.items()
        return _graded(majority(columns("train", task)[1], items), items)

    def by_tfidf(task: Graded, _: Path | None) -> Rows:
        items = task.items()
        texts, labels = columns("train", task)
        held_out, targets = columns("validation", task)
        asked = [item["prompt"] for item in items]
        found = tfidf(texts, labels, asked, seed=seed, validation_texts=held_out, validation_targets=targets)
        return _graded(found, items)

    yield Contestant("majority", tasks, by_majority)
    yield Contestant("tfidf", tasks, by_tfidf)


def _graded(predicted: Sequence[str], items: Sequence[Row]) -> Rows:
    """As the models are judged: right is any of the right answers. It answers anew each time, in no time."""
    pairs = zip(predicted, items, strict=True)
    return [{"score": float(answer in item["right"]), "prediction": answer} for answer, item in pairs], 0
