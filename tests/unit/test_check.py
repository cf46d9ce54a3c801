"""`check`: what prepare would make, and what the model will see."""

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import CLAUSES_TASK, clause_rows, write_rows

from sllm_tune import pipeline
from sllm_tune.check import mark
from sllm_tune.errors import DataError
from sllm_tune.recipe.recipe import load_recipe
from sllm_tune.runs.files import read_jsonl
from sllm_tune.tasks.encode import Encoder


def test_check_describes_the_splits_and_marks_the_supervised_tokens(project: Path):
    lines = pipeline.check(load_recipe(project)).splitlines()
    assert re.fullmatch(r"    tokens a row: median \d+, p95 \d+, max \d+", lines[3])
    assert lines[5].startswith("estimate, good to a factor of two: 0 M parameters, 0.0 M of them trained; 1,145 tr")
    assert [*lines[:3], lines[4], lines[7]] == [
        "tiny: the recipe is good",
        "  clauses: 60 train, 10 validation, 21 test (CC0-1.0)",
        "    149 mixed rows dropped",
        "  skies: 12 test (CC0-1.0)",
        "3 of 60 training examples; the loss is on the tokens in ⟦brackets⟧ only:",
    ]
    assert [line for line in lines if line.startswith("---")] == [
        line for line in lines[8:] if line.startswith("--- ") and "(clauses, " in line and line.endswith(" tokens)")
    ]
    answers = [line for line in lines if "⟦" in line][1:]
    assert len(answers) == 3
    assert {answer.replace("⟧⟦", "").strip("⟦⟧") for answer in answers} <= {"Yes<|im_end|>", "No<|im_end|>"}
    assert all(answer.endswith("⟦<|im_end|>⟧") for answer in answers)


def test_check_shows_the_first_examples_that_training_will_see(project: Path, tmp_path: Path, tiny_tokenizer: Any):
    recipe = load_recipe(project)
    shown = pipeline.check(recipe)
    pipeline.prepare(recipe, tmp_path / "run")
    encoder = Encoder(tiny_tokenizer, chat_template=True)
    for number, row in enumerate(read_jsonl(tmp_path / "run" / "data" / "train.jsonl")[:3], 1):
        assert f"--- {number} (clauses, {row['tokens']} tokens)\n{mark(row, encoder)}" in shown


def test_a_plain_prompt_is_marked_from_the_space_before_the_answer(tiny_tokenizer: Any):
    marked = mark({"context": "Answer Yes or No.", "target": " Yes"}, Encoder(tiny_tokenizer, chat_template=False))
    assert marked.startswith("Answer Yes or No.⟦ ")
    assert marked.endswith("⟦<|endoftext|>⟧")
    assert "".join(marked.split("No.")[1].split("⟧⟦")) == "⟦ Yes<|endoftext|>⟧"


def test_check_writes_nothing_beside_the_recipe_and_clears_its_scratch_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    pipeline.check(load_recipe(project))
    assert sorted(tmp_path.rglob("*")) == before


def test_the_items_of_a_task_that_the_harness_ships_are_counted(project: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    choices = {"text": ["rock", "tree"], "label": ["A", "B"]}
    rows = datasets.Dataset.from_list([{"question_stem": "Which?", "choices": choices, "answerKey": "A"}] * 3)
    data = datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), rows))
    real = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, **o: data if path == "allenai/openbookqa" else real(path, **o)
    )
    shown = pipeline.check(load_recipe(project, ["evaluate.general=[openbookqa]"]))
    assert "  openbookqa: 3 test (see the data set)\n" in shown


def test_check_refuses_what_prepare_refuses(project: Path):
    (project.parent / "tasks" / "clauses.yaml").write_text(CLAUSES_TASK.replace("[question, clause]", "[document]"))
    with pytest.raises(DataError, match=r"metadata\.split_by names 'document', which is not a column"):
        pipeline.check(load_recipe(project))


def test_tokens_that_are_a_character_only_together_share_a_bracket(tiny_tokenizer: Any):
    assert len(tiny_tokenizer.encode("갑")) > 1
    encoder = Encoder(tiny_tokenizer, chat_template=False)
    marked = mark({"context": "누구인가?", "target": " 갑"}, encoder)
    assert "\ufffd" not in marked
    assert marked.replace("⟧⟦", "") == "누구인가?⟦ 갑<|endoftext|>⟧"


def test_what_rows_hold_cannot_act_on_the_terminal(project: Path):
    acting = ("\x1b]0;title\x07", "\u202edesrever", "\x9b2J", "back\rover")
    rows = [{**row, "clause": "".join(acting) + row["clause"]} for row in clause_rows()]
    write_rows(project.parents[1] / "data" / "clauses.jsonl", rows)
    shown = pipeline.check(load_recipe(project))
    assert all(repr(text)[1:-1] in shown for text in acting)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown)
