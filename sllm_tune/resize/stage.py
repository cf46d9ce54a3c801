"""Resize: the recipe's steps, one checkpoint after the other, each measured before the next is taken."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sllm_tune.answer.items import choose_items, score
from sllm_tune.answer.local import PackedLM
from sllm_tune.errors import DataError
from sllm_tune.model.checkpoint import save_plain, size_of
from sllm_tune.model.find import checkpoint_folder
from sllm_tune.model.lineage import base_sha256
from sllm_tune.model.load import load_for_reading, load_model, load_tokenizer
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.recipe.resize import Distill, Fit, PruneDepth, PruneWidth, Quantize, Step, TrimVocabulary, UpscaleDepth
from sllm_tune.resize.cut import cut_checkpoint, shards
from sllm_tune.resize.depth import prune_depth, timed_loss, upscale_depth
from sllm_tune.resize.fit import fit
from sllm_tune.resize.vocabulary import trim_vocabulary, write_tokenizer
from sllm_tune.resize.width import prune_width
from sllm_tune.run.files import read_jsonl, write_json
from sllm_tune.run.folder import Run
from sllm_tune.run.machine import Meter, keep_freed_memory, require_free_bytes
from sllm_tune.run.processes import rank, wait_until
from sllm_tune.tasks.build import build, read_resolved
from sllm_tune.tasks.encode import Encoder
from sllm_tune.train.distil import distill
from sllm_tune.train.stage import encode_rows

CALIBRATION_EXAMPLES = 128  # of the training rows; importance settles with a few thousand tokens
SCORED_ITEMS = 100  # of each task, after every step


def resize(recipe: Recipe, run: Run, inputs: dict[str, Any]) -> Path:
    """Make `model/`, a plain checkpoint, out of the base, and `resize/steps.json`: what each step cut, and its price.

    A run that was cut off goes on from the last whole step. Under `accelerate launch` every process heals, and the
    first does the rest.

    Returns:
        The run's `model/` folder.

    Raises:
        DataError: there is no training text. ModelError: the base cannot be read.
    """
    meter = Meter()
    keep_freed_memory()
    if rank() > 0:
        return _help(recipe, run, inputs)
    work = run.work("resize", inputs)
    folder = checkpoint_folder(recipe.base_model, recipe.folder)
    require_free_bytes(work, (1 + len(recipe.resize)) * _weight_bytes(folder), "the checkpoints of this run")
    if not (work / "base.json").exists():
        write_json(work / "base.json", {"kind": "base", **_measure(folder, recipe, run.dir, work)})
    for number, step in enumerate(recipe.resize, 1):
        made = work / f"step-{number}"
        if not made.exists():
            _say(f"{step.kind}, step {number} of {len(recipe.resize)}")
            scratch = work / "making"
            shutil.rmtree(scratch, ignore_errors=True)
            started = time.monotonic()
            if isinstance(step, Distill):
                teacher = checkpoint_folder(recipe.base_model, recipe.folder)
                found = distill(step, folder, teacher, scratch, recipe, run.dir / "data", work / f"heal-{number}")
            elif isinstance(step, Quantize):
                found = _quantize(step, folder, scratch, recipe)
            else:
                found = _cut(step, folder, scratch, recipe, run.dir)
            seconds = time.monotonic() - started
            asked = step.model_dump(mode="json")
            measured = _measure(scratch, recipe, run.dir, work)
            write_json(work / f"step-{number}.json", {**asked, **found, **measured, "seconds": round(seconds, 1)})
            os.replace(scratch, made)
        folder = made
    rows = [work / "base.json", *(work / f"step-{number}.json" for number in range(1, len(recipe.resize) + 1))]
    record = {"steps": [json.loads(row.read_text(encoding="utf-8")) for row in rows]}
    write_json(work / "steps.json", {**record, "model_sha256": base_sha256(str(folder), None)})
    outputs = {"model": folder, "resize/steps.json": work / "steps.json"}
    run.commit("resize", inputs, outputs=outputs, seed=recipe.seed, cost=meter.stop())
    return run.dir / "model"


def _help(recipe: Recipe, run: Run, inputs: dict[str, Any]) -> Path:
    """What the other processes do: they heal with the first one, and wait while it does anything else."""
    work, source = run.work_folder("resize", inputs), checkpoint_folder(recipe.base_model, recipe.folder)
    folder = source
    for number, step in enumerate(recipe.resize, 1):
        made = work / f"step-{number}"
        wait_until(lambda before=folder: before.exists() or run.why("resize", inputs) is None)
        if isinstance(step, Distill) and not made.exists() and run.why("resize", inputs):
            distill(step, folder, source, work / "making", recipe, run.dir / "data", work / f"heal-{number}")
        folder = made
    wait_until(lambda: run.why("resize", inputs) is None)
    return run.dir / "model"


def _cut(step: Step, source: Path, out: Path, recipe: Recipe, run_dir: Path) -> dict[str, Any]:
    """Write to `out` what a step leaves of the checkpoint in `source`; returns what it kept, and why."""
    base = recipe.base_model
    tokenizer: Any = load_tokenizer(str(source), base)
    encoder = Encoder(tokenizer, chat_template=base.chat_template)
    examples = example_text(run_dir, encoder, "train")
    texts = _calibration(examples, recipe.seed)
    if isinstance(step, TrimVocabulary):
        used = _used([*examples, *example_text(run_dir, encoder, "validation")], encoder)
        cut = trim_vocabulary(tokenizer, used, keep_first=step.keep_first, rows=_config(source).vocab_size)
        found: dict[str, Any] = {"tokens": len(cut.tokens or []), "tokens_before": len(tokenizer)}
    elif isinstance(step, PruneDepth):
        model = load_for_reading(str(source), base)
        cut, scores = prune_depth(model, texts, step.keep, step.method)
        importance = [None if math.isinf(value) else value for value in scores]
        found = {"layers": list(cut.layers or []), "importance": importance}
    elif isinstance(step, PruneWidth):
        model = load_for_reading(str(source), base)
        cut, parts = prune_width(
            model,
            texts,
            intermediate_size=step.intermediate_size,
            num_attention_heads=step.num_attention_heads,
            hidden_size=step.hidden_size,
        )
        found = {"kv_heads": cut.kv_heads, "importance_of_heads": parts["kv_heads"].tolist() if cut.kv_heads else None}
    elif isinstance(step, Fit):
        held_out = example_text(run_dir, encoder, "validation")
        used = _used([*examples, *held_out], encoder)
        cut, rows = fit(load_model(str(source), base), tokenizer, texts, held_out[:SCORED_ITEMS] or texts, used, step)
        found = {"tried": rows}
    else:
        assert isinstance(step, UpscaleDepth)
        cut = upscale_depth(_config(source).num_hidden_layers, step.overlap)
        found = {"layers": list(cut.layers or [])}
    cut_checkpoint(source, out, cut)
    write_tokenizer(tokenizer, cut, out)
    return found


def _quantize(step: Quantize, source: Path, out: Path, recipe: Recipe) -> dict[str, Any]:
    """Write the checkpoint in `source` to `out` in the bits that the step asks for."""
    base = recipe.base_model.model_copy(update={"quantization": step.quantization})
    save_plain(load_model(str(source), base, quantized=True), load_tokenizer(str(source), base), out)
    return {}


def example_text(run_dir: Path, encoder: Encoder, split: str) -> list[list[int]]:
    """Token ids of every example of a split, prompt and answer.

    Raises:
        DataError: there is no training example.
    """
    rows = encode_rows(run_dir / "data" / f"{split}.jsonl", encoder, answers_only=False)
    if not rows and split == "train":
        raise DataError("resize: there are no training examples to choose by what is kept.")
    return [row.input_ids for row in rows]


def _calibration(texts: Sequence[list[int]], seed: int) -> list[list[int]]:
    return random.Random(seed).sample(texts, min(CALIBRATION_EXAMPLES, len(texts)))


def _used(examples: Sequence[list[int]], encoder: Encoder) -> set[int]:
    """Token ids of the examples, and of what the chat template says itself, such as a default system prompt."""
    frame = encoder.render([{"role": "user", "content": "?"}]) if encoder.chat_template else ""
    return {token for ids in (*examples, encoder.harness.tok_encode(frame)) for token in ids}


def _measure(folder: Path, recipe: Recipe, run_dir: Path, work: Path) -> dict[str, Any]:
    """Size, speed, perplexity on validation text, and scores of one checkpoint; no scores of one read from disk."""
    base = recipe.base_model
    model: Any = load_for_reading(str(folder), base)
    tokenizer: Any = load_tokenizer(str(folder), base)
    encoder = Encoder(tokenizer, chat_template=base.chat_template)
    rows = read_jsonl(run_dir / "data" / "validation.jsonl") or read_jsonl(run_dir / "data" / "train.jsonl")
    texts = [encoder.supervise(row["context"], row["target"]).input_ids for row in rows[:SCORED_ITEMS]]
    loss, tokens_per_second = timed_loss(model, texts)
    in_memory = model.device.type != "meta"
    lm = PackedLM(model, tokenizer, recipe.evaluate.batch_size, chat_template=base.chat_template) if in_memory else None
    return {
        **size_of(model),
        "tokens_per_second": tokens_per_second,
        "perplexity": math.exp(min(loss, 700.0)),
        "scores": _scores(lm, recipe, run_dir, work) if lm else {},
    }


def _scores(lm: PackedLM, recipe: Recipe, run_dir: Path, work: Path) -> dict[str, dict[str, Any]]:
    """Of the domain's tasks on validation items, of the general ones on some of those that are graded."""
    made: dict[str, dict[str, Any]] = {}
    for kind, names in (("domain", recipe.evaluate.domain), ("general", recipe.evaluate.general)):
        for name in names:
            file = run_dir / "tasks" / f"{name}.yaml"
            config = read_resolved(file) if file.exists() else {}
            if not config or (kind == "domain" and "validation_split" not in config):
                continue  # lm-eval's own tasks are graded in place
            split = "validation" if kind == "domain" else "test"
            built = build({**config, "test_split": split}, root=run_dir)
            if len(built.eval_docs) < 2:
                continue  # the smallest tasks may have no validation items to spare
            graded = choose_items(name, built, SCORED_ITEMS, [], recipe.seed)
            rows = score(lm, graded, chat_template=recipe.base_model.chat_template)
            made[name] = {"kind": kind, "value": sum(row["score"] for row in rows) / len(rows), "n": len(rows)}
    return made


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def _weight_bytes(folder: Path) -> int:
    return sum(shard.stat().st_size for shard in shards(folder))


def _say(line: str) -> None:
    print(f"resize: {line}", file=sys.stderr, flush=True)
