"""What results.json says of recipe and data, and what it keeps to itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from sllm_tune.evaluate.results import public_recipe
from sllm_tune.model.find import Base
from sllm_tune.recipe.recipe import Recipe, load_recipe
from sllm_tune.wording import visible, without_secrets


def shown_recipe(recipe: Recipe) -> dict[str, Any]:
    return public_recipe(recipe.resolved(), Base(section=recipe.base_model, folder=recipe.folder).name)


@pytest.mark.parametrize("given", ["/home/kim/rows/out.txt", "../kim/out.txt", "~/kim/out.txt", "kim/out.txt"])
def test_no_folder_of_the_user_is_in_the_recipe_of_results(project: Path, given: str):
    overrides = [f"data.leave_out={given}", f"data.source.clauses={given.replace('out.txt', 'rows.jsonl')}"]
    shown = shown_recipe(load_recipe(project, overrides))
    assert shown["data"]["leave_out"] == "out.txt"
    assert shown["data"]["source"] == {"clauses": "rows.jsonl"}
    assert "kim" not in json.dumps(shown)
    assert str(project.parent) not in json.dumps(shown)


@pytest.mark.parametrize(
    "given",
    [
        "https://user:s3cret@index.example/simple/base",
        "https://host.example/base?token=s3cret",
        "https://host.example/base?a=b&sig=s3cret#x",
        "C:\\\\s3cret\\\\base",
        "file:///s3cret/base",
    ],
)
def test_nothing_that_gives_access_is_in_the_recipe_of_results(project: Path, given: str):
    shown = shown_recipe(load_recipe(project, [f'base_model.path="{given}"']))
    assert "s3cret" not in json.dumps(shown)
    assert "base" in shown["base_model"]["path"]


def test_addresses_stay_readable_without_what_gives_access():
    said = "pip: https://u:p@index.example/simple?token=abc is not there; see https://docs.example/a"
    assert without_secrets(said) == (
        "pip: https://****@index.example/simple?**** is not there; see https://docs.example/a"
    )
    for plain in ("a@b.example", "who? me", "pypi:a==1/b.jsonl", "Is it //true@? x=1"):
        assert without_secrets(plain) == plain


def test_text_that_only_shows_is_left_as_it_is():
    for plain in ("tab\tline\nnext\r\nlast", "조항 \U0001f600", "a\\x1b", "e\u0301", "nbsp\u00a0", "soft\u00adhyphen"):
        assert visible(plain) == plain
