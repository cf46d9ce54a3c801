"""Merge: base plus adapter as one plain checkpoint, which is what ships and what is scored, held against the two."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sllm_tune.answer.items import Graded, kept_items, score
from sllm_tune.model.find import Base
from sllm_tune.model.lineage import ADAPTER_FILE, lineage_of, require_same_base
from sllm_tune.model.load import load_model, load_tokenizer, scoring_dtype
from sllm_tune.model.merge import load_adapted, merge
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.rows.read import Row
from sllm_tune.runs.files import write_json
from sllm_tune.runs.folder import Run
from sllm_tune.runs.machine import keep_freed_memory
from sllm_tune.runs.stage import Inputs, Making
from sllm_tune.tasks.of_recipe import content, graded_files
from sllm_tune.train.stage import trained

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

AGREEMENT_ITEMS = 400
ADAPTER = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", f"adapter/{ADAPTER_FILE}")


class MergeInputs(Inputs):
    """What is merged, and which validation items it is held against the adapter on."""

    base_model: Base
    """The model that the adapter was trained on."""

    tasks: list[str]
    """Tasks that were trained on, whose validation items both answer."""

    batch_size: int
    seed: int


def inputs(recipe: Recipe, base: Base, run: Run) -> MergeInputs:
    """What merging is given of a recipe, and of what the stages before it made."""
    base, files = trained(base, run, is_resized=bool(recipe.resize))
    files |= {name: content(run.dir / name) for name in (*ADAPTER, "train/probe.json")} | graded_files(run.dir)
    tasks, batch_size = recipe.data.tasks, recipe.evaluate.batch_size
    return MergeInputs(base_model=base, tasks=tasks, batch_size=batch_size, seed=recipe.seed, file=files)


def make_merged(given: MergeInputs, made: Making) -> dict[str, Path]:
    """Make `merged/`, and `merge/agreement.json`: how often it answers as the unmerged adapter does.

    Raises:
        ModelError: the adapter is of another base, or does not fit it. JobFailed: the merged model is not the trained
            one.
    """
    keep_freed_memory()
    base, adapter, work = given.base_model, made.made("adapter"), made.work
    require_same_base(adapter, base.path, base.section.revision)
    if not (work / "merged").exists():
        shutil.rmtree(work / "merging", ignore_errors=True)
        kept = made.made("train/probe.json")
        trained = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else None
        if trained is None:
            told = "the adapter was not trained here, so its merge is not compared with the end of its training"
            print(f"merge: {told}", file=sys.stderr, flush=True)
        merge(base.path, base.section, adapter, work / "merging", trained)
        write_json(work / "merging" / ADAPTER_FILE, lineage_of(adapter))
        os.replace(work / "merging", work / "merged")
    found = (kept_items(made.run.dir, name, "validation", AGREEMENT_ITEMS, given.seed) for name in given.tasks)
    tasks = [task for task in found if task]
    # Written without tasks too, so that none of an earlier merge stays.
    write_json(work / "agreement.json", _agreement(given, tasks, adapter, work / "merged") if tasks else None)
    return {"merged": work / "merged", "merge/agreement.json": work / "agreement.json"}


def _agreement(given: MergeInputs, tasks: list[Graded], adapter: Path, merged: Path) -> dict[str, float | int]:
    """How often the merged model and the unmerged adapter give the same answer to validation items."""
    from sllm_tune.answer.local import PackedLM

    base = given.base_model.section
    tokenizer = load_tokenizer(given.base_model.path, base)

    def answer(model: PreTrainedModel | PeftModel, name: str) -> list[Row]:
        lm = PackedLM(model, tokenizer, given.batch_size, chat_template=base.chat_template)
        items = sum(len(task.docs) for task in tasks)
        print(f"merge: {name} on {items} validation items", file=sys.stderr, flush=True)
        return [row for task in tasks for row in score(lm, task, chat_template=base.chat_template)]

    dtype = scoring_dtype(str(merged), base)
    answers = {"merged": answer(load_model(str(merged), base, dtype=dtype), "merged")}
    answers["adapter"] = answer(load_adapted(given.base_model.path, base, adapter, dtype=dtype), "adapter")
    pairs = list(zip(answers["merged"], answers["adapter"], strict=True))
    flipped = sum(ours["prediction"] != theirs["prediction"] for ours, theirs in pairs)
    scores = {f"{name}_score": sum(row["score"] for row in rows) / len(rows) for name, rows in answers.items()}
    return {"value": 1 - flipped / len(pairs), "n": len(pairs), "flipped": flipped, **scores}
