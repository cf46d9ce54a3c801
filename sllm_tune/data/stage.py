"""Prepare: rows that are fit to be trained on, in splits that do not leak, as what the model sees and should answer."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sllm_tune.data.audit import Part, count_near_duplicates, drop_leaks, fitting_rows, personal_data
from sllm_tune.data.examples import write_examples
from sllm_tune.data.hub import hub_rows
from sllm_tune.data.rehearse import answer_faults, rehearse
from sllm_tune.data.splits import empty, groups_of, limited, require_interval, split_rows, without_group
from sllm_tune.errors import DataError, TaskError
from sllm_tune.model.find import find_base
from sllm_tune.model.lineage import left_out, warn_of_trained_artefacts
from sllm_tune.model.load import load_encoder
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.rows.read import Row, read_rows, row_id
from sllm_tune.run.files import write_json, write_text
from sllm_tune.run.folder import Run
from sllm_tune.run.machine import Meter
from sllm_tune.sources import fetch, is_pypi
from sllm_tune.tasks.build import GROUP, begins_another, build, materialised, read_resolved, resolve, write_table
from sllm_tune.tasks.encode import Encoder
from sllm_tune.tasks.example import item_text
from sllm_tune.tasks.find import SPLITS, TaskFile
from sllm_tune.tasks.of_recipe import rows_source, shipped_task, task_files
from sllm_tune.tasks.templates import Rendered

if TYPE_CHECKING:
    pass


def prepare(recipe: Recipe, run: Run, inputs: dict[str, Any]) -> Path:
    """Make `tasks/` (resolved task files and their rows) and `data/` (examples and the data card).

    Returns:
        The run's `data/` folder.

    Raises:
        SourceError, TaskError, DataError, ModelError: before anything that was made is touched.
    """
    meter = Meter()
    work = run.work("prepare", inputs)
    shutil.rmtree(work)  # cheap to make again, so nothing half-written is taken up
    prepare_into(work, recipe)
    outputs = {"data": work / "data", "tasks": work / "tasks"}
    run.commit("prepare", inputs, outputs=outputs, seed=recipe.seed, cost=meter.stop())
    warn_of_trained_artefacts(recipe, run)
    return run.dir / "data"


def prepare_into(folder: Path, recipe: Recipe) -> Encoder:
    """Make `data/` and `tasks/` in a folder; returns the encoder that measured them. Raises as `prepare`."""
    encoder = load_encoder(find_base(recipe.base_model, recipe.folder), recipe.base_model)
    out = left_out(recipe)
    parts = [_part(recipe, task, out, encoder) for task in task_files(recipe).values()]
    leaks = drop_leaks(parts, on_leak=recipe.data.on_leak, allowed=recipe.data.allow_leaks)
    for part in parts:
        _limit(part, recipe)
    replayed = _replay(parts, recipe)
    (folder / "tasks").mkdir(parents=True)
    for split in SPLITS:
        write_examples(parts, split, encoder, recipe, folder / "data" / f"{split}.jsonl")
    stop = str(encoder.tokenizer.decode(encoder.stop_ids))
    for part in parts:  # without the rows that were too long
        _require_intervals(part)
        _write_task(part, folder, stop)
        _rehearse(part, folder)
    if not recipe.report.show_items:  # labels are what items are answered with
        for split in (split for part in parts for split in part.card.get("splits", {}).values()):
            split.pop("labels", None)
    card = {"tasks": {part.task.name: part.card for part in parts}, "leaks": leaks, "replayed": replayed}
    write_json(folder / "data" / "card.json", card)
    return encoder


def _part(recipe: Recipe, task: TaskFile, out: set[str], encoder: Encoder) -> Part:
    """A task's rows, read, checked and split, with what was left out counted in its card."""
    replayed = recipe.data.replay.tasks if recipe.data.replay else []
    role = "train" if task.name in recipe.data.tasks else "replay" if task.name in replayed else "grade"
    used = {"train": SPLITS, "replay": ("train",), "grade": ("test",)}[role]
    skip, unreadable = task.metadata.get("on_bad_row") == "skip", list[TaskError]()
    found = rows_source(recipe, task)
    if task.path is None:
        return _shipped_part(recipe, task, role, out, encoder)
    if found is None:
        rows, given = hub_rows(task, used)
        source: str = task.config["dataset_path"]
        public = source
    else:
        source, base_dir, where = found
        own = task.name in recipe.data.source
        file = fetch(source, sha256=None if own else task.metadata.get("sha256"), where=where, base_dir=base_dir)
        records = None if own else task.metadata.get("records")
        rows = read_rows(file, records, f"{where}.records", unreadable if skip else None)
        given = [""] * len(rows)
        public = source if is_pypi(source) else Path(source).name
    if not rows:
        first = f"\n  {unreadable[0]}" if unreadable else ""
        raise DataError(f"{task.name}: no rows in {source}.{first}")
    keys: list[str] = task.metadata.get("split_by", [])
    card: dict[str, Any] = {
        "source": public,
        "licence": task.metadata.get("licence", "not stated"),
        "commercial_use": task.metadata.get("commercial_use", True),
        "rows": len(rows) + len(unreadable),
        "split_by": keys,
    }
    if recipe.data.pii:
        rows, card["personal_data"] = personal_data(rows, recipe.data.pii, recipe.language, task.name)
    faults, respelled = answer_faults(task.config, encoder), list[bool]()

    def fault(row: Rendered) -> str | None:
        respelled.append(row.respelled)
        return faults(row)

    built, fitting = fitting_rows(task, rows, source, skip=skip, fault=fault)
    # Each with the split that the data set puts it into, if it does.
    distinct: dict[str, tuple[str, Row]] = {}
    for place in fitting:
        distinct.setdefault(row_id(rows[place]), (given[place], rows[place]))
    kept = [entry for name, entry in distinct.items() if name not in out]
    if given[0]:
        split = {name: [row for place, row in kept if place == name] for name in SPLITS}
    elif role == "train":
        split = split_rows([row for _, row in kept], task.metadata, recipe.seed, task.name)
    else:
        split = {**empty(), used[0]: [row for _, row in kept]}
    part = Part(task, role, built, split, card)
    card |= {
        "bad_rows_skipped": len(unreadable) + len(rows) - len(fitting),
        "rows_without_group": without_group([row for _, row in kept], keys, task.name),
        "duplicates_dropped": len(fitting) - len(distinct),
        "left_out": len(distinct) - len(kept),
        "mixed_rows_dropped": len(kept) - sum(map(len, split.values())),
        "near_duplicates": count_near_duplicates([row for _, row in kept], built),
    }
    if any(respelled):
        card["answers_respelled"] = sum(respelled)
    return part


