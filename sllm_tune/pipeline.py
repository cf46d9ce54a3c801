"""The way of a run, top to bottom: prepare, replay, resize, train, merge, evaluate, report.

Each function makes what it is named after, and before that what it needs and is missing or out of date. The same
functions are the commands of `sllm-tune`, `scripts/train.py` and a notebook's.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from sllm_tune.check import check as check
from sllm_tune.data import stage as data
from sllm_tune.deliver import merged
from sllm_tune.errors import BadInput, RecipeError
from sllm_tune.evaluate import stage as evaluation
from sllm_tune.finished import FinishedRun
from sllm_tune.model.find import Base
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.replay import stage as replaying
from sllm_tune.report import stage as reporting
from sllm_tune.resize import stage as resizing
from sllm_tune.resize.plan import plan
from sllm_tune.runs.files import write_json
from sllm_tune.runs.folder import Run, open_run
from sllm_tune.runs.machine import Meter
from sllm_tune.runs.processes import is_launched, meet, rank, require_launcher, wait_until
from sllm_tune.runs.stage import Inputs, Making
from sllm_tune.said import said_once
from sllm_tune.train import stage as training
from sllm_tune.train.assemble import require_trainable

TOGETHER = ("resize", "train")  # stages of which every process of a launcher does a part
WAITING_IS_SAID_AFTER_S = 60.0


def run(recipe: Recipe, run_dir: Path | str | None = None) -> FinishedRun:
    """Everything, from data to report.

    Args:
        recipe: What `load_recipe` or `Recipe.from_dict` gives.
        run_dir: The run folder; None is `runs/<name of the recipe>`.

    Raises:
        BadInput: before work starts.
        JobFailed: a stage began and could not be finished.
    """
    return FinishedRun(_make("report", recipe, run_dir).parent)


def prepare(recipe: Recipe, run_dir: Path | str | None = None) -> Path:
    """Splits and examples; returns the run's `data/`."""
    return _make("prepare", recipe, run_dir)


def resize(recipe: Recipe, run_dir: Path | str | None = None) -> Path:
    """The base in the size that the recipe asks for; returns the run's `model/`.

    Raises:
        RecipeError: the recipe does not resize.
    """
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


Given = TypeVar("Given", bound=Inputs)


class Stage(NamedTuple, Generic[Given]):
    """What a stage is given, what it makes of that, the artefact that it is known by, and which recipes have it."""

    inputs: Callable[[Recipe, Base, Run], Given]
    make: Callable[[Given, Making], dict[str, Path]]
    artefact: str
    is_in: Callable[[Recipe], bool] = lambda _: True


STAGES: dict[str, Stage[Any]] = {
    "prepare": Stage(lambda recipe, base, _: data.inputs(recipe, base), data.prepare, "data"),
    "replay": Stage(replaying.inputs, replaying.replay, "replay/train.jsonl", lambda r: r.data.replays_replies),
    "resize": Stage(resizing.inputs, resizing.resize, "model", lambda r: bool(r.resize)),
    "train": Stage(training.inputs, training.train, "adapter"),
    "merge": Stage(merged.inputs, merged.make_merged, "merged"),
    "evaluate": Stage(evaluation.inputs, evaluation.evaluate, "scores/results.json"),
    "report": Stage(lambda _, __, run: reporting.inputs(run), reporting.report, "report.html"),
}


def _make(last: str, recipe: Recipe, run_dir: Path | str | None) -> Path:
    require_launcher()
    folder = Path(run_dir) if run_dir is not None else Path("runs") / recipe.name
    base = Base(section=recipe.base_model, folder=recipe.folder)
    if recipe.resize:
        plan(base, recipe.resize)  # what the model cannot give is refused before anything is made
    trainable = (recipe.train, recipe.resize, recipe.seed, recipe.data.max_length)
    if is_launched() and last != "prepare":
        require_trainable(*trainable)  # every process at once: it connects them
    # Under `accelerate launch` every process comes here; the first owns the folder and makes what training needs.
    with open_run(folder, recipe.name) if rank() == 0 else contextlib.nullcontext(Run(folder)) as run:
        for name, stage in STAGES.items():
            if not stage.is_in(recipe):
                continue
            if rank() > 0 and name not in TOGETHER:
                _wait_for_first_process(run, name, lambda stage=stage: stage.inputs(recipe, base, run))
            else:
                given = stage.inputs(recipe, base, run)
                reason = run.why(name, given.flat())
                _say(f"{name}: {reason}" if reason else f"{name}: skipped, {_since(run, name)}")
                if reason and name == "prepare" and last != "prepare" and not is_launched():
                    require_trainable(*trainable)  # before minutes of work
                if reason:
                    _work(name, stage, given, run, recipe.seed)
                if rank() == 0 and (reason or name == last):  # not before: a refused run leaves what was recorded
                    write_json(run.dir / "recipe.json", recipe.resolved())
            if name == last:
                break
    return run.dir / STAGES[last].artefact


def _work(name: str, stage: Stage[Given], given: Given, run: Run, seed: int) -> None:
    """Do it, and commit what it made; input that is refused leaves no folder of work behind."""
    inputs, meter = given.flat(), Meter()
    was_there = run.work_folder(name, inputs).exists()
    made = Making(run, name, given, run.work(name, inputs))
    try:
        with said_once():
            outputs = stage.make(given, made)
    except BadInput:
        if not was_there and rank() == 0:
            shutil.rmtree(made.work, ignore_errors=True)
            with contextlib.suppress(OSError):
                made.work.parent.rmdir()
        raise
    except Exception as error:
        error.__dict__["stage"] = name  # for the message of the command line
        raise
    if rank() == 0:
        run.commit(name, inputs, outputs=outputs, seed=seed, record={**meter.stop(), **made.record})
    else:
        wait_until(made.is_finished)
    if name in TOGETHER:
        meet()


def _wait_for_first_process(run: Run, name: str, inputs: Callable[[], Inputs]) -> None:
    """Until the first process has made `name`; if it fails instead, the launcher ends this process too."""
    started = said = time.monotonic()

    def say() -> None:
        nonlocal said
        if time.monotonic() - said > WAITING_IS_SAID_AFTER_S:
            said = time.monotonic()
            waited = f"for {said - started:.0f} s for the first process to make it"
            print(f"{name}: process {rank()} has waited {waited}", file=sys.stderr, flush=True)

    wait_until(lambda: run.why(name, inputs().flat()) is None, say)


def _since(run: Run, name: str) -> str:
    manifest = run.manifest(name) or {}
    return f"nothing it depends on changed since {manifest['finished_at']}"


def _say(line: str) -> None:
    if rank() == 0:
        print(line, file=sys.stderr, flush=True)
