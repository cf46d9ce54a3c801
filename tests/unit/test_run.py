"""The run folder: one process at a time, and nothing half-made that looks finished."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from sllm_tune.errors import BadInput, DataError, RunFolderError
from sllm_tune.runs import folder as module
from sllm_tune.runs import outputs
from sllm_tune.runs.files import fingerprint, flatten, read_jsonl, sha256, versions, write_json, write_jsonl, write_text
from sllm_tune.runs.folder import Run, open_run

INPUTS: dict[str, Any] = {"train.sft.learning_rate": 0.001, "seed": 42, "file.data/train.jsonl": "ab12"}
COST = {"seconds": 1.5, "energy_wh": None}


def make_stage(run: Run, inputs: dict[str, Any] = INPUTS, text: str = "weights") -> Path:
    """A stage that makes a folder and a file, as `train` does."""
    work = run.work("train", inputs)
    (work / "adapter").mkdir()
    (work / "adapter" / "weights").write_text(text)
    (work / "metrics.jsonl").write_text("{}\n")
    outputs = {"adapter": work / "adapter", "train/metrics.jsonl": work / "metrics.jsonl"}
    run.commit("train", inputs, outputs=outputs, seed=42, record={**COST, "world_size": 1})
    return work


# --- the lock


def test_a_run_folder_is_readable_by_its_owner_only(tmp_path: Path):
    with open_run(tmp_path / "runs" / "tiny") as run:
        assert stat.S_IMODE(run.dir.stat().st_mode) == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    with open_run(tmp_path / "open") as run:
        assert stat.S_IMODE(run.dir.stat().st_mode) == 0o700


def test_a_second_process_is_refused_with_the_id_of_the_first(tmp_path: Path):
    code = (
        "import sys, pathlib; from sllm_tune.runs.folder import open_run\n"
        "with open_run(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    folder = tmp_path / "run"
    command = [sys.executable, "-c", code, str(folder)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):  # to be refused does not take the lock's note away
            with pytest.raises(RunFolderError) as caught, open_run(folder):
                pass
            assert str(caught.value) == (
                f"{folder}: in use by process {holder.pid}.\n"
                "  Wait until it is done, or name another run folder with --run-dir."
            )
        holder.kill()
        holder.wait()
        with open_run(folder) as run:  # the lock went with the killed process
            assert run.dir == folder
            assert (folder / ".lock").read_text() == str(os.getpid())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput) as caught, open_run(tmp_path / "file" / "run"):
        pass
    assert str(caught.value) == (
        f"{tmp_path / 'file' / 'run'}: cannot be written (Not a directory).\n  Name another with --run-dir."
    )


@pytest.mark.parametrize("held", ["data/rows.jsonl", "recipe.json", "notes.txt", ".git/HEAD", "train/manifest.json"])
def test_a_folder_of_other_things_is_refused_and_left_as_it_was(tmp_path: Path, held: str):
    file = tmp_path / held
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"name": "mine"}')
    with (
        pytest.raises(BadInput, match=r"holds other files \(.*\) and is not a run folder"),
        open_run(tmp_path, "mine"),
    ):
        pass
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


def test_the_run_folder_of_another_recipe_is_refused(tmp_path: Path):
    with open_run(tmp_path / "run", "legal") as run:
        make_stage(run)
    with pytest.raises(BadInput, match="another recipe, 'legal'; this one is 'medical'"):
        open_run(tmp_path / "run", "medical").__enter__()
    with open_run(tmp_path / "run", "legal") as run:
        assert run.why("train", INPUTS) is None


def test_a_run_folder_of_an_older_version_is_taken(tmp_path: Path):
    keys = ("base_model", "data", "train", "evaluate")
    (tmp_path / "recipe.json").write_text(json.dumps({"name": "legal", **{key: {} for key in keys}}))
    with pytest.raises(BadInput, match="another recipe, 'legal'"):
        open_run(tmp_path, "medical").__enter__()
    with open_run(tmp_path, "legal"):
        pass


@pytest.mark.parametrize("library", ["torch", "transformers", "trl", "peft", "lm-eval", "sllm-tune"])
def test_a_stage_that_other_versions_made_is_named_and_made_again(
    tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
):
    before = versions()
    with open_run(tmp_path / "run", "legal") as run:
        make_stage(run)
        assert run.why("train", INPUTS) is None
        monkeypatch.setattr(module, "versions", lambda: before | {library: "99.1"})
        assert run.why("train", INPUTS) == f"made with {library} {before[library]}; here is 99.1"
        monkeypatch.setattr(module, "versions", lambda: before | {"scikit-learn": "99.1"})
        assert run.why("train", INPUTS) is None


def test_work_that_is_refused_leaves_no_new_folder(tmp_path: Path):
    def refuse(folder: Path) -> None:
        with pytest.raises(DataError), open_run(folder, "legal") as run:  # noqa: PT012
            run.work("prepare", INPUTS)
            raise DataError("no rows")

    refuse(tmp_path / "runs" / "deep" / "legal")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    refuse(tmp_path / "mine")  # it was there, and empty
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


@pytest.mark.parametrize("name", [".work", "train", ".lock", ".sllm_tune.json"])
def test_a_link_in_a_run_folder_is_not_followed(tmp_path: Path, name: str):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    with open_run(folder, "legal"):
        pass
    (folder / name).unlink(missing_ok=True)
    outside.write_text("precious")
    (folder / name).symlink_to(outside)
    with pytest.raises(BadInput), open_run(folder, "legal"):
        pass
    assert outside.read_text() == "precious"


# --- stages


def test_what_no_stage_made_is_kept_when_a_stage_takes_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "mine").write_text("precious")
    make_stage(Run(tmp_path))
    assert (tmp_path / "adapter" / "weights").exists()
    assert (tmp_path / "adapter.before-1" / "mine").read_text() == "precious"
    assert "kept as adapter.before-1" in capsys.readouterr().err
    make_stage(Run(tmp_path))  # its own are replaced
    assert not (tmp_path / "adapter.before-2").exists()


EDITS = {
    "longer": ("weights!", "adapter/weights was changed since train made it"),
    "of the same length": ("WEIGHTS", "adapter/weights was changed since train made it"),
    "cut": ("wei", "adapter/weights was changed since train made it"),
    "emptied": ("", "adapter/weights was changed since train made it"),
    "removed": (None, "adapter/weights is missing"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_output_that_was_edited_or_removed_is_named(tmp_path: Path, edit: str):
    run, (text, reason) = Run(tmp_path), EDITS[edit]
    make_stage(run)
    assert run.intact("train") is None
    file = tmp_path / "adapter" / "weights"
    file.unlink()
    if text is not None:
        file.write_text(text)
    assert run.intact("train") == run.why("train", INPUTS) == reason


def test_a_run_folder_that_was_copied_is_up_to_date_and_an_untouched_one_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_stage(Run(tmp_path / "run"))
    shutil.copytree(tmp_path / "run", tmp_path / "copy", copy_function=shutil.copyfile)  # with other times
    assert Run(tmp_path / "copy").why("train", INPUTS) is None
    monkeypatch.setattr(outputs, "sha256", lambda path: pytest.fail(f"{path} was read"))  # pyright: ignore[reportUnknownLambdaType]
    assert Run(tmp_path / "run").why("train", INPUTS) is None


def test_a_manifest_without_hashes_is_of_an_older_version(tmp_path: Path):
    run = Run(tmp_path)
    make_stage(run)
    file = tmp_path / "train" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["files"]
    file.write_text(json.dumps(manifest))
    assert run.why("train", INPUTS) == "made by an older version, which did not record what its files held"


MALFORMED = ["", "null", "[]", "1", "{", "{}", '{"outputs": 3}', "[" * 100_000, '{"outputs": ["../x"]}', "\udcff"]


@pytest.mark.parametrize("name", ["manifest.json", "pending.json"])
@pytest.mark.parametrize("text", MALFORMED)
def test_a_damaged_record_is_named_and_never_a_traceback(tmp_path: Path, name: str, text: str):
    with open_run(tmp_path, "legal") as run:
        make_stage(run)
    (tmp_path / "train" / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunFolderError, match=f"train/{name}: not a file that sllm-tune wrote"):  # noqa: SIM117
        with open_run(tmp_path, "legal") as run:
            run.why("train", INPUTS)


@pytest.mark.parametrize("key", ["stage", "inputs", "outputs", "files", "finished_at", "seconds"])
@pytest.mark.parametrize("value", [{"a": 1}, [[]], "x", True, {"adapter/weights": {"size": "7"}}, ["/etc"]])
def test_a_manifest_with_a_value_of_another_kind_is_refused_or_read(tmp_path: Path, key: str, value: object):
    run = Run(tmp_path)
    make_stage(run)
    file = tmp_path / "train" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    said = None
    with contextlib.suppress(RunFolderError):
        said = run.why("train", INPUTS)
    assert isinstance(said, str | None)


MOVES = {
    "up": {"adapter": "../outside"},
    "up in the middle": {"adapter": ".work/train-1/../../../outside"},
    "absolute": {"adapter": "/etc/passwd"},
    "to outside": {"../outside": ".work/train-1/adapter"},
    "to an absolute place": {"/tmp/outside": ".work/train-1/adapter"},
    "over another stage's output": {"data": ".work/train-1/adapter"},
    "out of another stage's output": {"adapter": "data"},
    "out of another stage's work": {"adapter": ".work/prepare-1/data"},
    "of everything": {"adapter": ".work"},
    "through a link": {"adapter": ".work/train-link/outside"},
    "of no path": {"adapter": 3},
}


@pytest.mark.parametrize("kind", MOVES)
def test_a_list_of_renames_moves_only_what_its_stage_makes(tmp_path: Path, kind: str):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    with open_run(folder, "legal") as run:
        make_stage(run)
        (folder / "data").mkdir()
        (folder / ".work" / "train-1" / "adapter").mkdir(parents=True)
        (folder / ".work" / "train-link").symlink_to(tmp_path)
    outside.write_text("precious")
    manifest = json.loads((folder / "train" / "manifest.json").read_text())
    write_json(folder / "train" / "pending.json", {"moves": MOVES[kind], "replaced": [], "manifest": manifest})
    with pytest.raises(RunFolderError, match=r"train/pending\.json"), open_run(folder, "legal"):
        pass
    assert outside.read_text() == "precious"
    assert (folder / "data").is_dir()
    assert (folder / "adapter" / "weights").read_text() == "weights"


def test_a_finished_stage_is_recorded_with_all_that_it_came_from(tmp_path: Path):
    run = Run(tmp_path)
    make_stage(run)
    manifest = json.loads((tmp_path / "train" / "manifest.json").read_text())
    assert manifest["inputs"] == INPUTS
    assert manifest["fingerprint"] == fingerprint(INPUTS)
    assert manifest["outputs"] == ["adapter", "train/metrics.jsonl"]
    assert manifest["versions"] == versions()
    assert [manifest[key] for key in ("stage", "seed", "seconds", "energy_wh", "world_size")] == [
        "train",
        42,
        1.5,
        None,
        1,
    ]
    assert manifest["finished_at"].endswith("Z")
    assert (tmp_path / "adapter" / "weights").read_text() == "weights"


@pytest.mark.parametrize("moment", range(1, 6))
def test_a_commit_that_was_killed_is_finished_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
):
    """Killed at its first, second, ... rename: the list of what is to be renamed, two outputs, the manifest."""
    folder, other = tmp_path / "run", {**INPUTS, "seed": 43}
    with open_run(folder) as run:
        make_stage(run, text="old")
    real, renamed = os.replace, list[str]()

    def killed(source: Path, target: Path) -> None:
        renamed.append(Path(target).name)
        if len(renamed) == moment:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patched, open_run(folder) as run:
        patched.setattr(os, "replace", killed)
        if moment <= 4:
            with pytest.raises(KeyboardInterrupt):
                make_stage(run, other, text="new")
        else:
            make_stage(run, other, text="new")
    assert renamed == ["pending.json", "adapter", "metrics.jsonl", "manifest.json"][:moment]
    with open_run(folder) as run:
        assert (run.why("train", INPUTS) is None) == (moment == 1)  # then nothing had begun
        assert (run.why("train", other) is None) == (moment > 1)
        assert (folder / "adapter" / "weights").read_text() == ("old" if moment == 1 else "new")
        assert (folder / "train" / "metrics.jsonl").exists()
        assert not (folder / "train" / "pending.json").exists()


def test_while_outputs_are_renamed_nothing_says_that_they_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Run(tmp_path)
    make_stage(run, text="old")
    real = os.replace

    def watched(source: Path, target: Path) -> None:
        if Path(target).name in ("adapter", "metrics.jsonl"):
            assert run.why("train", INPUTS) == run.why("train", {**INPUTS, "seed": 43}) == "not made yet"
        real(source, target)

    monkeypatch.setattr(os, "replace", watched)
    make_stage(run, {**INPUTS, "seed": 43}, text="new")


def test_a_stage_made_again_replaces_its_outputs(tmp_path: Path):
    run = Run(tmp_path)
    make_stage(run, text="old")
    make_stage(run, {**INPUTS, "seed": 43}, text="new")
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["weights"]
    assert (tmp_path / "adapter" / "weights").read_text() == "new"


def test_why_says_what_changed(tmp_path: Path):
    run = Run(tmp_path)
    assert run.why("train", INPUTS) == "not made yet"
    make_stage(run)
    assert run.why("train", INPUTS) is None
    slower = {**INPUTS, "train.sft.learning_rate": 0.0005}
    assert run.why("train", slower) == "train.sft.learning_rate changed from 0.001 to 0.0005"
    assert run.why("train", {**slower, "seed": 7}) == (
        "train.sft.learning_rate changed from 0.001 to 0.0005 (and 1 more)"
    )
    assert run.why("train", {**INPUTS, "file.data/train.jsonl": "cd34"}) == "data/train.jsonl changed"
    assert run.why("train", {**INPUTS, "train.lora.r": 8}) == "train.lora.r changed from null to 8"
    fewer = {key: value for key, value in INPUTS.items() if key != "seed"}
    assert run.why("train", fewer) == "seed changed from 42 to null"
    long = {**INPUTS, "train.sft.learning_rate": "가" * 100}
    assert run.why("train", long) == f'train.sft.learning_rate changed from 0.001 to "{"가" * 36}...'


def test_why_names_an_output_that_is_missing(tmp_path: Path):
    run = Run(tmp_path)
    make_stage(run)
    (tmp_path / "train" / "metrics.jsonl").unlink()
    assert run.why("train", INPUTS) == "train/metrics.jsonl is missing"


def test_what_other_inputs_left_is_not_taken_up(tmp_path: Path):
    run = Run(tmp_path)
    (run.work("train", INPUTS) / "checkpoint").write_text("half")
    other = run.work("train", {**INPUTS, "seed": 43})
    assert list(other.iterdir()) == []
    assert (run.work("train", INPUTS) / "checkpoint").read_text() == "half"  # the same inputs find it again
    assert run.work("evaluate", INPUTS) != run.work("train", INPUTS)


def test_finished_work_is_cleared_away(tmp_path: Path):
    run = Run(tmp_path)
    abandoned = run.work("train", {**INPUTS, "seed": 43})
    kept = run.work("evaluate", INPUTS)
    work = make_stage(run)
    assert (work.exists(), abandoned.exists(), kept.exists()) == (False, False, True)


# --- files


def test_a_write_that_fails_leaves_the_old_file_and_no_half_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "results.json"
    write_text(path, "old")

    class Full(io.TextIOWrapper):
        def writelines(self, lines: Iterable[str]) -> None:
            self.write("".join(lines)[:2])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, *_, **__: Full(open(self, "wb")))  # noqa: SIM115  it is the caller who closes it
    with pytest.raises(OSError, match="No space left on device"):
        write_text(path, "new text")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_figure_that_is_no_number_is_not_written(tmp_path: Path):
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        write_json(tmp_path / "results.json", {"value": float("nan")})
    assert os.listdir(tmp_path) == []


def test_json_is_written_as_people_read_it(tmp_path: Path):
    write_json(tmp_path / "new" / "card.json", {"이름": [1]})
    assert (tmp_path / "new" / "card.json").read_text(encoding="utf-8") == '{\n  "이름": [\n    1\n  ]\n}\n'


def test_rows_with_line_separators_in_their_text_come_back_whole(tmp_path: Path):
    rows = [{"text": f"one{separator}two"} for separator in ("\u2028", "\u2029", "\x85", "\r", "\n", "\x0b")]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def test_a_file_is_known_by_the_sha256_of_its_content(tmp_path: Path):
    content = os.urandom((1 << 20) + 5)
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_a_fingerprint_does_not_depend_on_the_order_of_the_inputs():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})


def test_nested_settings_are_named_by_their_dotted_path():
    assert flatten({"lora": {"r": 8}, "sft": {}, "method": "sft"}, "train") == {
        "train.lora.r": 8,
        "train.sft": {},
        "train.method": "sft",
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, -float("inf")], {"loss": float("nan")}])
def test_a_number_that_is_none_is_never_written(tmp_path: Path, value: Any):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"value": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_jsonl(tmp_path / "a.jsonl", [{"value": 1}, {"value": value}])
    assert list(tmp_path.iterdir()) == []
