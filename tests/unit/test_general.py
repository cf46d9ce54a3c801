"""How a model is asked what its domain never asked, and how it reads general prose."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sllm_tune.answer.general import MAX_NEW_TOKENS, Loss, general_texts, losses, perplexity, replies
from sllm_tune.answer.instructions import instructions
from sllm_tune.answer.kept import Together
from sllm_tune.answer.local import PackedLM


@pytest.fixture
def asked_of(tiny_base: Path, tiny_tokenizer: Any) -> Callable[..., PackedLM]:
    from transformers import AutoModelForCausalLM

    def make(batch_size: int = 2, *, chat_template: bool = True) -> PackedLM:
        model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
        return PackedLM(model, tiny_tokenizer, batch_size, chat_template=chat_template)

    return make


def plainly(lm: PackedLM, prompt: str) -> str:
    """What plain transformers writes after a prompt, greedily, up to a special token."""
    ids = lm.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    made = lm.model.generate(**ids, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=0)
    return str(lm.tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def test_general_texts_are_paragraphs_of_about_a_hundred_words_in_two_languages():
    assert Counter(one.language for one in general_texts()) == {"en": 12, "ko": 8}
    assert all(80 <= len(one.text.split()) <= 120 for one in general_texts())
    assert len({one.id for one in general_texts()}) == 20


@pytest.mark.parametrize("chat_template", [True, False])
def test_replies_are_those_of_plain_transformers_to_the_same_prompt(
    asked_of: Callable[..., PackedLM], chat_template: bool
):
    lm, some = asked_of(chat_template=chat_template), [one.text for one in instructions()[::25]]
    said = [lm.encoder.render([{"role": "user", "content": text}]) for text in some]
    prompts = said if chat_template else [f"{text}\n" for text in some]
    assert replies(lm, lm.encoder, some) == [plainly(lm, prompt) for prompt in prompts]


def test_replies_do_not_depend_on_how_many_are_asked_together_and_leave_the_batch_size(
    asked_of: Callable[..., PackedLM],
):
    some = [one.text for one in instructions()[::11]]
    few, many = asked_of(1), asked_of(16)
    assert replies(few, few.encoder, some) == replies(Together(many, 4), many.encoder, some)
    assert (few.batch_size, many.batch_size) == (1, 16)


def test_losses_are_the_models_own_and_a_text_longer_than_the_window_has_none(asked_of: Callable[..., PackedLM]):
    lm, texts = asked_of(), general_texts()[:1]
    ids = torch.tensor([lm.tok_encode(texts[0].text)])
    with torch.no_grad():
        expected = float(lm.model(input_ids=ids, labels=ids).loss)
    (found,) = losses(lm, texts)
    assert found is not None
    assert found.tokens == ids.shape[1] - 1
    assert found.nats / found.tokens == pytest.approx(expected, rel=1e-5)
    lm._max_length = 10
    assert losses(lm, texts) == [None]


def test_perplexity_weighs_tokens_and_counts_those_of_the_base():
    base = [Loss(math.log(2) * 10, 10), Loss(math.log(8) * 30, 30)]
    assert perplexity(base, base) == pytest.approx(2 ** (1 / 4) * 8 ** (3 / 4))
    finer = [Loss(loss.nats, 2 * loss.tokens) for loss in base]  # more and cheaper tokens, no worse at the text
    assert perplexity(finer, base) == perplexity(base, base)
