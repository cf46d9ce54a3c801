"""What the command line says of errors that nobody foresaw, and of an environment that no launcher made."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sllm_tune import cli, pipeline, unexpected
from sllm_tune.cli import main
from sllm_tune.errors import (
    BadInput,
    DataError,
    JobFailed,
    ModelError,
    RecipeError,
    RunFolderError,
    SourceError,
    TaskError,
)
from sllm_tune.recipe.recipe import load_recipe
from sllm_tune.runs import processes
from sllm_tune.runs.folder import open_run
from sllm_tune.runs.stage import Inputs


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> str:
        raise error

    monkeypatch.setattr(pipeline, "check", fail)
    monkeypatch.setattr("sllm_tune.load_recipe", lambda *_: None, raising=False)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]


UNFORESEEN = [KeyError("x"), RuntimeError("a\nb"), AssertionError(), RecursionError("deep"), UnicodeError("\udc80")]


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_an_unforeseen_error_is_one_message_with_a_log_and_status_1(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, error)
    assert cli.main(["check", "recipe.yaml"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"sllm-tune: check: stopped by an error that it does not know: {type(error).__name__}")
    assert "Traceback" not in said
    found = re.search(r"The traceback is in (\S+\.log)", said)
    assert found
    log = Path(found[1])
    assert "Traceback (most recent call last)" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0
    log.unlink()


KNOWN = [
    (OSError(errno.ENOSPC, "No space left on device"), "The disk is full. Free some space"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "Your share of the disk is used up"),
    (OSError(errno.EROFS, "Read-only file system", "/x"), "It cannot be written to"),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), "It may not be read or written"),
    (OSError(errno.ENAMETOOLONG, "File name too long"), "A path is too long"),
    (RuntimeError("I/O error: No space left on device (os error 28)"), "The disk is full"),
    (MemoryError(), "Out of memory. Make train.sft.per_device_train_batch_size smaller"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "Out of memory"),
    (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "Out of memory"),
]


@pytest.mark.parametrize(("error", "fix"), KNOWN, ids=lambda value: str(value)[:30])
def test_what_the_machine_lacks_is_said_with_the_fix(
    error: Exception, fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrapped = ValueError("could not save")
    wrapped.__cause__ = error
    for raised in (error, wrapped):
        failing(monkeypatch, raised)
        assert cli.main(["check", "recipe.yaml"]) == 1
        said = capsys.readouterr().err
        assert fix in said
        assert "Please report" not in said


def test_no_room_for_the_log_is_no_second_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    failing(monkeypatch, ValueError("x"))
    monkeypatch.setattr(unexpected.tempfile, "mkstemp", full)
    assert cli.main(["check", "recipe.yaml"]) == 1
    assert "no file, as none could be written (it ends in test_unexpected.py, line" in capsys.readouterr().err


@pytest.mark.parametrize(
    "secret", ["https://me:hunter2@x/simple", "https://x/simple?token=hunter2", "hf_hunter2hunter2", "Bearer hunter2"]
)
def test_secrets_reach_neither_message_nor_log(secret: str) -> None:
    error = ValueError(f"no answer from {secret}")
    assert "hunter2" not in unexpected.one_line(error)
    log = Path(unexpected.log(error, "check"))
    assert "hunter2" not in log.read_text()
    log.unlink()


def test_escape_sequences_of_an_error_are_made_visible() -> None:
    assert unexpected.one_line(ValueError("\x1b[2Jgone \u202e")) == "ValueError: \\x1b[2Jgone \\u202e"


def command(*arguments: str, env: dict[str, str] | None = None, shell: str = "") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "sllm_tune.cli", *arguments]
    if shell:
        line = ["sh", "-c", f'"$@" {shell}', "sh", *line]
    return subprocess.run(line, capture_output=True, text=True, env={**os.environ, **(env or {})}, timeout=60)


def test_an_output_that_cannot_take_the_text_is_no_traceback(tmp_path: Path) -> None:
    for said in (
        command("schema", shell="| head -c 1").stderr,
        command("schema", shell=">&-").stderr,
        command("check", f"{tmp_path}/없음.yaml", env={"PYTHONIOENCODING": "ascii"}).stderr,
        command("schema", shell="> /dev/full").stderr,
    ):
        assert "Traceback" not in said
        assert "Exception ignored" not in said
    assert "The disk is full" in said  # the last one


LEFT_OVER = [
    {"RANK": "1"},
    {"RANK": "0"},
    {"RANK": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"},
    {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"},
    {"RANK": "1", "WORLD_SIZE": "2"},
    {"RANK": "-1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"},
    {"LOCAL_RANK": "0"},
    {"RANK": ""},
]


@pytest.mark.parametrize("variables", LEFT_OVER, ids=str)
def test_a_left_over_of_a_launcher_is_refused_before_anything_is_written(
    variables: dict[str, str], project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in processes.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    folder = project.parent / "run"
    assert cli.main(["train", str(project), "--run-dir", str(folder)]) == 2
    assert "the environment is not that of a launcher" in capsys.readouterr().err
    assert not folder.exists()


def test_waiting_for_the_first_process_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "WAITING_IS_SAID_AFTER_S", 0.0)
    monkeypatch.setenv("RANK", "1")
    with open_run(tmp_path / "run") as run:
        made = run.work("prepare", {}) / "data"
        made.write_text("rows")

        def commit_at_second_look() -> Inputs:
            if capsys.readouterr().err.startswith("prepare: process 1 has waited"):
                run.commit("prepare", {}, outputs={"data": made}, seed=1, record={})
            return Inputs()

        pipeline._wait_for_first_process(run, "prepare", commit_at_second_look)  # pyright: ignore[reportPrivateUsage]
        assert run.manifest("prepare") is not None


@pytest.mark.parametrize("last", ["prepare", "evaluate"])
def test_a_process_that_waits_stops_after_the_stage_that_was_asked_for(
    last: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = load_recipe(project)
    getattr(pipeline, last)(recipe, tmp_path / "run")  # what the first process makes
    for name, value in zip(processes.LAUNCHED, ("1", "1", "2", "localhost"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pipeline, "require_trainable", lambda *_: None)  # it would connect the processes
    waited: list[str] = []
    monkeypatch.setattr(pipeline, "_wait_for_first_process", lambda _, name, __: waited.append(name))
    made = getattr(pipeline, last)(recipe, tmp_path / "run")
    assert made == tmp_path / "run" / pipeline.STAGES[last].artefact
    assert waited[-1] == last


def test_what_is_refused_is_a_value_error_and_a_failed_job_is_not():
    for kind in (BadInput, RecipeError, SourceError, TaskError, DataError, ModelError):
        assert issubclass(kind, ValueError)
        assert kind.exit_status == 2
    for kind in (JobFailed, RunFolderError):
        assert not issubclass(kind, ValueError)
        assert kind.exit_status == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [("train/manifest.json", "[]"), ("prepare/manifest.json", '{"stage": "train"}'), ("train/pending.json", "{}")],
)
def test_a_broken_run_folder_is_a_failed_job(project: Path, tmp_path: Path, file: str, content: str):
    run = tmp_path / "run"
    assert main(["prepare", str(project), "--run-dir", str(run)]) == 0
    (run / file).parent.mkdir(exist_ok=True)
    (run / file).write_text(content)
    assert main(["train", str(project), "--run-dir", str(run)]) == 1
