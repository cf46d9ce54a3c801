"""What was forgotten, as a user meets it: replies to everyday instructions, and how well general prose is read.

Beside multiple choice, on which a model that answers everything with a label of its domain can lose nothing.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sllm_tune.answer.general import TOGETHER, Loss, general_texts, losses, perplexity, replies
from sllm_tune.answer.instructions import Instruction, instructions, label_replies
from sllm_tune.answer.items import Graded, samples_path
from sllm_tune.answer.kept import KeptLM, Together, answers_path
from sllm_tune.evaluate.contestants import BASE, SPECIALIST, LocalModel
from sllm_tune.evaluate.plain import EverydayDict, FollowedDict, LabelsDict, ProseDict, ReplyDict
from sllm_tune.evaluate.statistics import FloatArray, IntArray, Interval, compare, mean_ci95, share_ci95
from sllm_tune.rows.read import Row
from sllm_tune.runs.files import read_jsonl, write_jsonl

NAME = "everyday_instructions"  # of their folders among those of tasks
MODELS = (SPECIALIST, BASE)
REPLIES_SHOWN = 8


def choose_instructions(limit: int | None, seed: int) -> list[Instruction]:
    """All instructions, or `limit` of them in their order, the same ones for the same seed."""
    listed = list(instructions())
    return listed if limit is None else sorted(random.Random(seed).sample(listed, limit), key=listed.index)


def labels_of(domain: Sequence[Graded], data: Path) -> set[str]:
    """What the domain's tasks are answered with, in training and in their graded items.

    Args:
        domain: The tasks.
        data: Holds `train.jsonl`.
    """
    names = {task.name for task in domain}
    trained = {str(row["label"]) for row in read_jsonl(data / "train.jsonl") if row["task"] in names}
    return trained.union(*(task.choices() for task in domain))


@dataclass(frozen=True)
class Asked:
    """What is asked of base and specialist, and where their replies are kept."""

    instructions: Sequence[Instruction]
    labels: Collection[str]
    """Of the domain."""

    scores: Path
    show_items: bool

    def keep(self, name: str, model: LocalModel) -> None:
        """Ask a model and let it read, but for what is kept already; replies are kept apart from their grades."""
        graded, prose = samples_path(self.scores, NAME, name), _prose_path(self.scores, name)
        if not graded.exists():
            print(f"evaluate: {name} on {len(self.instructions)} everyday instructions", file=sys.stderr, flush=True)
            path = answers_path(self.scores, NAME, name) if self.show_items else None
            ids = dict(enumerate(one.id for one in self.instructions))
            lm = KeptLM(path, ids, model.encoder, lambda: Together(model.lm, TOGETHER))
            said = replies(lm, model.encoder, [one.text for one in self.instructions])
            lm.keep()
            write_jsonl(graded, self.grades(said))
        if not prose.exists():
            texts = general_texts()
            read = zip(texts, losses(model.lm, texts), strict=True)
            write_jsonl(prose, [{"id": text.id, **loss._asdict()} for text, loss in read if loss is not None])

    def grades(self, said: Sequence[str]) -> list[Row]:
        """Of each reply `score`, 1 where it follows its instruction, and `label`, as `label_replies` has it."""
        as_label = label_replies(self.instructions, said, self.labels)
        return [
            {
                "id": one.id,
                "score": float(not one.failures(reply)),
                "label": label,
                "prediction": reply if self.show_items else None,
            }
            for one, reply, label in zip(self.instructions, said, as_label, strict=True)
        ]


def everyday(asked: Sequence[Instruction], scores: Path, seed: int, language: str) -> EverydayDict:
    """Every figure, from what was kept of specialist and base; a pure function of files.

    Args:
        asked: The instructions, in the order in which their grades are kept.
        scores: Holds the grades.
        seed: Of resampling.
        language: In which replies are shown first.
    """
    rows = {name: read_jsonl(samples_path(scores, NAME, name)) for name in MODELS}
    followed = {name: np.array([row["score"] for row in rows[name]]) for name in rows}
    kinds = np.unique([one.kind for one in asked], return_inverse=True)[1].astype(np.int64)
    return {
        "n": len(asked),
        "followed": {name: mean_ci95(found, kinds, seed).as_dict() for name, found in followed.items()},
        "difference": compare(followed[SPECIALIST], followed[BASE], kinds, seed).as_dict(),
        "by_language": _by_language(asked, followed),
        "labels": _labels(rows, kinds, seed),
        "prose": _prose(scores, seed),
        "replies": _shown(asked, rows, language),
    }


def losses_of(found: EverydayDict) -> dict[str, Interval]:
    """What the recipe's gate looks at, by its key: base minus specialist, and the share of labels."""
    change, collapse = found["difference"], found["labels"]["shares"][SPECIALIST]
    low, high = change["ci95"]
    return {
        "max_instruction_loss": Interval(-change["value"], (-high, -low)),
        "max_label_collapse": Interval(collapse["value"], (collapse["ci95"][0], collapse["ci95"][1])),
    }


