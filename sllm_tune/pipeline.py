"""The way of a run, top to bottom: prepare, resize, train, evaluate, report.

Each function makes what it is named after, and before that what it needs and is missing or out of date. The same
functions are the commands of `sllm-tune`, `scripts/train.py` and a notebook's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sllm_tune.errors import BadInput
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.run.files import flatten, sha256, versions, write_json
from sllm_tune.run.folder import Run, open_run
from sllm_tune.run.machine import Meter
from sllm_tune.run.processes import is_launched, rank, require_launcher, wait_until
from sllm_tune.said import said_once

Inputs = dict[str, Any]
WAITING_IS_SAID_AFTER_S = 60.0
# Warnings that say nothing to the user, each with the reason.
HARMLESS = {
    "Custom kwargs can be passed to `--metadata`": "said of every task whose rows are handed over, and ours always are",
    "`pretrained` model kwarg is not of type `str`": "the model is loaded here, and no other argument is given",
    "Passed an already-initialized model through `pretrained`": "one process scores",
}


def run(recipe: Recipe, run_dir: Path | str | None = None) -> Path:
    """Everything, from data to report; returns `report.html`."""
    return _make("report", recipe, run_dir)


def prepare(recipe: Recipe, run_dir: Path | str | None = None) -> Path:
    """Splits and examples; returns the run's `data/`."""
    return _make("prepare", recipe, run_dir)


def resize(recipe: Recipe, run_dir: Path | str | None = None) -> Path:
    """The base in the size that the recipe asks for; returns the run's `model/`.

    Raises:
        RecipeError: the recipe does not resize.
    """
    from sllm_tune.errors import RecipeError

    if not recipe.resize:
        raise RecipeError("resize: the recipe has no steps; add some, such as resize: [{kind: prune_depth, keep: 24}]")
    return _make("resize", recipe, run_dir)


def train(recipe: Recipe, run_dir: Path | str | None = None) -> Path:
    """The adapter; returns the run's `adapter/`."""
    return _make("train", recipe, run_dir)


def evaluate(recipe: Recipe, run_dir: Path | str | None = None) -> Path:
    """Every figure; returns the run's `scores/results.json`."""
    return _make("evaluate", recipe, run_dir)


def report(recipe: Recipe, run_dir: Path | str | None = None) -> Path:
    """`report.html` and `report.md`; returns the former."""
    return _make("report", recipe, run_dir)


def check(recipe: Recipe) -> str:
    """What `prepare` would make, and three examples with the supervised tokens marked; writes nothing."""
    from sllm_tune.check import check

    with said_once(HARMLESS):
        return check(recipe)


class Stage(NamedTuple):
    """What a stage depends on, what it does, and the artefact it is known by."""

    inputs: Callable[[Recipe, Run], Inputs]
    work: Callable[[Recipe, Run, Inputs], Path]
    artefact: str


def _make(last: str, recipe: Recipe, run_dir: Path | str | None) -> Path:
    require_launcher()
    folder = Path(run_dir) if run_dir is not None else Path("runs") / recipe.name
    if recipe.resize:
        from sllm_tune.resize.plan import plan

        plan(recipe)  # what the model cannot give is refused before anything is made
    if is_launched() and last != "prepare":
        _require_trainable(recipe)  # every process at once: it connects them
    # Under `accelerate launch` every process comes here; the first owns the folder and makes what training needs.
    with open_run(folder, recipe.name) if rank() == 0 else contextlib.nullcontext(Run(folder)) as run:
        for name, stage in STAGES.items():
            if name == "resize" and not recipe.resize:
                continue
            inputs = stage.inputs(recipe, run)
            if rank() > 0 and name not in ("resize", "train"):
                inputs = _wait_for_first_process(recipe, run, name, stage)
            reason = run.why(name, inputs)
            _say(f"{name}: {reason}" if reason else f"{name}: skipped, {_since(run, name)}")
            if reason:
                if name == "prepare" and last != "prepare" and not is_launched():
                    _require_trainable(recipe)  # before minutes of work
                _work(name, stage, recipe, run, inputs)
            if rank() == 0 and (reason or name == last):  # not before: a refused run leaves what was recorded
                write_json(run.dir / "recipe.json", recipe.resolved())
            if name == last:
                break
    return run.dir / STAGES[last].artefact


