"""Rehearse: what training and evaluation will do with each right answer, tried before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar, cast

from sllm_tune.errors import TaskError
from sllm_tune.rows.read import Row
from sllm_tune.tasks.encode import Encoder
from sllm_tune.tasks.templates import Rendered
from sllm_tune.wording import listed, shown

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask

T = TypeVar("T")

ALL_OR_NOTHING = ("acc", "exact_match")  # of which a right answer has 1
MAX_GEN_TOKS = 256  # lm-eval's, where a task does not say


def answer_faults(config: Mapping[str, object], encoder: Encoder) -> Callable[[Rendered], str | None]:
    """A function that says what a base or a task's own settings would make of a row without a word, or None.

    Found are control tokens of the tokenizer in the row's text (the model would read another turn, or the end of one)
    and written answers that generation cannot give: they hold a text that ends it, or have more tokens than it makes.
    """
    asked, delimiter = config.get("generation_kwargs"), config.get("fewshot_delimiter", "\n\n")
    generation = asked if isinstance(asked, dict) else {}
    until: list[str] = generation.get("until") or [delimiter if isinstance(delimiter, str) else ""]
    most = int(generation.get("max_gen_toks") or MAX_GEN_TOKS)
    where = "generation_kwargs.until" if generation.get("until") else "lm-eval's default for generation_kwargs.until"

    def fault(row: Rendered) -> str | None:
        for text in (row.prompt, *(row.choices or row.answers)):
            if found := encoder.control_tokens(text):
                return f"{shown(found[0])} is a control token of the tokenizer, not text; take it out of the row"
        if row.choices is not None:
            return None
        for answer in row.answers:
            ends = next((text for text in until if text and text in answer), None)
            if ends is not None:
                return (
                    f"the answer holds {shown(ends)}, at which generation ends ({where}), so it could never be given; "
                    "set generation_kwargs.until to a text that no answer has"
                )
            tokens = len(encoder.tokenizer.encode(answer, add_special_tokens=False))
            if tokens > most:
                return (
                    f"the answer has {tokens} tokens, and generation ends after {most} "
                    "(generation_kwargs.max_gen_toks), so it could never be given; raise that"
                )
        return None

    return fault


def rehearse(name: str, built: ConfigurableTask, docs: Iterable[Row]) -> None:
    """Grade right answers as evaluation will grade those of a model.

    Args:
        name: The task's.
        built: lm-eval's object for it.
        docs: Items that will be graded.

    Raises:
        TaskError: the task's first metric has no finite score of a single item, a right answer is graded as wrong,
            the answers to other items are all graded as right, or the scores cannot be put together.
    """
    docs = list(docs)
    metric = next(iter(built.aggregation()))
    values: list[float] = []
    for number, doc in enumerate(docs, 1):
        try:
            value = _graded(built, doc)[metric]
        except Exception as error:  # lm-eval's functions, filters and metrics raise whatever they trip over
            raise TaskError(f"{name}: item {number} cannot be graded ({type(error).__name__}: {error}).") from error
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise TaskError(
                f"{name}: {metric} has no score of a single item, and models are compared item by item.\n"
                "  List another metric first in metric_list, such as acc or exact_match."
            )
        if metric in ALL_OR_NOTHING and value != 1:
            raise TaskError(
                f"{name}: the right answer of item {number} would be graded {value:g} by {metric}.\n"
                "  Look at filter_list, at the metric's options, and at what doc_to_target makes."
            )
        values.append(float(value))
    if metric in ALL_OR_NOTHING and built.OUTPUT_TYPE == "generate_until":
        _require_wrong_answers(name, built, docs, metric)
    try:
        total = float(built.aggregation()[metric](values))
    except Exception as error:
        raise TaskError(f"{name}: the scores of {metric} cannot be put together ({error}).") from error
    if not math.isfinite(total):
        raise TaskError(f"{name}: the scores of {metric} are put together to {total}.\n  Choose another aggregation.")


def _require_wrong_answers(name: str, built: ConfigurableTask, docs: list[Row], metric: str) -> None:
    """Refuse a metric by which the answer to every other item is right for the first, too: no model could be wrong."""
    right, *others = ([str(answer) for answer in _several(built.doc_to_target(doc))] for doc in docs)
    same = {_letters(answer) for answer in right}
    other_answers = [
        answer for answer in dict.fromkeys(answers[0] for answers in others) if _letters(answer) not in same
    ]
    if not other_answers or any(_graded_text(built, docs[0], answer)[metric] != 1 for answer in other_answers):
        return  # nearly always found at the first of them
    entry: Mapping[str, object] = next((one for one in built.config.metric_list or () if one["metric"] == metric), {})
    options = [option for option, value in entry.items() if option.startswith(("ignore_", "regexes_")) and value]
    causes = f"the metric's options {listed(options, 'and')}, and at " if options else ""
    raise TaskError(
        f"{name}: every answer would be graded as right by {metric}: to item 1, {shown(other_answers[0])} is as right "
        f"as {shown(right[0])}.\n  Look at {causes}filter_list."
    )


def _letters(answer: str) -> str:
    """What tells answers apart: letters and digits in any case, or else the whole of it."""
    return "".join(letter for letter in answer.casefold() if letter.isalnum()) or answer.strip()


def _graded(built: ConfigurableTask, doc: Row) -> Mapping[str, object]:
    """lm-eval's grades of the right answer of an item."""
    target = built.doc_to_target(doc)
    if built.OUTPUT_TYPE == "multiple_choice":
        if built.multiple_input:
            target = built.doc_to_text(doc)
        choices = built.doc_to_choice(doc)
        right = [one if isinstance(one, int) else choices.index(str(one)) for one in _several(target)]
        return built.process_results(
            doc, [(0.0 if i == right[0] else -1.0 - i, i in right) for i in range(len(choices))]
        )
    if built.OUTPUT_TYPE != "generate_until":
        return built.process_results(doc, [(0.0, True)])
    return _graded_text(built, doc, str(_several(target)[0]))


def _graded_text(built: ConfigurableTask, doc: Row, answer: str) -> Mapping[str, object]:
    request = cast("Instance", built.construct_requests(doc=doc, ctx="", metadata=("", 0, 1)))
    request.resps = [answer]
    for steps in built._filters:  # pyright: ignore[reportPrivateUsage]  # what lm-eval's apply_filters goes over
        steps.apply([request])
    return built.process_results(doc, [next(iter(request.filtered_resps.values()))])


def _several(target: T | list[T]) -> list[T]:
    return target if isinstance(target, list) else [target]
