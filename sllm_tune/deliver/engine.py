"""llama.cpp as the engine of an exported file: its tokenizer, its log-probabilities, its end of an answer.

Two wheels bring llama.cpp. cyllama gives the logits of any token, the quantiser, and no way to put an adapter on;
xllamacpp (`served`) runs llama.cpp's own server, which applies adapters and chat templates.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sllm_tune.errors import BadInput, JobFailed, ModelError

LOG_WARNING, LOG_ERROR = 3, 4  # llama.cpp's numbers
BATCH_TOKENS = 512  # most that are decoded at a time
SEQUENCES = 64  # most answers to choose from
Branches = dict[tuple[int, ...], NDArray[np.float32]]  # after each beginning of an answer


class Engine(Protocol):
    """What answers: an exported file in its engine."""

    @property
    def stop(self) -> int:
        """The token that the file names as the end of an answer."""
        ...

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids by the file's own tokenizer; `add_special` is the begin token, where the file has one put first."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special ones left out."""
        ...

    def next_log_probabilities(self, ids: Sequence[int], wanted: Sequence[int] = ()) -> NDArray[np.float32]:
        """Log-probabilities in nats `(V,)` of the token after `ids`: of the most likely and of those `wanted`.

        Others may be minus infinity.
        """
        ...

    def branch_log_probabilities(self, context: Sequence[int], answers: Sequence[Sequence[int]]) -> Branches:
        """`next_log_probabilities` after the context and each beginning of its answers, also the empty one."""
        ...

    def ends(self, token: int) -> bool:
        """Whether the engine stops at this token by itself."""
        ...


def need(module: str, extra: str = "export") -> ModuleType:
    """A module of an extra.

    Raises:
        BadInput: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadInput(
            f"{module.partition('.')[0]} is not installed, and this export needs it ({error}).\n"
            f"  Install it with: pip install 'sllm-tune[{extra}]'"
        ) from error


class LlamaFile:
    """A GGUF file loaded in this process.

    Args:
        path: The file.
        threads: Threads of the CPU.
        window: Most tokens of a prompt with its answer.

    Raises:
        BadInput: the extra is missing. ModelError: llama.cpp cannot load the file.
    """

    def __init__(self, path: Path, *, threads: int, window: int = 4096) -> None:
        llama = need("cyllama.llama.llama_cpp")

        class Model(llama.LlamaModel):
            """The binding's logits ask the model for `n_vocab`, which it has only on the vocabulary (0.2.18)."""

            @property
            def n_vocab(self) -> int:
                return self.get_vocab().n_vocab

        llama.set_log_callback(log)
        llama.llama_backend_init()
        settings = llama.LlamaModelParams()
        settings.n_gpu_layers = 0
        try:
            self._model = Model(str(path), settings)
        except (ValueError, OSError) as error:
            raise ModelError(f"{path}: llama.cpp cannot load this file ({str(error).splitlines()[0]:.200}).") from error
        options = llama.LlamaContextParams()
        options.n_ctx, options.n_batch, options.n_ubatch = window, BATCH_TOKENS, BATCH_TOKENS
        options.n_seq_max, options.kv_unified = SEQUENCES, True
        options.n_threads = options.n_threads_batch = threads
        self._context = llama.LlamaContext(self._model, options)
        self._batch = llama.LlamaBatch(n_tokens=BATCH_TOKENS, embd=0, n_seq_max=SEQUENCES)
        self._vocabulary = self._model.get_vocab()
        self._held: list[int] = []  # tokens in the cache
        self.window = window

    @property
    def metadata(self) -> dict[str, str]:
        """Keys and values of the file as text."""
        return dict(self._model.metadata)

    @property
    def stop(self) -> int:
        """The token that the file names as the end of an answer."""
        return int(self._vocabulary.token_eos())

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """As `Engine`."""
        return list(self._vocabulary.tokenize(text, add_special, True))

    def decode(self, ids: Sequence[int]) -> str:
        """As `Engine`."""
        return str(self._vocabulary.detokenize(list(ids), len(ids) * 64 + 64, False, False)) if ids else ""

    def ends(self, token: int) -> bool:
        """As `Engine`."""
        return bool(self._vocabulary.is_eog(token))

    def next_log_probabilities(self, ids: Sequence[int], wanted: Sequence[int] = ()) -> NDArray[np.float32]:
        """As `Engine`, of all tokens. What the last call's tokens share with these is not computed again."""
        return self.branch_log_probabilities(ids, [[0]])[()]

    def branch_log_probabilities(self, context: Sequence[int], answers: Sequence[Sequence[int]]) -> Branches:
        """As `Engine`: a tree of one context and its branches, each a sequence of its own that sees no other."""
        context, nodes = list(context), beginnings(answers)
        leaves = longest(nodes)
        tokens = len(context) + sum(map(len, leaves))
        if not len(context) > 0 or tokens > self.window or len(leaves) > SEQUENCES:
            raise JobFailed(
                f"an item of {tokens} tokens and {len(leaves)} answers; at most {self.window}, {SEQUENCES}."
            )
        shared = min(_common(self._held, context), len(context) - 1)  # the last one's logits are asked for
        self._context.memory_seq_rm(-1, shared, -1)
        everyone = list(range(SEQUENCES))
        asked = [(token, at, everyone, at == len(context) - 1) for at, token in enumerate(context)][shared:]
        for node in nodes[1:]:
            through = [number for number, leaf in enumerate(leaves) if leaf[: len(node)] == node]
            asked.append((node[-1], len(context) + len(node) - 1, through, True))
        found = [log_probabilities(self._context.get_logits_ith(place)) for place in self._decode(asked)]
        self._held = context
        return dict(zip(nodes, found, strict=True))

    def _decode(self, asked: list[tuple[int, int, list[int], bool]]) -> Iterator[int]:
        """Decode tokens, of each its position, sequences and whether it is asked for; yields those asked for."""
        for start in range(0, len(asked), BATCH_TOKENS):
            part = asked[start : start + BATCH_TOKENS]
            self._batch.clear()
            for token in part:
                self._batch.add(*token)
            if self._context.decode(self._batch) != 0:
                raise JobFailed("llama.cpp could not decode a prompt.")
            yield from (place for place, token in enumerate(part) if token[-1])

    def close(self) -> None:
        """Free the memory."""
        self._batch.close()
        self._context.close()
        self._model.close()


def beginnings(answers: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """What comes before each token of the answers, once, the shortest first."""
    return sorted({tuple(answer[:i]) for answer in answers for i in range(len(answer))}, key=len)


def longest(nodes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Those of `beginnings` that are the beginning of no other."""
    return [one for one in nodes if not any(other[: len(one)] == one != other for other in nodes)]


def log_probabilities(logits: ArrayLike) -> NDArray[np.float32]:
    """Log-softmax of logits `(V,)`, in nats."""
    whole = np.array(logits, dtype=np.float64)
    whole -= whole.max()
    return (whole - np.log(np.exp(whole).sum())).astype(np.float32)


def log(level: int, text: str) -> None:
    """Warnings and errors of llama.cpp; it would also list every key of a file and every buffer."""
    if level in (LOG_WARNING, LOG_ERROR) and "n_ctx_seq" not in text:  # a window smaller than the model's is asked for
        print(text.rstrip(), file=sys.stderr, flush=True)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many items two lists begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
