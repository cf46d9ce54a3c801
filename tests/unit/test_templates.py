"""What a row becomes: text stays text, a missing value is never a word, and an answer is the choice that it names."""

import unicodedata
from typing import Any

import pytest

from sllm_tune.errors import TaskError
from sllm_tune.tasks.build import begins_another, materialised
from sllm_tune.tasks.example import check_row
from sllm_tune.tasks.find import TaskFile
from sllm_tune.tasks.templates import AmbiguousAnswer, Rendered, render_row

CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "Clause: {{text}}",
    "doc_to_choice": ["privacy", "payment", "liability"],
    "doc_to_target": "{{label}}",
}
WRITTEN = {"output_type": "generate_until", "doc_to_text": "Note: {{text}}", "doc_to_target": "{{answer}}"}


def task(config: dict[str, Any]) -> TaskFile:
    return TaskFile("t", None, config)


def written(answer: Any, **config: Any) -> Rendered:
    return render_row({**WRITTEN, **config}, {"text": "x", "answer": answer})


def chosen(label: Any, **config: Any) -> list[str]:
    return render_row({**CHOICE, **config}, {"text": "x", "label": label}).answers


# --- text


@pytest.mark.parametrize(
    "text", ['["aspirin", "insulin"]', "[]", "[REDACTED]", "001", "[1]", "{'a': 1}", "None", "1e5", "(1,)", '"quoted"']
)
def test_a_written_answer_that_looks_like_a_literal_is_taught_as_it_is_written(text: str):
    assert written(text).answers == [text]
    docs, _ = materialised(task(WRITTEN), [{"text": text, "answer": text}], "")
    assert (docs[0]["prompt"], docs[0]["target"], docs[0]["label"]) == (f"Note: {text}", text, text)


def test_a_list_and_an_object_are_written_as_json():
    parties = [{"party": "갑", "role": "lessor"}, {"party": "을", "ended": None}]
    assert written(parties, doc_to_target="{{answer}}").answers == [
        '[{"party": "갑", "role": "lessor"}, {"party": "을", "ended": null}]'
    ]
    assert written({"a": [1, True]}).answers == ['{"a": [1, true]}']


def test_a_column_that_holds_a_list_of_texts_holds_several_right_answers():
    assert written(["둘", "two", "two"], doc_to_target="answer").answers == ["둘", "two"]
    with pytest.raises(ValueError, match="but not of texts"):
        written([1, 2], doc_to_target="answer")


@pytest.mark.parametrize("code", ["0", "90007", "007"])
def test_a_prompt_that_is_a_number_is_text(code: str):
    config = {**CHOICE, "doc_to_text": "{{text}}"}
    assert render_row(config, {"text": code, "label": "privacy"}).prompt == code


# --- missing values


@pytest.mark.parametrize("value", [None, float("nan")])
@pytest.mark.parametrize(
    "template",
    ["{{text}}", "{{text | upper}}", "{{text ~ 'x'}}", "{{ [text] | join(' ') }}", "{{text[0]}}", "{{text[:3]}}"],
)
def test_a_missing_value_is_never_a_word_in_a_prompt(value: Any, template: str):
    with pytest.raises(TaskError, match=r"^t, row 3 of d: no 'text' \(it is null\)\.\n  doc_to_text in"):
        check_row(task({**WRITTEN, "doc_to_text": template}), {"text": value, "answer": "a"}, "t, row 3 of d")


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_template_says_what_a_missing_value_is(value: Any):
    row = {"text": value, "answer": "a"}
    for template, shown in (
        ("x{{text or ''}}", "x"),
        ("x{{text | default('-')}}", "x-"),
        ("{% if text %}{{text}}{% else %}none{% endif %}", "none"),
        ("{{ 'null' if text is none else text }}", "null"),
    ):
        assert render_row({**WRITTEN, "doc_to_text": template}, row).prompt == shown


