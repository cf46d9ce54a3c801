"""Replay: the base replies to everyday instructions, and the specialist learns its own replies beside the domain.

A model that learns nothing but labels soon answers everything with one; what it is shown of its own way to reply keeps
it. Source: Yang et al. 2024, "Self-distillation bridges distribution gap in language model fine-tuning",
arXiv:2402.13669, for teaching a model in its own words; Robins 1995, Connection Science 7(2), for rehearsing what the
model itself says in place of data that is not there (pseudo-rehearsal).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import Field

from sllm_tune.answer.general import MAX_NEW_TOKENS, TOGETHER, prompt_of, replies
from sllm_tune.answer.kept import Together
from sllm_tune.answer.rules import is_degenerate, tidy
from sllm_tune.data.card import Card
from sllm_tune.errors import DataError
from sllm_tune.model.find import Base
from sllm_tune.model.load import load_model, load_tokenizer
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.rows.read import Row
from sllm_tune.runs.files import read_jsonl, write_jsonl
from sllm_tune.runs.folder import Run
from sllm_tune.runs.machine import keep_freed_memory
from sllm_tune.runs.stage import Inputs, Making
from sllm_tune.tasks.of_recipe import content

if TYPE_CHECKING:
    from sllm_tune.answer.local import PackedLM

INSTRUCTIONS = Path(__file__).with_name("instructions.yaml")
TASK = "everyday"  # of the rows, in place of a task's name
# Drawn from what the base predicts, not the likeliest: on average that is the divergence of the specialist from the
# base, where the likeliest alone would teach it to be surer than the base is.
TEMPERATURE = 1.0


class ReplayInputs(Inputs):
    """Whose replies are learned, and beside what."""

    base_model: Base
    replies: int
    max_length: int
    """Tokens of an instruction and its reply, at most."""

    seed: int
    batch_size: int = Field(exclude=True)


def inputs(recipe: Recipe, base: Base, run: Run) -> ReplayInputs:
    """What replay is given of a recipe, and of what prepare made.

    Raises:
        ValueError: the recipe replays no replies.
    """
    if recipe.data.replay is None or recipe.data.replay.replies is None:
        raise ValueError("the recipe replays no replies")
    names = ["data/card.json", *(f"data/{split}.jsonl" for split in ("train", "validation"))]
    ours = {f"sllm_tune/replay/{INSTRUCTIONS.name}": content(INSTRUCTIONS)}
    return ReplayInputs(
        base_model=base,
        replies=recipe.data.replay.replies,
        max_length=recipe.data.max_length,
        seed=recipe.seed,
        batch_size=recipe.evaluate.batch_size,
        file=ours | base.files() | {name: content(run.dir / name) for name in names},
    )


def replay(given: ReplayInputs, made: Making) -> dict[str, Path]:
    """Make `replay/train.jsonl`, the training examples with the base's replies among them, and `validation.jsonl`.

    Replies that are empty or go in circles are left out, and so are those that `data.max_length` does not hold.

    Raises:
        DataError: none is left. ModelError: the base cannot be loaded.
    """
    card = Card.read(made.made("data/card.json"), "prepare")
    wanted = card.replayed.replies if card.replayed else 0
    asked = choose(given.replies, given.seed)
    print(f"replay: the base replies to {len(asked)} everyday instructions", file=sys.stderr, flush=True)
    found = list(_examples(asked, given))
    if not found:
        raise DataError(
            f"data.replay.replies: none of the base's {len(asked)} replies can be learned: they are empty, go in "
            f"circles, or are longer than data.max_length {given.max_length}.\n"
            "  Raise data.max_length, or name tasks in data.replay.tasks instead."
        )
    made.record.update(replies=wanted, different_replies=min(wanted, len(found)))
    rows = [*read_jsonl(made.made("data/train.jsonl")), *islice(cycle(found), wanted)]
    random.Random(given.seed).shuffle(rows)
    write_jsonl(made.work / "train.jsonl", rows)
    write_jsonl(made.work / "validation.jsonl", read_jsonl(made.made("data/validation.jsonl")))
    return {f"replay/{name}": made.work / name for name in ("train.jsonl", "validation.jsonl")}


def choose(n: int, seed: int) -> list[tuple[str, str]]:
    """Ids and texts of `n` instructions in a seeded order; all of them come before one comes again."""
    listed = yaml.safe_load(INSTRUCTIONS.read_text(encoding="utf-8"))
    known = [(f"{language}-{number:03}", text) for language in listed for number, text in enumerate(listed[language])]
    random.Random(seed).shuffle(known)
    return list(islice(cycle(known), n))


def _examples(asked: list[tuple[str, str]], given: ReplayInputs) -> Iterator[Row]:
    """The replies as training examples. One that was cut off at `MAX_NEW_TOKENS` is not taught to stop there."""
    lm = _load(given)
    said = _replies(lm, [text for _, text in asked], given.seed)
    for number, ((name, text), reply) in enumerate(zip(asked, said, strict=True)):
        written = len(lm.tok_encode(reply, add_special_tokens=False))
        stops = written < 0.9 * MAX_NEW_TOKENS  # read again it may be a few tokens less than it was written in
        context = prompt_of(lm.encoder, text)
        tokens = len(lm.encoder.supervise(context, reply, stops=stops).input_ids) if reply else 0
        if is_degenerate(tidy(reply)) or tokens > given.max_length:
            continue
        shown: Row = {"id": f"{TASK}-{name}-{number}", "task": TASK, "prompt": text, "context": context}
        yield {**shown, "target": reply, "label": reply, "tokens": tokens, "stops": stops}


def _load(given: ReplayInputs) -> PackedLM:
    from sllm_tune.answer.local import PackedLM

    keep_freed_memory()
    path, base = given.base_model.path, given.base_model.section
    model, tokenizer = load_model(path, base), load_tokenizer(path, base)
    return PackedLM(model, tokenizer, given.batch_size, chat_template=base.chat_template)


def _replies(lm: PackedLM, said: list[str], seed: int) -> list[str]:
    import torch

    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        found = replies(Together(lm, TOGETHER), lm.encoder, said, temperature=TEMPERATURE)
    return [reply.rstrip("\N{REPLACEMENT CHARACTER}") for reply in found]  # half a character, where it was cut off
