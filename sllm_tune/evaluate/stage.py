"""Evaluate: the specialist, its base and the controls answer the same items; one file holds every figure."""

from __future__ import annotations

import json
import os
import shutil
import sys
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from sllm_tune.answer.items import Graded, choose_items, measure, samples_path, score
from sllm_tune.data.examples import shots_that_fit, too_long
from sllm_tune.evaluate.controls import majority, tfidf
from sllm_tune.evaluate.results import assemble
from sllm_tune.model.checkpoint import size_of
from sllm_tune.model.find import find_base, trained_base
from sllm_tune.model.lineage import ADAPTER_FILE, lineage_of, require_same_base
from sllm_tune.model.load import load_encoder, load_model, load_tokenizer
from sllm_tune.model.merge import load_adapted, merge
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.rows.read import Row
from sllm_tune.run.files import fingerprint, read_jsonl, write_json, write_jsonl
from sllm_tune.run.folder import Run
from sllm_tune.run.machine import Meter, keep_freed_memory
from sllm_tune.tasks.build import build, read_resolved
from sllm_tune.tasks.encode import Encoder
from sllm_tune.tasks.of_recipe import shipped_task

AGREEMENT_ITEMS = 400
# Inputs that change what is shown of the answers, not the answers.
SHOWN_ONLY = (
    *(f"recipe.{key}" for key in ("name", "domain", "language", "report", "evaluate.gate", "evaluate.usd")),
    "file.data/card.json",
)


def evaluate(recipe: Recipe, run: Run, inputs: dict[str, Any]) -> Path:
    """Make `merged/` (what would be shipped, and what is scored) and `scores/`.

    Each model's answers to each task are kept as soon as they are there, so an interrupted evaluation goes on from the
    first missing ones.

    Returns:
        The run's `scores/results.json`.
    """
    meter = Meter()
    keep_freed_memory()
    work = run.work("evaluate", inputs)
    scores = work / "scores"
    scoring = fingerprint({key: value for key, value in inputs.items() if not key.startswith(SHOWN_ONLY)})
    _take_up_answers(recipe, run, work, scoring)
    path = find_base(recipe.base_model, recipe.folder)
    own = trained_base(recipe, run.dir)
    require_same_base(run.dir / "adapter", own, recipe.base_model.revision)
    if not (work / "merged").exists():
        shutil.rmtree(work / "merging", ignore_errors=True)
        kept = run.dir / "train" / "probe.json"
        trained = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else None
        if trained is None:
            told = "the adapter was not trained here, so its merge is not compared with the end of its training"
            print(f"evaluate: {told}", file=sys.stderr, flush=True)
        merge(own, recipe.base_model, run.dir / "adapter", work / "merging", trained)
        write_json(work / "merging" / ADAPTER_FILE, lineage_of(run.dir / "adapter"))
        os.replace(work / "merging", work / "merged")
    domain, general = _graded_tasks(recipe, run.dir, load_encoder(path, recipe.base_model))
    _count_test_run(run, scoring)
    _score_controls(recipe, run.dir, domain, scores)
    _score_model("base", path, recipe, scores, domain, general)
    _score_model("specialised", str(work / "merged"), recipe, scores, domain, general)
    _measure_agreement(recipe, run.dir, work, own)
    if not (scores / "cost.json").exists():  # it is there when the answers were taken up
        write_json(scores / "cost.json", meter.stop())
    cost = json.loads((scores / "cost.json").read_text(encoding="utf-8"))
    write_json(scores / "results.json", assemble(recipe, run, scores, domain, general, cost))
    outputs = {"merged": work / "merged", "scores": scores}
    run.commit("evaluate", inputs, outputs=outputs, seed=recipe.seed, cost=cost, scoring=scoring)
    return run.dir / "scores" / "results.json"


