"""Warnings of libraries: each once, with its count."""

import logging

import pytest

from sllm_tune.said import said_once


def test_a_warning_is_said_once_and_counted(capsys: pytest.CaptureFixture[str]):
    harness = logging.getLogger("lm_eval.models.huggingface")
    with said_once():
        for tokens in (34, 35, 7):
            harness.warning(f"Truncating {tokens} tokens from the left.")
            harness.warning("Failed to apply %s.", "one" if tokens > 9 else "two")
        harness.error("Said once.")
    assert capsys.readouterr().err.splitlines() == [
        "warning: lm_eval: Truncating 34 tokens from the left.",
        "warning: lm_eval: Failed to apply one.",
        "warning: lm_eval: Said once.",
        "3 times: lm_eval: Truncating 34 tokens from the left.",
        "3 times: lm_eval: Failed to apply one.",
    ]


def test_a_warning_is_said_although_the_library_was_told_to_be_quiet(capsys: pytest.CaptureFixture[str]):
    library = logging.getLogger("transformers")
    before = library.level
    library.setLevel(logging.ERROR)
    try:
        with said_once():
            logging.getLogger("transformers.modeling_utils").warning("Some weights were not used.")
        assert library.level == logging.ERROR
    finally:
        library.setLevel(before)
    assert capsys.readouterr().err == "warning: transformers: Some weights were not used.\n"


def test_only_a_message_that_holds_what_is_named_is_left_out(capsys: pytest.CaptureFixture[str]):
    harness = logging.getLogger("lm_eval.tasks")
    with said_once({"Using the default": "it is what we want"}):
        harness.warning("boolq: Using the default of 5")
        harness.warning("boolq: Using another of 5")
    assert capsys.readouterr().err == "warning: lm_eval: boolq: Using another of 5\n"


def test_what_a_library_says_is_said_when_the_work_fails(capsys: pytest.CaptureFixture[str]):
    def fail() -> None:
        with said_once():
            for _ in range(2):
                logging.getLogger("lm_eval").warning("It will fail.")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert capsys.readouterr().err.endswith("2 times: lm_eval: It will fail.\n")
