"""Text to token ids, by lm-eval's own code: a row is trained on exactly as it is graded."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from sllm_tune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token without loss, as in torch and TRL
# `x.__class__`, `x['__class__']`, `x | attr('__class__')`: transformers' sandbox renders the first as nothing at all.
INTERNALS = re.compile(r"""(?:\.|\[\s*["']|attr\(\s*["'])\s*(__\w+__)""")


class Tokens(NamedTuple):
    """A supervised row: `labels` is `input_ids` where there is loss (the answer and the stop token), else IGNORED."""

    input_ids: list[int]
    labels: list[int]


class Encoder:
    """Encodes prompts and answers as the harness's Hugging Face backend does, without loading a model.

    Raises:
        ModelError: the chat template runs code it must not, or shows an answered conversation that does not begin with
            the prompt it makes for the question, so that what is graded is never what was trained.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, chat_template: bool) -> None:
        from lm_eval.models.huggingface import HFLM

        # The backend's encoding methods read these attributes and nothing of the model.
        harness: Any = HFLM.__new__(HFLM)
        harness.tokenizer, harness.backend, harness.chat_template_args = tokenizer, "causal", {}
        harness.add_bos_token = harness.custom_prefix_token_id = harness.enable_thinking = None
        if chat_template and (found := INTERNALS.search(str(tokenizer.chat_template))):
            raise ModelError(f"the chat template reaches for Python internals ({found[1]}), so it is not used.")
        self.harness = harness
        self.tokenizer: Any = tokenizer
        self.chat_template = chat_template

    @property
    def template(self) -> Any:
        """Messages to prompt text, or None for plain text."""
        return self.render if self.chat_template else None

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat template, applied by the harness, with its faults explained."""
        with _explained():
            return self.harness.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)

    @cached_property
    def stop_ids(self) -> list[int]:
        """What follows an answer, up to and with the first special token: the end of turn, or the end of text."""
        tail = self.tokenizer.encode(self._tail(), add_special_tokens=False) if self.chat_template else []
        special = {*self.tokenizer.all_special_ids, *_end_of_turn_ids(self.tokenizer)}
        for position, token in enumerate(tail):
            if token in special:
                return tail[: position + 1]
        if self.tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-text token, so the model could never learn to stop.")
        return [self.tokenizer.eos_token_id]

    def supervise(self, context: str, target: str) -> Tokens:
        """Prompt, answer and stop token as ids; loss on the answer and the stop token only.

        The ids before the stop token are those of the harness's own `_encode_pair` for the same strings.
        """
        before, after = self.harness._encode_pair(context, target)
        input_ids, prompt = self.harness.tok_encode(context + target), self.harness.tok_encode(context)
        # The harness counts the white space that ends a prompt to the answer; the model is given it, so no loss there.
        masked = len(prompt) if input_ids[: len(prompt)] == prompt else len(before)
        if input_ids != [*before, *after] or masked >= len(input_ids):
            raise ModelError(
                "the tokens of a prompt are not the first tokens of prompt and answer, so what is graded cannot be "
                f"trained:\n{self._difference('the prompt', before, 'prompt and answer', input_ids)}"
            )
        input_ids = [*input_ids, *self.stop_ids]
        return Tokens(input_ids, [IGNORED] * masked + input_ids[masked:])

    def _tail(self) -> str:
        question = [{"role": "user", "content": "Question?"}]
        prompt = self.render(question)
        answer = {"role": "assistant", "content": "Answer"}
        with _explained():
            answered = str(self.tokenizer.apply_chat_template([*question, answer], tokenize=False))
        expected = prompt + "Answer"
        if not answered.startswith(expected):
            asked, shown = self.harness.tok_encode(expected), self.harness.tok_encode(answered)
            raise ModelError(
                "the chat template shows an answered question differently from the prompt it makes for it, so what is "
                f"trained is not what is graded:\n{self._difference('prompt and answer', asked, 'answered', shown)}\n"
                "  Set base_model.chat_template: false, or use a base whose template only appends the answer."
            )
        return answered[len(expected) :]

    def _difference(self, one: str, ids: list[int], other: str, others: list[int]) -> str:
        """Where the tokens of two texts part, in three lines."""
        pairs = enumerate(zip(ids, others, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(ids), len(others)))
        return (
            f"  after {at} equal tokens, the last of them {self._pieces(ids[max(0, at - 3) : at])},\n"
            f"  {one}: {self._pieces(ids[at : at + 6])}\n  {other}: {self._pieces(others[at : at + 6])}"
        )

    def _pieces(self, ids: list[int]) -> list[str]:
        return [self.tokenizer.decode([i]) for i in ids]


@contextlib.contextmanager
def _explained() -> Generator[None]:
    """Turns what a chat template can raise into a ModelError."""
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError

    try:
        yield
    except SecurityError as error:
        raise ModelError(f"the chat template reaches for Python internals and was stopped ({error}).") from error
    except TemplateError as error:
        raise ModelError(f"the chat template cannot be applied ({error}).") from error


def _end_of_turn_ids(tokenizer: Any) -> set[int]:
    """Added tokens such as <end_of_turn> that some tokenizers do not list as special."""
    return set(tokenizer.get_added_vocab().values())
