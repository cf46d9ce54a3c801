"""OpenVINO as the engine of an exported folder: its tokenizer, its log-probabilities, its end of an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sllm_tune.deliver.engine import Branches, beginnings, log_probabilities, longest, need
from sllm_tune.deliver.openvino_model import MODEL, READS, WRITES
from sllm_tune.errors import ModelError
from sllm_tune.model.load import load_tokenizer
from sllm_tune.recipe.base_model import BaseModelSection


class OpenVinoFile:
    """A folder that `to_openvino` wrote, loaded in this process.

    Args:
        folder: The folder.
        threads: Threads of the CPU.

    Raises:
        BadInput: the extra is missing. ModelError: OpenVINO cannot load it.
    """

    def __init__(self, folder: Path, *, threads: int) -> None:
        ov, tokenizers = need("openvino", "openvino"), need("openvino_tokenizers", "openvino")
        tokenizer = load_tokenizer(str(folder), BaseModelSection(path=str(folder), chat_template=False))
        core = ov.Core()
        # What the file says of the cache holds; the rest is computed as it was scored.
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(threads)}
        try:
            self._request = core.compile_model(folder / MODEL, "CPU", options).create_infer_request()
            self._writes = core.compile_model(folder / WRITES, "CPU")
            bare = tokenizers.convert_tokenizer(tokenizer, add_special_tokens=False)
            self._reads = {True: core.compile_model(folder / READS, "CPU"), False: core.compile_model(bare, "CPU")}
        except RuntimeError as error:
            raise ModelError(f"{folder}: OpenVINO cannot load it ({str(error).strip()[:200]}).") from error
        ends = json.loads((folder / "generation_config.json").read_text(encoding="utf-8")).get("eos_token_id")
        self._ends: list[int] = ends if isinstance(ends, list) else [ends]
        self._held: list[int] = []  # tokens in the state, of one row

    @property
    def stop(self) -> int:
        """The token that the folder names first as the end of an answer."""
        return self._ends[0]

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """As `Engine`."""
        return self._reads[add_special]([text])["input_ids"][0].tolist() if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """As `Engine`."""
        return str(self._writes(np.array([list(ids)], dtype=np.int64))[0][0]) if ids else ""

    def ends(self, token: int) -> bool:
        """As `Engine`."""
        return token in self._ends

    def next_log_probabilities(self, ids: Sequence[int], wanted: Sequence[int] = ()) -> NDArray[np.float32]:
        """As `Engine`, of all tokens. What the last call's tokens were the beginning of is not computed again."""
        ids, held = list(ids), len(self._held)
        if not 0 < held < len(ids) or self._held != ids[:held]:
            self._request.reset_state()
            held = 0
        found = self._step([ids[held:]], held)[0, -1]
        self._held = ids
        return log_probabilities(found)

    def branch_log_probabilities(self, context: Sequence[int], answers: Sequence[Sequence[int]]) -> Branches:
        """As `Engine`: the context once, then its branches as rows that begin with its state."""
        nodes = beginnings(answers)
        leaves = longest(nodes)
        self._request.reset_state()
        self._held = []
        found: Branches = {(): log_probabilities(self._step([list(context)], 0)[0, -1])}
        if most := max(map(len, leaves)):
            width = [[*leaf, *[0] * (most - len(leaf))] for leaf in leaves]
            logits = self._step(width, len(context), [len(leaf) for leaf in leaves])
            for row, leaf in enumerate(leaves):
                found |= {leaf[: i + 1]: log_probabilities(logits[row, i]) for i in range(len(leaf))}
        return found

    def _step(self, rows: list[list[int]], past: int, lengths: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Logits `(rows, new, V)` of new tokens after `past` ones, which are the same for every row."""
        new = len(rows[0])
        seen = np.ones((len(rows), past + new), dtype=np.int64)
        for row, length in enumerate(lengths or ()):
            seen[row, past + length :] = 0
        asked: dict[str, Any] = {
            "input_ids": np.array(rows, dtype=np.int64),
            "attention_mask": seen,
            "position_ids": np.tile(np.arange(past, past + new, dtype=np.int64), (len(rows), 1)),
            "beam_idx": np.zeros(len(rows), dtype=np.int32),
        }
        return np.array(self._request.infer(asked)["logits"])

    def close(self) -> None:
        """Free the memory."""
        del self._request, self._reads, self._writes
