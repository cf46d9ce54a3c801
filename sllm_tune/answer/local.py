"""lm-eval's Hugging Face backend with one change: a context is encoded once for all of its choices.

Each row holds a context followed by what its choices do not share. A choice sees the context and itself, never another
choice (a tree mask), at the positions it would have alone. What all contexts of a call share, such as a system prompt
or the same five shots, is encoded once a call and reused as a key-value cache. On MedQA's five-option questions this is
measured against the harness's own backend by `benchmarks/eval_throughput.py`.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models import huggingface
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor
from torch.nn.functional import log_softmax
from tqdm import tqdm

from sllm_tune.errors import ModelError
from sllm_tune.model.load import window_of
from sllm_tune.tasks.encode import Encoder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

HFLM: Any = huggingface.HFLM  # a decorator of lm-eval's hides its type
Request = tuple[tuple[str, str], list[int], list[int]]  # lm-eval's: strings, context ids, continuation ids
Answer = tuple[float, bool]  # log-probability in nats, and whether greedy decoding would write it

UNLIMITED = 1 << 30  # tokens; a base without positions reads any length, where the harness would assume 2048
PAD_TO_TOKENS = 16  # few distinct shapes: a CPU builds and caches one bf16 primitive a shape
PROBE = ([5, 6, 7, 8, 9, 10], ([11, 12, 13], [11, 14], [15, 16, 17]))  # a context and its choices


@dataclass(frozen=True)
class Row:
    """One context with its choices, as it goes through the model.

    `trunk` is the context and what all choices begin with; `branches` are the rests of the choices.
    """

    context_length: int
    trunk: list[int]
    branches: list[list[int]]
    requests: list[int]  # where each branch's answer goes

    @property
    def length(self) -> int:
        """Tokens in the row: the last token of a branch is only predicted, never read."""
        return len(self.trunk) + sum(max(0, len(branch) - 1) for branch in self.branches)


class PackedLM(HFLM):  # pyright: ignore[reportUntypedBaseClass]
    """Scores like `lm_eval --model hf` with `softmax_dtype=float32`, each context once.

    The harness's own loop scores choices that differ in one token, whose logits it reuses: nothing is saved there, and
    not even the rounding of bfloat16 differs. It also scores what cannot be packed: a model that a probe shows to
    answer differently (ALiBi, state-space layers), and rows longer than its window or its context.

    Prompts are those of `Encoder`, and generation ends at the token that answers are taught to end with; both hold for
    a base as for its specialist. Nothing is cut: a request longer than the window is an error.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        *,
        chat_template: bool,
    ) -> None:
        window = window_of(model.config, tokenizer)
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            softmax_dtype=torch.float32,
            max_length=window or UNLIMITED,
        )
        self.encoder = Encoder(tokenizer, chat_template=chat_template, window=window)
        if model.generation_config is not None:
            self.encoder.stop_at_taught(model.generation_config)
        self._keeps_logits = "logits_to_keep" in inspect.signature(self._causal().forward).parameters
        self.packs = self._can_pack()

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation, as it is trained: the harness's own loses a system role that is refused."""
        return self.encoder.render(chat_history, add_generation_prompt)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generated texts without what is taught to follow an answer.

        Raises:
            ModelError: a prompt leaves no room for an answer in the window.
        """
        cut = [self.encoder.split_lead(request.arguments[0]) for request in requests]
        asked = [self._with_room(request, context) for request, (context, _) in zip(requests, cut, strict=True)]
        texts = super().generate_until(asked, disable_tqdm)
        return [self.encoder.answer_text(text.removeprefix(lead)) for text, (_, lead) in zip(texts, cut, strict=True)]

    def _with_room(self, request: Instance, context: str) -> Instance:
        """The request, for as many tokens as the window has left: the harness would cut the prompt instead."""
        options = normalize_gen_kwargs(request.arguments[1], self.max_gen_toks)
        room = self.max_length - len(self.tok_encode(context))
        if room < 1:
            raise too_long(self.max_length - room + 1, self.max_length)  # with one token of an answer
        made = copy.copy(request)
        fits = options.get("max_gen_toks", self.max_gen_toks) <= room
        made.arguments = (context, request.arguments[1] if fits else {**options, "max_gen_toks": room})
        return made

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        if not requests:
            return []
        longest = max(len(context) + len(continuation) for _, context, continuation in requests)
        if longest > self.max_length:
            raise too_long(longest, self.max_length)
        rows = pack(requests)
        window = getattr(self.config.get_text_config(), "sliding_window", None) or self.max_length
        fits = max(row.length for row in rows) <= min(window, self.max_length)
        if self.packs and fits and _pays(rows):
            return self._score(rows, len(requests), disable_tqdm=disable_tqdm)
        return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)

    @torch.no_grad()
    def _score(self, rows: list[Row], n_requests: int, *, disable_tqdm: bool) -> list[Answer]:
        answers: list[Answer] = [(0.0, False)] * n_requests
        shared = _shared_length(rows)
        cache = self._encode_prefix(rows[0].trunk[:shared]) if shared > 0 else None
        rows = sorted(rows, key=lambda row: -row.length)
        with tqdm(total=len(rows), desc="scoring", disable=disable_tqdm or None) as bar:
            for start in range(0, len(rows), int(self.batch_size)):
                batch = rows[start : start + int(self.batch_size)]
                logits = self._forward(batch, shared, cache)
                for row, row_logits in zip(batch, logits, strict=True):
                    for request, answer in zip(row.requests, _read_answers(row, row_logits), strict=True):
                        answers[request] = answer
                bar.update(len(batch))
        return answers

    def _encode_prefix(self, ids: list[int]) -> Cache:
        return self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=True).past_key_values

    def _forward(self, batch: Sequence[Row], shared: int, cache: Cache | None) -> list[Tensor]:
        """Logits of each row from its last context token on, `(row.length - context_length + 1, V)`.

        Rows are padded on the left, so that these are the last columns of every row.
        """
        width = -(-max(row.length - shared for row in batch) // PAD_TO_TOKENS) * PAD_TO_TOKENS
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        positions = torch.zeros_like(ids)
        sees = torch.zeros(len(batch), width, shared + width, dtype=torch.bool)
        for i, row in enumerate(batch):
            pad = width - (row.length - shared)
            tokens, places, mask = lay_out(row)
            ids[i, pad:], positions[i, pad:] = tokens[shared:], places[shared:]
            sees[i, pad:, :shared] = mask[shared:, :shared]
            sees[i, pad:, shared + pad :] = mask[shared:, shared:]
            sees[i, :pad, shared : shared + pad] = torch.eye(pad, dtype=torch.bool)  # a softmax needs something
        keep = max(row.length - row.context_length + 1 for row in batch)
        options: dict[str, object] = {"logits_to_keep": keep} if self._keeps_logits else {}
        if cache is not None:
            repeated = copy.deepcopy(cache)
            repeated.batch_repeat_interleave(len(batch))
            options["past_key_values"] = repeated
        logits = self._logits(ids, positions, sees, use_cache=cache is not None, **options)
        return [one[-(row.length - row.context_length + 1) :] for one, row in zip(logits, batch, strict=True)]

    def _logits(self, ids: Tensor, positions: Tensor, sees: Tensor, **options: object) -> Tensor:
        """The model's logits, where a token sees only those that `sees` `(rows, L, cached + L)` lets it see."""
        dtype = self._causal().dtype
        additive = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]
        return self.model(
            input_ids=ids.to(self.device),
            position_ids=positions.to(self.device),
            attention_mask=additive.to(self.device),
            **options,
        ).logits

    @torch.no_grad()
    def _can_pack(self) -> bool:
        """Whether this architecture honours the tree mask and explicit positions, shown on one small row."""
        context, choices = PROBE
        requests: list[Request] = [(("", ""), context, list(choice)) for choice in choices]
        try:
            with self._eager():  # one kernel for both
                packed = self._score(pack(requests), len(requests), disable_tqdm=True)
                if self._causal().dtype != torch.float32:
                    return self._keeps_branches_apart()
                plain = HFLM._loglikelihood_tokens(self, requests, disable_tqdm=True)
        except (RuntimeError, TypeError, ValueError, AttributeError):  # no cache, no 4-D mask, no position_ids
            return False
        return all(abs(p[0] - q[0]) <= 1e-3 for p, q in zip(packed, plain, strict=True))

    def _keeps_branches_apart(self) -> bool:
        """Whether the last branch reads the same beside other branches, and otherwise at other positions, to the bit.

        In fewer bits than float32 packed and plain answers to improbable tokens can round further apart than a leak
        would move them; rows of one shape round alike.
        """
        context, (*others, last) = PROBE

        def read(beside: Sequence[Sequence[int]], moved_by: int = 0) -> Tensor:
            (row,) = pack([(("", ""), context, list(choice)) for choice in (*beside, last)])
            own = len(last) - 1
            tokens, positions, sees = lay_out(row)
            positions[-own:] += moved_by
            return self._logits(tokens[None], positions[None], sees[None], use_cache=False)[0, -own:]

        as_it_is = read(others)
        beside_others = read([[token + 20 for token in choice] for choice in others])
        return torch.equal(as_it_is, beside_others) and not torch.equal(as_it_is, read(others, moved_by=1))

    @contextlib.contextmanager
    def _eager(self) -> Generator[None]:
        given = getattr(self._causal().config, "_attn_implementation", "eager")
        self._causal().set_attn_implementation("eager")
        try:
            yield
        finally:
            self._causal().set_attn_implementation(given)

    def _causal(self) -> PreTrainedModel:
        """The transformers model, also when PEFT has wrapped it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model


def too_long(tokens: int, window: int) -> ModelError:
    """What is raised instead of cutting a request."""
    return ModelError(
        f"an item of {tokens} tokens is longer than the base's window of {window}; nothing was cut.\n"
        "  Prepare the data again, which finds such items, or set data.on_long: drop."
    )


def pack(requests: Sequence[Request]) -> list[Row]:
    """Requests that stand together and share a context, as one row each."""
    rows: list[Row] = []
    start = 0
    while start < len(requests):
        end = start + 1
        while end < len(requests) and requests[end][1] == requests[start][1]:
            end += 1
        context, choices = requests[start][1], [requests[i][2] for i in range(start, end)]
        common = _common(choices)
        branches = [choice[len(common) :] for choice in choices]
        rows.append(Row(len(context), context + common, branches, list(range(start, end))))
        start = end
    return rows


def _shared_length(rows: Sequence[Row]) -> int:
    """Tokens that all rows begin with, less the last context token: its logits predict the first token of a choice."""
    return min(len(_common([row.trunk for row in rows])), min(row.context_length for row in rows) - 1)


def _pays(rows: Sequence[Row]) -> bool:
    """Whether a tree or a cache saves work: a context with several rests to read, or shots, mostly the same prefix."""
    several = any(sum(len(branch) > 1 for branch in row.branches) > 1 for row in rows)
    mean_length = sum(row.length for row in rows) / len(rows)
    return several or _shared_length(rows) > mean_length / 2


def _common(lists: Sequence[list[int]]) -> list[int]:
    """The longest beginning that all lists share."""
    first, last = min(lists), max(lists)  # all others lie between them, so share what these share
    return [pair[0] for pair in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]


def lay_out(row: Row) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids `(L,)`, positions `(L,)` and which token sees which `(L, L)` of a row."""
    trunk = len(row.trunk)
    tokens, positions = list(row.trunk), list(range(trunk))
    sees = torch.ones(row.length, row.length).tril().bool()
    for branch in row.branches:
        start = len(tokens)
        tokens += branch[:-1]
        positions += range(trunk, trunk + len(branch[:-1]))
        sees[start : len(tokens), trunk:start] = False
    return torch.tensor(tokens), torch.tensor(positions), sees


def _read_answers(row: Row, logits: Tensor) -> list[Answer]:
    """The answer of each branch, from logits `(row.length - context_length + 1, V)` that begin at the context's end."""
    logits = log_softmax(logits, dim=-1, dtype=torch.float32)
    common = torch.tensor(row.trunk[row.context_length :], device=logits.device)
    at_common = logits[: len(common)]
    score = at_common.gather(1, common[:, None]).sum()
    greedy = bool((at_common.argmax(-1) == common).all())
    answers: list[Answer] = []
    start = len(common) + 1
    for branch in row.branches:
        if not branch:  # one choice is the beginning of another
            answers.append((float(score), greedy))
            continue
        ids = torch.tensor(branch, device=logits.device)
        own = torch.cat([logits[len(common)][None], logits[start : start + len(branch) - 1]])
        start += len(branch) - 1
        answers.append(
            (float(score + own.gather(1, ids[:, None]).sum()), greedy and bool((own.argmax(-1) == ids).all()))
        )
    return answers
