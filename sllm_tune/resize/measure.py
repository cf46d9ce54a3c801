"""What a step costs: size, speed, perplexity and scores of the checkpoint that it made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from sllm_tune.answer.items import kept_items, score
from sllm_tune.answer.measure import timed_loss
from sllm_tune.model.checkpoint import size_of
from sllm_tune.model.load import load_for_reading, load_tokenizer
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.recipe.evaluate import ScoredSection
from sllm_tune.runs.files import read_jsonl
from sllm_tune.tasks.encode import Encoder

if TYPE_CHECKING:
    from sllm_tune.answer.local import PackedLM

SCORED_ITEMS = 100  # of each task, after every step


def measure(
    folder: Path, base: BaseModelSection, asked: ScoredSection, run_dir: Path, *, seed: int
) -> dict[str, JsonValue]:
    """Size, speed, perplexity on validation text, and scores of one checkpoint; no scores of one read from disk.

    Args:
        folder: The checkpoint.
        base: How it is loaded.
        asked: The tasks that it answers.
        run_dir: Holds `data/` and `tasks/`.
        seed: Of the choice of items.
    """
    from sllm_tune.answer.local import PackedLM

    model = load_for_reading(str(folder), base)
    tokenizer = load_tokenizer(str(folder), base)
    encoder = Encoder(tokenizer, chat_template=base.chat_template)
    rows = read_jsonl(run_dir / "data" / "validation.jsonl") or read_jsonl(run_dir / "data" / "train.jsonl")
    texts = [encoder.supervise(row["context"], row["target"]).input_ids for row in rows[:SCORED_ITEMS]]
    loss, tokens_per_second = timed_loss(model, texts)
    in_memory = model.device.type != "meta"
    lm = PackedLM(model, tokenizer, asked.batch_size, chat_template=base.chat_template) if in_memory else None
    return {
        **size_of(model),
        "tokens_per_second": tokens_per_second,
        "perplexity": math.exp(min(loss, 700.0)),
        "scores": _scores(lm, asked, run_dir, chat_template=base.chat_template, seed=seed) if lm else {},
    }


def _scores(
    lm: PackedLM, asked: ScoredSection, run_dir: Path, *, chat_template: bool, seed: int
) -> dict[str, JsonValue]:
    """Of the domain's tasks on validation items, of the general ones on some of those that are graded."""
    made: dict[str, JsonValue] = {}
    for kind, names in (("domain", asked.domain), ("general", asked.general)):
        for name in names:
            split = "validation" if kind == "domain" else "test"
            if (task := kept_items(run_dir, name, split, SCORED_ITEMS, seed)) is None:
                continue
            rows = score(lm, task, chat_template=chat_template)
            made[name] = {"kind": kind, "value": sum(row["score"] for row in rows) / len(rows), "n": len(rows)}
    return made