@pytest.mark.parametrize("row", [{"text": {"a": None}}, {"text": ["x", None]}, {"text": [{"b": float("nan")}]}])
def test_a_missing_value_inside_another_is_no_word_either(row: Any):
    template = "{{ text.a }}{{ text | join(' ') }}{{ text[0].b }}"
    with pytest.raises(TaskError):
        check_row(task({**WRITTEN, "doc_to_text": template}), {**row, "answer": "a"}, "t, row 1 of d")


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u3000", "\u200b", "\ufeff \u2060", "\u3164"])
def test_a_row_that_has_nothing_to_show_is_refused(text: str):
    with pytest.raises(TaskError, match="nothing is in what the prompt shows of it"):
        check_row(task(CHOICE), {"text": text, "label": "privacy"}, "t, row 1 of d")


@pytest.mark.parametrize("answer", ["\u200b", "\ufeff", " \u2060 ", "\u3164", "\u00ad"])
def test_an_answer_of_which_nothing_is_seen_is_refused(answer: str):
    with pytest.raises(TaskError, match=r"^t, row 1 of d: an answer is empty\."):
        check_row(task(WRITTEN), {"text": "x", "answer": answer}, "t, row 1 of d")


def test_one_of_two_columns_of_a_prompt_may_be_empty():
    config = {**WRITTEN, "doc_to_text": "{{instruction}}\n{{text}}"}
    assert check_row(task(config), {"instruction": "Sum up.", "text": "", "answer": "a"}, "t").prompt == "Sum up.\n"


# --- choices


@pytest.mark.parametrize(("label", "taught"), [("1", "1"), (4, "4"), ("5", "5")])
@pytest.mark.parametrize("template", ["{{label}}", "label", "{{ label | string | trim }}"])
def test_a_class_named_by_a_digit_means_itself(label: Any, taught: str, template: str):
    assert chosen(label, doc_to_choice=["1", "2", "3", "4", "5"], doc_to_target=template) == [taught]


def test_zero_padded_codes_are_names():
    assert chosen("010", doc_to_choice=["001", "010", "100"]) == ["010"]


@pytest.mark.parametrize("template", ["{{ label - 1 }}", "{{ ['a', 'b', 'c'].index('abc'[label - 1]) }}"])
def test_a_position_that_is_computed_is_one_where_choices_are_digits_too(template: str):
    assert chosen(1, doc_to_choice=["1", "2", "3"], doc_to_target=template) == ["1"]
    assert chosen(3, doc_to_choice=["1", "2", "3"], doc_to_target=template) == ["3"]


def test_a_digit_that_may_be_name_or_position_is_refused_and_no_row_is_skipped_for_it():
    with pytest.raises(AmbiguousAnswer, match="may be the choice named '2' or the one at position 2"):
        chosen(0.4, doc_to_choice=["1", "2", "3"], doc_to_target="{{ (label * 5) | round | int }}")


@pytest.mark.parametrize("label", ["0", "7", "-1", "\uff11", "1.0", "", "privacy "])
def test_an_answer_that_is_no_choice_is_refused(label: str):
    with pytest.raises(ValueError, match="is none of the choices"):
        chosen(label, doc_to_choice=["1", "2", "3"])


def test_a_position_is_read_where_choices_have_names():
    assert chosen("2") == ["liability"]
    assert chosen(None, doc_to_target=1) == ["payment"]


@pytest.mark.parametrize("choices", [["True", "False"], ["false", "true"], ["TRUE", "FALSE", "unknown"]])
@pytest.mark.parametrize("answer", [True, False])
def test_a_boolean_is_the_choice_that_is_named_so(choices: list[str], answer: bool):
    [right] = chosen(answer, doc_to_choice=choices, doc_to_target="label")
    assert right.casefold() == str(answer).casefold()


@pytest.mark.parametrize("choices", [["Yes", "No"], ["No", "Yes"], ["guilty", "not guilty"], ["1", "0"]])
def test_a_boolean_that_names_no_choice_is_refused_and_no_row_is_skipped_for_it(choices: list[str]):
    with pytest.raises(AmbiguousAnswer, match=r"'label' is true, and no choice of .* is named so") as caught:
        chosen(True, doc_to_choice=choices, doc_to_target="label")
    assert "as {{ 0 if label else 1 }} does" in str(caught.value)
    assert chosen(True, doc_to_choice=choices, doc_to_target="{{ 0 if label else 1 }}") == [choices[0]]