def _work(name: str, stage: Stage, recipe: Recipe, run: Run, inputs: Inputs) -> None:
    """Do it; input that is refused leaves no folder of work behind."""
    work = run.work_folder(name, inputs)
    was_there = work.exists()
    try:
        with said_once(HARMLESS):
            stage.work(recipe, run, inputs)
    except BadInput:
        if not was_there and rank() == 0:
            shutil.rmtree(work, ignore_errors=True)
            with contextlib.suppress(OSError):
                work.parent.rmdir()
        raise
    except Exception as error:
        error.__dict__["stage"] = name  # for the message of the command line
        raise


def _wait_for_first_process(recipe: Recipe, run: Run, name: str, stage: Stage) -> Inputs:
    """Until the first process has made `name`; if it fails instead, the launcher ends this process too."""
    started = said = time.monotonic()

    def say() -> None:
        nonlocal said
        if time.monotonic() - said > WAITING_IS_SAID_AFTER_S:
            said = time.monotonic()
            waited = f"for {said - started:.0f} s for the first process to make it"
            print(f"{name}: process {rank()} has waited {waited}", file=sys.stderr, flush=True)

    wait_until(lambda: run.why(name, stage.inputs(recipe, run)) is None, say)
    return stage.inputs(recipe, run)


def _prepare_inputs(recipe: Recipe, run: Run) -> Inputs:
    from sllm_tune.tasks.of_recipe import task_files

    tasks: Inputs = {f"file.{task.path or name}": task.sha256 for name, task in task_files(recipe).items()}
    if out := recipe.data.leave_out:
        tasks[f"file.{out}"] = _sha256(recipe.folder / os.path.expanduser(out))
    asked = recipe.evaluate.model_dump(include={"domain", "general", "limit_general"})
    sections = flatten(recipe.data.model_dump(), "data") | flatten(asked, "evaluate") | _base(recipe, "quantization")
    shown = {"report.show_items": recipe.report.show_items}  # labels in the data card
    return {**sections, "seed": recipe.seed, **shown, **tasks, **_rows(recipe)}


def _resize_inputs(recipe: Recipe, run: Run) -> Inputs:

    steps = [flatten(step.model_dump(mode="json"), f"resize[{i}]") for i, step in enumerate(recipe.resize)]
    asked = flatten(
        recipe.evaluate.model_dump(include={"domain", "general", "batch_size", "limit_general"}), "evaluate"
    )
    sections = {key: value for step in steps for key, value in step.items()}
    return {**sections, **_base(recipe), "seed": recipe.seed, **_examples(run), **asked, **_graded(run)}


def _graded(run: Run) -> Inputs:
    """The content of the tasks that models are scored on."""
    files = sorted(path for path in (run.dir / "tasks").rglob("*") if path.is_file())
    return {f"file.{path.relative_to(run.dir)}": sha256(path) for path in files}


def _examples(run: Run) -> Inputs:
    """The content of the examples that a model is cut by and trained on."""
    return {
        f"file.data/{split}.jsonl": _sha256(run.dir / "data" / f"{split}.jsonl") for split in ("train", "validation")
    }


def _resized(recipe: Recipe, run: Run) -> Inputs:
    """What identifies the model that is trained where the recipe resizes its base."""
    return {"file.resize/steps.json": _sha256(run.dir / "resize" / "steps.json")} if recipe.resize else {}


def _train_inputs(recipe: Recipe, run: Run) -> Inputs:
    sections = flatten(recipe.train.model_dump(), "train") | _base(recipe)
    return {**sections, "seed": recipe.seed, **_resized(recipe, run), **_examples(run)}


