"""What a model makes of what its domain never asked: it replies to instructions and reads general prose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from sllm_tune.answer.measure import mean_loss

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from sllm_tune.answer.local import PackedLM
    from sllm_tune.tasks.encode import Encoder

TEXTS = Path(__file__).with_name("texts.yaml")
MAX_NEW_TOKENS = 128  # of a reply; none of the instructions asks for more
TOGETHER = 4  # times the batch size: prompts are short, and a step costs about the same for few as for many


class Text(NamedTuple):
    """A paragraph of general prose."""

    id: str
    text: str

    @property
    def language(self) -> str:
        """That it is written in: "en" or "ko"."""
        return self.id.split("-")[0]


class Loss(NamedTuple):
    """What a model paid for a text, its first token left out."""

    nats: float
    tokens: int


@cache
def general_texts() -> tuple[Text, ...]:
    """The fixed paragraphs that come with the package: 12 in English, then 8 in Korean."""
    listed = yaml.safe_load(TEXTS.read_text(encoding="utf-8"))
    return tuple(Text(**one) for language in ("en", "ko") for one in listed[language])


def replies(lm: LM, encoder: Encoder, said: Sequence[str], *, temperature: float = 0.0) -> list[str]:
    """What a model writes when a user says each text to it, `MAX_NEW_TOKENS` at most.

    With a chat template it is the user's turn of a conversation; without one it is a line, and the reply is what the
    model goes on with. A reply ends at the token that the model's own answers end with.

    Args:
        lm: The model, or what has kept its answers.
        encoder: Makes the model's prompts.
        said: The texts.
        temperature: 0 takes the likeliest token each time; 1 draws from what the model predicts.

    Raises:
        ModelError: a text leaves no room for a reply in the model's window.
    """
    from lm_eval.api.instance import Instance

    options: dict[str, object] = {"until": [], "max_gen_toks": MAX_NEW_TOKENS, "do_sample": temperature > 0}
    if temperature > 0:
        options |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}  # over a base's own settings
    prompts = [prompt_of(encoder, text) for text in said]
    requests = [
        Instance("generate_until", {}, (prompt, options), 0, ("", number, 1)) for number, prompt in enumerate(prompts)
    ]
    return [text.strip() for text in lm.generate_until(requests)]


def prompt_of(encoder: Encoder, text: str) -> str:
    """What a model is given when a user says a text to it."""
    return encoder.render([{"role": "user", "content": text}]) if encoder.chat_template else f"{text}\n"


def losses(lm: PackedLM, texts: Sequence[Text]) -> list[Loss | None]:
    """The loss on each text as plain text, without a template; None for one that the model's window does not hold."""
    encoded = [lm.encoder.ids(one.text) for one in texts]
    return [
        Loss(mean_loss(lm.model, [ids]) * (len(ids) - 1), len(ids) - 1) if len(ids) <= lm.max_length else None
        for ids in encoded
    ]


def perplexity(found: Sequence[Loss], tokens_of: Sequence[Loss]) -> float:
    """Perplexity over all texts together, so that each token weighs the same.

    Args:
        found: Of each text, what the model paid.
        tokens_of: Of each text, whose tokens are counted: the base's also for a specialist with fewer tokens in its
            vocabulary, which needs more of them for the same text and pays less for each.
    """
    return math.exp(sum(loss.nats for loss in found) / sum(loss.tokens for loss in tokens_of))
