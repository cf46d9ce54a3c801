"""Any type of value anywhere in a recipe: a message with file and key, never a traceback, and nothing written."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sllm_tune import pipeline
from sllm_tune.errors import BadInput, RecipeError
from sllm_tune.model.find import Base
from sllm_tune.recipe.recipe import load_recipe
from sllm_tune.runs.folder import Run
from sllm_tune.tasks.find import find_task

EXAMPLES = int(os.environ.get("SLLM_TUNE_FUZZ_EXAMPLES", "500"))
WHOLE: dict[str, Any] = {
    "name": "contracts",
    "domain": "legal",
    "language": "en",
    "seed": 42,
    "base_model": {
        "path": "./base",
        "revision": "main",
        "sha256": "0123456789abcdef" * 4,
        "family": "phi3",
        "chat_template": True,
        "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "trust_remote_code": False,
    },
    "data": {
        "tasks": ["nda"],
        "source": {"nda": "rows.jsonl"},
        "limit": {"train": 24, "validation": 3, "test": None},
        "max_length": 1024,
        "replay": {"tasks": ["piqa"], "share": 0.1},
        "on_leak": "drop",
        "allow_leaks": ["nda"],
        "pii": "report",
        "leave_out": "gone.txt",
    },
    "resize": [
        {"kind": "trim_vocabulary", "keep_first": 3},
        {"kind": "prune_depth", "keep": 3, "method": "loss"},
        {"kind": "prune_width", "intermediate_size": 64, "num_attention_heads": 2, "hidden_size": 32},
        {"kind": "upscale_depth", "overlap": 2},
        {"kind": "distill", "share": 0.5, "teacher_top_k": 4, "lora": {"r": 4}, "sft": {"learning_rate": 1e-3}},
        {"kind": "fit", "max_parameters": "100M"},
        {"kind": "quantize", "quantization": {"load_in_8bit": True}},
    ],
    "train": {
        "method": "sft",
        "lora": {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj"], "lora_dropout": 0.1, "bias": "none"},
        "sft": {"learning_rate": 1e-3, "num_train_epochs": 1, "optim": "adamw_torch", "lr_scheduler_type": "cosine"},
    },
    "evaluate": {
        "domain": ["nda"],
        "general": ["openbookqa", "hellaswag"],
        "limit_general": 10,
        "num_fewshot": 5,
        "batch_size": 16,
        "usd_per_hour": 0.5,
        "gate": {"min_gain": 0.05, "max_forgetting": 0.02},
    },
    "hardware": {"name": "L4", "memory_gb": 24, "teraflops": 121},
    "report": {"show_items": False},
}
# YAML as it is written: what a value can be made of, and what cannot be kept.
FRAGMENTS = (Path(__file__).parents[1] / "data" / "yaml_fragments.txt").read_text(encoding="utf-8").splitlines()
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40) | st.sampled_from(
    ["x" * 5000, "\ud800", "a\0b", "{x!r:>9}", "\u2028", "é" * 300]
)


@st.composite
def recipes(draw: st.DrawFn) -> str:
    """The whole recipe with one to three of its nodes changed, as text."""
    recipe = json.loads(json.dumps(WHOLE))
    keep = draw(st.sampled_from(["resize", "base", "all", "all"]))
    if keep != "all":
        del recipe["resize" if keep == "base" else "report"]
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, recipe)
    return _written(recipe)


def _change(draw: st.DrawFn, node: Any) -> None:
    while True:
        places = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not places:
            return
        place = draw(st.sampled_from(places))
        if isinstance(node[place], dict | list) and node[place] and draw(st.integers(0, 3)):
            node = node[place]
            continue
        break
    how = draw(st.sampled_from(["value", "value", "value", "text", "drop", "rename", "add", "option", "deep"]))
    if how in ("value", "text"):
        node[place] = draw(st.sampled_from(FRAGMENTS).map(Raw) | TEXT if how == "value" else TEXT)
    elif how == "drop":
        del node[place]
    elif how == "deep":
        depth = draw(st.sampled_from([5, 60, 400, 3000]))
        node[place] = Raw("[" * depth + "]" * depth)
    elif isinstance(node, dict):
        value = draw(st.sampled_from(FRAGMENTS).map(Raw) | st.just(node[place]))
        if how == "rename":
            del node[place]
        key = draw(st.sampled_from(OPTIONS) if how == "option" else TEXT | st.sampled_from(FRAGMENTS).map(Raw))
        node[key] = value


@dataclass(frozen=True)
class Raw:
    """YAML that is written as it is."""

    text: str


def _written(node: Any) -> str:
    if isinstance(node, Raw):
        return node.text
    if isinstance(node, dict):
        return "{" + ", ".join(f"? {_written(key)} : {_written(value)}" for key, value in node.items()) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(map(_written, node)) + "]"
    return json.dumps(node)


def _options() -> list[str]:
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig
    from trl import SFTConfig

    from sllm_tune.recipe.options import annotations_of

    return sorted({name for config in (LoraConfig, BitsAndBytesConfig, SFTConfig) for name in annotations_of(config)})


OPTIONS = _options()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


def _refused_or_good(file: Path, overrides: list[str] | None = None) -> None:
    before = sorted(file.parent.rglob("*"))
    try:
        recipe = load_recipe(file, overrides or [])
    except RecipeError as error:
        assert str(file) in str(error)
        assert len(str(error)) < 20_000
    else:
        json.dumps(recipe.resolved(), allow_nan=False).encode()
        base = Base(section=recipe.base_model, folder=recipe.folder)
        for reads in (
            *(
                lambda inputs=stage.inputs: inputs(recipe, base, Run(file.parent / "no run")).flat()
                for stage in pipeline.STAGES.values()
                if stage.is_in(recipe)
            ),
            lambda: base.name,
            lambda: recipe.base_model.path.startswith("pypi:") or base.path,
            lambda: [find_task(name, recipe.folder) for name in recipe.data.tasks],
        ):
            try:
                reads()
            except BadInput as error:
                assert str(error)
    assert sorted(file.parent.rglob("*")) == before


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
@given(recipes())
def test_any_value_anywhere_in_a_recipe_is_taken_or_refused_with_a_message(here: Path, text: str) -> None:
    file = here / "recipe.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    _refused_or_good(file)


TWICE = [f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]" for number in range(1, 12)]
MERGED = [f"m{number}: &m{number} {{<<: [{', '.join([f'*m{number - 1}'] * 9)}]}}" for number in range(1, 12)]
BOMBS = {
    "aliases": "\n".join(["a0: &a0 [x, x]", *TWICE]),
    "merges": "\n".join(["m0: &m0 {a: 1}", *MERGED]),
    "an alias of itself": "name: &a [*a]",
    "ten megabytes": "name: " + "x" * 10_000_000,
    "many keys": "\n".join(f"k{number}: 1" for number in range(50_000)),
    "brackets": "name: " + "[" * 50_000,
    "question marks": "? " * 5000 + "a",
    "digits": "seed: " + "9" * 5000,
    "base 60": "seed: " + "1:" * 100_000 + "1",
    "hexadecimal": "seed: 0x" + "F" * 100_000,
    "a tag for nothing": "seed: !!int ''",
    "a tag for another thing": "seed: !!timestamp soon",
    "a character that is none": 'name: "\\UFFFFFFFF"',
    "half an emoji": 'name: "\\ud83d"',
    "NUL": 'name: "a\\0b"',
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_recipe_that_grows_without_end_is_refused_at_once(tmp_path: Path, text: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    start = time.process_time()  # of this process: another may have the processor
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert time.process_time() - start < 10
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "override",
    ["", "=", "a", "..=1", "name=\0", "name=" + "[" * 3000, "x" * 100_000 + "=1", "a." * 3000 + "a=1", "\ud800=1"],
    ids=range(9),
)
def test_any_override_is_refused_with_a_short_message(tmp_path: Path, override: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(_written(WHOLE))
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, [override])
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800", "", "/proc/self/mem", "~nobody-of-that-name/x"])
def test_a_recipe_of_any_name_is_read_or_refused(name: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(name)
