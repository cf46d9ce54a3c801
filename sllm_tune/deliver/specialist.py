"""The specialist of a finished run, asked as it was scored: the same prompts, template, stop token and scorer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast, overload

import numpy as np
from jinja2 import UndefinedError

from sllm_tune.answer.items import prediction_of, probability_of
from sllm_tune.bounded import within
from sllm_tune.data.examples import graded_length
from sllm_tune.data.rehearse import answer_faults
from sllm_tune.deliver.refusals import read_results, run_faults
from sllm_tune.errors import BadInput, ModelError, TaskError
from sllm_tune.evaluate.contestants import LocalModel
from sllm_tune.model.load import load_encoder
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.rows.read import Row, row_id
from sllm_tune.runs.folder import Run
from sllm_tune.tasks.build import read_resolved
from sllm_tune.tasks.encode import Encoder
from sllm_tune.tasks.example import check_question, prompt_of
from sllm_tune.tasks.find import TaskFile
from sllm_tune.tasks.kept import AskedColumns, asked_columns, build_unanswered, read_authored, unanswered
from sllm_tune.tasks.render import is_null
from sllm_tune.tasks.templates import Rendered
from sllm_tune.wording import hint, listed

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask

    from sllm_tune.answer.local import PackedLM

BATCHES_A_CHUNK = 64  # rows are sorted by length within a chunk, and what is lost when it is killed is one chunk
RENDERING_SECONDS = 60.0


@dataclass(frozen=True)
class Answer:
    """What a row was answered with."""

    row: int
    """Its number, from 1."""

    id: str
    """As `scores/samples` names items: `row_id` of the whole row, the column of the answer included if it has one."""

    answer: str | None
    """The text of the choice, or what was written; None where there is an error."""

    probability: float | None = None
    """Of the choice, among the choices (softmax of their log-likelihoods); None of a written answer."""

    error: str | None = None
    """Why the row could not be asked."""


class AskedTask(NamedTuple):
    """A task of the run, to be asked of rows whose answers are not known."""

    file: TaskFile
    built: ConfigurableTask
    scored: str
    columns: AskedColumns
    faults: Callable[[Rendered], str | None]

    def check(self, row: Row, where: str) -> Rendered:
        """The prompt of a row, and its choices.

        Raises:
            TaskError: it lacks a column, or has nothing in one.
        """
        if lacking := sorted(self.columns.named - row.keys()):
            has = f"{self.file.path} reads it; this row has {sorted(map(str, row))}."
            raise TaskError(f"{where}: no {lacking[0]!r}.\n  {has}")
        return check_question(self.file, row, where)

    @property
    def is_choice(self) -> bool:
        """Whether the answer is one of some choices; else it is written."""
        return self.file.config["output_type"] == "multiple_choice"


class Specialist:
    """The merged model of a finished run.

    Args:
        run_dir: The run folder. Nothing is written to it.

    Raises:
        BadInput: the run is not finished, or its files are not as its stages left them.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self.dir = Path(run_dir)
        self.results = read_results(self.dir)
        if faults := run_faults(Run(self.dir)):
            listed_faults = "".join(f"\n  {fault}" for fault in faults)
            raise BadInput(f"{self.dir}: what is in it is not one finished run:{listed_faults}")
        recipe = self.results["recipe"]
        merged = str(self.dir / "merged")
        # Code of a checkpoint's own is not run: nothing in a run folder is believed.
        section = BaseModelSection(path=merged, chat_template=recipe["base_model"]["chat_template"])
        self.model = LocalModel(merged, section, int(recipe["evaluate"]["batch_size"]))
        self._asked: dict[str, AskedTask] = {}

    @property
    def domain(self) -> list[str]:
        """Names of the tasks that it was made for."""
        return [name for name, task in self.results["tasks"].items() if task["kind"] == "domain"]

    @property
    def lm(self) -> PackedLM:
        """The model, loaded when it is needed for the first time."""
        return self.model.lm

    @cached_property
    def encoder(self) -> Encoder:
        """Its tokenizer, template, window and stop token; without the model."""
        return load_encoder(self.model.path, self.model.base)

    def task(self, name: str | None = None) -> AskedTask:
        """A task of the run; by default the only one of its domain.

        Raises:
            BadInput: no such task, or several and none named. TaskError: its templates are not in the run.
        """
        known = [task for task in self.results["tasks"] if (self.dir / "tasks" / f"{task}.yaml").exists()]
        if name is None:
            if len(self.domain) > 1:
                raise BadInput(f"{self.dir}: made for {listed(self.domain, 'and')}.\n  Say which with --task.")
            (name,) = self.domain
        if name not in known:
            theirs = " lm-eval brings that task, and its prompts are made in code." if name in self.domain else ""
            has = f"it has {listed(known, 'and')}{hint(name, known)}" if known else "it keeps none"
            raise BadInput(f"{self.dir}: no rows can be asked of a task {name!r}; {has}.{theirs}")
        if name not in self._asked:
            file = read_authored(self.dir, name)
            scored = str(read_resolved(self.dir / "tasks" / f"{name}.yaml").get("doc_to_choice"))
            faults = answer_faults(file.config, self.encoder)
            self._asked[name] = AskedTask(
                file, build_unanswered(file, scored), scored, asked_columns(self.dir, file), faults
            )
        return self._asked[name]

    @overload
    def ask(self, asked: str | Row, task: str | None = None) -> Answer: ...
    @overload
    def ask(self, asked: Iterable[Row], task: str | None = None) -> list[Answer]: ...

    def ask(self, asked: str | Row | Iterable[Row], task: str | None = None) -> Answer | list[Answer]:
        """The answer to a text or a row, or those to several rows in their order.

        Args:
            asked: A text, in place of the one column that the task's prompt reads; or rows as the task file reads
                them. They need no column for the answer, and what is in it is not looked at.
            task: Of the run; None is the only one of its domain.

        Raises:
            BadInput: no such task, or the prompt reads more than a text can stand for.
            TaskError: a text or a row by itself cannot be asked; of several rows it is the `error` of the row.
        """
        chosen = self.task(task)
        if not isinstance(asked, str | dict):
            return list(self.stream(asked, chosen))
        row = row_of(asked, chosen) if isinstance(asked, str) else cast(Row, asked)
        (answer,) = self.stream([row], chosen)
        if answer.error is not None:
            raise TaskError(answer.error)
        return answer

    def stream(self, rows: Iterable[Row], task: AskedTask, first: int = 1) -> Iterator[Answer]:
        """Answers in the order of the rows, of which a chunk is in memory at a time; `first` is the first's number."""
        rows = iter(rows)
        size = self.chunk_rows
        while chunk := list(itertools.islice(rows, size)):
            yield from self._answers(chunk, task, first)
            first += len(chunk)

    @property
    def chunk_rows(self) -> int:
        """Rows that are asked together."""
        return BATCHES_A_CHUNK * self.model.batch_size

    def _answers(self, rows: Sequence[Row], task: AskedTask, first: int) -> list[Answer]:
        with within(RENDERING_SECONDS, f"{task.file.path}: rendering {len(rows)} rows"):
            made = [self._doc(row, task) for row in rows]
        made = [one if isinstance(one, str) else self._too_long(one, task) or one for one in made]
        found = iter(self._predictions([one for one in made if not isinstance(one, str)], task))
        answers: list[Answer] = []
        for number, (row, doc) in enumerate(zip(rows, made, strict=True), first):
            if isinstance(doc, str):
                answers.append(Answer(number, row_id(row), None, error=doc))
            else:
                answers.append(_answer(number, row_id(row), doc, *next(found)))
        return answers

    def _doc(self, row: Row, task: AskedTask) -> Row | str:
        """The row as lm-eval reads it, or why it cannot be asked."""
        try:
            asked = task.check(row, task.file.name)
        except TaskError as error:
            return " ".join(str(error).split())
        stop = str(self.encoder.tokenizer.decode(self.encoder.stop_ids))
        return task.faults(asked) or unanswered(task.file, row, asked, task.scored, stop)

    def _too_long(self, doc: Row, task: AskedTask) -> str | None:
        """Why its tokens cannot be read, if they cannot."""
        try:
            tokens = graded_length(task.built, doc, self.encoder) + (not task.is_choice)  # room for one of an answer
        except ModelError as error:
            return " ".join(str(error).split())
        if self.encoder.window is None or tokens <= self.encoder.window:
            return None
        return f"{tokens} tokens, and the model reads {self.encoder.window}; nothing is cut"

    def _predictions(self, docs: Sequence[Row], task: AskedTask) -> list[tuple[int | str, list[float]]]:
        """Of each item what `scores/samples` would have as `prediction`, and the log-likelihoods of its choices."""
        if not docs:
            return []
        template = self.lm.apply_chat_template if self.lm.encoder.chat_template else None
        items: list[list[Instance]] = []
        for number, doc in enumerate(docs):
            context = prompt_of(task.built, doc, template)
            made = task.built.construct_requests(
                doc=doc, ctx=context, apply_chat_template=template is not None, metadata=(task.file.name, number, 1)
            )
            items.append(made if isinstance(made, list) else [made])
        instances = [instance for item in items for instance in item]
        answered = getattr(self.lm, instances[0].request_type)(instances, disable_tqdm=True)
        for instance, response in zip(instances, answered, strict=True):
            instance.resps.append(response)
        for steps in task.built._filters:  # pyright: ignore[reportPrivateUsage]  # as lm-eval's apply_filters does
            steps.apply(instances)
        found: list[tuple[int | str, list[float]]] = []
        for doc, item in zip(docs, items, strict=True):
            responses = [list(instance.filtered_resps.values())[-1] for instance in item]
            scores = [float(one[0]) for one in responses[: len(doc["choices"])]] if task.is_choice else []
            found.append((prediction_of(task.built, doc, responses), scores))
        return found


