"""A few rows by which a trained model is known again: its merged checkpoint has to make the same of them.

Adapter and merged model can agree with each other and not with what was trained: both are loaded from the files, and an
initialisation that changes the base in its own way each time is another one then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from sllm_tune.errors import JobFailed
from sllm_tune.tasks.encode import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset
    from torch.nn import Module

ROWS = 8
# The mean over the rows of the absolute difference, in nats a token, and as a share of the loss. Rounding the merged
# weights to bfloat16 made 0.01 to 0.03 at a loss of 3 to 5, and 0.17 at 1.7 for a tiny random base whose weights are
# large; pissa_niter_2, with a base of its own each time, made 3.6. A weak adapter that is lost is below it.
TOLERANCE_NATS, TOLERANCE_SHARE = 0.15, 0.1


class Asked(TypedDict):
    """A row that a model is asked."""

    id: str
    input_ids: list[int]
    labels: list[int]


class Answered(Asked):
    """The row, and the mean loss of its labels."""

    nats: float


Probe = list[Answered]


def probe(model: Module, rows: Dataset) -> Probe:
    """The shortest of `rows` (`id`, `input_ids`, `labels`), each with the mean loss of its labels in nats."""
    shortest = sorted(range(len(rows)), key=lambda number: len(rows[number]["input_ids"]))[:ROWS]
    asked: list[Asked] = [
        {"id": row["id"], "input_ids": row["input_ids"], "labels": row["labels"]}
        for row in (rows[number] for number in shortest)
    ]
    return [{**row, "nats": loss} for row, loss in zip(asked, _losses(model, asked), strict=True)]


def require_same(model: Module, trained: Probe, init: object) -> None:
    """Hold a merged model against what the trained one made of the rows at the end of its training.

    Args:
        model: The merged one, in memory.
        trained: What `probe` made.
        init: The adapter's `init_lora_weights`, to be named.

    Raises:
        JobFailed: they differ by more than rounding does.
    """
    merged = _losses(model, trained)
    before = [float(row["nats"]) for row in trained]
    apart = sum(abs(ours - theirs) for ours, theirs in zip(merged, before, strict=True)) / len(before)
    if not apart <= TOLERANCE_NATS + TOLERANCE_SHARE * sum(before) / len(before):  # so written, NaN is apart
        raise JobFailed(
            f"merge: the merged model is not the one that was trained: on {len(before)} rows it loses "
            f"{sum(merged) / len(merged):.3f} nats a token, and lost {sum(before) / len(before):.3f} at the end of "
            f"training.\n  The adapter's init_lora_weights is {init}; take another one, such as true."
        )


def _losses(model: Module, rows: Sequence[Asked]) -> list[float]:
    import torch
    from torch.nn.functional import cross_entropy

    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    made: list[float] = []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"]], device=device), use_cache=False).logits[0, :-1]
            labels = torch.tensor(row["labels"][1:], device=device)
            made.append(float(cross_entropy(logits.float(), labels, ignore_index=IGNORED)))
    model.train(was_training)
    return made
