"""From an artefact back to its rows and its base, and rows that are left out."""

import json
import os
import shutil
from pathlib import Path

import pytest

from sllm_tune import pipeline
from sllm_tune.errors import DataError, ModelError
from sllm_tune.model.lineage import base_sha256, left_out, lineage_of, require_same_base, trained_on
from sllm_tune.recipe.recipe import load_recipe
from sllm_tune.runs.files import read_jsonl, sha256


@pytest.fixture
def trained(project: Path) -> tuple[Path, Path]:
    """A recipe and its run folder after training."""
    folder = project.parents[2] / "runs" / "first"
    pipeline.train(load_recipe(project), folder)
    return project, folder


def test_an_adapter_leads_back_to_its_rows_and_its_base(trained: tuple[Path, Path], tiny_base: Path):
    _, folder = trained
    adapter = json.loads((folder / "adapter" / "sllm_tune.json").read_text())
    assert adapter == {
        "base": tiny_base.name,
        "base_sha256": base_sha256(str(tiny_base), None),
        "train_sha256": sha256(folder / "data" / "train.jsonl"),
    }
    lineage = json.loads((folder / "train" / "lineage.json").read_text())
    rows = read_jsonl(folder / "data" / "train.jsonl")
    assert lineage == {**adapter, "rows": {"clauses": sorted(row["id"] for row in rows)}}


def test_an_adapter_is_refused_on_another_base(trained: tuple[Path, Path], tiny_base: Path, tmp_path: Path):
    _, folder = trained
    require_same_base(folder / "adapter", str(tiny_base), None)
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 5000.0}))
    with pytest.raises(ModelError, match=r"this adapter was trained on another base \(tiny-base"):
        require_same_base(folder / "adapter", str(other), None)


def test_rows_of_a_deletion_request_are_left_out_and_what_was_trained_on_them_is_named(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    project, folder = trained
    gone = [row["id"] for row in read_jsonl(folder / "data" / "train.jsonl")][:3]
    request = project.parent / "deleted.txt"
    request.write_text("\n".join(gone) + "\n")
    capsys.readouterr()
    second = folder.parent / "second"
    pipeline.prepare(load_recipe(project, [f"data.leave_out={project.parent}/deleted.txt"]), second)
    card = json.loads((second / "data" / "card.json").read_text())["tasks"]["clauses"]
    assert card["left_out"] == 3
    assert not {row["id"] for row in read_jsonl(second / "data" / "train.jsonl")} & set(gone)
    assert (
        f"prepare: 3 of the rows left out were trained on in {folder}: delete adapter there, or train and evaluate"
        in capsys.readouterr().err
    )


def test_a_changed_list_of_rows_is_prepared_again(project: Path, capsys: pytest.CaptureFixture[str]):
    request = project.parent / "deleted.txt"
    request.write_text("")
    run = project.parents[2] / "run"
    for text in ("", "0" * 16):
        request.write_text(text)
        pipeline.prepare(load_recipe(project, [f"data.leave_out={project.parent}/deleted.txt"]), run)
    assert f"prepare: {project.parent}/deleted.txt changed" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "said"), [("abc\n", "line 1: 'abc' is not a row id"), (None, "cannot be read")])
def test_a_list_of_rows_that_cannot_be_read_is_refused(project: Path, text: str | None, said: str):
    if text is not None:
        (project.parent / "deleted.txt").write_text(text)
    with pytest.raises(DataError, match=said):
        pipeline.prepare(
            load_recipe(project, [f"data.leave_out={project.parent}/deleted.txt"]), project.parents[2] / "run"
        )


@pytest.mark.parametrize("text", ["", "[]", "{", '{"rows": []}', '{"rows": {"a": 3}}', '{"rows": {"a": [[]]}}', "\xff"])
def test_a_damaged_record_of_rows_is_said_and_hides_no_other(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
):
    for name, rows in {"bad": text, "good": json.dumps({"rows": {"clauses": ["a" * 16]}})}.items():
        (tmp_path / name / "train").mkdir(parents=True)
        (tmp_path / name / "train" / "lineage.json").write_bytes(rows.encode("latin-1"))
    assert trained_on({"a" * 16}, tmp_path) == {tmp_path / "good": 1}
    assert "bad/train/lineage.json: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"base": 1}', "3", "[" * 100_000])
def test_an_adapter_whose_record_is_damaged_is_refused(tmp_path: Path, text: str):
    (tmp_path / "sllm_tune.json").write_text(text)
    with pytest.raises(ModelError, match="does not say what the adapter was trained on"):
        lineage_of(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_list_of_rows_that_is_not_a_file_is_never_waited_for(tmp_path: Path, kind: str):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    path = Path("/dev/zero") if kind == "device" else tmp_path / kind
    with pytest.raises(DataError, match=r"^data\.leave_out: .* cannot be read \(it is not a file\)"):
        left_out(path)