def row_of(text: str, task: AskedTask) -> Row:
    """A text as the row of a task whose prompt reads one column.

    Raises:
        BadInput: it reads several, or none.
    """
    columns = sorted(task.columns.read)
    if len(columns) != 1:
        reads = f"reads {listed(columns, 'and')}; a text stands for one column" if columns else "reads no column"
        fix = "Write rows with these columns, and name them by --input."
        raise BadInput(f"{task.file.name}: its prompt {reads}.\n  {fix}")
    return {columns[0]: text}


def require_columns(rows: Iterable[Row], task: AskedTask, source: str) -> int:
    """The number of rows, each of which has the columns that a prompt is made of.

    Raises:
        TaskError: one lacks a column, by its number; or there are none.
    """
    number, done_without = 0, set[frozenset[str]]()
    for number, row in enumerate(rows, 1):
        lacking = frozenset(task.columns.read - row.keys())
        if lacking and lacking not in done_without:
            # What is there and empty is a fault of that row alone.
            filled = {column: "?" if is_null(value) or value == "" else value for column, value in row.items()}
            try:
                task.check(filled, f"{task.file.name}, row {number} of {source}")
            except TaskError as error:
                if lacking & task.columns.named or isinstance(error.__cause__, UndefinedError | KeyError):
                    raise
            done_without.add(lacking)  # a template may do without a column
    if not number:
        raise TaskError(f"{source}: no rows.")
    return number


def _answer(number: int, name: str, doc: Row, prediction: int | str, scores: Sequence[float]) -> Answer:
    if isinstance(prediction, str):
        return Answer(number, name, prediction)
    if not np.isfinite(scores).all():
        return Answer(number, name, None, error="the likelihood of a choice is not a number")
    return Answer(number, name, str(doc["choices"][prediction]), probability_of(prediction, scores))
