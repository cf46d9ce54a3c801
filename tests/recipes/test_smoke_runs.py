"""Every recipe of every domain folder, from data to report: a tiny model, sample rows, no network."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from sllm_tune import load_recipe, pipeline
from sllm_tune.smoke import FAMILIES, smoke

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*/*.yaml"))
SECONDS_A_STAGE = 20
ARCHITECTURES = {
    "LlamaConfig": "LlamaForCausalLM",
    "Phi3Config": "Phi3ForCausalLM",
    "Gemma3TextConfig": "Gemma3ForCausalLM",
}


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
        for stage in pipeline.STAGES
        if stage != "resize" or recipe.resize
    }
    assert max(seconds.values()) / waited < SECONDS_A_STAGE, (seconds, waited)
    assert recipe.base_model.family
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["architectures"] == [ARCHITECTURES[FAMILIES[recipe.base_model.family].config]]
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert results["smoke"] is True
    assert results["gate"] is None
    assert set(results["tasks"]) == {*recipe.evaluate.domain, *recipe.evaluate.general}
    said = {"en": "Smoke run", "ko": "스모크 실행"}[recipe.language]
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith(f"# {said}: ")
    assert f"<h1>{said}: " in (tmp_path / "report.html").read_text(encoding="utf-8")
