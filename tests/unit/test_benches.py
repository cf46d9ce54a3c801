"""What the benches share: figures of other code are not taken for new ones."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a bench by its name."""
    monkeypatch.syspath_prepend(str(BENCH))

    def load(name: str) -> Any:
        sys.modules.pop(name, None)
        return __import__(name)

    yield load
    for name in ("common", "quickstart_budget"):
        sys.modules.pop(name, None)


def test_runs_of_other_code_lie_in_another_folder(bench: Any, monkeypatch: pytest.MonkeyPatch):
    common = bench("common")

    def work() -> Path:
        options = argparse.ArgumentParser()
        common.add_work(options, "some")
        return options.parse_args([]).work

    here = work()
    assert work() == here
    assert here.parent == Path("runs/bench/some")
    monkeypatch.setattr(common, "sha256", lambda file: f"edited {file}")
    assert work().parent == here.parent
    assert work() != here


@pytest.mark.parametrize("asked", [[], ["resize=[{kind: prune_depth, keep: 1}]"]])
def test_the_budget_of_a_run_is_of_the_stages_that_it_has(
    bench: Any, project: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
):
    from sllm_tune import load_recipe, pipeline
    from sllm_tune.run.folder import Run

    budget = bench("quickstart_budget")
    monkeypatch.setattr(budget, "QUICKSTART", project)
    pipeline.prepare(load_recipe(project), tmp_path / "run")
    reasons = budget.reasons_to_run(Run(tmp_path / "run"), *asked)
    assert list(reasons) == ["prepare", *["resize"] * bool(asked), "train", "evaluate", "report"]
    assert reasons["prepare"] is None
    assert reasons["train"] == "not made yet"
    budget.learning_rate_claim(Run(tmp_path / "run"))
