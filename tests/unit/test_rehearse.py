"""What a base and a task's own settings would make of right answers is found before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from sllm_tune.data.rehearse import answer_faults, rehearse
from sllm_tune.errors import TaskError
from sllm_tune.tasks.build import build_over
from sllm_tune.tasks.encode import Encoder
from sllm_tune.tasks.find import TaskFile
from sllm_tune.tasks.templates import Rendered

WRITTEN: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": {"until": ["###"], "max_gen_toks": 64},
}
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": ["Yes", "No", "Unsure"],
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
ROWS = [{"question": f"Is clause {n} binding?", "answer": answer} for n, answer in enumerate(["Yes", "No"] * 4)]


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: Any) -> Encoder:
    return Encoder(tiny_tokenizer, chat_template=True)


def written(answer: str, prompt: str = "Which?") -> Rendered:
    return Rendered(prompt, None, [answer], [])


def graded(config: dict[str, Any], rows: list[dict[str, Any]] = ROWS) -> None:
    built = build_over(TaskFile("t", Path("t.yaml"), config), rows)
    rehearse("t", built, [dict(doc) for doc in built.eval_docs])


# --- answers that could never be given


@pytest.mark.parametrize("answer", ["Two parts.\n\nBoth hold.", "\n\n", "해지 사유\n\n배상"])
def test_an_answer_that_holds_the_text_at_which_generation_ends_by_default_is_refused(encoder: Encoder, answer: str):
    said = answer_faults({}, encoder)(written(answer))
    assert said
    assert "at which generation ends (lm-eval's default for generation_kwargs.until)" in said
    assert answer_faults(WRITTEN, encoder)(written(answer)) is None


@pytest.mark.parametrize(("until", "answer"), [(["."], "No. 3"), (["\n", "Q:"], "see Q: 4"), (["조"], "제3조")])
def test_an_answer_that_holds_the_tasks_own_stop_text_is_refused(encoder: Encoder, until: list[str], answer: str):
    said = answer_faults({"generation_kwargs": {"until": until}}, encoder)(written(answer))
    assert said
    assert "(generation_kwargs.until), so it could never be given" in said


@pytest.mark.parametrize(
    ("most", "answer"), [(2, "the tenant and the landlord"), (1, "임차인은"), (None, "shall " * 300)]
)
def test_an_answer_of_more_tokens_than_are_generated_is_refused(encoder: Encoder, most: int | None, answer: str):
    config = {"generation_kwargs": {"until": ["###"], "max_gen_toks": most}}
    said = answer_faults(config, encoder)(written(answer))
    assert said
    assert f"generation ends after {most or 256} (generation_kwargs.max_gen_toks)" in said
    assert answer_faults(WRITTEN, encoder)(written("Yes")) is None


@pytest.mark.parametrize(
    "row",
    [
        Rendered("Is it <|im_end|>?", None, ["Yes"], []),
        Rendered("Which?", ["Yes<|im_start|>", "No"], ["No"], [1]),
        Rendered("Which?", None, ["<|endoftext|>"], []),
        Rendered("<|im_start|>system\nYou agree.<|im_end|>", ["Yes", "No"], ["Yes"], [0]),
    ],
)
def test_a_control_token_in_a_row_is_found_wherever_it_stands(encoder: Encoder, row: Rendered):
    said = answer_faults(CHOICE, encoder)(row)
    assert said
    assert "is a control token of the tokenizer, not text" in said


@pytest.mark.parametrize("text", ["<|im_en|>", "< |im_end| >", "|im_end|", "<s>", "[REDACTED]"])
def test_text_that_only_looks_like_a_control_token_is_text(encoder: Encoder, text: str):
    assert answer_faults(WRITTEN, encoder)(written(text, f"What does {text} mean?")) is None


# --- right answers that would be graded as wrong


def test_right_answers_that_are_graded_as_right_are_taken():
    graded(CHOICE)
    graded(WRITTEN)
    graded({**CHOICE, "metric_list": [{"metric": "acc_norm"}, {"metric": "f1"}]})
    graded({**WRITTEN, "doc_to_target": "answers"}, [{**row, "answers": [row["answer"], "Other"]} for row in ROWS])
    graded({**CHOICE, "doc_to_target": "answers"}, [{**row, "answers": ["No", "Unsure"]} for row in ROWS])
    graded({**WRITTEN, "metric_list": [{"metric": "rouge_l"}]}, [{**row, "answer": "해지 사유가 있다"} for row in ROWS])


@pytest.mark.parametrize(
    "steps",
    [
        [{"function": "lowercase"}],
        [{"function": "regex", "regex_pattern": "([0-9]+)"}],
        [{"function": "regex", "regex_pattern": "^(.)"}, {"function": "take_first"}],
        [{"function": "remove_whitespace"}, {"function": "uppercase"}],
    ],
)
def test_a_filter_that_spoils_right_answers_is_refused(steps: list[dict[str, Any]]):
    if steps[-1]["function"] != "take_first":
        steps = [*steps, {"function": "take_first"}]
    with pytest.raises(TaskError, match=r"the right answer of item 1 would be graded 0 by exact_match") as caught:
        graded({**WRITTEN, "filter_list": [{"name": "get", "filter": steps}]})
    assert "filter_list" in str(caught.value)


# --- wrong answers that would be graded as right


def exact_match(**options: Any) -> dict[str, Any]:
    return {**WRITTEN, "metric_list": [{"metric": "exact_match", **options}]}


def answered(*answers: Any) -> list[dict[str, Any]]:
    return [{"question": f"Which is it in clause {n}?", "answer": answer} for n, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("options", "answers", "named"),
    [
        ({"regexes_to_ignore": [".*"]}, ["Yes", "No"], "'regexes_to_ignore'"),
        ({"regexes_to_ignore": [r"[A-Za-z]+", r"\s"]}, ["the tenant", "the landlord", "both"], "'regexes_to_ignore'"),
        ({"ignore_case": True, "regexes_to_ignore": ["(?s)^.+$"]}, ["해지", "배상"], "'ignore_case' and 'regexes_to"),
        ({"ignore_punctuation": True}, ["+", "-", "+/-"], "'ignore_punctuation'"),
        ({"ignore_numbers": True}, ["1", "22", "3"], "'ignore_numbers'"),
        ({"ignore_numbers": True}, ["Article 5", "Article 7"], "'ignore_numbers'"),
        ({"ignore_numbers": True, "ignore_punctuation": True}, ["1.5", "€ 2.0", "-3"][::2], "'ignore_numbers' and 'ig"),
    ],
)
def test_options_of_a_metric_by_which_no_answer_is_wrong_are_refused(
    options: dict[str, Any], answers: list[str], named: str
):
    with pytest.raises(
        TaskError, match=r"^t: every answer would be graded as right by exact_match: to item 1"
    ) as caught:
        graded(exact_match(**options), answered(*answers))
    assert f"Look at the metric's options {named}" in str(caught.value)


@pytest.mark.parametrize(
    "steps",
    [
        [{"function": "map", "mapping_dict": {}, "default_value": "unknown"}],
        [{"function": "regex", "regex_pattern": "(never there)", "fallback": "unknown"}, {"function": "take_first"}],
    ],
)
def test_a_filter_that_makes_every_answer_the_same_right_one_is_refused(steps: list[dict[str, Any]]):
    config = {**WRITTEN, "doc_to_target": "answer", "filter_list": [{"name": "get", "filter": steps}]}
    with pytest.raises(TaskError, match=r"to item 1, 'No' is as right as 'Yes'\.\n  Look at filter_list"):
        graded(config, answered(["Yes", "unknown"], ["No", "unknown"]))


@pytest.mark.parametrize(
    ("options", "answers"),
    [
        ({"ignore_case": True}, ["Yes", "YES", "No", "yes"]),
        ({"ignore_case": True}, ["Yes", "YES", "yes."]),
        ({"ignore_punctuation": True}, ["Yes.", "No.", "Yes!"]),
        ({"ignore_punctuation": True, "regexes_to_ignore": [","]}, ["1,000", "1000", "1.000"]),
        ({"ignore_numbers": True}, ["Article 5 of the Act", "Article 5 of the Code"]),
        ({"regexes_to_ignore": [r"(?s).*#### "]}, ["as 2 + 2\n#### 4", "as 3 + 1\n#### 4", "as 2 + 3\n#### 5"]),
        ({}, ["approved"] * 4),
        ({}, [["Yes", "No"], ["No", "Yes"], ["Yes"]]),
        ({}, [["Yes", "N/A"], ["No", "N/A"]]),
    ],
)
def test_a_metric_that_knows_one_wrong_answer_is_taken(options: dict[str, Any], answers: list[Any]):
    graded({**exact_match(**options), "doc_to_target": "answer"}, answered(*answers))


@pytest.mark.parametrize("metric", ["f1", "mcc", "perplexity", "bleu", "chrf"])
def test_a_first_metric_without_a_score_of_an_item_is_refused(metric: str):
    config = CHOICE if metric in ("f1", "mcc") else WRITTEN
    with pytest.raises(TaskError, match=r"^t: .*(has no score of a single item|cannot be graded)"):
        graded({**config, "metric_list": [{"metric": metric}]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_put_together_to_no_number_are_refused(value: float):
    from types import SimpleNamespace

    built: Any = SimpleNamespace(
        OUTPUT_TYPE="loglikelihood",
        aggregation=lambda: {"loss": lambda _: value},
        doc_to_target=lambda _: "x",
        process_results=lambda *_: {"loss": 1.0},
    )
    with pytest.raises(TaskError, match=r"^t: the scores of loss are put together to (nan|inf|-inf)"):
        rehearse("t", built, [{}, {}])
    built.process_results = lambda *_: {"loss": value}
    with pytest.raises(TaskError, match="no score of a single item"):
        rehearse("t", built, [{}, {}])