@pytest.mark.parametrize("other", ["Yes ", " Yes", "Yes\n", "Yes\u200b", "\ufeffYes", "Y\u00ades", "Yes\u200e"])
def test_choices_that_only_look_the_same_are_refused(other: str):
    with pytest.raises(ValueError, match=r"the choices 'Yes' and .* differ only in white space or in what is not seen"):
        chosen("Yes", doc_to_choice=["Yes", other, "No"], doc_to_target="label")


@pytest.mark.parametrize("choices", [["\u00e9", "e\u0301"], ["해지", unicodedata.normalize("NFD", "해지")]])
def test_choices_that_differ_in_their_unicode_form_alone_are_refused(choices: list[str]):
    with pytest.raises(ValueError, match=r"the choices .* differ only"):
        chosen(choices[0], doc_to_choice=choices, doc_to_target="label")


@pytest.mark.parametrize("choices", [["Yes", "yes"], ["a b", "a  b"], ["x", "x."], ["가", "나"], ["1", "\uff11"]])
def test_choices_that_look_different_are_taken(choices: list[str]):
    assert chosen(choices[0], doc_to_choice=choices, doc_to_target="label") == [choices[0]]


def test_a_label_in_another_unicode_form_is_the_same_label():
    import unicodedata

    for label in ("해지", "계약 해제"):
        assert chosen(unicodedata.normalize("NFD", label), doc_to_choice=["계약 해제", "해지"]) == [label]
        assert chosen(label, doc_to_choice=[unicodedata.normalize("NFD", label), "x"]) != ["x"]


@pytest.mark.parametrize("labels", [[0, 2], ["privacy", "liability"], ["0", "liability"], [2, 2, 0]])
@pytest.mark.parametrize("template", ["{{label}}", "label"])
def test_each_of_several_right_choices_is_right(labels: list[Any], template: str):
    assert set(chosen(labels, doc_to_target=template)) == {"privacy", "liability"}


@pytest.mark.parametrize("choices", [["a", "a"], ["only"], [], "text"])
def test_choices_that_cannot_be_told_apart_are_refused(choices: Any):
    with pytest.raises(ValueError, match=r"choice"):
        render_row({**CHOICE, "doc_to_choice": "options"}, {"text": "x", "label": 0, "options": choices})


# --- one choice begins another


@pytest.mark.parametrize(
    ("choices", "begins"),
    [
        (["breach", "breach of contract"], True),
        (["10", "2", "1"], True),
        (["Yes, in part", "No", "Yes"], True),
        (["가", "가나", "다"], True),
        (["no", "yes", "not sure"], True),
        (["IV", "V", "I"], True),
        (["B1", "B10", "C1"], True),
        (["ab", "b", "cab"], False),
        (["ab", "a b", "b"], False),
        (["Yes", "No"], False),
    ],
)
def test_the_stop_token_belongs_to_choices_of_which_one_begins_another(choices: list[str], begins: bool):
    assert begins_another(choices) is begins
    config = {**CHOICE, "doc_to_choice": choices, "doc_to_target": 0}
    docs, scored = materialised(task(config), [{"text": "x"}], "<|im_end|>")
    assert docs[0]["choices"] == choices
    assert docs[0][scored] == ([choice + "<|im_end|>" for choice in choices] if begins else choices)
    assert docs[0]["label"] == choices[0]


@pytest.mark.parametrize("text", ['["a", "b"]', "001", "1", "[REDACTED]", "{'a': 1}", "None", "1e5", "[]"])
def test_text_of_a_column_stays_as_it_is_in_prompt_and_answer(text: str):
    config = {"output_type": "generate_until", "doc_to_text": "question", "doc_to_target": "answer"}
    found = render_row(config, {"question": text, "answer": text})
    assert (found.prompt, found.answers) == (text, [text])
