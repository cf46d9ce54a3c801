"""Evaluate: the specialist, its base and the controls answer the same items; one file holds every figure."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from sllm_tune.answer.general import TEXTS
from sllm_tune.answer.instructions import INSTRUCTIONS
from sllm_tune.answer.items import Graded, choose_items, samples_path
from sllm_tune.answer.kept import answers_path
from sllm_tune.answer.measure import measure
from sllm_tune.data.examples import shots_that_fit, too_long
from sllm_tune.evaluate.contestants import Contestant, LocalModel, controls, models
from sllm_tune.evaluate.everyday import Asked, choose_instructions, labels_of
from sllm_tune.evaluate.results import Answers, assemble, public_recipe
from sllm_tune.model.checkpoint import size_of
from sllm_tune.model.find import Base
from sllm_tune.model.load import load_encoder, scoring_dtype
from sllm_tune.recipe.evaluate import EvaluateSection
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.rows.read import Row
from sllm_tune.runs.files import fingerprint, read_jsonl, versions, write_json, write_jsonl
from sllm_tune.runs.folder import DECIDING, Run
from sllm_tune.runs.machine import Meter, keep_freed_memory
from sllm_tune.runs.stage import Inputs, Making
from sllm_tune.tasks.build import build, read_resolved
from sllm_tune.tasks.encode import Encoder
from sllm_tune.tasks.find import TaskFile
from sllm_tune.tasks.of_recipe import content, graded_files, rows_of, shipped_task, task_files

OURS = "sllm_tune/answer/"  # in front of the name of a file that comes with the package
# Inputs that change what is shown of the answers, not the answers.
SHOWN_ONLY = (
    *("name", "domain", "language", "show_items", "smoke", "evaluate.gate", "evaluate.usd"),
    *("file.data/card.json", "file.merge/agreement.json", "file.train/metrics.jsonl", "file.resize/"),
)
# Inputs that change which questions are asked and how the answers are graded, not what is answered to a question.
ASKED_ONLY = (
    *("limit_test", "seed", "evaluate.domain", "evaluate.general", "evaluate.limit_general", "evaluate.num_fewshot"),
    *("evaluate.limit_instructions", "file.tasks/", "file.data/", f"file.{OURS}{INSTRUCTIONS.name}"),
)


class EvaluateInputs(Inputs):
    """Who is compared, on what, and what the results say of it."""

    name: str
    domain: str
    language: Literal["en", "ko"]
    smoke: bool
    show_items: bool
    base_model: Base
    evaluate: EvaluateSection
    limit_test: int | None
    """Items of each domain task."""

    seed: int
    tasks: Mapping[str, TaskFile] = Field(exclude=True)
    """Those that lm-eval ships are graded in place."""

    recipe: dict[str, JsonValue] = Field(exclude=True)
    """All of it, for the reader of the results."""

    def scoring(self) -> str:
        """Fingerprint of what decides the scores."""
        return fingerprint({key: value for key, value in self.flat().items() if not key.startswith(SHOWN_ONLY)})

    def answering(self) -> str:
        """Fingerprint of what decides how a question is answered, whichever is asked."""
        named = {key: value for key, value in self.flat().items() if not key.startswith(SHOWN_ONLY + ASKED_ONLY)}
        return fingerprint({**named, "versions": [versions().get(name) for name in DECIDING]})


def inputs(recipe: Recipe, base: Base, run: Run) -> EvaluateInputs:
    """What evaluation is given of a recipe, and of what the stages before it made."""
    weights, others = (sorted((run.dir / "merged").glob(f"*.{kind}")) for kind in ("safetensors", "json"))
    names = [str(path.relative_to(run.dir)) for path in (*weights, *others)]
    names += ["data/train.jsonl", "data/validation.jsonl", "data/card.json", "train/metrics.jsonl"]
    names += ["merge/agreement.json", *(["resize/steps.json"] if recipe.resize else [])]
    tasks = task_files(recipe.task_names, recipe.data.source, recipe.folder)
    # The rows of the domain's own tasks are in tasks/.
    shipped = rows_of(task for task in tasks.values() if task.path is None)
    return EvaluateInputs(
        name=recipe.name,
        domain=recipe.domain,
        language=recipe.language,
        smoke=recipe.smoke,
        show_items=recipe.report.show_items,
        base_model=base,
        evaluate=recipe.evaluate,
        limit_test=recipe.data.limit.test,
        seed=recipe.seed,
        tasks=tasks,
        recipe=public_recipe(recipe.resolved(), base.name),
        file={f"{OURS}{path.name}": content(path) for path in (INSTRUCTIONS, TEXTS)}
        | base.files()
        | {name: content(run.dir / name) for name in names}
        | graded_files(run.dir)
        | shipped,
    )


def evaluate(given: EvaluateInputs, made: Making) -> dict[str, Path]:
    """Make `scores/`: every answer, its grade, and `results.json`.

    Each model's answers to each task are kept as soon as they are there, so an interrupted evaluation goes on from the
    first missing ones; and apart from their grades, so that another metric asks no model again.
    """
    meter = Meter()
    keep_freed_memory()
    scores, scoring = made.work / "scores", given.scoring()
    _take_up_answers(given, made)
    base = LocalModel(given.base_model.path, given.base_model.section, given.evaluate.batch_size)
    encoder = load_encoder(base.path, base.base)
    domain, general = _graded_tasks(given, made.run.dir, encoder)
    _count_test_run(made.run, scoring)
    shots = _shots(given.evaluate.num_fewshot, encoder, domain, scores)
    known = controls(made.made("data"), domain, given.seed)
    asked = Asked(
        choose_instructions(given.evaluate.limit_instructions, given.seed),
        labels_of(domain, made.made("data")),
        scores,
        given.show_items,
    )
    contestants: list[Contestant] = []
    for contestant in chain(known, models(base, made.made("merged"), domain, general, shots)):
        _keep_answers(contestant, scores, show_items=given.show_items)
        if contestant.model is not None:
            asked.keep(contestant.name, contestant.model)
        _keep_cost(contestant, scores)
        contestants.append(contestant)
    if not (scores / "cost.json").exists():  # it is there when all answers were taken up
        write_json(scores / "cost.json", meter.stop())
    cost = json.loads((scores / "cost.json").read_text(encoding="utf-8"))
    made.record.update(cost, scoring=scoring, answering=given.answering())
    answers = Answers(scores, contestants, given.seed)
    assemble(given, made.run, answers, domain, general, asked, cost).write(scores / "results.json")
    return {"scores": scores}


def _take_up_answers(given: EvaluateInputs, made: Making) -> None:
    """Start from what the finished evaluation has that this one would make again.

    All of it but the results where only the presentation changed: language, price, gate, shown items. The answers
    without their grades where other questions are asked of the same models, or other metrics grade them.
    """
    run, kept, taken = made.run, made.work / "scores", made.work / "taken"
    manifest = run.manifest("evaluate")
    if manifest is None or kept.exists() or run.intact("evaluate") or manifest.get("answering") != given.answering():
        return
    shutil.copytree(run.dir / "scores", taken, dirs_exist_ok=True)
    if manifest.get("scoring") != given.scoring():
        shutil.rmtree(taken / "samples")
        for name in ("shots.json", "cost.json"):
            (taken / name).unlink(missing_ok=True)
    for file in (taken / "samples").rglob("*.jsonl"):
        rows = read_jsonl(file)
        if not given.show_items:
            _keep(rows, file, show_items=False)
        elif any(row["prediction"] is None for row in rows):  # it was hidden, so it is asked again
            file.unlink()
    if not given.show_items:
        for file in (taken / "answers").rglob("*.jsonl"):
            if any(isinstance(row["said"], str) for row in read_jsonl(file)):
                file.unlink()
    os.replace(taken, kept)


def _keep(rows: list[Row], path: Path, *, show_items: bool) -> None:
    """Write a contestant's grades; where items are not to be shown, without the text of any."""
    if not show_items:
        rows = [{**row, "prediction": None} if isinstance(row["prediction"], str) else row for row in rows]
    write_jsonl(path, rows)


