"""What the benches share: figures of other code are not taken for new ones."""

import sys
from pathlib import Path

import pytest

from benchmarks import common, quickstart_budget
from sllm_tune import load_recipe, pipeline
from sllm_tune.runs.folder import Run


def test_runs_of_other_code_lie_in_another_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["some"])

    def work() -> Path:
        options = common.parser("some", "")
        common.add_work(options)
        return common.parse(options).work

    here = work()
    assert work() == here
    assert here.parent == Path("runs/benchmarks/some")
    monkeypatch.setattr(common, "sha256", lambda file: f"edited {file}")
    assert work().parent == here.parent
    assert work() != here


def test_figures_of_a_smoke_run_are_not_taken_for_measured_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def record(*typed: str) -> common.Record:
        monkeypatch.setattr(sys, "argv", ["some", "--json", str(tmp_path / "some.json"), *typed])
        return common.Record(common.parse(common.parser("some", "")), {"caps": {1: ("a", "b")}})

    smoke = record("--smoke")
    assert smoke.finish([(False, "a claim", "1")]) == 0
    assert "held" in record("--smoke").raw  # cut short, it goes on
    measured = record()
    assert "held" not in measured.raw
    assert measured.finish([(False, "a claim", "1")]) == 1


@pytest.mark.parametrize("asked", [[], ["resize=[{kind: prune_depth, keep: 1}]"]])
def test_the_budget_of_a_run_is_of_the_stages_that_it_has(
    project: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(quickstart_budget, "QUICKSTART", project)
    pipeline.prepare(load_recipe(project), tmp_path / "run")
    reasons = quickstart_budget.reasons_to_run(Run(tmp_path / "run"), *asked)
    assert list(reasons) == ["prepare", *["resize"] * bool(asked), "train", "merge", "evaluate", "report"]
    assert reasons["prepare"] is None
    assert reasons["train"] == "not made yet"
    quickstart_budget.learning_rate_claim(Run(tmp_path / "run"))