def _evaluate_inputs(recipe: Recipe, run: Run) -> Inputs:
    files = [*sorted((run.dir / "data").glob("*.json*"))]
    files += [run.dir / "adapter" / name for name in ("adapter_model.safetensors", "adapter_config.json")]
    hashes = {f"file.{path.relative_to(run.dir)}": _sha256(path) for path in files if path.is_file()} | _graded(run)
    asked = recipe.model_dump(include={"name", "domain", "language", "seed", "evaluate", "report"})
    hashes |= _resized(recipe, run)
    hashes |= _rows(recipe, only_shipped=True)  # those of a domain's own tasks are in tasks/
    return {**flatten(asked, "recipe"), **_base(recipe), "data.limit.test": recipe.data.limit.test, **hashes}


def _report_inputs(recipe: Recipe, run: Run) -> Inputs:
    results = run.dir / "scores" / "results.json"
    return {"file.scores/results.json": _sha256(results), "sllm-tune": versions().get("sllm-tune")}


def _base(recipe: Recipe, *but: str) -> Inputs:
    """The base model's section; its family only decides the path of a smoke run's model."""
    from sllm_tune.model.find import local_state

    section = flatten(recipe.base_model.model_dump(exclude={"family", *but}), "base_model")
    state = local_state(recipe.base_model, recipe.folder)
    return section | ({f"file.{recipe.base_model.path}": state} if state else {})


def _rows(recipe: Recipe, *, only_shipped: bool = False) -> Inputs:
    """The content of the tasks' local files of rows."""
    from sllm_tune.tasks.of_recipe import rows_source, task_files

    tasks = [task for task in task_files(recipe).values() if task.path is None or not only_shipped]
    found = [rows for task in tasks if (rows := rows_source(recipe, task))]
    return {f"file.{source}": _sha256(folder / os.path.expanduser(source)) for source, folder, _ in found}


def _prepare(recipe: Recipe, run: Run, inputs: Inputs) -> Path:
    from sllm_tune.data.stage import prepare

    return prepare(recipe, run, inputs)


def _resize(recipe: Recipe, run: Run, inputs: Inputs) -> Path:
    from sllm_tune.resize.stage import resize

    return resize(recipe, run, inputs)


def _require_trainable(recipe: Recipe) -> None:
    from sllm_tune.train.stage import require_trainable

    require_trainable(recipe)


def _train(recipe: Recipe, run: Run, inputs: Inputs) -> Path:
    from sllm_tune.train.stage import train

    return train(recipe, run, inputs)


def _evaluate(recipe: Recipe, run: Run, inputs: Inputs) -> Path:
    from sllm_tune.evaluate.stage import evaluate

    return evaluate(recipe, run, inputs)


def _report(recipe: Recipe, run: Run, inputs: Inputs) -> Path:
    from sllm_tune.report import write_report

    work = run.work("report", inputs)
    meter = Meter()
    write_report(run.dir / "scores" / "results.json", work)
    outputs = {name: work / name for name in ("report.html", "report.md")}
    run.commit("report", inputs, outputs=outputs, seed=recipe.seed, cost=meter.stop())
    return run.dir / "report.html"


STAGES = {
    "prepare": Stage(_prepare_inputs, _prepare, "data"),
    "resize": Stage(_resize_inputs, _resize, "model"),
    "train": Stage(_train_inputs, _train, "adapter"),
    "evaluate": Stage(_evaluate_inputs, _evaluate, "scores/results.json"),
    "report": Stage(_report_inputs, _report, "report.html"),
}


def _since(run: Run, name: str) -> str:
    manifest = run.manifest(name) or {}
    return f"nothing it depends on changed since {manifest['finished_at']}"


def _say(line: str) -> None:
    if rank() == 0:
        print(line, file=sys.stderr, flush=True)


def _sha256(path: Path) -> str | None:
    """Of a file's content, or None when it is not there yet."""
    return sha256(path) if os.path.isfile(path) else None  # not of Path, which raises for a name that is too long
