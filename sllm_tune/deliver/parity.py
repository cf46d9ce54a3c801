"""Parity: an exported file has to answer as the specialist did when it was scored, through what it brings itself.

It is refused unless its prompts are those that were scored, token by token, it ends answers at the token that was
taught, agrees on enough of the items, and is as right within the interval that was reported. Where it differs, it may
only by a near tie: two answers that are about as likely, between which rounding decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sllm_tune.answer.items import Graded, item_id, score
from sllm_tune.deliver.answers import EngineLM
from sllm_tune.deliver.engine import Engine
from sllm_tune.errors import JobFailed
from sllm_tune.evaluate.exported import Difference, TaskParity
from sllm_tune.rows.read import Row
from sllm_tune.tasks.build import TARGET
from sllm_tune.tasks.encode import Encoder
from sllm_tune.tasks.example import Template, prompt_of
from sllm_tune.wording import shown

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask


@dataclass(frozen=True)
class Bar:
    """What an export must reach: the share of items answered alike, and up to which margin two answers are tied."""

    agreement: float
    tie_nats: float


BARS = {"f16": Bar(0.995, 0.25), "Q8_0": Bar(0.995, 0.25), "Q5_K_M": Bar(0.98, 1.0), "Q4_K_M": Bar(0.98, 1.0)}


@dataclass(frozen=True)
class Parity:
    """Of each task by its name, and why the export is refused, if it is."""

    tasks: dict[str, TaskParity]
    refusals: list[str]

    def require(self) -> None:
        """Raises JobFailed with the reasons where there are any."""
        if self.refusals:
            listed = "".join(f"\n  {reason}" for reason in self.refusals)
            raise JobFailed(f"export: it does not answer as what was scored, so it is not kept.{listed}")


def parity(
    lm: EngineLM,
    scored_by: Encoder,
    tasks: Sequence[Graded],
    samples: Mapping[str, Sequence[Row]],
    intervals: Mapping[str, tuple[float, float]],
    bar: Bar,
) -> Parity:
    """Ask the export all items and compare.

    Args:
        lm: The exported file, with its own template.
        scored_by: The encoder of the checkpoint that was scored.
        tasks: The domain's, with the items that were scored.
        samples: Of each task the rows of `scores/samples/<task>/specialised.jsonl`.
        intervals: Of each task the score's 95 % interval in `results.json`.
        bar: For this kind of file.

    Raises:
        JobFailed: as `answer.items.score`.
    """
    found = {task.name: _of_task(lm, scored_by, task, samples[task.name], intervals[task.name]) for task in tasks}
    refusals = [reason for name, task in found.items() for reason in refusals_of(name, task, bar)]
    return Parity(found, refusals)


def stop_refusals(file: Engine, scored_by: Encoder) -> list[str]:
    """Why the file would not stop where the specialist was taught to; nothing where it would."""
    taught, named = scored_by.stop_ids[-1], file.stop
    if named == taught and file.ends(taught):
        return []
    right, wrong = (shown(scored_by.tokenizer.convert_ids_to_tokens(token)) for token in (taught, named))
    return [f"stop token: answers were taught to end with {right}, and the file ends them at {wrong}."]


def choose(task: str, built: ConfigurableTask, samples: Sequence[Row]) -> Graded:
    """A task with the items that were scored.

    Raises:
        JobFailed: an item that was scored is no longer in the task.
    """
    docs: list[Row] = [dict(doc) for doc in built.eval_docs]
    places = {item_id(doc): number for number, doc in enumerate(docs)}
    if lost := [row["id"] for row in samples if row["id"] not in places]:
        raise JobFailed(f"task {task!r}: item {lost[0]} of its scores is not in its test rows.\n  Evaluate again.")
    indices = sorted(places[row["id"]] for row in samples)
    return Graded(task, built, [docs[i] for i in indices], indices, [])


def _of_task(
    lm: EngineLM, scored_by: Encoder, task: Graded, samples: Sequence[Row], interval: tuple[float, float]
) -> TaskParity:
    was = {row["id"]: row for row in samples}
    rows = score(lm, task, chat_template=scored_by.chat_template)  # pyright: ignore[reportArgumentType]
    asked: dict[int, list[Instance]] = {}
    for instance in task.built.instances:
        asked.setdefault(instance.doc_id or 0, []).append(instance)
    differences: list[Difference] = []
    for index, doc, row in zip(task.indices, task.docs, rows, strict=True):
        scored = was[row["id"]]
        if not _alike(row, scored):
            margin = _margin(lm, asked[index], scored, row, doc)
            is_kept = scored["prediction"] is not None
            answers = {"scored": scored["prediction"], "exported": row["prediction"] if is_kept else None}
            differences.append(Difference(id=row["id"], margin_nats=margin, **answers))
    own = [_prompt(lm, scored_by, task, doc) for doc in task.docs]
    return TaskParity(
        n=len(rows),
        agreement=1 - len(differences) / len(rows),
        accuracy=float(np.mean([row["score"] for row in rows])),
        scored_accuracy=float(np.mean([row["score"] for row in samples])),
        scored_ci95=interval,
        prompts_alike=float(np.mean(own)),
        differences=differences,
    )


def _alike(row: Row, was: Row) -> bool:
    """Whether an item is answered as it was; of one whose answer was not kept, whether it is scored as it was."""
    return row["score"] == was["score"] if was["prediction"] is None else row["prediction"] == was["prediction"]


def _prompt(lm: EngineLM, scored_by: Encoder, task: Graded, doc: Row) -> bool:
    """Whether the export's prompt for an item is, in tokens, the one that was scored."""

    def ids(encode: Callable[[str], list[int]], template: Template | None) -> list[int]:
        return encode(prompt_of(task.built, doc, template))

    return ids(lm.tok_encode, lm.encoder.template) == ids(scored_by.harness.tok_encode, scored_by.template)