def _take_up_answers(recipe: Recipe, run: Run, work: Path, scoring: str) -> None:
    """Start from the finished answers when only their presentation changed: language, price, gate, shown items."""
    manifest = run.manifest("evaluate")
    if manifest is None or manifest["scoring"] != scoring or (work / "scores").exists() or run.intact("evaluate"):
        return
    shutil.copytree(run.dir / "merged", work / "merged", copy_function=os.link, dirs_exist_ok=True)
    shutil.copytree(run.dir / "scores", work / "taken", dirs_exist_ok=True)
    for file in (work / "taken" / "samples").rglob("*.jsonl"):
        rows = read_jsonl(file)
        if not recipe.report.show_items:
            _keep(rows, file, recipe)
        elif any(row["prediction"] is None for row in rows):  # it was hidden, so it is asked again
            file.unlink()
    os.replace(work / "taken", work / "scores")


def _keep(rows: list[Row], path: Path, recipe: Recipe) -> None:
    """Write a model's answers; where items are not to be shown, without the text of any."""
    if not recipe.report.show_items:
        rows = [{**row, "prediction": None} if isinstance(row["prediction"], str) else row for row in rows]
    write_jsonl(path, rows)


def _graded_tasks(recipe: Recipe, folder: Path, encoder: Encoder) -> tuple[list[Graded], list[Graded]]:
    def graded(name: str, limit: int | None) -> Graded:
        file = folder / "tasks" / f"{name}.yaml"
        if not file.exists():  # graded in place, so what prepare left out is left out here
            left_out = partial(too_long, encoder=encoder)
            return choose_items(name, shipped_task(recipe, name), limit, [], recipe.seed, left_out)
        config = read_resolved(file)
        split_by: list[str] = (config.get("metadata") or {}).get("split_by", [])
        return choose_items(name, build(config, root=folder), limit, split_by, recipe.seed)

    domain = [graded(name, recipe.data.limit.test) for name in recipe.evaluate.domain]
    return domain, [graded(name, recipe.evaluate.limit_general) for name in recipe.evaluate.general]


def _count_test_run(run: Run, scoring: str) -> None:
    """Note, before the test rows are scored, that they are; every choice made on them afterwards is a leak."""
    file = run.dir / "evaluate" / "history.jsonl"
    history = read_jsonl(file) if file.exists() else []
    if all(entry["scoring"] != scoring for entry in history):
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        write_jsonl(file, [*history, {"scoring": scoring, "started_at": now}])


def _score_controls(recipe: Recipe, folder: Path, domain: list[Graded], scores: Path) -> None:
    """Majority answer and TF-IDF on the specialist's own training rows, for tasks whose answers are choices."""
    rows = {split: read_jsonl(folder / "data" / f"{split}.jsonl") for split in ("train", "validation")}
    for task in domain:
        train, validation = ([row for row in rows[s] if row["task"] == task.name] for s in ("train", "validation"))
        if not train or task.built.OUTPUT_TYPE != "multiple_choice":
            continue
        if samples_path(scores, task.name, "tfidf").exists():
            continue
        items = task.items()
        texts, labels = [row["prompt"] for row in train], [row["label"] for row in train]
        answers = {
            "majority": majority(labels, items),
            "tfidf": tfidf(
                texts,
                labels,
                [item["prompt"] for item in items],
                seed=recipe.seed,
                validation_texts=[row["prompt"] for row in validation],
                validation_targets=[row["label"] for row in validation],
            ),
        }
        for name, predicted in answers.items():
            # As the models are judged: right is any of the right answers.
            kept = [{"score": float(p in i["right"]), "prediction": p} for p, i in zip(predicted, items, strict=True)]
            _keep(kept, samples_path(scores, task.name, name), recipe)


