"""Files of a run folder that others read: their shapes are models, versioned, and what is shown of them is text."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from exported import results_of
from pydantic import BaseModel

from sllm_tune import load_recipe
from sllm_tune.data import card
from sllm_tune.data.card import Card, Leaks, PersonalData, SplitCard, TaskCard, TokensByRow
from sllm_tune.errors import RecipeError, RunFolderError
from sllm_tune.evaluate import plain
from sllm_tune.evaluate import schema as results_schema
from sllm_tune.model.steps import StepRecord, StepScore
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.report.sentences import Sentences, sentences
from sllm_tune.schemas import FILES, schema

CARD: dict[str, Any] = {"tasks": {}, "leaks": {}, "replayed": None}


def test_a_card_of_the_time_before_shapes_had_numbers_is_read(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(json.dumps(CARD))
    found = Card.read(tmp_path / "card.json", "prepare")
    assert found.tasks == {}
    found.write(tmp_path / "card.json")
    assert json.loads((tmp_path / "card.json").read_text()) == {"schema": 1, **CARD}


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"schema": 2, **CARD}, "schema is 2, this version reads 1"),
        ({**CARD, "leaks": None}, "leaks: Input should be a valid dictionary; sllm-tune did not write this"),
        ({**CARD, "extra": 1}, "extra: Extra inputs are not permitted"),
        ([], "schema is None"),
    ],
)
def test_a_file_that_this_version_does_not_write_is_refused_by_name(tmp_path: Path, held: Any, said: str) -> None:
    (tmp_path / "card.json").write_text(json.dumps(held))
    with pytest.raises(RunFolderError) as caught:
        Card.read(tmp_path / "card.json", "prepare")
    assert f"card.json: {said}" in str(caught.value)
    assert "Make it again with: sllm-tune prepare RECIPE" in str(caught.value)


@pytest.mark.parametrize("of", FILES)
def test_every_field_of_a_file_that_is_not_a_plain_name_is_explained(of: str) -> None:
    made = schema(of)
    assert made["title"] == f"sllm_tune {FILES[of][1]}"
    shapes = [made, *(shape for shape in made.get("$defs", {}).values() if "properties" in shape)]
    assert all(shape.get("description") for shape in shapes), [shape["title"] for shape in shapes]


def test_a_table_shows_the_text_of_a_name_and_not_its_markup() -> None:
    results = results_of("<b>", 20, 0.5).model_copy(update={"hardware": "<script>"})
    assert "0.500" in results.as_html()
    card = Card.model_validate({**CARD, "leaks": {"<img src=x>": {"found": {}, "allowed": False}}})
    assert "<img" not in card.as_html()
    assert "&lt;img src=x&gt;" in card.as_html()


def test_tab_completion_has_our_names_only(project: Path) -> None:
    assert {"tasks", "verdict", "models"} <= set(dir(results_of("a", 20, 0.5)))
    for shown in (results_of("a", 20, 0.5), load_recipe(project)):
        assert not [name for name in dir(shown) if name.startswith(("model_", "_"))]


def test_a_recipe_of_python_is_the_recipe_of_its_file(project: Path) -> None:
    values = yaml.safe_load(project.read_text())
    made = Recipe.from_dict(values, folder=project.parent)
    assert (made.resolved(), made.folder) == (load_recipe(project).resolved(), project.parent)
    changed = Recipe.from_dict(values, {"train.sft.learning_rate": 1e-3, "seed": 7}, folder=project.parent)
    assert changed.resolved() == load_recipe(project, ["train.sft.learning_rate=1e-3", "seed=7"]).resolved()
    assert changed.seed == 7
    assert "learning_rate" in changed._repr_html_()  # pyright: ignore[reportPrivateUsage]


def test_faults_of_a_recipe_of_python_are_told_as_those_of_a_file(project: Path) -> None:
    values = yaml.safe_load(project.read_text())
    with pytest.raises(RecipeError, match="nam: unknown"):
        Recipe.from_dict({**values, "nam": "x"}, folder=project.parent)
    with pytest.raises(RecipeError, match="cannot be a value of a recipe"):
        Recipe.from_dict({**values, "name": object()}, folder=project.parent)
    with pytest.raises(RecipeError, match=r"seed"):
        load_recipe(project, {"seed": "many"})


@pytest.mark.parametrize(
    ("shape", "model"),
    [
        (plain.ResultsDict, results_schema.Results),
        (plain.FigureDict, results_schema.Figure),
        (plain.GainDict, results_schema.Gain),
        (plain.PairedDict, results_schema.PairedFigure),
        (plain.TaskDict, results_schema.TaskResults),
        (plain.ModelDict, results_schema.ModelResults),
        (plain.EverydayDict, results_schema.Everyday),
        (plain.FollowedDict, results_schema.Followed),
        (plain.LabelsDict, results_schema.LabelReplies),
        (plain.ProseDict, results_schema.Prose),
        (plain.ReplyDict, results_schema.Reply),
        (plain.VerdictDict, results_schema.Verdict),
        (plain.GateDict, results_schema.Gate),
        (plain.TrainingDict, results_schema.Training),
        (plain.PointDict, results_schema.Point),
        (plain.StepScoreDict, StepScore),
        (plain.DataDict, Card),
        (plain.CardDict, TaskCard),
        (card.TaskCardDict, TaskCard),
        (card.SplitDict, SplitCard),
        (card.TokensDict, TokensByRow),
        (card.PersonalDict, PersonalData),
        (card.LeaksDict, Leaks),
    ],
)
def test_plain_results_have_no_name_that_their_schema_has_not(shape: type, model: type[BaseModel]) -> None:
    assert set(shape.__annotations__) <= set(model.model_fields)


def test_plain_steps_have_the_figures_of_their_schema() -> None:
    assert set(StepRecord.model_fields) - {"seconds"} <= set(plain.StepDict.__annotations__)


@pytest.mark.parametrize("language", ["en", "ko"])
def test_every_sentence_that_code_names_is_there(language: str) -> None:
    assert set(Sentences.__annotations__) <= set(sentences(language))
