"""`scores/results.json`: every figure that a report, a gate or a model card shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue

from sllm_tune.answer.items import Graded, samples_path
from sllm_tune.data.card import Card
from sllm_tune.evaluate.contestants import BASE, SPECIALIST, Contestant
from sllm_tune.evaluate.everyday import Asked, everyday, losses_of
from sllm_tune.evaluate.plain import TrainingDict
from sllm_tune.evaluate.schema import Results
from sllm_tune.evaluate.statistics import (
    Difference,
    FloatArray,
    Interval,
    ScorePair,
    compare,
    macro_difference,
    mean_ci95,
)
from sllm_tune.evaluate.verdict import gate, verdict
from sllm_tune.model.lineage import lineage_of
from sllm_tune.rows.read import Row
from sllm_tune.runs.files import read_jsonl, versions
from sllm_tune.runs.folder import Run
from sllm_tune.runs.machine import describe
from sllm_tune.wording import without_secrets

if TYPE_CHECKING:
    from sllm_tune.evaluate.stage import EvaluateInputs

FLIPS_SHOWN = 10


@dataclass(frozen=True)
class Answers:
    """What was answered, by whom: kept scores, compared under one seed."""

    folder: Path
    contestants: Sequence[Contestant]
    seed: int

    @property
    def controls(self) -> list[Contestant]:
        """All but the specialist and its base."""
        return [one for one in self.contestants if one.name not in (SPECIALIST, BASE)]

    def names(self, task: Graded) -> list[str]:
        """Who answered a task: the specialist first, then its base, then the others."""
        names = [SPECIALIST, BASE, *(one.name for one in self.controls)]
        return [name for name in names if samples_path(self.folder, task.name, name).exists()]

    def rows(self, task: Graded, name: str) -> list[Row]:
        """The answers of one contestant, item by item."""
        return read_jsonl(samples_path(self.folder, task.name, name))

    def scores(self, task: Graded, name: str) -> FloatArray:
        """Of each item."""
        return np.array([row["score"] for row in self.rows(task, name)])

    def interval(self, task: Graded, name: str) -> Interval:
        """The mean score."""
        return mean_ci95(self.scores(task, name), task.groups, self.seed)

    def difference(self, task: Graded, ours: str, theirs: str) -> Difference:
        """Ours minus theirs, or the other way round for a metric that is better when lower: positive is better."""
        pair = (ours, theirs) if task.higher_is_better else (theirs, ours)
        first, second = (self.scores(task, name) for name in pair)
        return compare(first, second, task.groups, self.seed)

    def macro(self, tasks: Sequence[Graded], ours: str, theirs: str) -> Difference:
        """The mean difference over tasks, each of the same weight."""
        pairs: list[ScorePair] = []
        for task in tasks:
            first, second = (ours, theirs) if task.higher_is_better else (theirs, ours)
            pairs.append((self.scores(task, first), self.scores(task, second), task.groups))
        return macro_difference(pairs, self.seed)


def assemble(
    given: EvaluateInputs,
    run: Run,
    answers: Answers,
    domain: Sequence[Graded],
    general: Sequence[Graded],
    asked: Asked,
    cost: Mapping[str, float | None],
) -> Results:
    """All figures of a run, from the answers that were kept; a pure function of files."""
    test_runs = len(read_jsonl(run.dir / "evaluate" / "history.jsonl"))
    shown = answers if given.show_items else None
    tasks = {task.name: _task(answers, task, "domain", test_runs, shown) for task in domain}
    tasks |= {task.name: _task(answers, task, "general", test_runs, None) for task in general}
    having = {one.name: [task for task in domain if one.name in answers.names(task)] for one in answers.controls}
    controls = {name: answers.macro(those, SPECIALIST, name) for name, those in having.items() if those}
    lacking = {name: [task.name for task in domain if task not in those] for name, those in having.items()}
    forgetting: Interval | None = None
    if general:
        lost = answers.macro(general, BASE, SPECIALIST)
        forgetting = Interval(lost.value, lost.ci95)
    gains = {task.name: answers.difference(task, SPECIALIST, BASE) for task in domain}
    met = everyday(asked.instructions, answers.folder, given.seed, given.language)
    losses = {"max_forgetting": forgetting, **losses_of(met)}
    limits = given.evaluate.gate
    agreement, steps = run.dir / "merge" / "agreement.json", run.dir / "resize" / "steps.json"
    found: dict[str, object] = {
        "smoke": given.smoke,
        "name": given.name,
        "domain": given.domain,
        "language": given.language,
        "made_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "models": _models(given, answers, controls),
        "tasks": tasks,
        "verdict": verdict(
            answers.macro(domain, SPECIALIST, BASE), controls, {name: those for name, those in lacking.items() if those}
        ),
        "forgetting": forgetting.as_dict() if forgetting else None,
        "everyday": met,
        "merge_agreement": _read(agreement),
        "gate": gate(limits, gains, losses, given.language) if limits else None,
        "data": public(_read(run.dir / "data" / "card.json")),
        "training": _training(run),
        "resize": _object(_read(steps))["steps"] if "resize/steps.json" in given.file else None,
        "lineage": lineage_of(run.dir / "adapter"),
        "recipe": given.recipe,
        "versions": versions(),
        "hardware": describe(),
        "seconds": {**{stage: _seconds(run, stage) for stage in ("prepare", "train")}, "evaluate": cost["seconds"]},
    }
    return Results.model_validate(found)


def _task(answers: Answers, task: Graded, kind: str, test_runs: int, shown: Answers | None) -> dict[str, object]:
    found = answers.names(task)
    return {
        "kind": kind,
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "n": len(task.docs),
        "test_runs": test_runs,
        "scores": {name: answers.interval(task, name).as_dict() for name in found},
        "differences": {
            f"{SPECIALIST} vs {name}": answers.difference(task, SPECIALIST, name).as_dict()
            for name in found
            if name != SPECIALIST
        },
        "flips": _flips(task, shown) if shown else [],
    }


def _models(given: EvaluateInputs, answers: Answers, controls: Mapping[str, Difference]) -> dict[str, object]:
    """Size, speed and cost of the two models; the controls leave out what means nothing for them."""
    models: dict[str, object] = {}
    for name, path in ((SPECIALIST, "merged"), (BASE, given.base_model.name)):
        figures = _object(_read(answers.folder / "speed" / f"{name}.json"))
        price, tokens_per_hour = given.evaluate.usd_per_hour, _number(figures["tokens_per_second"]) * 3600
        usd = None if price is None else price / tokens_per_hour * 1e6
        models[name] = {"path": path, **figures, "usd_per_million_tokens": usd}
    return models | {one.name: dict(one.about) for one in answers.controls if one.name in controls}


def _flips(task: Graded, answers: Answers) -> list[dict[str, str]]:
    """Items that base and specialist answer differently: as many improved as spoiled ones, where there are both."""
    base, ours = answers.rows(task, BASE), answers.rows(task, SPECIALIST)
    differing = [i for i, (a, b) in enumerate(zip(base, ours, strict=True)) if a["prediction"] != b["prediction"]]
    improved = [i for i in differing if ours[i]["score"] > base[i]["score"]]
    others = [i for i in differing if ours[i]["score"] <= base[i]["score"]]
    half = FLIPS_SHOWN // 2
    n_improved = max(half, FLIPS_SHOWN - len(others))
    shown = [*improved[:n_improved], *others[: FLIPS_SHOWN - min(len(improved), n_improved)]]
    items = task.items()
    return [
        {
            "id": ours[i]["id"],
            "prompt": items[i]["prompt"],
            "target": items[i]["label"],
            BASE: task.answer(i, base[i]["prediction"]),
            SPECIALIST: task.answer(i, ours[i]["prediction"]),
        }
        for i in shown
    ]


def _training(run: Run) -> TrainingDict:
    """Loss curves and the extent of the training, from its log."""
    log = read_jsonl(run.dir / "train" / "metrics.jsonl")
    manifest = run.manifest("train")
    replayed = Card.read(run.dir / "data" / "card.json", "prepare").replayed
    return {
        "loss": [{"step": row["step"], "loss": row["loss"]} for row in log if "loss" in row],
        "validation_loss": [{"step": row["step"], "loss": row["eval_loss"]} for row in log if "eval_loss" in row],
        "examples": len(read_jsonl(run.dir / "data" / "train.jsonl")) + (replayed.replies if replayed else 0),
        "seconds": manifest.get("seconds") if manifest else None,
        "world_size": manifest.get("world_size") if manifest else None,
    }


def _read(path: Path) -> JsonValue:
    return json.loads(path.read_text(encoding="utf-8"))


def _seconds(run: Run, stage: str) -> float | None:
    manifest = run.manifest(stage)
    return manifest.get("seconds") if manifest else None


def public_recipe(resolved: Mapping[str, JsonValue], base: str) -> dict[str, JsonValue]:
    """A resolved recipe without local paths and without what gives access to anything.

    Args:
        resolved: As `Recipe.resolved` has it.
        base: The base model, as artefacts name it.
    """
    given = _object(resolved["data"])
    shown: JsonValue = {task: Path(str(source)).name for task, source in _object(given["source"]).items()}
    out = given["leave_out"]
    data: JsonValue = {**given, "source": shown, "leave_out": None if out is None else Path(str(out)).name}
    base_model: JsonValue = {**_object(resolved["base_model"]), "path": base}
    return _public_object({**resolved, "base_model": base_model, "data": data})


def _object(value: JsonValue) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        raise TypeError(f"an object belongs there, not {value!r}")
    return value


def _number(value: JsonValue) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"a number belongs there, not {value!r}")
    return value


def _public_object(values: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {key: public(inner) for key, inner in values.items()}


def public(value: JsonValue) -> JsonValue:
    """A value in which every local path is only its last part, and no address has a password or token."""
    if isinstance(value, dict):
        return _public_object(value)
    if isinstance(value, list):
        return [public(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if PureWindowsPath(value).drive and "://" not in value:
        return PureWindowsPath(value).name
    if value.startswith(("/", "~", "./", "../", "file:")):
        return PurePosixPath(value).name
    return without_secrets(value)