def _score_model(
    name: str, path: str, recipe: Recipe, scores: Path, domain: list[Graded], general: list[Graded]
) -> None:
    """Answers of one model to every task that has none yet, and its speed; the base also answers with shots."""
    asked = [(task, name, 0) for task in [*domain, *general]]
    if name == "base" and recipe.evaluate.num_fewshot:
        shots = _shots(path, recipe, domain, scores)
        asked += [(task, "base_fewshot", shots[task.name]) for task in domain if shots.get(task.name)]
    missing = [entry for entry in asked if not samples_path(scores, entry[0].name, entry[1]).exists()]
    speed = scores / "speed" / f"{name}.json"
    if not missing and speed.exists():
        return
    from sllm_tune.answer.local import PackedLM

    base = recipe.base_model
    model = load_model(path, base)
    lm = PackedLM(model, load_tokenizer(path, base), recipe.evaluate.batch_size, chat_template=base.chat_template)
    for task, kept_as, shots in missing:
        print(f"evaluate: {kept_as} on {task.name}, {len(task.docs)} items", file=sys.stderr, flush=True)
        rows = score(lm, task, chat_template=base.chat_template, num_fewshot=shots)
        _keep(rows, samples_path(scores, task.name, kept_as), recipe)
    if not speed.exists():
        figures = measure(lm, domain[0], chat_template=base.chat_template)
        size = {**size_of(model), "dtype": str(model.dtype).removeprefix("torch.")}
        write_json(speed, {**size, **figures})


def _shots(path: str, recipe: Recipe, domain: list[Graded], scores: Path) -> dict[str, int]:
    """Worked examples of each task that has any: as many as were asked for, there are, and the base reads whole."""
    kept = scores / "shots.json"
    if not kept.exists():
        encoder, asked = load_encoder(path, recipe.base_model), recipe.evaluate.num_fewshot
        made: dict[str, int] = {}
        for task in (task for task in domain if task.built.has_training_docs()):
            made[task.name] = shots_that_fit(
                task.built, task.docs, encoder, min(asked, len(task.built.training_docs()))
            )
            if made[task.name] < asked:
                told = f"{made[task.name]} examples instead of {asked} in the prompt of {task.name}"
                print(f"evaluate: {told}: no more fit the base's window, or there are no more", file=sys.stderr)
        write_json(kept, made)
    return json.loads(kept.read_text(encoding="utf-8"))


def _measure_agreement(recipe: Recipe, folder: Path, work: Path, path: str) -> None:
    """How often the merged model and the unmerged adapter give the same answer to validation items."""
    kept = work / "scores" / "agreement.json"
    tasks = _validation_tasks(recipe, folder, work)
    if kept.exists() or not tasks:
        return
    from sllm_tune.answer.local import PackedLM

    base = recipe.base_model
    tokenizer = load_tokenizer(path, base)

    def answer(model: Any, name: str) -> list[Row]:
        lm = PackedLM(model, tokenizer, recipe.evaluate.batch_size, chat_template=base.chat_template)
        items = sum(len(task.docs) for task in tasks)
        print(f"evaluate: {name} on {items} validation items", file=sys.stderr, flush=True)
        return [row for task in tasks for row in score(lm, task, chat_template=base.chat_template)]

    merged = str(work / "merged")
    answers = {"merged": answer(load_model(merged, base), "merged")}
    adapted = load_adapted(path, base, folder / "adapter")
    answers["adapter"] = answer(adapted, "adapter")
    pairs = list(zip(answers["merged"], answers["adapter"], strict=True))
    flipped = sum(ours["prediction"] != theirs["prediction"] for ours, theirs in pairs)
    agreement = {"value": 1 - flipped / len(pairs), "n": len(pairs), "flipped": flipped}
    agreement |= {f"{name}_score": sum(row["score"] for row in rows) / len(rows) for name, rows in answers.items()}
    write_json(kept, agreement)


def _validation_tasks(recipe: Recipe, folder: Path, work: Path) -> list[Graded]:
    tasks: list[Graded] = []
    for name in recipe.data.tasks:
        file = folder / "tasks" / f"{name}.yaml"
        config = read_resolved(file) if file.exists() else {}
        if "validation_split" in config:
            built = build({**config, "test_split": "validation"}, root=folder)
            if len(built.eval_docs) >= 2:
                tasks.append(choose_items(name, built, AGREEMENT_ITEMS, [], recipe.seed))
    return tasks
