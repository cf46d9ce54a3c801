"""What depth and width pruning find, on tiny models in which the answer is known."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_resize_cut import HEADS, KV_HEADS, LAYERS, NEURONS, WIDTH, each_type, logits, silence, tiny

from sllm_tune.answer.measure import mean_loss
from sllm_tune.errors import RecipeError
from sllm_tune.resize.cut import Cut, cut_model
from sllm_tune.resize.depth import angular_distance, block_influence, prune_depth, upscale_depth
from sllm_tune.resize.width import importance, prune_width

TEXTS = [list(range(3, 15)), list(range(20, 36)), [5, 9, 5, 9, 5]]
METHODS = ["block_influence", "angular_distance", "loss"]


def mute(model: Any, layer: int) -> None:
    """Make a layer hand its input on."""
    silence(model.model.layers[layer].self_attn.o_proj, [])
    silence(model.model.layers[layer].mlp.down_proj, [])
    for norm in ("post_attention_layernorm", "post_feedforward_layernorm"):  # Gemma scales what a layer adds
        if (found := getattr(model.model.layers[layer], norm, None)) is not None:
            found.weight.data.fill_(0.0)


@each_type
@pytest.mark.parametrize("method", METHODS[:2])  # by loss, a layer that does harm goes before one that does nothing
def test_a_layer_that_does_nothing_goes_first_and_the_logits_stay(model_type: str, method: Any) -> None:
    model = tiny(model_type)
    mute(model, 2)
    cut, scores = prune_depth(model, TEXTS, LAYERS - 1, method)
    assert list(cut.layers or []) == [0, 1, 3]
    assert scores[2] == pytest.approx(0.0, abs=1e-3)
    torch.testing.assert_close(logits(cut_model(model, cut)), logits(model))


@each_type
@pytest.mark.parametrize("method", METHODS)
def test_keeping_every_layer_is_the_identity(model_type: str, method: Any) -> None:
    cut, _ = prune_depth(tiny(model_type), TEXTS, LAYERS, method)
    assert list(cut.layers or []) == list(range(LAYERS))


def test_block_influence_is_one_minus_the_cosine_of_a_layers_ends() -> None:
    model = tiny("llama")
    with torch.no_grad():
        states = model(torch.tensor(TEXTS[:1]), output_hidden_states=True).hidden_states
    expected = [float((1 - torch.cosine_similarity(a, b, dim=-1)).mean()) for a, b in pairwise(states[:-1])]
    assert block_influence(model, TEXTS[:1])[: LAYERS - 1] == pytest.approx(expected, rel=1e-5)


def test_angular_distance_spans_the_whole_block() -> None:
    model = tiny("llama")
    mute(model, 1)
    mute(model, 2)
    scores = angular_distance(model, TEXTS, 2)
    assert scores[1] == pytest.approx(0.0, abs=1e-3)
    assert scores[0] > 0.01
    assert scores[3] == math.inf


def test_loss_is_what_the_model_loses_without_the_layer() -> None:
    model = tiny("llama")
    cut, scores = prune_depth(model, TEXTS, 2, "loss")
    without = mean_loss(cut_model(model, cut), TEXTS) - mean_loss(model, TEXTS)
    assert max(score for score in scores if score < math.inf) == pytest.approx(without, rel=1e-4)


@each_type
def test_neurons_that_never_answer_go_first_and_the_logits_stay(model_type: str) -> None:
    model = tiny(model_type)
    heard = [[(layer + 2 * i) % NEURONS for i in range(9)] for layer in range(LAYERS)]
    for layer, neurons in zip(model.model.layers, heard, strict=True):
        deafen(layer.mlp, neurons)
    cut, _ = prune_width(model, TEXTS, intermediate_size=9)
    assert [sorted(row) for row in cut.neurons or []] == [sorted(row) for row in heard]
    torch.testing.assert_close(logits(cut_model(model, cut)), logits(model))


@each_type
def test_heads_that_never_answer_go_first_and_the_logits_stay(model_type: str) -> None:
    model = tiny(model_type)
    for layer in model.model.layers:
        attention = layer.self_attn
        wide = attention.o_proj.in_features // HEADS
        values = attention.qkv_proj.weight[-KV_HEADS * wide :] if model_type == "phi3" else attention.v_proj.weight
        values.data[:wide] = 0  # of the first key-value head
        if getattr(getattr(attention, "v_proj", None), "bias", None) is not None:
            attention.v_proj.bias.data[:wide] = 0
    cut, found = prune_width(model, TEXTS, num_attention_heads=HEADS // KV_HEADS)
    assert [list(row) for row in cut.kv_heads or []] == [[1]] * LAYERS
    assert found["kv_heads"].shape == (LAYERS, KV_HEADS)
    torch.testing.assert_close(logits(cut_model(model, cut)), logits(model))


def test_channels_that_are_always_zero_go_first() -> None:
    model = tiny("llama")
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data[::2] = 0
    cut, found = prune_width(model, TEXTS, hidden_size=WIDTH // 2)
    assert list(cut.channels or []) == list(range(1, WIDTH, 2))
    assert float(found["channels"][::2].max()) == 0.0


def test_importance_has_a_value_for_every_part() -> None:
    found = importance(tiny("llama"), TEXTS)
    assert found["neurons"].shape == (LAYERS, NEURONS)
    assert found["channels"].shape == (WIDTH,)


def test_upscaling_repeats_the_middle() -> None:
    assert list(upscale_depth(32, 8).layers or []) == [*range(24), *range(8, 32)]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda m: prune_depth(m, TEXTS, 5),
            "prune_depth.keep: must be between 1 and 4, the layers of the model, got 5",
        ),
        (lambda m: prune_depth(m, TEXTS, 0), "between 1 and 4"),
        (lambda m: prune_width(m, TEXTS, num_attention_heads=3), "must be a multiple of 2, the query heads that share"),
        (
            lambda m: prune_width(m, TEXTS, intermediate_size=99),
            "must be between 1 and 24, which the model has, got 99",
        ),
        (lambda m: upscale_depth(4, 4), "upscale_depth.overlap: must be between 1 and 3 for 4 layers, got 4"),
    ],
)
def test_what_a_model_cannot_give_is_refused(ask: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ask(tiny("llama"))


def test_the_model_is_left_as_it_was() -> None:
    model = tiny("llama")
    before = logits(model)
    prune_depth(model, TEXTS, 2, "loss")
    prune_width(model, TEXTS, hidden_size=4)
    assert torch.equal(logits(model), before)
    assert not model.model.layers[0]._forward_hooks
    assert cut_model(model, Cut()).config.num_hidden_layers == LAYERS


def deafen(mlp: Any, but: list[int]) -> None:
    """Neurons other than `but` stay silent, whatever they are shown."""
    rows = torch.zeros(NEURONS, 1)
    rows[but] = 1
    if hasattr(mlp, "gate_up_proj"):
        mlp.gate_up_proj.weight.data *= rows.repeat(2, 1)
    else:
        mlp.up_proj.weight.data *= rows
