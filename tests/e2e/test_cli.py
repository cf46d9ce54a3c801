"""The command line: quick to answer, and bad input refused with exit status 2 and the fix, before any work."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sllm_tune.cli import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["run", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_help_answers_in_under_half_a_second() -> None:
    seconds: list[float] = []
    for _ in range(3):
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "sllm_tune.cli", "--help"], capture_output=True, text=True)
        seconds.append(time.monotonic() - started)
        assert done.returncode == 0
        assert "run" in done.stdout
    assert min(seconds) < 0.5


def test_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "sllm_tune recipe"


def test_check_shows_three_examples_with_the_supervised_tokens_marked(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(project)]) == 0
    shown = capsys.readouterr().out
    assert "tiny: the recipe is good" in shown
    assert shown.count("--- ") == 3
    assert shown.count("⟦<|im_end|>⟧") == 3


def test_an_unknown_key_is_refused_with_the_nearest_one(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, project, "train.lora.lora_alhpa=8", "data.limit.train=-1")
    assert f"{project}: 2 problems" in said
    assert "train.lora.lora_alhpa: unknown key of peft.LoraConfig; did you mean 'lora_alpha'? (from the command" in said
    assert "data.limit.train: must be greater than 0 (got -1) (from the command line)" in said


def test_an_unknown_task_is_refused_with_the_nearest_names(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, project, "data.tasks=[clauzes]", "evaluate.domain=[clauzes]", "--run-dir", tmp_path / "run")
    assert "clauses" in said.split("Nearest:")[1]


def test_a_missing_column_is_refused_with_its_row(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = project.parents[1] / "data" / "clauses.jsonl"
    rows = data.read_text().splitlines()
    rows[41] = rows[41].replace('"clause"', '"klause"')
    data.write_text("\n".join(rows))
    said = refused(capsys, project, "--run-dir", tmp_path / "run")
    assert "clauses, row 42 of ../../data/clauses.jsonl: no 'clause'" in said


def test_a_base_that_is_not_there_is_refused(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, project, "base_model.path=/nowhere/model", "--run-dir", tmp_path / "run")
    assert "base_model.path: no folder /nowhere/model" in said


def test_a_hub_model_that_cannot_be_had_is_refused(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, project, "base_model.path=nobody/no-such-model", "--run-dir", tmp_path / "run")
    assert "base_model.path: nobody/no-such-model" in said


def test_split_keys_with_one_group_are_refused(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = project.parent / "tasks" / "clauses.yaml"
    task.write_text(task.read_text().replace("split_by: [question, clause]", "split_by: [binding]"))
    data = project.parents[1] / "data" / "clauses.jsonl"
    data.write_text("".join(f"{line}\n" for line in data.read_text().splitlines() if '"binding": true' in line))
    said = refused(capsys, project, "--run-dir", tmp_path / "run")
    assert "leaves fewer than two groups" in said


def test_bad_input_costs_no_finished_artefact(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["train", str(project), "--run-dir", str(folder)]) == 0
    before = {path: path.read_bytes() for path in (folder / "adapter").iterdir()}
    data = project.parents[1] / "data" / "clauses.jsonl"
    data.write_bytes(b"\xff" + data.read_bytes())
    assert "not UTF-8" in refused(capsys, project, "--run-dir", folder)
    assert {path: path.read_bytes() for path in (folder / "adapter").iterdir()} == before
    assert (folder / "train" / "manifest.json").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_small_disk_is_refused_before_training(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no mounting in this container")
    try:
        said = refused(capsys, project, "train.lora.r=64", "--run-dir", disk / "run")
        assert "free" in said
        assert "the checkpoints of this run" in said
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_options_may_stand_before_between_and_after_what_they_belong_to(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, override = str(project), "data.nosuch=1"
    for words in ([recipe, "--smoke", override], ["--smoke", recipe, override], [recipe, override, "--smoke"]):
        assert main(["check", *words]) == 2
        assert "data.nosuch" in capsys.readouterr().err, words
    assert main(["ask", str(project.parent), "--task", "one", "What is owed?"]) != 0
    assert "unrecognized" not in capsys.readouterr().err