def _keep_answers(contestant: Contestant, scores: Path, *, show_items: bool) -> None:
    """Answers to every task, and the grades of those that have none yet."""
    for task in contestant.tasks:
        if not (path := samples_path(scores, task.name, contestant.name)).exists():
            is_text = task.built.OUTPUT_TYPE == "generate_until"
            answers = answers_path(scores, task.name, contestant.name) if show_items or not is_text else None
            rows, asked = contestant.answer(task, answers)
            _keep(rows, path, show_items=show_items)
            if asked and task is contestant.tasks[0]:  # the one whose items the speed is measured on
                _speed_path(scores, contestant).unlink(missing_ok=True)


def _speed_path(scores: Path, contestant: Contestant) -> Path:
    return scores / "speed" / f"{contestant.name}.json"


def _keep_cost(contestant: Contestant, scores: Path) -> None:
    """What answering costs the model that is shipped, where it is not known."""
    if contestant.model is not None and not (speed := _speed_path(scores, contestant)).exists():
        scored_in = str(scoring_dtype(contestant.model.path, contestant.model.base)).removeprefix("torch.")
        lm = contestant.model.as_shipped()
        figures = measure(lm, contestant.tasks[0], chat_template=contestant.model.base.chat_template)
        dtype = str(lm.model.dtype).removeprefix("torch.")
        write_json(speed, {**size_of(lm.model), "dtype": dtype, "scored_in": scored_in, **figures})


