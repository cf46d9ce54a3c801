"""An adapter's options are tried on the model before it is trained: every name in them, and the merge."""

from pathlib import Path
from typing import Any

import pytest

from sllm_tune.errors import RecipeError
from sllm_tune.model.adapter import bare_model, try_adapter
from sllm_tune.recipe.base_model import BaseModelSection


def refusal(base: Path, *, tied: bool = False, **options: Any) -> str:
    """What is said of an adapter on the tiny base."""
    _, model = bare_model(str(base), BaseModelSection(path=str(base)))
    model.config.tie_word_embeddings = tied
    with pytest.raises(RecipeError) as caught:
        try_adapter(model, options, "train.lora")
    return str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("target_modules", ["q_proj", "v_porj"], "'v_porj' matches no module of the base; did you mean 'v_proj'?"),
        ("target_modules", ["q_proj", "c_attn"], "'c_attn' matches no module of the base"),
        ("target_modules", r".*\.qq_proj", r"the pattern '.*\.qq_proj' matches no module of the base"),
        ("target_modules", "(", "'(' is not a regular expression (missing ), unterminated subpattern at position 0)"),
        ("exclude_modules", ["lm_hed"], "'lm_hed' matches no module of the base; did you mean 'lm_head'?"),
        (
            "modules_to_save",
            ["embed_token"],
            "'embed_token' matches no module of the base; did you mean 'embed_tokens'?",
        ),
        ("rank_pattern", {"q_porj": 8}, "'q_porj' matches no module that is adapted; did you mean 'q_proj'?"),
        ("alpha_pattern", {"lm_head": 8}, "'lm_head' matches no module that is adapted"),
        ("target_parameters", ["up_proj.weigth"], "'up_proj.weigth' matches no tensor of the base"),
        ("trainable_token_indices", [0, 9000], "the base has no token 9000; its last is 419"),
    ],
)
def test_a_name_that_matches_nothing_is_refused_with_the_nearest(tiny_base: Path, option: str, value: Any, said: str):
    assert refusal(tiny_base, **{option: value}).startswith(f"train.lora.{option}: {said}")


def test_layers_that_are_not_there_are_refused(tiny_base: Path):
    options = {"target_modules": ["q_proj"], "layers_to_transform": [1, 2]}
    said = refusal(tiny_base, **options)
    assert said == "train.lora.layers_to_transform: the base has no layer 2; its last is 1"
    said = refusal(tiny_base, **(options | {"layers_to_transform": [1], "layers_pattern": ["layer"]}))
    assert said == "train.lora.layers_pattern: 'layer' matches no list of layers of the base; did you mean 'layers'?"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora_bias": True}, "cannot be merged into the base (Impossible to merge LoRA with `lora_bias=True`"),
        ({"alora_invocation_tokens": [1, 2]}, "cannot be merged into the base (aLoRA does not support merging"),
        ({"target_modules": ["mlp"]}, "cannot be put on the base (Target module LlamaMLP("),
    ],
)
def test_what_cannot_be_put_on_the_base_or_merged_into_it_is_refused(
    tiny_base: Path, options: dict[str, Any], said: str
):
    assert refusal(tiny_base, **options).startswith(f"train.lora: this adapter {said}")


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
)
def test_one_of_two_tied_embeddings_cannot_be_trained_apart(tiny_base: Path, options: dict[str, Any]):
    said = refusal(tiny_base, tied=True, **options)
    assert said.startswith("train.lora: the base has one tensor for its input and its output embeddings, and this ")
    assert try_adapter(bare_model(str(tiny_base), BaseModelSection(path=str(tiny_base)))[1], options, "train.lora")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"target_modules": r".*\.layers\.1\..*q_proj", "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2}},
        {"target_modules": ["q_proj", "model.layers.0.self_attn.v_proj"], "layers_to_transform": 0},
        {"exclude_modules": ["q_proj"], "modules_to_save": ["lm_head"], "trainable_token_indices": None},
    ],
)
def test_options_that_fit_are_let_through(tiny_base: Path, options: dict[str, Any]):
    assert try_adapter(bare_model(str(tiny_base), BaseModelSection(path=str(tiny_base)))[1], options, "train.lora") > 0
