"""Every recipe of every domain folder, from data to report: a tiny model, sample rows, no network."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow.parquet import read_table

from sllm_tune import load_recipe, pipeline
from sllm_tune.answer.items import samples_path
from sllm_tune.deliver.specialist import Specialist
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.rows.read import table_rows
from sllm_tune.runs.files import read_jsonl
from sllm_tune.smoke import FAMILIES, smoke

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*/*.yaml"))
SECONDS_A_STAGE = 20
ARCHITECTURES = {
    "LlamaConfig": "LlamaForCausalLM",
    "Phi3Config": "Phi3ForCausalLM",
    "Gemma3TextConfig": "Gemma3ForCausalLM",
}


def require_same_answers(recipe: Recipe, run: Path) -> None:
    """Every row that was scored is answered as it was, asked as a user asks: as the task's own source has it."""
    specialist = Specialist(run)
    kept = [name for name in specialist.results["tasks"] if (run / "tasks" / f"{name}.yaml").exists()]
    for name in kept:  # lm-eval's own tasks are graded in place
        rows = list(table_rows(Path(recipe.data.source[name])))
        samples = read_jsonl(samples_path(run / "scores", name, "specialised"))
        answers = {answer.id: answer.answer for answer in specialist.ask(rows, name)}
        if not specialist.task(name).is_choice:
            assert [answers[row["id"]] for row in samples] == [row["prediction"] for row in samples]
            continue
        docs = {doc["id"]: doc["choices"] for doc in read_table(run / "tasks" / name / "test.parquet").to_pylist()}
        was = [docs[row["id"]][row["prediction"]] for row in samples]
        assert [answers[row["id"]] for row in samples] == was


def test_there_are_recipes_of_three_domains():
    assert len({path.parent for path in RECIPES}) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_a_recipe_runs_from_data_to_report_without_a_network(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*asked: Any) -> None:
        raise OSError(f"no network here: {asked[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    recipe = load_recipe(path)
    wall, cpu = time.monotonic(), time.process_time()
    pipeline.run(smoke(recipe), tmp_path)
    # Of a machine that does other work as well, this process has only a part: that is not the recipe's time.
    waited = max(1.0, (time.monotonic() - wall) / (time.process_time() - cpu))

    seconds = {
        stage: json.loads((tmp_path / stage / "manifest.json").read_text())["seconds"]
        for stage, held in pipeline.STAGES.items()
        if held.is_in(recipe)
    }
    assert max(seconds.values()) / waited < SECONDS_A_STAGE, (seconds, waited)
    assert recipe.base_model.family
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["architectures"] == [ARCHITECTURES[FAMILIES[recipe.base_model.family].config]]
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert results["smoke"] is True
    assert results["gate"] is None
    assert set(results["tasks"]) == {*recipe.evaluate.domain, *recipe.evaluate.general}
    require_same_answers(smoke(recipe), tmp_path)
    said = {"en": "Smoke run", "ko": "스모크 실행"}[recipe.language]
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith(f"# {said}: ")
    assert f"<h1>{said}: " in (tmp_path / "report.html").read_text(encoding="utf-8")
