"""Cuts of models of every supported architecture, against the model that they were cut from."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from sllm_tune.errors import ModelError
from sllm_tune.resize.cut import MODEL_TYPES, Cut, cut_checkpoint, cut_model

LAYERS, NEURONS, HEADS, KV_HEADS, WIDTH, TOKENS = 4, 24, 4, 2, 32, 40
SIZE = {
    "num_hidden_layers": LAYERS,
    "intermediate_size": NEURONS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "hidden_size": WIDTH,
    "vocab_size": TOKENS,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
CONFIGS = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"tie_word_embeddings": False, "head_dim": 12}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": False, "head_dim": 12}),
    "phi3": ("Phi3Config", {"tie_word_embeddings": False}),
    "gemma3_text": (
        "Gemma3TextConfig",
        {
            "head_dim": 12,
            "query_pre_attn_scalar": 12,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}
IDS = torch.arange(3, 3 + 20).reshape(2, 10)
each_type = pytest.mark.parametrize("model_type", MODEL_TYPES)


def tiny(model_type: str) -> Any:
    name, own = CONFIGS[model_type]
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(getattr(transformers, name)(**{**SIZE, **own}))
    for parameter in model.parameters():  # norms and biases are all ones or zeros before training
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def everything(count: int, layers: int = LAYERS) -> list[list[int]]:
    return [list(range(count))] * layers


@each_type
@pytest.mark.parametrize(
    "cut",
    [
        Cut(layers=range(LAYERS)),
        Cut(neurons=everything(NEURONS)),
        Cut(kv_heads=everything(KV_HEADS)),
        Cut(channels=range(WIDTH)),
        Cut(tokens=range(TOKENS)),
    ],
    ids=["layers", "neurons", "kv_heads", "channels", "tokens"],
)
def test_keeping_all_of_a_dimension_keeps_the_logits(model_type: str, cut: Cut) -> None:
    model = tiny(model_type)
    assert torch.equal(logits(cut_model(model, cut)), logits(model))


@each_type
def test_a_cut_layer_is_one_that_hands_its_input_on(model_type: str) -> None:
    model = tiny(model_type)
    cut = cut_model(model, Cut(layers=[0, 2, 3]))
    model.model.layers[1].forward = lambda hidden, *args, **kwargs: hidden
    torch.testing.assert_close(logits(cut), logits(model))


@each_type
def test_cut_neurons_are_those_that_say_nothing(model_type: str) -> None:
    model = tiny(model_type)
    kept = [[(layer + 3 * i) % NEURONS for i in range(7)] for layer in range(LAYERS)]
    cut = cut_model(model, Cut(neurons=kept))
    assert cut.config.intermediate_size == 7
    for layer, neurons in zip(model.model.layers, kept, strict=True):
        silence(layer.mlp.down_proj, neurons)
    torch.testing.assert_close(logits(cut), logits(model))


@each_type
def test_cut_heads_are_those_that_say_nothing(model_type: str) -> None:
    model = tiny(model_type)
    kept = [[layer % KV_HEADS] for layer in range(LAYERS)]
    cut = cut_model(model, Cut(kv_heads=kept))
    wide = model.model.layers[0].self_attn.o_proj.in_features // KV_HEADS  # of the query heads that read one kv head
    assert (cut.config.num_attention_heads, cut.config.num_key_value_heads) == (HEADS // KV_HEADS, 1)
    for layer, (head,) in zip(model.model.layers, kept, strict=True):
        silence(layer.self_attn.o_proj, list(range(head * wide, (head + 1) * wide)))
    torch.testing.assert_close(logits(cut), logits(model))


@each_type
def test_cut_tokens_leave_the_logits_of_the_others(model_type: str) -> None:
    model = tiny(model_type)
    kept = [1, *range(3, 30)]
    cut = cut_model(model, Cut(tokens=kept))
    place = {old: new for new, old in enumerate(kept)}
    with torch.no_grad():
        found = cut(torch.tensor([[place[int(i)] for i in row] for row in IDS]))
    torch.testing.assert_close(found.logits, logits(model)[..., kept])
    assert (cut.config.eos_token_id, cut.config.bos_token_id) == (0, None)


@each_type
def test_an_upscaled_model_without_its_copies_is_the_original(model_type: str) -> None:
    model = tiny(model_type)
    upscaled = cut_model(model, Cut(layers=[0, 1, 2, 1, 2, 3]))
    assert upscaled.config.num_hidden_layers == 6
    assert not torch.equal(logits(upscaled), logits(model))
    assert torch.equal(logits(cut_model(upscaled, Cut(layers=[0, 1, 2, 5]))), logits(model))


@each_type
def test_fewer_channels_still_make_a_model(model_type: str) -> None:
    model = tiny(model_type)
    cut = cut_model(model, Cut(channels=range(0, WIDTH, 2), layers=[3, 0], kv_heads=[[1]] * LAYERS))
    assert logits(cut).shape == (2, 10, TOKENS)
    assert cut.config.hidden_size == WIDTH // 2
    assert cut.model.layers[0].self_attn.o_proj.weight.shape[0] == WIDTH // 2


@each_type
@pytest.mark.parametrize("shard_bytes", [10_000_000, 6_000], ids=["one file", "shards"])
def test_a_cut_checkpoint_answers_as_the_cut_model(model_type: str, shard_bytes: int, tmp_path: Path) -> None:
    model = tiny(model_type)
    cut = Cut(
        layers=[0, 1, 3, 1],
        neurons=[[layer, 9, 4] for layer in range(LAYERS)],
        kv_heads=[[1]] * LAYERS,
        channels=range(1, WIDTH, 2),
        tokens=range(0, TOKENS - 8),
    )
    model.save_pretrained(tmp_path / "whole", max_shard_size=shard_bytes)
    assert (len(list((tmp_path / "whole").glob("*.safetensors"))) > 1) == (shard_bytes == 6_000)
    cut_checkpoint(tmp_path / "whole", tmp_path / "cut", cut)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "cut").eval()
    assert type(reloaded) is type(model)
    assert torch.equal(logits(reloaded), logits(cut_model(model, cut)))


def test_tied_embeddings_stay_one_tensor() -> None:
    cut = cut_model(tiny("llama"), Cut(tokens=range(20), channels=range(8)))
    assert cut.lm_head.weight is cut.model.embed_tokens.weight


def test_an_architecture_without_a_mapping_is_refused() -> None:
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=8)
    with pytest.raises(ModelError, match="no mapping of the dimensions of a 'gpt2' model; there is one for llama"):
        cut_model(AutoModelForCausalLM.from_config(config), Cut(layers=[0]))


def silence(linear: Any, but: list[int]) -> None:
    """Inputs of a projection other than `but` count nothing."""
    heard = torch.zeros(linear.in_features)
    heard[but] = 1
    linear.weight.data *= heard