def _by_language(asked: Sequence[Instruction], followed: Mapping[str, FloatArray]) -> dict[str, FollowedDict]:
    found: dict[str, FollowedDict] = {}
    for language in dict.fromkeys(one.language for one in asked):
        places = [place for place, one in enumerate(asked) if one.language == language]
        shares = {name: float(np.mean(scores[places])) for name, scores in followed.items()}
        found[language] = {"n": len(places), "shares": shares}
    return found


def _labels(rows: Mapping[str, list[Row]], kinds: IntArray, seed: int) -> LabelsDict:
    places = [place for place, row in enumerate(rows[BASE]) if row["label"] is not None]
    hits = {name: np.array([rows[name][place]["label"] for place in places]) for name in rows}
    return {
        "n": len(places),
        "shares": {name: share_ci95(int(sum(found)), len(places)).as_dict() for name, found in hits.items()},
        "difference": compare(hits[SPECIALIST], hits[BASE], kinds[places], seed).as_dict(),
    }


def _prose(scores: Path, seed: int) -> dict[str, ProseDict]:
    """By language; the ratio's interval is that of the mean over texts, each weighing as its tokens do."""
    kept = {name: {row.pop("id"): Loss(**row) for row in read_jsonl(_prose_path(scores, name))} for name in MODELS}
    found: dict[str, ProseDict] = {}
    for language in ("en", "ko"):
        names = [text.id for text in general_texts() if text.language == language]
        both = [name for name in names if all(name in losses_of for losses_of in kept.values())]
        if len(both) < 2:  # an interval needs two; a window of some hundred tokens does not hold the texts
            continue
        ours, base = ([kept[model][name] for name in both] for model in MODELS)
        weight = len(both) / sum(loss.tokens for loss in base)
        rise = mean_ci95(np.array([(a.nats - b.nats) * weight for a, b in zip(ours, base, strict=True)]), None, seed)
        found[language] = {
            "n": len(both),
            "base": perplexity(base, base),
            "specialised": perplexity(ours, base),
            "ratio": {"value": math.exp(rise.value), "ci95": [math.exp(bound) for bound in rise.ci95]},
        }
    return found


def _shown(asked: Sequence[Instruction], rows: Mapping[str, list[Row]], language: str) -> list[ReplyDict]:
    """Replies of both: to the first instruction of the language, to some that only the base follows, and to others."""
    if any(row["prediction"] is None for row in rows[SPECIALIST]):
        return []

    def order(place: int) -> tuple[bool, int, int]:
        lost = rows[BASE][place]["score"] - rows[SPECIALIST][place]["score"]
        return asked[place].language != language, 0 if place == first else 1, -lost

    first = next((place for place, one in enumerate(asked) if one.language == language), 0)
    places = sorted(range(len(asked)), key=order)[:REPLIES_SHOWN]
    return [
        {
            "id": asked[place].id,
            "prompt": asked[place].text,
            "specialised": rows[SPECIALIST][place]["prediction"],
            "base": rows[BASE][place]["prediction"],
            "followed": [name for name in MODELS if rows[name][place]["score"]],
        }
        for place in places
    ]


def _prose_path(scores: Path, name: str) -> Path:
    return scores / "prose" / f"{name}.jsonl"
