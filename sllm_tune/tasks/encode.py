"""Text to token ids, by lm-eval's own code: a row is trained on exactly as it is graded."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator
from datetime import date
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2.exceptions import SecurityError

from sllm_tune.errors import ModelError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

TODAY = date(2024, 7, 26)  # what Llama 3 writes where it does not know the day
IGNORED = -100  # the label of a token without loss, as in torch and TRL
# `x.__class__`, `x['__class__']`, `x | attr('__class__')`: transformers' sandbox renders the first as nothing at all.
INTERNALS = re.compile(r"""(?:\.|\[\s*["']|attr\(\s*["'])\s*(__\w+__)""")


class Tokens(NamedTuple):
    """A supervised row: `labels` is `input_ids` where there is loss (the answer and the stop token), else IGNORED."""

    input_ids: list[int]
    labels: list[int]


class Frame(NamedTuple):
    """What a chat template writes around an answer, beside the prompt that it makes for the question."""

    options: dict[str, bool]  # given to the template
    lead: str  # between that prompt and the answer: an empty thinking block, a space
    unserved: str  # the end of prompt and lead that the prompt which a server makes lacks
    tail: str  # after the answer


class Encoder:
    """Encodes prompts and answers as the harness's Hugging Face backend does, without loading a model.

    What a template writes between the prompt it makes and the answer (Qwen3 an empty thinking block, Llama 2 a space)
    ends the context wherever a row is trained or scored. There is loss on it as well where a server's prompt,
    `apply_chat_template(add_generation_prompt=True)`, lacks it, so that the model writes it itself when it is served.
    A template that knows `enable_thinking` gets false; one that writes the date writes `TODAY`, whatever the day.

    Args:
        tokenizer: The base's.
        chat_template: Whether prompts go through the tokenizer's template.
        window: Most tokens that the base reads; None is no limit.
        rows: Token embeddings that the base has; None does not look.

    Raises:
        ModelError: the chat template runs code it must not, or shows an answered conversation that does not begin with
            the prompt it makes for the question, so that what is graded is never what was trained.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: bool,
        window: int | None = None,
        rows: int | None = None,
    ) -> None:
        from lm_eval.models.huggingface import HFLM

        # The backend's encoding methods read these attributes and nothing of the model.
        harness: Any = HFLM.__new__(HFLM)
        harness.tokenizer, harness.backend, harness.chat_template_args = tokenizer, "causal", {}
        harness.add_bos_token = harness.custom_prefix_token_id = harness.enable_thinking = None
        if chat_template and (found := INTERNALS.search(str(tokenizer.chat_template))):
            raise ModelError(f"the chat template reaches for Python internals ({found[1]}), so it is not used.")
        harness.tok_encode = lru_cache(maxsize=8)(harness.tok_encode)  # it and we ask for the same few texts of a row
        self.harness = harness
        self.tokenizer: Any = tokenizer  # its own types allow for batches everywhere
        self.chat_template = chat_template
        self.window, self.rows = window, rows

    @property
    def template(self) -> Callable[..., str] | None:
        """Messages to prompt text, or None for plain text."""
        return self.render if self.chat_template else None

    @property
    def lacks_rows(self) -> bool:
        """Whether the base has no row for some token; Gemma 3 has one such, which no text is made of."""
        return self.rows is not None and len(self.tokenizer) > self.rows

    @property
    def writes_date(self) -> bool:
        """Whether the chat template writes the day it is used on, for which `TODAY` is put."""
        return self.chat_template and "strftime_now" in str(self.tokenizer.chat_template)

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat template applied, up to where the answer begins, with its faults explained.

        A system message that the template refuses or leaves out goes in front of the first question.
        """
        options, lead = self._frame.options, self._frame.lead
        messages = self.as_given(messages)
        text = self._apply(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **options,
        )
        return text + lead if add_generation_prompt else text

    def as_given(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """Messages as the template is given them: where it has no system role, that text goes before the question."""
        return messages if self._takes_system else _system_in_question(messages)

    @property
    def thinks(self) -> bool:
        """Whether the template has the model think unless it is told not to; the prompts here tell it."""
        return self.chat_template and "enable_thinking" in str(self.tokenizer.chat_template)

    @cached_property
    def stop_ids(self) -> list[int]:
        """What follows an answer, up to and with the first special token: the end of turn, or the end of text."""
        tail = self.tokenizer.encode(self._frame.tail, add_special_tokens=False) if self.chat_template else []
        special = {*self.tokenizer.all_special_ids, *_end_of_turn_ids(self.tokenizer)}
        for position, token in enumerate(tail):
            if token in special:
                return tail[: position + 1]
        if self.tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-text token, so the model could never learn to stop.")
        return [self.tokenizer.eos_token_id]

    def stop_at_taught(self, generation_config: GenerationConfig) -> None:
        """Let generation end at the token that answers are taught to end with, and at what it ended at before."""
        before = generation_config.eos_token_id
        known = before if isinstance(before, list) else [] if before is None else [before]
        stops = list(dict.fromkeys([self.stop_ids[-1], *known]))
        generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]

    def split_lead(self, context: str) -> tuple[str, str]:
        """A context for generation and the white space to take off: a model writes a space with the word after it."""
        lead = self._frame.lead if self.chat_template else ""
        blank = lead if lead.isspace() and context.endswith(lead) else ""
        return context.removesuffix(blank), blank

    def answer_text(self, text: str) -> str:
        """Generated text without what is taught to follow an answer."""
        *before, stop = self.stop_ids
        text = text.split(self.tokenizer.decode([stop]))[0]
        return text.removesuffix(self.tokenizer.decode(before)) if before else text

    def control_tokens(self, text: str) -> list[str]:
        """The special tokens that the tokenizer would read in a text, in order: in data, a forged turn or stop."""
        return self._control.findall(text) if self._control else []

    def ids(self, text: str) -> list[int]:
        """Token ids of a whole text, as the harness encodes it.

        Raises:
            ModelError: the base has no row for one of them.
        """
        ids: list[int] = self.harness.tok_encode(text)
        self._refuse_without_row(ids)
        return ids

    def supervise(self, context: str, target: str, *, stops: bool = True) -> Tokens:
        """Prompt, answer and, where it `stops` there, stop token as ids; loss on the answer and the stop token only.

        The ids before the stop token are those of the harness's own `_encode_pair` for the same strings.
        """
        unserved = self._frame.unserved if self.chat_template else ""
        served = context.removesuffix(unserved)
        before, after = self.harness._encode_pair(context, target)
        input_ids, prompt = self.ids(context + target), self.harness.tok_encode(served)
        if input_ids[: len(prompt)] != prompt:  # its last white space is in a token of the answer
            prompt = self.harness._encode_pair(served, context[len(served) :] + target)[0]
        # The harness counts the white space that ends a prompt to the answer; the model is given it, so no loss there.
        masked = len(prompt)
        if input_ids != [*before, *after] or masked >= len(input_ids) or input_ids[:masked] != prompt:
            raise ModelError(
                "the tokens of a prompt are not the first tokens of prompt and answer, so what is graded cannot be "
                f"trained:\n{self._difference('the prompt', before, 'prompt and answer', input_ids)}"
            )
        input_ids = [*input_ids, *(self.stop_ids if stops else [])]
        self._refuse_without_row(self.stop_ids)
        return Tokens(input_ids, [IGNORED] * masked + input_ids[masked:])

    def _refuse_without_row(self, ids: list[int]) -> None:
        if self.rows is not None and ids and max(ids) >= self.rows:
            raise ModelError(
                f"the tokenizer knows the token {self._pieces([max(ids)])[0]!r} (number {max(ids)}), for which the "
                f"base has no row: it has {self.rows}.\n"
                "  Use the tokenizer that belongs to the base, or add the rows to the base and save it first."
            )

    @cached_property
    def _frame(self) -> Frame:
        question = [{"role": "user", "content": "Question?"}]
        answered = [*question, {"role": "assistant", "content": "Answer"}]
        served = self._apply(question, add_generation_prompt=True)
        prompt, shown = served, ""
        for options in ({"enable_thinking": False}, dict[str, bool]()):
            prompt = self._apply(question, add_generation_prompt=True, **options)
            shown = self._apply(answered, **options)
            at = shown.find("Answer", len(prompt))
            if shown.startswith(prompt) and at >= 0:
                context = shown[:at]
                unserved = context[len(served) :] if context.startswith(served) else ""
                return Frame(options, context[len(prompt) :], unserved, shown[at + len("Answer") :])
        asked, found = self.harness.tok_encode(prompt + "Answer"), self.harness.tok_encode(shown)
        raise ModelError(
            "the chat template shows an answered question differently from the prompt it makes for it, so what is "
            f"trained is not what is graded:\n{self._difference('prompt and answer', asked, 'answered', found)}\n"
            "  Set base_model.chat_template: false, or use a base whose template only appends the answer."
        )

    @cached_property
    def _takes_system(self) -> bool:
        messages = [{"role": "system", "content": "The-system-says"}, {"role": "user", "content": "Question?"}]
        try:
            text = self._apply(messages, add_generation_prompt=True, **self._frame.options)
        except ModelError:  # a fault that has nothing to do with it was met in `_frame`
            return False
        return "The-system-says" in text

    @cached_property
    def _control(self) -> re.Pattern[str] | None:
        added = self.tokenizer.added_tokens_decoder
        special = {str(token) for token in added.values() if token.special} | set(self.tokenizer.all_special_tokens)
        if self.chat_template:  # some tokenizers do not list the tokens of their template as special
            template = str(self.tokenizer.chat_template)
            special |= {str(token) for token in added.values() if str(token) in template}
        longest_first = sorted((token for token in special if token.strip()), key=lambda token: (-len(token), token))
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def _apply(self, messages: list[dict[str, str]], **options: bool) -> str:
        with _explained():
            if self.writes_date:
                _pin_date(self.tokenizer.get_chat_template())
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))

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
    try:
        yield
    except SecurityError as error:
        raise ModelError(f"the chat template reaches for Python internals and was stopped ({error}).") from error
    except Exception as error:  # a template raises whatever its arithmetic or its filters raise
        raise ModelError(f"the chat template cannot be applied ({type(error).__name__}: {error}).") from error


def _system_in_question(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The messages with the system's text in front of the first question, as Gemma's own newer templates have it."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    rest = [dict(message) for message in messages if message["role"] != "system"]
    asked = next((message for message in rest if message["role"] == "user"), None)
    if asked and system:
        asked["content"] = f"{system}\n\n{asked['content']}"
    return rest if asked else messages


def _pin_date(template: str) -> None:
    """Make `TODAY` the day that a chat template writes; transformers compiles each template once and keeps it."""
    from transformers.utils import chat_template_utils

    compiled: Any = chat_template_utils
    compiled._compile_jinja_template(template).globals["strftime_now"] = TODAY.strftime


def _end_of_turn_ids(tokenizer: Any) -> set[int]:
    """Added tokens such as <end_of_turn> that some tokenizers do not list as special."""
    return set(tokenizer.get_added_vocab().values())
