"""Whatever a base's folder holds: a ModelError that names the base, never a traceback, and none of its code is run."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sllm_tune.errors import BadInput, ModelError
from sllm_tune.model.find import Base
from sllm_tune.model.load import load_config, load_model, load_tokenizer
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.tasks.encode import Encoder
from sllm_tune.train.estimate import Size, estimate

EXAMPLES = int(os.environ.get("SLLM_TUNE_FUZZ_EXAMPLES", "100"))
FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json")
RAW = ["", "{", "null", "[]", "1", '"x"', "\ufeff{}", "{} {}", "[" * 3000, "NaN", '{"a": 1, "a": 2}', "\ud800", "\0"]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    1.5,
    10**9,
    10**30,
    -(10**30),
    float("inf"),
    float("nan"),
    "",
    "x",
    "\0",
    "\ud800",
    "a" * 5000,
    [],
    [None],
    [[]],
    {},
    {"a": {}},
    {"__type": "AddedToken", "content": 1},
    ["x"] * 100,
    "org/repo",
    "org/repo@main:f",
    "gelu",
    "LlamaForCausalLM",
    "float32",
    "torch.float32",
    "auto",
    "cuda",
    "default",
    "linear",
    "/etc/passwd",
    "../x",
    "{{ 1 }}",
    "{% for %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{{ raise_exception('no') }}",
    "{{ messages[0]['content'] + 1 }}",
    "{{ 1 / 0 }}",
    "{{ ''.__class__ }}",
    {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.T", None]},
    {"quant_method": "gptq", "bits": 4},
    {"quant_method": "x"},
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"rope_type": "yarn"},
]
KEYS = [
    "auto_map",
    "_attn_implementation",
    "attn_implementation",
    "quantization_config",
    "rope_scaling",
    "rope_parameters",
    "text_config",
    "layer_types",
    "model_type",
    "tokenizer_class",
    "chat_template",
    "added_tokens_decoder",
    "sub_configs",
    "torch_dtype",
    "dtype",
    "num_experts",
    "use_kernels",
    "id2label",
    "num_labels",
    "problem_type",
    "pruned_heads",
    "backend",
    "additional_special_tokens",
    "extra_special_tokens",
    "model_max_length",
    "padding_side",
    "max_length",
    "num_beams",
    "eos_token_id",
]
EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """What is done to one or two files: their text replaced, or a value at a path of seven choices."""
    made: list[tuple[str, Any]] = []
    for _ in range(draw(st.integers(1, 2))):
        file = draw(st.sampled_from(FILES + FILES[:2]))
        if draw(st.integers(0, 7)):
            path = draw(st.lists(st.integers(0, 60), min_size=1, max_size=4))
            made.append((file, (path, draw(st.sampled_from(KEYS)), draw(st.booleans()), draw(st.sampled_from(VALUES)))))
        else:
            made.append((file, draw(st.sampled_from([*RAW, None]))))
    return made


def change(file: Path, what: Any) -> None:
    if what is None:
        file.unlink(missing_ok=True)
    elif isinstance(what, str):
        file.write_bytes(what.encode("utf-8", "surrogatepass"))
    elif file.exists():
        path, key, is_new, value = what
        try:
            values = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            return
        node = values
        for step in path:
            places = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
            if not places:
                break
            place = places[step % len(places)]
            if step == path[-1] or not isinstance(node[place], dict | list):
                node[key if is_new and isinstance(node, dict) else place] = value
                break
            node = node[place]
        file.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def clean(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "clean"
    shutil.copytree(tiny_base, folder)
    (folder / "evil.py").write_text(EVIL)
    return folder


def read(folder: Path) -> None:
    """All that reads a base before it is trained."""
    recipe = Recipe.model_validate(
        {
            "name": "a",
            "domain": "a",
            "base_model": {"path": str(folder)},
            "data": {"tasks": ["a"]},
            "train": {"method": "sft"},
            "evaluate": {"domain": ["a"]},
        }
    )
    base = recipe.base_model
    for reads in (
        lambda: load_config(str(folder), base),
        lambda: Encoder(load_tokenizer(str(folder), base), chat_template=True).stop_ids,
        lambda: estimate(Base(section=base, folder=recipe.folder), recipe.train, Size(1, 10, 10)),
        lambda: load_model(str(folder), base),
    ):
        try:
            reads()
        except BadInput as error:
            said = str(error)
            assert said.startswith(("base_model.", "the chat template", "the tokenizer", "the tokens"))


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
@given(changes())
@pytest.mark.filterwarnings("ignore")  # what transformers says of an odd file is not what is tested
def test_any_value_anywhere_in_a_base_is_taken_or_refused_with_a_message(
    clean: Path, made: list[tuple[str, Any]]
) -> None:
    folder = clean.parent / "base"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(clean, folder)
    for file, what in made:
        change(folder / file, what)
    read(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("key", ["vocab_size", "intermediate_size", "hidden_size"])
def test_a_configuration_far_larger_than_the_weights_is_refused_before_there_is_room_for_it(
    clean: Path, tmp_path: Path, key: str
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(clean, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: 10**7 * 4}))
    base = BaseModelSection(path=str(folder))
    with pytest.raises(ModelError, match=r"config\.json describes a model of [\d,]+ parameters, and its weights are"):
        load_model(str(folder), base)
