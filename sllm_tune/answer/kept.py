"""Answers apart from their grades: lm-eval's requests are answered from those kept, and only the rest by the model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lm_eval.api.model import LM

from sllm_tune.runs.files import read_jsonl, write_jsonl
from sllm_tune.tasks.encode import Encoder

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from sllm_tune.answer.local import PackedLM

Said = str | tuple[float, bool]
"""A generated text; or the log-probability of a continuation in nats, and whether greedy decoding would write it."""


class Together(LM):
    """A model that is asked for more short texts at once than for items of a task, and for nothing else."""

    def __init__(self, lm: PackedLM, times: int) -> None:
        """Take the model, and how many times its batch size."""
        super().__init__()
        self._lm = lm
        self._times = times

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """As the model itself."""
        lm = self._lm
        given, lm.batch_size_per_gpu = lm.batch_size_per_gpu, self._times * lm.batch_size_per_gpu
        try:
            return lm.generate_until(requests)
        finally:
            lm.batch_size_per_gpu = given

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not asked."""
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Not asked."""
        raise NotImplementedError


def answers_path(folder: Path, task: str, model: str) -> Path:
    """Where what one model said to the requests of one task is kept."""
    return folder / "answers" / task / f"{model}.jsonl"


class KeptLM(LM):
    """What a model said, by what it was asked: the same request is not asked twice, whoever grades the answers."""

    def __init__(self, path: Path | None, ids: Mapping[int, str], encoder: Encoder, load: Callable[[], LM]) -> None:
        """Read what is kept.

        Args:
            path: The file of kept answers, there or not; None keeps nothing.
            ids: Of each item, by the number that its requests have.
            encoder: Makes the prompts, as the model's own does.
            load: Gives the model, which is needed only for a request that was not asked before.
        """
        super().__init__()
        self.asked = 0
        """Requests that the model itself had to answer."""

        self._load = load
        self._path = path
        self._encoder = encoder
        self._ids = ids
        rows = read_jsonl(path) if path is not None and path.exists() else []
        self._kept = {row["asked"]: _said(row["said"]) for row in rows}
        self._rows: list[dict[str, object]] = []

    @cached_property
    def _model(self) -> LM:
        return self._load()

    @property
    def tokenizer_name(self) -> str:
        """Part of the name under which the harness would cache requests, which is not asked of it."""
        return ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation."""
        return self._encoder.render(chat_history, add_generation_prompt)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """As lm-eval asks it."""
        return cast(list[tuple[float, bool]], self._answer("loglikelihood", requests))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """As lm-eval asks it; nothing of it is kept."""
        self.asked += len(requests)
        return self._model.loglikelihood_rolling(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """As lm-eval asks it."""
        return cast(list[str], self._answer("generate_until", requests))

    def keep(self) -> None:
        """Write the answers of this grading, in its order: `id` of the item, SHA-256 of what was `asked`, `said`."""
        if self._path is not None:
            write_jsonl(self._path, self._rows)

    def _answer(self, kind: str, requests: list[Instance]) -> list[Said]:
        asked = [_fingerprint(kind, request.args) for request in requests]
        new = [request for request, key in zip(requests, asked, strict=True) if key not in self._kept]
        self.asked += len(new)
        fresh = iter(getattr(self._model, kind)(new) if new else ())
        answers = [self._kept[key] if key in self._kept else _said(next(fresh)) for key in asked]
        for request, key, said in zip(requests, asked, answers, strict=True):
            if isinstance(said, str) or math.isfinite(said[0]):  # JSON has no infinity; it is asked again
                self._rows.append({"id": self._ids[request.doc_id or 0], "asked": key, "said": said})
        return answers


def _said(value: str | Sequence[object]) -> Said:
    return value if isinstance(value, str) else cast(tuple[float, bool], tuple(value))


def _fingerprint(kind: str, arguments: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps([kind, arguments], sort_keys=True, ensure_ascii=False).encode()).hexdigest()
