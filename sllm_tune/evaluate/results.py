"""`scores/results.json`: every figure that a report, a gate or a model card shows."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from sllm_tune.answer.items import Graded, samples_path
from sllm_tune.evaluate.statistics import (
    Difference,
    FloatArray,
    Interval,
    compare,
    gate,
    macro_difference,
    mean_ci95,
    verdict,
)
from sllm_tune.model.find import public_name
from sllm_tune.model.lineage import lineage_of
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.run.files import read_jsonl, versions
from sllm_tune.run.folder import Run
from sllm_tune.run.machine import describe
from sllm_tune.wording import without_secrets

CONTROLS = ("majority", "tfidf", "base_fewshot")
MODELS = ("specialised", "base", *CONTROLS)
FLIPS_SHOWN = 10


def assemble(
    recipe: Recipe,
    run: Run,
    scores: Path,
    domain: list[Graded],
    general: list[Graded],
    cost: dict[str, float | None],
) -> dict[str, Any]:
    """All figures of a run, from the answers kept in `scores`; a pure function of files."""
    agreement = scores / "agreement.json"
    test_runs = len(read_jsonl(run.dir / "evaluate" / "history.jsonl"))
    tasks = {task.name: _task(recipe, task, "domain", scores, test_runs) for task in domain}
    tasks |= {task.name: _task(recipe, task, "general", scores, test_runs) for task in general}
    gain = _macro([(task, "specialised", "base") for task in domain], scores, recipe.seed)
    having = {name: [task for task in domain if samples_path(scores, task.name, name).exists()] for name in CONTROLS}
    controls = {
        name: _macro([(task, "specialised", name) for task in those], scores, recipe.seed)
        for name, those in having.items()
        if those
    }
    lacking = {name: [task.name for task in domain if task not in those] for name, those in having.items()}
    gains = {
        task.name: _difference(task, _scores(scores, task, "specialised"), _scores(scores, task, "base"), recipe.seed)
        for task in domain
    }
    forgetting: Interval | None = None
    if general:
        lost = _macro([(task, "base", "specialised") for task in general], scores, recipe.seed)
        forgetting = Interval(lost.value, lost.ci95)
    limits = recipe.evaluate.gate
    return {
        "schema": 2,
        "smoke": recipe.smoke,
        "name": recipe.name,
        "domain": recipe.domain,
        "language": recipe.language,
        "made_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "models": _models(recipe, scores, controls),
        "tasks": tasks,
        "verdict": verdict(gain, controls, {name: tasks for name, tasks in lacking.items() if tasks}),
        "forgetting": forgetting.as_dict() if forgetting else None,
        "merge_agreement": _read(agreement) if agreement.exists() else None,
        "gate": gate(limits.min_gain, limits.max_forgetting, gains, forgetting, recipe.language) if limits else None,
        "data": _public(_read(run.dir / "data" / "card.json")),
        "training": _training(run),
        "resize": _read(run.dir / "resize" / "steps.json")["steps"] if recipe.resize else None,
        "lineage": lineage_of(run.dir / "adapter"),
        "recipe": public_recipe(recipe),
        "versions": versions(),
        "hardware": describe(),
        "seconds": {**{stage: _seconds(run, stage) for stage in ("prepare", "train")}, "evaluate": cost["seconds"]},
    }


def _task(recipe: Recipe, task: Graded, kind: str, scores: Path, test_runs: int) -> dict[str, Any]:
    found = [name for name in MODELS if samples_path(scores, task.name, name).exists()]
    values = {name: _scores(scores, task, name) for name in found}
    flips = _flips(task, scores) if kind == "domain" and recipe.report.show_items else []
    return {
        "kind": kind,
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "n": len(task.docs),
        "test_runs": test_runs,
        "scores": {name: mean_ci95(values[name], task.groups, recipe.seed).as_dict() for name in found},
        "differences": {
            f"specialised vs {name}": _difference(task, values["specialised"], values[name], recipe.seed).as_dict()
            for name in found
            if name != "specialised"
        },
        "flips": flips,
    }


def _scores(scores: Path, task: Graded, model: str) -> FloatArray:
    return np.array([row["score"] for row in read_jsonl(samples_path(scores, task.name, model))])


def _difference(task: Graded, ours: FloatArray, theirs: FloatArray, seed: int) -> Difference:
    """Ours minus theirs, or the other way round for a metric that is better when lower: positive is better."""
    pair = (ours, theirs) if task.higher_is_better else (theirs, ours)
    return compare(*pair, task.groups, seed)


def _macro(compared: list[tuple[Graded, str, str]], scores: Path, seed: int) -> Difference:
    pairs: list[tuple[FloatArray, FloatArray, Any]] = []
    for task, ours, theirs in compared:
        first, second = (ours, theirs) if task.higher_is_better else (theirs, ours)
        pairs.append((_scores(scores, task, first), _scores(scores, task, second), task.groups))
    return macro_difference(pairs, seed)


def _models(recipe: Recipe, scores: Path, controls: dict[str, Difference]) -> dict[str, Any]:
    """Size, speed and cost of the two models; the controls leave out what means nothing for them."""
    models: dict[str, Any] = {}
    for name, path in (("specialised", "merged"), ("base", public_name(recipe.base_model, recipe.folder))):
        figures = _read(scores / "speed" / f"{name}.json")
        price = recipe.evaluate.usd_per_hour
        tokens_per_hour = figures["tokens_per_second"] * 3600
        usd = None if price is None else price / tokens_per_hour * 1e6
        models[name] = {"path": path, **figures, "usd_per_million_tokens": usd}
    for name in controls:
        models[name] = {"num_fewshot": min(_read(scores / "shots.json").values())} if name == "base_fewshot" else {}
    return models


def _flips(task: Graded, scores: Path) -> list[dict[str, str]]:
    """Items that base and specialist answer differently: as many improved as spoiled ones, where there are both."""
    base, ours = (read_jsonl(samples_path(scores, task.name, name)) for name in ("base", "specialised"))
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
            "base": task.answer(i, base[i]["prediction"]),
            "specialised": task.answer(i, ours[i]["prediction"]),
        }
        for i in shown
    ]


def _training(run: Run) -> dict[str, Any]:
    """Loss curves and the extent of the training, from its log."""
    log = read_jsonl(run.dir / "train" / "metrics.jsonl")
    manifest = run.manifest("train") or {}
    return {
        "loss": [{"step": row["step"], "loss": row["loss"]} for row in log if "loss" in row],
        "validation_loss": [{"step": row["step"], "loss": row["eval_loss"]} for row in log if "eval_loss" in row],
        "examples": len(read_jsonl(run.dir / "data" / "train.jsonl")),
        "seconds": manifest.get("seconds"),
        "world_size": manifest.get("world_size"),
    }


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _seconds(run: Run, stage: str) -> float | None:
    return (run.manifest(stage) or {}).get("seconds")


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe without local paths and without what gives access to anything."""
    resolved = recipe.resolved()
    resolved["base_model"]["path"] = public_name(recipe.base_model, recipe.folder)
    resolved["data"]["source"] = {task: Path(source).name for task, source in recipe.data.source.items()}
    if recipe.data.leave_out is not None:
        resolved["data"]["leave_out"] = Path(recipe.data.leave_out).name
    return _public(resolved)


def _public(value: Any) -> Any:
    """A value in which every local path is only its last part, and no address has a password or token."""
    if isinstance(value, dict):
        return {key: _public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if PureWindowsPath(value).drive and "://" not in value:
        return PureWindowsPath(value).name
    if value.startswith(("/", "~", "./", "../", "file:")):
        return PurePosixPath(value).name
    return without_secrets(value)
