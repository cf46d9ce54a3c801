"""The shape of the code: a stage reads what it is given, and a reader's way stays short."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from sllm_tune import load_recipe, pipeline
from sllm_tune.model.find import Base
from sllm_tune.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "sllm_tune").rglob("*.py"))
HEAVY = {  # what takes longer to import than `sllm-tune --help` may take, and the extras
    *("torch", "transformers", "peft", "trl", "datasets", "lm_eval", "accelerate", "safetensors", "tokenizers"),
    *("huggingface_hub", "sklearn", "scipy", "pyarrow", "datasketch", "psutil", "pynvml"),
    *("presidio_analyzer", "phonenumbers", "spacy", "gguf", "aiohttp", "cyllama", "xllamacpp"),
    *("openvino", "openvino_tokenizers"),
}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def imported(node: ast.AST) -> list[str]:
    """Modules that an import names."""
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        return [module, *(f"{module}.{name.name}" for name in node.names)]
    return [name.name for name in node.names] if isinstance(node, ast.Import) else []


def file_of(module: str) -> Path | None:
    place = ROOT / module.replace(".", "/")
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


@cache
def is_heavy(module: str) -> bool:
    """Whether importing it imports one of `HEAVY`, itself or by others of ours."""
    if module.split(".")[0] in HEAVY:
        return True
    path = file_of(module) if module.startswith("sllm_tune.") else None
    return path is not None and any(map(is_heavy, (name for node in parsed(path).body for name in imported(node))))


def test_files_and_functions_are_short():
    assert {path.name: n for path in SOURCES if (n := len(path.read_text("utf-8").splitlines())) > 350} == {}
    assert {f"{path.name}: {f.name}" for path, f in functions() if (f.end_lineno or 0) - f.lineno >= 60} == set()


def test_few_values_have_any_type():
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert len(re.findall(r"\bAny\b", text)) <= 15 * text.count("\n") / 1000


def test_few_functions_take_a_whole_recipe():
    def takes_one(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
        given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        names = (node for one in given if one.annotation for node in ast.walk(one.annotation))
        return any(isinstance(node, ast.Name) and node.id == "Recipe" for node in names)

    assert len([function.name for _, function in functions() if takes_one(function)]) <= 15


def test_no_file_imports_a_private_name_of_another():
    places = [*SOURCES, *(path for part in ("benchmarks", "scripts", "tests") for path in (ROOT / part).rglob("*.py"))]
    private = re.compile(r"(^|\.)_(?!_)")
    found = [
        f"{path.name}: {name}"
        for path in places
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("sllm_tune", "benchmarks"))
        for name in imported(node)
        if private.search(name)
    ]
    assert found == []


def test_an_import_inside_a_function_keeps_something_heavy_out():
    light = [
        f"{path.name}: {function.name} imports {names[0]}"
        for path, function in functions()
        if path.name not in ("cli.py", "__init__.py")  # which load nothing before a command is known
        for node in ast.walk(function)
        if (names := imported(node)) and not any(map(is_heavy, names))
    ]
    assert light == []


@pytest.mark.parametrize("name", pipeline.STAGES)
def test_a_stage_cannot_read_a_field_of_the_recipe_that_it_does_not_declare(name: str, project: Path):
    steps = "resize=[{kind: prune_depth, keep: 1}]"
    recipe = load_recipe(project, ["data.replay={replies: 2, share: 0.1}", steps])
    base = Base(section=recipe.base_model, folder=recipe.folder)
    run = pipeline.Run(project.parent / "run")
    given = pipeline.STAGES[name].inputs(recipe, base, run)
    undeclared = set(Recipe.model_fields) - set(type(given).model_fields)
    assert undeclared
    for field in undeclared:
        with pytest.raises(AttributeError):
            getattr(given, field)


def test_a_stage_that_reads_what_it_did_not_declare_ends_the_run(project: Path, monkeypatch: pytest.MonkeyPatch):
    train = pipeline.STAGES["train"]
    planted = train._replace(make=lambda given, made: {"adapter": given.evaluate})
    monkeypatch.setitem(pipeline.STAGES, "train", planted)
    with pytest.raises(AttributeError, match="evaluate"):
        pipeline.train(load_recipe(project), project.parent / "run")
    assert not (project.parent / "run" / "adapter").exists()


def test_commands_and_the_process_that_measures_an_export_load_no_torch():
    code = (
        "import sys, sllm_tune.pipeline, sllm_tune.deliver.speed; print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
