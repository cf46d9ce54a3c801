"""One model on one task: lm-eval asks, filters and grades; kept are each item's score and answer, never its text."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from sllm_tune.errors import JobFailed, TaskError
from sllm_tune.rows.read import Row, row_id
from sllm_tune.tasks.build import GROUP, ID, LABEL, PROMPT, TARGET, build, is_rendered, read_resolved
from sllm_tune.tasks.example import examples

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask


@dataclass(frozen=True)
class Graded:
    """A task as it will be graded: lm-eval's object, the chosen items, and the group each item belongs to."""

    name: str
    built: ConfigurableTask
    docs: list[Row]
    indices: list[int]
    split_by: list[str]

    @property
    def metric(self) -> str:
        """The first metric of the task file."""
        return next(iter(self.built.aggregation()))

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value of the metric is better."""
        return bool(self.built.higher_is_better()[self.metric])

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """Items with the same value of the first `split_by` key are not independent, and are drawn together."""
        if not self.split_by:
            return None
        values = [doc[GROUP][0] for doc in self.docs]
        return np.unique(values, return_inverse=True)[1].astype(np.int64)

    def ids(self) -> dict[int, str]:
        """The id of each item, by the number that lm-eval has for it."""
        return {index: item_id(doc) for index, doc in zip(self.indices, self.docs, strict=True)}

    def items(self) -> list[Row]:
        """Of each item the `prompt`, the first right answer as `label`, and all of them as `right`, as plain text."""
        return [self._item(doc) for doc in self.docs]

    def _item(self, doc: Row) -> Row:
        if not is_rendered(doc):  # of a task that lm-eval ships
            shown = list(examples(self.built, doc, None))
            return {**shown[0], "right": [one["label"] for one in shown]}
        targets = doc[TARGET] if isinstance(doc[TARGET], list) else [doc[TARGET]]
        right = [doc["choices"][target] for target in targets] if "choices" in doc else targets
        return {"prompt": doc[PROMPT], "label": doc[LABEL], "right": right}

    def choices(self) -> set[str]:
        """All that the items can be answered with; nothing where a text is written."""
        if self.built.OUTPUT_TYPE != "multiple_choice":
            return set()
        return {str(one) for doc in self.docs for one in self._choices(doc)}

    def _choices(self, doc: Row) -> Sequence[object]:
        return doc["choices"] if is_rendered(doc) else self.built.doc_to_choice(doc)

    def answer(self, position: int, prediction: int | str) -> str:
        """The text of an answer; for a choice its text in that item."""
        if isinstance(prediction, str):
            return prediction
        return str(self._choices(self.docs[position])[prediction])


def choose_items(
    name: str,
    built: ConfigurableTask,
    limit: int | None,
    split_by: list[str],
    seed: int,
    too_long: Callable[[ConfigurableTask, Sequence[Row]], Iterable[int]] = lambda *_: (),
) -> Graded:
    """The items of a task to grade: all that fit, or `limit` of them, the same ones for the same seed."""
    docs: list[Row] = [dict(doc) for doc in built.eval_docs]
    indices = sorted({*range(len(docs))} - {*too_long(built, docs)})
    if limit is not None and limit < len(indices):
        indices = sorted(random.Random(seed).sample(indices, limit))
    if len(indices) < 2:
        raise TaskError(f"task {name!r} has {len(indices)} items to grade; an interval needs at least two.")
    return Graded(name, built, [docs[i] for i in indices], indices, split_by)


def score(lm: LM, task: Graded, *, chat_template: bool, num_fewshot: int = 0) -> list[Row]:
    """Each item's `id`, `score` (of the task's metric) and `prediction` (a choice's index, or the text), in order.

    Raises:
        TaskError: the task's first metric has no score of a single item. JobFailed: a score is not finite.
    """
    from lm_eval import evaluator

    task.built.set_config("num_fewshot", num_fewshot)
    task.built.set_fewshot_seed(0)
    results = evaluator.evaluate(
        lm=lm,
        task_dict={"tasks": {task.name: task.built}, "groups": {}},
        samples={task.name: task.indices},
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=chat_template,
        fewshot_as_multiturn=False,
    )
    samples = results.get("samples", {}) if results else {}
    by_id = {sample["doc_id"]: sample for sample in samples[task.name]}
    rows: list[Row] = []
    for index, doc in zip(task.indices, task.docs, strict=True):
        sample = by_id[index]
        value = sample[task.metric]
        if not isinstance(value, int | float | np.floating):
            raise TaskError(
                f"task {task.name!r}: {task.metric} has no score of a single item; list acc or exact_match first."
            )
        if not np.isfinite(value):
            raise JobFailed(f"task {task.name!r}, item {row_id(doc)}: {task.metric} is {value}, which is no score.")
        rows.append(
            {
                "id": item_id(doc),
                "score": float(value),
                "prediction": prediction_of(task.built, sample["doc"], sample["filtered_resps"]),
            }
        )
    return rows


def item_id(doc: Row) -> str:
    """The id of an item: of the row that it was rendered from, where it was."""
    return str(doc[ID]) if is_rendered(doc) else row_id(doc)


def kept_items(run_dir: Path, name: str, split: str, limit: int, seed: int) -> Graded | None:
    """Some items of a split of a task that a run keeps; None where it has fewer than two.

    What lm-eval ships is graded in place and not kept, and the smallest tasks have no validation items to spare.
    """
    file = run_dir / "tasks" / f"{name}.yaml"
    config = read_resolved(file) if file.exists() else None
    if config is None or f"{split}_split" not in config:
        return None
    built = build({**config, "test_split": split}, root=run_dir)
    return choose_items(name, built, limit, [], seed) if len(built.eval_docs) >= 2 else None


def prediction_of(built: ConfigurableTask, doc: Row, responses: Sequence[object]) -> int | str:
    """A choice's index, or the text, by what a model responded to an item's requests and the task's filter let pass."""
    if built.OUTPUT_TYPE == "multiple_choice":
        n_choices = len(built.doc_to_choice(doc))
        scored = cast("Sequence[tuple[float, bool]]", responses[:n_choices])
        return int(np.argmax([log_probability for log_probability, _ in scored]))
    return str(responses[0])


def probability_of(prediction: int, nats: Sequence[float]) -> float:
    """Of a choice among the choices, by the softmax of their log-likelihoods; `nats` has one of each, all finite."""
    likelihoods = np.exp(np.asarray(nats) - max(nats))
    return float(likelihoods[prediction] / likelihoods.sum())


def samples_path(folder: Path, task: str, model: str) -> Path:
    """Where one model's answers to one task are kept."""
    return folder / "samples" / task / f"{model}.jsonl"
