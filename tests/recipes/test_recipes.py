"""Every recipe and every task file of every domain folder: readable, complete, and good without a network."""

import re
from pathlib import Path

import pytest
import yaml

from sllm_tune.data import task_files
from sllm_tune.recipe import load_recipe
from sllm_tune.sources import is_pypi
from sllm_tune.tasks import build_in_memory, find_task

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*/*.yaml"))
TASKS = sorted(FOLDER.glob("*/tasks/*.yaml"))


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def test_there_are_recipes_and_tasks():
    assert len(RECIPES) >= 1
    assert len(TASKS) >= 3
    assert "legal/quickstart.yaml" in map(name_of, RECIPES)
    assert {"legal/tasks/privacy_qa.yaml", "general/tasks/openbookqa.yaml", "general/tasks/piqa.yaml"} <= set(
        map(name_of, TASKS)
    )


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_is_good(path: Path):
    recipe = load_recipe(path)
    assert recipe.domain == path.parent.name
    assert recipe.name.startswith(f"{recipe.domain}-")


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_an_editor_finds_the_schema_of_a_recipe(path: Path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    match = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert match
    assert (path.parent / match[1]).resolve() == FOLDER / "recipe.schema.json"
    assert (FOLDER / "recipe.schema.json").is_file()


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_says_how_it_is_run(path: Path):
    assert f"#   sllm-tune run recipes/{name_of(path)}\n" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_the_tasks_of_a_recipe_are_there(path: Path):
    assert task_files(load_recipe(path))


@pytest.mark.parametrize("path", TASKS, ids=name_of)
def test_a_task_file_says_what_it_is_where_its_rows_come_from_and_under_which_licence(path: Path):
    assert path.read_text(encoding="utf-8").startswith("# ")
    task = find_task(path.stem, path.parents[1])
    assert task.path == path
    assert task.config["task"] == path.stem
    assert {"version", "source", "sha256", "licence"} <= set(task.metadata)
    assert is_pypi(task.metadata["source"])
    assert re.fullmatch("[0-9a-f]{64}", task.metadata["sha256"])
    assert task.config["metric_list"][0]["metric"] in ("acc", "acc_norm", "exact_match")
    if shares := task.metadata.get("split"):
        assert sum(shares.values()) == pytest.approx(1)


SAMPLES = {
    "privacy_qa": {"context": "We keep your data.", "question": "Is it kept?", "answer": "True"},
    "openbookqa": {
        "question": "What is hot?",
        "options": "A. ice\nB. the sun\nC. snow\nD. rain",
        "answer": "B. the sun",
    },
    "piqa": {"question": "To open a door", "options": "A. turn the knob\nB. sing", "answer": "A. turn the knob"},
}
ANSWERS = {
    "privacy_qa": (["Yes", "No"], 0),
    "openbookqa": (["ice", "the sun", "snow", "rain"], 1),
    "piqa": (["turn the knob", "sing"], 0),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_task_file_makes_the_choices_and_the_answer_of_a_row(name: str):
    (path,) = FOLDER.glob(f"*/tasks/{name}.yaml")
    built = build_in_memory(find_task(name, path.parents[1]), [SAMPLES[name]])
    assert (built.doc_to_choice(SAMPLES[name]), built.doc_to_target(SAMPLES[name])) == ANSWERS[name]


def test_no_task_of_one_domain_hides_one_of_general_ability():
    general = {path.stem for path in FOLDER.glob("general/tasks/*.yaml")}
    assert not [name_of(path) for path in TASKS if path.stem in general and path.parts[-3] != "general"]


def test_every_yaml_file_is_a_recipe_or_a_task():
    assert set(FOLDER.rglob("*.yaml")) == {*RECIPES, *TASKS}
    for path in [*RECIPES, *TASKS]:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
