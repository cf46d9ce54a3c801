"""Resize: the recipe's steps, one checkpoint after the other, each measured before the next is taken."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

from pydantic import JsonValue

from sllm_tune.model.find import Base
from sllm_tune.model.lineage import base_sha256
from sllm_tune.model.steps import Steps
from sllm_tune.recipe.evaluate import ScoredSection
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.recipe.resize import Step
from sllm_tune.resize.cut import shards
from sllm_tune.resize.measure import measure
from sllm_tune.resize.source import Source
from sllm_tune.resize.steps import kind_of
from sllm_tune.run.files import write_json
from sllm_tune.run.folder import Run
from sllm_tune.run.machine import keep_freed_memory, require_free_bytes
from sllm_tune.run.processes import rank, wait_until
from sllm_tune.run.stage import Inputs, Making
from sllm_tune.tasks.of_recipe import graded_files
from sllm_tune.train.stage import examples, examples_folder


class ResizeInputs(Inputs):
    """What a base is cut by, and measured on."""

    resize: list[Step]
    base_model: Base
    evaluate: ScoredSection
    seed: int


def inputs(recipe: Recipe, base: Base, run: Run) -> ResizeInputs:
    """What resize is given of a recipe, and of what prepare made."""
    return ResizeInputs(
        resize=recipe.resize,
        base_model=base,
        evaluate=recipe.evaluate.only(ScoredSection),
        seed=recipe.seed,
        file=base.files() | examples(run, replays=recipe.data.replays_replies) | graded_files(run.dir),
    )


def resize(given: ResizeInputs, made: Making) -> dict[str, Path]:
    """Make `model/`, a plain checkpoint, out of the base, and `resize/steps.json`: what each step cut, and its price.

    A run that was cut off goes on from the last whole step. Under `accelerate launch` every process heals, and the
    first does the rest.

    Raises:
        DataError: there is no training text. ModelError: the base cannot be read.
    """
    keep_freed_memory()
    if rank() > 0:
        _help(given, made)
        return {}
    work, folder = made.work, given.base_model.checkpoint
    require_free_bytes(work, (1 + len(given.resize)) * _weight_bytes(folder), "the checkpoints of this run")
    if not (work / "base.json").exists():
        write_json(work / "base.json", {"kind": "base", **_measured(folder, given, made)})
    for number, step in enumerate(given.resize, 1):
        if not (taken := work / f"step-{number}").exists():
            _say(f"{step.kind}, step {number} of {len(given.resize)}")
            scratch = work / "making"
            shutil.rmtree(scratch, ignore_errors=True)
            started = time.monotonic()
            found = kind_of(step).take(step, _source(folder, number, given, made), scratch)
            seconds = round(time.monotonic() - started, 1)
            asked = step.model_dump(mode="json")
            measured = _measured(scratch, given, made)
            write_json(work / f"step-{number}.json", {**asked, **found, **measured, "seconds": seconds})
            os.replace(scratch, taken)
        folder = taken
    rows = [work / "base.json", *(work / f"step-{number}.json" for number in range(1, len(given.resize) + 1))]
    steps = [json.loads(row.read_text(encoding="utf-8")) for row in rows]
    record = Steps.model_validate({"steps": steps, "model_sha256": base_sha256(str(folder), None)})
    record.write(work / "steps.json")
    return {"model": folder, "resize/steps.json": work / "steps.json"}


def _help(given: ResizeInputs, made: Making) -> None:
    """What the other processes do: they heal with the first one, and wait while it does anything else."""
    folder = given.base_model.checkpoint
    for number, step in enumerate(given.resize, 1):
        taken = made.work / f"step-{number}"
        wait_until(lambda before=folder: before.exists() or made.is_finished())
        if step.kind == "distill" and not taken.exists() and not made.is_finished():
            kind_of(step).take(step, _source(folder, number, given, made), made.work / "making")
        folder = taken


def _source(folder: Path, number: int, given: ResizeInputs, made: Making) -> Source:
    base, work = given.base_model, made.work / f"heal-{number}"
    key = f"resize[{number - 1}]"
    return Source(folder, base.checkpoint, base.section, examples_folder(made), work, given.seed, key)


def _measured(folder: Path, given: ResizeInputs, made: Making) -> dict[str, JsonValue]:
    return measure(folder, given.base_model.section, given.evaluate, made.run.dir, seed=given.seed)


def _weight_bytes(folder: Path) -> int:
    return sum(shard.stat().st_size for shard in shards(folder))


def _say(line: str) -> None:
    print(f"resize: {line}", file=sys.stderr, flush=True)
