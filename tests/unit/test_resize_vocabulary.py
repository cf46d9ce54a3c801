"""Trimmed vocabularies: of tiny tokenizers of every family, and of sentencepiece's kind."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from sllm_tune.errors import ModelError
from sllm_tune.resize.cut import cut_model
from sllm_tune.resize.tokenizer import write_tokenizer
from sllm_tune.resize.vocabulary import trim_vocabulary
from sllm_tune.smoke import FAMILIES, tiny_tokenizer

FIELD = ["The tenant shall pay the rent.", "임차인은 차임을 지급하여야 한다.", "  Rent: 1,200.50 EUR\n\n(see § 3)"]
OTHERS = [
    "Photosynthesis turns sunlight into sugar.",
    "하늘은 왜 파란가? 햇빛이 흩어지기 때문이다.",
    "def f(x): return x",
]
KINDS = [*FAMILIES, "sentencepiece"]


def full_tokenizer(kind: str) -> Any:
    return sentencepiece_like() if kind == "sentencepiece" else tiny_tokenizer(FAMILIES[kind], FIELD + OTHERS)


def sentencepiece_like() -> Any:
    """Byte-pair encoding of characters, with bytes to fall back on, as Llama 2's and Gemma's tokenizers."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

    made: Any = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(
        FIELD + OTHERS, trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    )
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    plain = Tokenizer.from_str(made.to_str().replace('"special":true', '"special":false'))  # bytes are ordinary tokens
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token=AddedToken("<s>", special=True),
        eos_token=AddedToken("</s>", special=True),
        unk_token=AddedToken("<unk>", special=True),
    )


def trimmed(tokenizer: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    cut = trim_vocabulary(tokenizer, {i for text in FIELD for i in tokenizer.encode(text)}, **options)
    write_tokenizer(tokenizer, cut, folder)
    return cut, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_it_was_trimmed_for_has_the_same_tokens(kind: str, tmp_path: Path) -> None:
    full = full_tokenizer(kind)
    cut, small = trimmed(full, tmp_path)
    assert len(small) == len(cut.tokens) < len(full)
    for text in FIELD:
        assert [cut.tokens[i] for i in small.encode(text)] == full.encode(text)
        assert small.decode(small.encode(text)) == full.decode(full.encode(text))


@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_random_texts_come_back_as_from_the_whole_tokenizer(kind: str, tmp_path: Path) -> None:
    full = full_tokenizer(kind)
    _, small = trimmed(full, tmp_path)
    draw = random.Random(0)
    for _ in range(10_000):
        text = random_text(draw)
        ids = small.encode(text, add_special_tokens=False)
        assert small.decode(ids) == full.decode(full.encode(text, add_special_tokens=False)) == text


def random_text(draw: random.Random) -> str:
    """Characters of all of Unicode, Hangul syllables and jamo above all, and ASCII."""
    ranges = [(0x20, 0x7E), (0xAC00, 0xD7A3), (0x1100, 0x11FF), (0x80, 0xD7FF), (0xE000, 0x10FFFF)]
    return "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(1, 12)))


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_and_the_template_keep_their_meaning(kind: str, tmp_path: Path) -> None:
    full = full_tokenizer(kind)
    cut, small = trimmed(full, tmp_path)
    assert small.all_special_tokens == full.all_special_tokens
    assert small.get_added_vocab().keys() == full.get_added_vocab().keys()
    if full.chat_template:
        turns = [{"role": "user", "content": FIELD[0]}]
        ids = small.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        before = full.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        shared = dict(enumerate(cut.tokens))
        assert small.decode(ids) == full.decode(before)
        assert len(ids) >= len(before) or [shared[i] for i in ids] == before


def test_the_first_tokens_are_kept_on_demand(tmp_path: Path) -> None:
    full = full_tokenizer("smollm2")
    few, _ = trimmed(full, tmp_path / "few")
    more, _ = trimmed(full, tmp_path / "more", keep_first=len(full) - 20)
    assert set(few.tokens) < set(more.tokens)
    assert set(range(len(full) - 20)) <= set(more.tokens)


def test_a_token_that_the_model_has_no_row_for_goes(tmp_path: Path) -> None:
    full = full_tokenizer("gemma3")
    rows = len(full)
    full.add_tokens(["<image_soft_token>"], special_tokens=True)
    cut, small = trimmed(full, tmp_path, rows=rows)
    assert max(cut.tokens) < rows == full.convert_tokens_to_ids("<image_soft_token>")
    assert len(small) == len(cut.tokens)
    assert [cut.tokens[i] for i in small.encode(FIELD[0])] == full.encode(FIELD[0])


def test_logits_of_kept_tokens_are_those_of_the_whole_model(tmp_path: Path) -> None:
    full = full_tokenizer("llama3")
    cut, small = trimmed(full, tmp_path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(full), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    smaller = cut_model(model, cut)
    with torch.no_grad():
        before = model(torch.tensor([full.encode(FIELD[0])])).logits
        after = smaller(torch.tensor([small.encode(FIELD[0])])).logits
    torch.testing.assert_close(after, before[..., cut.tokens])


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    from tokenizers import Tokenizer, models

    unigram = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)], 0)))
    with pytest.raises(ModelError, match="is a Unigram model; only byte-pair encoding can be trimmed"):
        trim_vocabulary(unigram, {0})
