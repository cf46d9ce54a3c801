"""An engine of llama.cpp as lm-eval's model, so that an export is asked and graded by what graded the specialist."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.api import model as harness
from lm_eval.models.utils import normalize_gen_kwargs

from sllm_tune.deliver.engine import Engine
from sllm_tune.tasks.encode import Encoder

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

TemplateLM: Any = harness.TemplateLM  # a decorator of lm-eval's hides its type
Request = tuple[tuple[str, str], list[int], list[int]]  # lm-eval's: strings, context ids, continuation ids
LONGEST_ANSWER = 256  # tokens, where a task does not say, as the harness has it


class EngineLM(TemplateLM):  # pyright: ignore[reportUntypedBaseClass]
    """Scores choices by log-likelihood and generates greedily, in the engine's own tokens.

    Args:
        engine: What answers.
        encoder: Its chat template, and what is taught to follow an answer.
    """

    def __init__(self, engine: Engine, encoder: Encoder) -> None:
        super().__init__()
        self.engine, self.encoder = engine, encoder

    @property
    def eot_token_id(self) -> int:
        """The token that stands for an empty context, as in the harness's own backend."""
        return int(self.encoder.harness.prefix_token_id)

    @property
    def tokenizer_name(self) -> str:
        """Part of the harness's names of cached requests."""
        return "gguf"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Token ids, with the begin token where the file has one put first and the text does not write it."""
        begin = self.encoder.tokenizer.bos_token
        written = bool(begin) and string.startswith(begin)
        return self.engine.encode(string, add_special=not written if add_special_tokens is None else add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation."""
        return self.encoder.render(chat_history, add_generation_prompt)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Not asked for: no task of a run is scored on whole texts."""
        raise NotImplementedError

    def _loglikelihood_tokens(self, requests: list[Request], **_: object) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = []
        for context, choices in _by_context(requests):
            answers += choices_of(self.engine, context, choices)
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, up to the engine's own end of an answer or a text that the task stops at."""
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, options: dict[str, object]) -> str:
        context, lead = self.encoder.split_lead(context)
        asked = normalize_gen_kwargs(options, LONGEST_ANSWER)
        longest = asked.get("max_gen_toks", LONGEST_ANSWER)
        text = generate(self.engine, self.tok_encode(context), longest, asked.get("until") or ())
        return self.encoder.answer_text(text.removeprefix(lead))


def choices_of(engine: Engine, context: list[int], choices: Sequence[list[int]]) -> list[tuple[float, bool]]:
    """Log-likelihood in nats of each choice after a context, and whether greedy decoding would write it."""
    after = engine.branch_log_probabilities(context, choices)
    found: list[tuple[float, bool]] = []
    for choice in choices:
        steps = [(after[tuple(choice[:i])], token) for i, token in enumerate(choice)]
        found.append((sum(float(p[token]) for p, token in steps), all(int(p.argmax()) == token for p, token in steps)))
    return found


def generate(engine: Engine, context: list[int], longest: int, until: Sequence[str]) -> str:
    """The greedy continuation of a context, at most `longest` tokens."""
    made: list[int] = []
    while len(made) < longest:
        token = int(np.argmax(engine.next_log_probabilities([*context, *made])))
        if engine.ends(token):
            break
        made.append(token)
        text = engine.decode(made)
        if stops := [text.index(stop) for stop in until if stop and stop in text]:
            return text[: min(stops)]
    return engine.decode(made)


def _by_context(requests: Sequence[Request]) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Requests that stand together and share a context."""
    start = 0
    while start < len(requests):
        end = start + 1
        while end < len(requests) and requests[end][1] == requests[start][1]:
            end += 1
        yield requests[start][1], [requests[i][2] for i in range(start, end)]
        start = end
