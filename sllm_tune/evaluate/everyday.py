"""What was forgotten, as a user meets it: replies to everyday instructions, and how well general prose is read.

Beside multiple choice, on which a model that answers everything with a label of its domain can lose nothing.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sllm_tune.answer.general import Loss, Together, general_texts, losses, perplexity, replies
from sllm_tune.answer.instructions import Instruction, instructions, label_replies
from sllm_tune.answer.items import samples_path
from sllm_tune.answer.kept import KeptLM, answers_path
from sllm_tune.evaluate.contestants import BASE, SPECIALIST, LocalModel
from sllm_tune.evaluate.statistics import FloatArray, IntArray, compare, mean_ci95, share_ci95
from sllm_tune.run.files import read_jsonl, write_jsonl

NAME = "everyday_instructions"  # of their folder among those of tasks
PAIRS_SHOWN = 8


@dataclass(frozen=True)
class Everyday:
    """What is asked, and which replies to it are a label of the domain."""

    asked: Sequence[Instruction]
    labels: Collection[str]
    scores: Path
    """Where answers and their grades are kept."""

    show_items: bool

    def keep(self, name: str, model: LocalModel) -> None:
        """Ask a model and let it read, but for what is kept already; answers are kept apart from their grades."""
        graded, read = samples_path(self.scores, NAME, name), self.scores / "prose" / f"{name}.jsonl"
        if not graded.exists():
            print(f"evaluate: {name} on {len(self.asked)} everyday instructions", file=sys.stderr, flush=True)
            path = answers_path(self.scores, NAME, name) if self.show_items else None
            lm = KeptLM(path, [one.id for one in self.asked], model.encoder, lambda: Together(model.lm))
            said = replies(lm, model.encoder, self.asked)
            lm.keep()
            write_jsonl(graded, self._grades(said))
        if not read.exists():
            texts = general_texts()
            found = zip(texts, losses(model.lm, texts), strict=True)
            write_jsonl(read, ({"id": text.id, **loss._asdict()} for text, loss in found if loss is not None))

    def _grades(self, said: Sequence[str]) -> list[dict[str, Any]]:
        """`score` is 1 where the instruction is followed, `label` where the reply is a label (None: one was offered)."""
        as_label = label_replies(self.asked, said, self.labels)
        return [
            {
                "id": one.id,
                "score": float(not one.failures(reply)),
                "label": label,
                "prediction": reply if self.show_items else None,
            }
            for one, reply, label in zip(self.asked, said, as_label, strict=True)
        ]


def choose_instructions(limit: int | None, seed: int) -> list[Instruction]:
    """All instructions, or `limit` of them in their order, the same ones for the same seed."""
    listed = list(instructions())
    return listed if limit is None else sorted(random.Random(seed).sample(listed, limit), key=lambda one: one.id)


def everyday(asked: Sequence[Instruction], scores: Path, seed: int, language: str) -> dict[str, Any]:
    """Every figure of it, from what was kept of the specialist and its base; a pure function of files.

    Args:
        asked: The instructions, in the order in which their grades are kept.
        scores: Holds the grades.
        seed: Of resampling.
        language: In which replies are shown first.
    """
    ours, base = (read_jsonl(samples_path(scores, NAME, name)) for name in (SPECIALIST, BASE))
    rows = {SPECIALIST: ours, BASE: base}
    followed = {name: np.array([row["score"] for row in rows[name]]) for name in rows}
    kinds = np.unique([one.kind for one in asked], return_inverse=True)[1].astype(np.int64)
    countable = [number for number, row in enumerate(ours) if row["label"] is not None]
    return {
        "n": len(asked),
        "followed": {name: mean_ci95(found, kinds, seed).as_dict() for name, found in followed.items()},
        "difference": compare(followed[SPECIALIST], followed[BASE], kinds, seed).as_dict(),
        "by_language": _by_language(asked, followed),
        "label_collapse": {
            "n": len(countable),
            **{name: share_ci95([row["label"] for row in rows[name] if row["label"] is not None]) for name in rows},
        },
        "perplexity": _perplexity(scores, seed),
        "replies": _pairs(asked, ours, base, language),
    }
