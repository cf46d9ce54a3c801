"""Prepare: rows that are fit to be trained on, in splits that do not leak, as what the model sees and should answer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import Field, JsonValue, field_serializer

from sllm_tune.data.card import Card
from sllm_tune.data.collect import Rules, collect
from sllm_tune.data.examples import write_examples
from sllm_tune.data.leaks import drop_leaks
from sllm_tune.data.part import Part
from sllm_tune.data.rehearse import rehearse
from sllm_tune.data.splits import groups_of, limited, require_interval
from sllm_tune.errors import DataError
from sllm_tune.model.find import Base
from sllm_tune.model.lineage import left_out, warn_of_trained_artefacts
from sllm_tune.model.load import load_encoder
from sllm_tune.recipe.data import DataSection, ReplaySection
from sllm_tune.recipe.evaluate import GradedSection
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.run.files import write_json, write_text
from sllm_tune.run.stage import Inputs, Making
from sllm_tune.tasks.build import GROUP, build, materialised, read_resolved, resolve, write_table
from sllm_tune.tasks.encode import Encoder
from sllm_tune.tasks.find import SPLITS, TaskFile
from sllm_tune.tasks.kept import authored_path
from sllm_tune.tasks.of_recipe import content, files_of, task_files


class PrepareInputs(Inputs):
    """What examples and graded rows are made of."""

    base_model: Base
    """Whose tokenizer, template and window rows are measured with."""

    data: DataSection
    evaluate: GradedSection
    seed: int
    show_items: bool
    """Whether labels may stand in the data card."""

    language: str | None
    """Of the words around personal data, where it is looked for."""

    tasks: Mapping[str, TaskFile] = Field(exclude=True)
    left_out: Path | None = Field(exclude=True)
    """The file of the rows that must not be used."""

    @field_serializer("base_model")
    def _as_read(self, base: Base) -> dict[str, JsonValue]:
        """How its weights are loaded changes nothing here."""
        return {key: value for key, value in base.identity().items() if key != "quantization"}


def inputs(recipe: Recipe, base: Base) -> PrepareInputs:
    """What prepare is given of a recipe."""
    tasks = task_files(recipe.task_names, recipe.data.source, recipe.folder)
    files = files_of(tasks.values()) | base.files()
    out = None if recipe.data.leave_out is None else recipe.folder / os.path.expanduser(recipe.data.leave_out)
    if out is not None:
        files[str(recipe.data.leave_out)] = content(out)
    return PrepareInputs(
        base_model=base,
        data=recipe.data,
        evaluate=recipe.evaluate.only(GradedSection),
        seed=recipe.seed,
        show_items=recipe.report.show_items,
        language=recipe.language if recipe.data.pii else None,
        tasks=tasks,
        left_out=out,
        file=files,
    )


def prepare(given: PrepareInputs, made: Making) -> dict[str, Path]:
    """Make `tasks/` (resolved task files and their rows) and `data/` (examples and the data card).

    Raises:
        SourceError, TaskError, DataError, ModelError: before anything that was made is touched.
    """
    shutil.rmtree(made.work)  # cheap to make again, so nothing half-written is taken up
    prepare_into(made.work, given)
    warn_of_trained_artefacts(left_out(given.left_out), made.run.dir)
    return {name: made.work / name for name in ("data", "tasks")}


def prepare_into(folder: Path, given: PrepareInputs) -> Encoder:
    """Make `data/` and `tasks/` in a folder; returns the encoder that measured them. Raises as `prepare`."""
    encoder = load_encoder(given.base_model.path, given.base_model.section)
    out = left_out(given.left_out)
    rules = Rules(given.data, given.language or "en", given.seed, frozenset(out))
    parts = [collect(task, _role(task.name, given.data), rules, encoder) for task in given.tasks.values()]
    leaks = drop_leaks(parts, on_leak=given.data.on_leak, allowed=given.data.allow_leaks)
    for part in parts:
        _limit(part, given)
    replayed = _replay(parts, given.data.replay)
    (folder / "tasks").mkdir(parents=True)
    for split in SPLITS:
        write_examples(parts, split, encoder, given.data, given.seed, folder / "data" / f"{split}.jsonl")
    stop = str(encoder.tokenizer.decode(encoder.stop_ids))
    for part in parts:  # without the rows that were too long
        _require_intervals(part)
        _write_task(part, folder, stop)
        _rehearse(part, folder)
    if not given.show_items:  # labels are what items are answered with
        for split in (split for part in parts for split in part.card.get("splits", {}).values()):
            split.pop("labels", None)
    tasks = {part.task.name: part.card for part in parts}
    card = Card.model_validate({"tasks": tasks, "leaks": leaks, "replayed": replayed})
    card.write(folder / "data" / "card.json")
    return encoder


def _role(name: str, data: DataSection) -> str:
    if name in data.tasks:
        return "train"
    return "replay" if data.replay and name in data.replay.tasks else "grade"


def _limit(part: Part, given: PrepareInputs) -> None:
    """Cut the splits to `data.limit`, or to `evaluate.limit_general` for a task of general ability."""
    limits: dict[str, int | None] = given.data.limit.model_dump()
    if part.role == "grade" and part.task.name in given.evaluate.general:
        limits = {"train": None, "validation": None, "test": given.evaluate.limit_general}
    if part.role == "replay":
        limits = dict.fromkeys(SPLITS)
    kept = limited(part.split, limits, given.seed)
    part.card["over_limit_dropped"] = sum(len(part.split[name]) - len(kept[name]) for name in SPLITS)
    part.split = kept


def _require_intervals(part: Part) -> None:
    """Refuse a graded task whose items are too few, or too much alike, for an interval around its score."""
    rows, keys = part.split["test"], part.task.metadata.get("split_by", [])
    if part.role != "replay" and (rows or part.role == "grade"):
        groups = len(set(groups_of(rows, keys[0], part.task.name))) if keys else None
        require_interval(len(rows), groups, part.task.name)


def _replay(parts: Sequence[Part], replay: ReplaySection | None) -> dict[str, float] | None:
    """Cut the general examples to `data.replay.share` of all training examples, the same number of each task.

    The base's own replies count as one more task, whose examples are not there yet.

    Raises:
        DataError: there are too few of them.
    """
    if replay is None:
        return None
    general = [part for part in parts if part.role == "replay"]
    own = sum(len(part.split["train"]) for part in parts if part.role == "train")
    share = replay.share
    wanted = round(own * share / (1 - share))
    kinds = len(general) + (replay.replies is not None)
    left = wanted
    for number, part in enumerate(general):
        each = wanted // kinds + (number < wanted % kinds)
        left -= each
        if each > len(part.split["train"]):
            raise DataError(
                f"data.replay: {part.task.name} has {len(part.split['train'])} training rows, {each} are needed for a "
                f"share of {share}.\n  Lower data.replay.share, or name more tasks."
            )
        cut = len(part.split["train"]) - each
        part.card["over_limit_dropped"] = part.card.get("over_limit_dropped", 0) + cut
        part.split["train"] = part.split["train"][:each]
    return {"share": share, "examples": wanted, "replies": left}


def _rehearse(part: Part, folder: Path) -> None:
    """Grade the right answers as evaluation will, on the rows and the task file that it will read."""
    name = part.task.name
    if part.role == "replay" or not part.split["test"]:
        return
    if part.task.path is None:
        rehearse(name, part.built, part.split["test"])
        return
    built = build(read_resolved(folder / "tasks" / f"{name}.yaml"), root=folder)
    rehearse(name, built, [dict(doc) for doc in built.eval_docs])


def _write_task(part: Part, folder: Path, stop: str) -> None:
    """The task's rows and its file as the harness reads them from the run folder; lm-eval's own tasks stay its own."""
    if part.role == "replay" or part.task.path is None:
        return
    name = part.task.name
    files = {split: f"tasks/{name}/{split}.parquet" for split in SPLITS if part.split[split]}
    rows = [row for split in files for row in part.split[split]]
    docs, scored = materialised(part.task, rows, stop)
    keys = part.task.metadata.get("split_by", [])
    by_key = [groups_of(rows, key, name) for key in keys]
    docs = [{**doc, GROUP: list(groups)} for doc, *groups in zip(docs, *by_key, strict=True)]
    start = 0
    for split, path in files.items():
        end = start + len(part.split[split])
        write_table(docs[start:end], folder / path)
        start = end
    config = resolve(part.task, files, scored=scored)
    write_json(authored_path(folder, name), part.task.config)
    write_text(folder / "tasks" / f"{name}.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