def _graded_tasks(given: EvaluateInputs, folder: Path, encoder: Encoder) -> tuple[list[Graded], list[Graded]]:
    def graded(name: str, limit: int | None) -> Graded:
        file = folder / "tasks" / f"{name}.yaml"
        if not file.exists():  # graded in place, so what prepare left out is left out here
            left_out = partial(too_long, encoder=encoder)
            return choose_items(name, shipped_task(given.tasks[name]), limit, [], given.seed, left_out)
        config = read_resolved(file)
        split_by: list[str] = (config.get("metadata") or {}).get("split_by", [])
        return choose_items(name, build(config, root=folder), limit, split_by, given.seed)

    domain = [graded(name, given.limit_test) for name in given.evaluate.domain]
    return domain, [graded(name, given.evaluate.limit_general) for name in given.evaluate.general]


def _count_test_run(run: Run, scoring: str) -> None:
    """Note, before the test rows are scored, that they are; every choice made on them afterwards is a leak."""
    file = run.dir / "evaluate" / "history.jsonl"
    history = read_jsonl(file) if file.exists() else []
    if all(entry["scoring"] != scoring for entry in history):
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        write_jsonl(file, [*history, {"scoring": scoring, "started_at": now}])


def _shots(asked: int, encoder: Encoder, domain: Iterable[Graded], scores: Path) -> dict[str, int]:
    """Worked examples of each task that has any: as many as were asked for, there are, and the base reads whole."""
    kept = scores / "shots.json"
    if asked and not kept.exists():
        made: dict[str, int] = {}
        for task in (task for task in domain if task.built.has_training_docs()):
            present = min(asked, len(task.built.training_docs()))
            made[task.name] = shots_that_fit(task.built, task.docs, encoder, present)
            if made[task.name] < asked:
                told = f"{made[task.name]} examples instead of {asked} in the prompt of {task.name}"
                print(f"evaluate: {told}: no more fit the base's window, or there are no more", file=sys.stderr)
        write_json(kept, made)
    return json.loads(kept.read_text(encoding="utf-8")) if asked else {}
