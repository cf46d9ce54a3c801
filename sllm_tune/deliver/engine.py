"""llama.cpp as the engine of an exported file: its tokenizer, its log-probabilities, its end of an answer.

Two wheels bring llama.cpp. cyllama gives the logits of any token, the quantiser, and no way to put an adapter on;
xllamacpp (`served`) runs llama.cpp's own server, which applies adapters and chat templates.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sllm_tune.errors import BadInput, JobFailed, ModelError

LOG_WARNING, LOG_ERROR = 3, 4  # llama.cpp's numbers
BATCH_TOKENS = 512  # most that are decoded at a time


class Engine(Protocol):
    """What answers: a GGUF file in llama.cpp."""

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

    def ends(self, token: int) -> bool:
        """Whether the engine stops at this token by itself."""
        ...


def need(module: str) -> Any:
    """A module of the extra `export`.

    Raises:
        BadInput: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadInput(
            f"{module.partition('.')[0]} is not installed, which exports to GGUF need ({error}).\n"
            "  Install it with: pip install 'sllm-tune[export]'"
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
        options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = window, BATCH_TOKENS, BATCH_TOKENS, 1
        options.n_threads = options.n_threads_batch = threads
        self._context = llama.LlamaContext(self._model, options)
        self._batch = llama.LlamaBatch(n_tokens=BATCH_TOKENS, embd=0, n_seq_max=1)
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
        ids = list(ids)
        if not 0 < len(ids) <= self.window:
            raise JobFailed(f"a prompt of {len(ids)} tokens; the engine was opened for 1 to {self.window}.")
        shared = min(_common(self._held, ids), len(ids) - 1)  # the last one's logits are asked for
        self._context.memory_seq_rm(0, shared, -1)
        at = shared
        while at < len(ids):
            part = ids[at : at + BATCH_TOKENS]
            self._batch.clear()
            for offset, token in enumerate(part):
                self._batch.add(token, at + offset, [0], at + offset == len(ids) - 1)
            if self._context.decode(self._batch) != 0:
                raise JobFailed("llama.cpp could not decode a prompt.")
            at += len(part)
        self._held = ids
        logits = np.array(self._context.get_logits_ith(self._batch.n_tokens - 1), dtype=np.float64)
        logits -= logits.max()
        return (logits - np.log(np.exp(logits).sum())).astype(np.float32)

    def close(self) -> None:
        """Free the memory."""
        self._batch.close()
        self._context.close()
        self._model.close()


def log(level: int, text: str) -> None:
    """Warnings and errors of llama.cpp; it would also list every key of a file and every buffer."""
    if level in (LOG_WARNING, LOG_ERROR) and "n_ctx_seq" not in text:  # a window smaller than the model's is asked for
        print(text.rstrip(), file=sys.stderr, flush=True)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many items two lists begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