def _shipped_part(recipe: Recipe, task: TaskFile, role: str, out: set[str], encoder: Encoder) -> Part:
    """A task that lm-eval ships: its own splits; what it grades is graded in place."""
    built: Any = shipped_task(recipe, task.name)
    split = empty()
    found = rows_source(recipe, task)
    local = f", rows of {Path(found[0]).name}" if found else ""
    card: dict[str, Any] = {"source": f"lm-eval: {task.name}{local}", "licence": "see the data set", "split_by": []}
    graded = list(built.eval_docs)
    if role != "grade":
        if not built.has_training_docs():
            raise DataError(
                f"{task.name}: lm-eval has no training rows for it, so it can only be graded (evaluate.domain)."
            )
        train = limited({**empty(), "train": list(built.training_docs())}, dict.fromkeys(SPLITS), recipe.seed)["train"]
        apart = built.has_validation_docs() and built.config.test_split not in (None, built.config.validation_split)
        validation = list(built.validation_docs()) if apart else []
        if not validation and role == "train":  # the harness grades the validation rows, so ours are training rows
            cut = max(1, len(train) // 10)
            validation, train = train[:cut], train[cut:]
        kept = [row for row in train if row_id(row) not in out]
        card["left_out"] = len(train) - len(kept)
        if recipe.data.pii:  # of the rows that are learned; those that the harness grades stay as they are
            kept, card["personal_data"] = personal_data(kept, recipe.data.pii, recipe.language, task.name)
        split |= {"train": kept, "validation": validation if role == "train" else []}
    if role != "replay":
        split["test"] = graded
    if (
        built.OUTPUT_TYPE == "multiple_choice" and not built.multiple_input
    ):  # lm-eval's own files score the choices as they are
        begin = sum(begins_another([str(choice) for choice in built.doc_to_choice(row)]) for row in split["test"])
        card |= {"choices_begin_another": begin} if begin else {}
    texts = (item_text(built, row) for rows in split.values() for row in rows)
    held = [found for text in texts if (found := encoder.control_tokens(text))]
    card |= {"rows": sum(map(len, split.values())), "rows_with_control_tokens": len(held)}
    if held and role != "grade":
        raise TaskError(
            f"{task.name}: {len(held)} rows hold control tokens of the tokenizer, such as {held[0][0]!r}, which the "
            "model would read as a turn or its end.\n"
            f"  Give the rows without them as a local file: data.source.{task.name}."
        )
    return Part(task, role, built, split, card)


def _limit(part: Part, recipe: Recipe) -> None:
    """Cut the splits to `data.limit`, or to `evaluate.limit_general` for a task of general ability."""
    limits: dict[str, int | None] = recipe.data.limit.model_dump()
    if part.role == "grade" and part.task.name in recipe.evaluate.general:
        limits = {"train": None, "validation": None, "test": recipe.evaluate.limit_general}
    if part.role == "replay":
        limits = dict.fromkeys(SPLITS)
    kept = limited(part.split, limits, recipe.seed)
    part.card["over_limit_dropped"] = sum(len(part.split[name]) - len(kept[name]) for name in SPLITS)
    part.split = kept


def _require_intervals(part: Part) -> None:
    """Refuse a graded task whose items are too few, or too much alike, for an interval around its score."""
    rows, keys = part.split["test"], part.task.metadata.get("split_by", [])
    if part.role != "replay" and (rows or part.role == "grade"):
        groups = len(set(groups_of(rows, keys[0], part.task.name))) if keys else None
        require_interval(len(rows), groups, part.task.name)


def _replay(parts: Sequence[Part], recipe: Recipe) -> dict[str, Any] | None:
    """Cut the general examples to `data.replay.share` of all training examples, the same number of each task.

    Raises:
        DataError: there are too few of them.
    """
    if recipe.data.replay is None:
        return None
    general = [part for part in parts if part.role == "replay"]
    own = sum(len(part.split["train"]) for part in parts if part.role == "train")
    share = recipe.data.replay.share
    wanted = round(own * share / (1 - share))
    for number, part in enumerate(general):
        each = wanted // len(general) + (number < wanted % len(general))
        if each > len(part.split["train"]):
            raise DataError(
                f"data.replay: {part.task.name} has {len(part.split['train'])} training rows, {each} are needed for a "
                f"share of {share}.\n  Lower data.replay.share, or name more tasks."
            )
        part.card["over_limit_dropped"] += len(part.split["train"]) - each
        part.split["train"] = part.split["train"][:each]
    return {"share": share, "examples": wanted}


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
    write_text(folder / "tasks" / f"{name}.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
