"""The teacher's likeliest tokens at each place of the training rows, computed once and read from disk while healing.

The teacher is then never in memory beside the student, and an epoch after the first costs it nothing. All other tokens
count as one event with the probability that is left, so that the student is not taught that they cannot happen.

Source: Anshumann et al. 2025, arXiv:2503.16870: the likeliest tokens alone make a student too sure of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.format import open_memmap

from sllm_tune.tasks.encode import IGNORED, Tokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

TOKENS = 4096  # that the teacher reads at a time, rows of like length together
LEAST_REST = 1e-6  # of the probability, for all other tokens: float16 may round the kept ones up to 1


def write_top_k(teacher: PreTrainedModel, rows: Sequence[Tokens], places: Sequence[int], k: int, folder: Path) -> None:
    """Write the teacher's `k` likeliest tokens wherever a row's next label counts.

    Args:
        teacher: A causal language model of transformers.
        rows: In the student's ids.
        places: The teacher's id of each of the student's tokens; probabilities are over these alone.
        k: Tokens to keep; all, where the vocabulary has fewer.
        folder: One to make: `tokens.npy` (positions, k), int32, in the student's ids; `logprobs.npy`, float16, in nats.
            Positions are those of the rows one after the other. They are written as they are computed.
    """
    import torch

    device, k = teacher.device, min(k, len(places))
    known = torch.tensor(places, device=device)
    starts = _starts(rows)
    making = folder.with_name(f"{folder.name}.making")
    making.mkdir(parents=True, exist_ok=True)
    tokens = open_memmap(making / "tokens.npy", "w+", "int32", (starts[-1], k))
    logprobs = open_memmap(making / "logprobs.npy", "w+", "float16", (starts[-1], k))
    by_length = sorted(range(len(rows)), key=lambda row: -len(rows[row].input_ids))
    done = 0
    while done < len(rows):
        batch = by_length[done : done + max(1, TOKENS // len(rows[by_length[done]].input_ids))]
        done += len(batch)
        ids = _padded([rows[row].input_ids for row in batch], 0, device)
        mask = _padded([[1] * len(rows[row].input_ids) for row in batch], 0, device)
        counted = _padded([rows[row].labels for row in batch], IGNORED, device)[:, 1:] != IGNORED
        columns = counted.any(0).nonzero().flatten()
        with torch.no_grad():
            logits = teacher(input_ids=known[ids], attention_mask=mask, use_cache=False, logits_to_keep=columns).logits
        for number, row in enumerate(batch):
            own = logits[number][counted[number, columns]][:, known].float().log_softmax(-1)
            best = own.topk(k)
            tokens[starts[row] : starts[row + 1]] = best.indices.cpu()
            logprobs[starts[row] : starts[row + 1]] = best.values.cpu()
    tokens.flush()
    logprobs.flush()
    os.replace(making, folder)


class TopK:
    """What `write_top_k` wrote for `rows`, found again by a row's ids."""

    def __init__(self, folder: Path, rows: Sequence[Tokens]) -> None:
        self.tokens, self.logprobs = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("tokens", "logprobs"))
        starts = _starts(rows)
        self.spans = {tuple(row.input_ids): starts[at : at + 2] for at, row in enumerate(rows)}

    def of(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and log-probabilities `(positions, k)` of a padded batch `(rows, length)`, row after row."""
        from torch import from_numpy

        spans = [self.spans[tuple(row[seen].tolist())] for row, seen in zip(ids, mask.bool(), strict=True)]
        tokens, logprobs = (
            np.concatenate([kept[slice(*span)] for span in spans]) for kept in (self.tokens, self.logprobs)
        )
        return from_numpy(tokens).long().to(ids.device), from_numpy(logprobs).float().to(ids.device)


def with_rest(logprobs: Tensor) -> Tensor:
    """Log-probabilities `(positions, k)` and, as one more, that of everything else."""
    import torch

    rest = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=LEAST_REST).log()
    return torch.cat([logprobs, rest], -1)


def _starts(rows: Sequence[Tokens]) -> list[int]:
    """Where each row's positions begin, and where the last one's end."""
    return [0, *accumulate(sum(label != IGNORED for label in row.labels[1:]) for row in rows)]


def _padded(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> Tensor:
    from torch import tensor
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence([tensor(row) for row in rows], batch_first=True, padding_value=value).to(device)