def _margin(lm: EngineLM, asked: Sequence[Instance], was: Row, row: Row, doc: Row) -> float:
    """By how many nats the export prefers its answer to the one scored; infinite where that text was not kept.

    Of a choice that was not kept it is known whether it was right: the likeliest of those that are stands for it.
    """
    if isinstance(row["prediction"], int):
        likelihoods = [instance.resps[0][0] for instance in asked[: len(doc["choices"])]]
        candidates = [was["prediction"]]
        if was["prediction"] is None:
            right = doc[TARGET] if isinstance(doc[TARGET], list) else [doc[TARGET]]
            candidates = [i for i in range(len(likelihoods)) if (i in right) == (was["score"] > row["score"])]
        return float(likelihoods[row["prediction"]] - max(likelihoods[i] for i in candidates))
    if was["prediction"] is None:
        return float("inf")
    context, lead = lm.encoder.split_lead(asked[0].args[0])
    ids = lm.tok_encode(context)
    theirs = [*lm.tok_encode(lead + was["prediction"], add_special_tokens=False), *lm.encoder.stop_ids]
    for number, token in enumerate(theirs):
        after = lm.engine.next_log_probabilities([*ids, *theirs[:number]], [token])
        if int(after.argmax()) != token:
            return float(after.max() - after[token])
    return 0.0


def refusals_of(name: str, task: TaskParity, bar: Bar) -> list[str]:
    """Why an export's answers to a task are not those that were scored; empty where they are."""
    low, high = task.scored_ci95
    lost = [one for one in task.differences if one.margin_nats == float("inf")]
    far = [one for one in task.differences if one.margin_nats > bar.tie_nats and one not in lost]
    reasons: list[str] = []
    if task.prompts_alike < 1:
        share = 1 - task.prompts_alike
        reasons.append(f"{name}: {share:.1%} of the prompts have other tokens: another template or tokenizer.")
    if task.agreement < bar.agreement:
        reasons.append(f"{name}: it agrees on {task.agreement:.2%} of {task.n} items; {bar.agreement:.1%} are needed.")
    if lost:
        reasons.append(
            f"{name}: {len(lost)} items are answered otherwise than scored, and whether by a near tie is not known: "
            "their texts were not kept (report.show_items is false in the recipe). Evaluate with texts to export."
        )
    if far:
        worst = max(far, key=lambda one: one.margin_nats)
        reasons.append(
            f"{name}: {len(far)} items differ by more than a near tie of {bar.tie_nats} nats; the worst, "
            f"{worst.id}, by {worst.margin_nats:.2f}."
        )
    if not low <= task.accuracy <= high:
        reasons.append(f"{name}: its score is {task.accuracy:.4f}, outside of the interval {low:.4f} to {high:.4f}.")
    return reasons
