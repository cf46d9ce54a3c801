"""Prepare: rows into splits that do not leak, and splits into what the model sees and should answer."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sllm_tune.encode import Encoder, Tokens
from sllm_tune.errors import DataError
from sllm_tune.hardware import Meter
from sllm_tune.model import find_base, load_tokenizer
from sllm_tune.recipe import LimitSection, Recipe
from sllm_tune.run import Run, write_json, write_jsonl, write_text
from sllm_tune.sources import fetch, is_pypi
from sllm_tune.tasks import (
    SPLITS,
    Row,
    TaskFile,
    build,
    build_in_memory,
    build_shipped,
    check_rows,
    example,
    find_task,
    read_rows,
    resolve,
    row_id,
)

Split = dict[str, list[Row]]
DEFAULT_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def task_files(recipe: Recipe) -> dict[str, TaskFile]:
    """Every task that the recipe names, once, in its order."""
    names = dict.fromkeys([*recipe.data.tasks, *recipe.evaluate.domain, *recipe.evaluate.general])
    return {name: find_task(name, recipe.folder) for name in names}


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
    return run.dir / "data"


def prepare_into(folder: Path, recipe: Recipe) -> Encoder:
    """Make `data/` and `tasks/` in a folder; returns the encoder that measured them. Raises as `prepare`."""
    tokenizer = load_tokenizer(find_base(recipe.base_model, recipe.folder), recipe.base_model)
    encoder = Encoder(tokenizer, chat_template=recipe.base_model.chat_template)
    card: dict[str, Any] = {"tasks": {}}
    examples: dict[str, list[Row]] = {split: [] for split in SPLITS}
    (folder / "tasks").mkdir(parents=True)
    for name, task in task_files(recipe).items():
        trained = name in recipe.data.tasks
        made, card["tasks"][name] = _prepare_task(recipe, task, folder, encoder, trained=trained)
        for split in SPLITS:
            examples[split] += made[split]
    if not examples["train"]:
        raise DataError(
            "the training split is empty.\n  Raise data.limit.train, or name tasks that have training rows."
        )
    for split, rows in examples.items():
        random.Random(recipe.seed).shuffle(rows)
        write_jsonl(folder / "data" / f"{split}.jsonl", rows)
    write_json(folder / "data" / "card.json", card)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return encoder


def rows_source(recipe: Recipe, task: TaskFile) -> tuple[str, Path, str]:
    """Where a task's rows are, the folder that a relative path starts at, and the key that says so.

    A path in a task file starts at that file; one in `data.source` at the working folder if it is there, as one typed
    on the command line does, else at the recipe.
    """
    if (source := recipe.data.source.get(task.name)) is None:
        return str(task.metadata["source"]), Path(task.path or ".").parent, f"{task.path}: metadata"
    typed = not is_pypi(source) and Path(source).expanduser().exists()
    return source, Path.cwd() if typed else recipe.folder, f"data.source.{task.name}"


def _prepare_task(
    recipe: Recipe, task: TaskFile, work: Path, encoder: Encoder, *, trained: bool
) -> tuple[Split, dict[str, Any]]:
    """One task's examples by split, and its entry in the data card."""
    only_general = task.name in recipe.evaluate.general and not trained
    limit = LimitSection(test=recipe.evaluate.limit_general) if only_general else recipe.data.limit
    if task.path is None:
        built = build_shipped(task.name)
        entry: dict[str, Any] = {"source": f"lm-eval: {task.name}", "licence": "see the data set"}
        split, dropped = _shipped_splits(built, limit, recipe.seed, trained=trained)
        entry["rows"] = sum(map(len, split.values())) + dropped["over_limit_dropped"]
    else:
        source, base_dir, where = rows_source(recipe, task)
        sha256 = None if task.name in recipe.data.source else task.metadata.get("sha256")
        rows = read_rows(fetch(source, sha256=sha256, where=where, base_dir=base_dir))
        if not rows:
            raise DataError(f"{task.name}: no rows in {source}.")
        in_memory = build_in_memory(task, rows, source)
        check_rows(task, in_memory, rows, source)
        table = in_memory.dataset["test"]
        split, dropped = _own_splits(task, list(table), limit, recipe.seed, trained=trained)
        built = _write_resolved(task, split, table.features.arrow_schema, work)
        entry = {
            "source": source if is_pypi(source) else Path(source).name,
            "licence": task.metadata.get("licence", "not stated"),
        }
        entry |= {"rows": len(rows), "split_by": task.metadata.get("split_by", [])}
    made = {name: [] for name in SPLITS}
    splits: dict[str, Any] = {}
    for name in SPLITS:
        if not split[name]:
            continue
        made[name] = examples_of(built, split[name], encoder, task.name, recipe.data.max_length) if trained else []
        splits[name] = _describe(task, split[name], made[name])
    return made, {**entry, **dropped, "splits": splits}


def _shipped_splits(built: Any, limit: LimitSection, seed: int, *, trained: bool) -> tuple[Split, dict[str, int]]:
    """The harness task's own splits, each limited in a seeded order; the test split is graded in place."""
    if not trained:
        return {name: [] for name in SPLITS}, {"over_limit_dropped": 0}
    if not built.has_training_docs():
        raise DataError(
            f"{built.task_name}: lm-eval has no training rows for it, so it can only be graded (evaluate.domain)."
        )
    train = _sample(list(built.training_docs()), None, seed)
    validation = list(built.validation_docs()) if built.has_validation_docs() and built.has_test_docs() else []
    if not validation:  # the harness grades the validation rows, so ours come from the training rows
        cut = max(1, len(train) // 10)
        validation, train = train[:cut], train[cut:]
    return _limited({"train": train, "validation": validation, "test": []}, limit, seed)


def _own_splits(
    task: TaskFile, rows: Sequence[Row], limit: LimitSection, seed: int, *, trained: bool
) -> tuple[Split, dict[str, int]]:
    distinct = list({row_id(row): row for row in rows}.values())
    split: Split = {"train": [], "validation": [], "test": distinct}
    if trained:
        keys, shares = task.metadata.get("split_by", []), task.metadata.get("split", DEFAULT_SHARES)
        split = split_rows(distinct, keys, shares, seed, task.name)
    mixed = len(distinct) - sum(map(len, split.values()))
    split, over_limit = _limited(split, limit, seed)
    return split, {"duplicates_dropped": len(rows) - len(distinct), "mixed_rows_dropped": mixed, **over_limit}


def _limited(split: Split, limit: LimitSection, seed: int) -> tuple[Split, dict[str, int]]:
    kept = {name: _sample(split[name], getattr(limit, name), seed) for name in SPLITS}
    return kept, {"over_limit_dropped": sum(len(split[name]) - len(kept[name]) for name in SPLITS)}


def split_rows(rows: Sequence[Row], keys: Sequence[str], shares: dict[str, float], seed: int, name: str) -> Split:
    """Rows whose every key falls into the same split; a row whose keys disagree would leak, so it is dropped.

    Args:
        rows: Distinct rows.
        keys: Columns held out whole: no value of any of them is in two splits. None: each row is its own group.
        shares: Share of the groups of each key, by split; sums to 1.
        seed: Decides which group goes where.
        name: The task's, for messages.

    Raises:
        DataError: a key is not a column, has fewer than two values, or a split ends up empty.
    """
    if abs(sum(shares.values()) - 1) > 1e-6 or set(shares) != set(SPLITS):
        raise DataError(
            f"{name}: metadata.split must give train, validation and test shares that sum to 1, got {shares}."
        )
    places: list[dict[str, str]] = []
    for position, key in enumerate(keys or [""]):
        values = sorted({_group(row, key, name) for row in rows})
        if len(values) < 2:
            raise DataError(
                f"{name}: split_by {key!r} leaves fewer than two groups ({len(values)}), so nothing can be held out.\n"
                "  Name a column with more values in metadata.split_by."
            )
        random.Random(f"{seed}/{position}").shuffle(values)
        places.append(_deal(values, shares))
    split: Split = {split_name: [] for split_name in SPLITS}
    for row in rows:
        at = {place[_group(row, key, name)] for place, key in zip(places, keys or [""], strict=True)}
        if len(at) == 1:
            split[at.pop()].append(row)
    for split_name in SPLITS:
        if not split[split_name] and (split_name != "validation" or shares["validation"]):
            reason = f"no row has all of {list(keys)} in it" if keys else f"{len(rows)} rows are too few"
            raise DataError(
                f"{name}: the {split_name} split is empty: {reason}.\n"
                f"  Enlarge its share in metadata.split ({shares}), or split by fewer keys."
            )
    return split


def _group(row: Row, key: str, name: str) -> str:
    if key and key not in row:
        raise DataError(f"{name}: metadata.split_by names {key!r}, which is no column; there are {sorted(row)}.")
    return str(row[key]) if key else row_id(row)


def _deal(values: Sequence[str], shares: dict[str, float]) -> dict[str, str]:
    """Each value's split: consecutive runs of the shuffled values, by share."""
    place: dict[str, str] = {}
    start = 0.0
    for split_name in SPLITS:
        end = start + shares[split_name] * len(values)
        place |= dict.fromkeys(values[round(start) : round(end)], split_name)
        start = end
    return place


def _sample(rows: Sequence[Row], limit: int | None, seed: int) -> list[Row]:
    return random.Random(seed).sample(list(rows), len(rows))[:limit]


def _write_resolved(task: TaskFile, split: Split, schema: Any, work: Path) -> Any:
    """Write the task's rows and its file as the harness reads them from the run folder; returns the built task."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = {name: f"tasks/{task.name}/{name}.parquet" for name in SPLITS if split[name]}
    (work / "tasks" / task.name).mkdir()
    for name, path in files.items():
        pq.write_table(pa.Table.from_pylist(split[name], schema=schema), work / path)
    config = resolve(task, files)
    write_text(work / "tasks" / f"{task.name}.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return build(config, root=work, cache_dir=work / "cache")


def examples_of(built: Any, rows: Sequence[Row], encoder: Encoder, name: str, max_length: int) -> list[Row]:
    """Each row as a training example with its token count.

    Raises:
        DataError: rows whose tokens exceed `max_length`, with their number; a trainer would cut or drop them silently.
    """
    made: list[Row] = []
    longest, over = 0, 0
    for row in rows:
        shown = {"id": row_id(row), "task": name, **example(built, row, encoder.template)}
        tokens: Tokens = encoder.supervise(shown["context"], shown["target"])
        over += len(tokens.input_ids) > max_length
        longest = max(longest, len(tokens.input_ids))
        made.append({**shown, "tokens": len(tokens.input_ids)})
    if over:
        raise DataError(
            f"{name}: {over} of {len(rows)} rows are longer than data.max_length {max_length} "
            f"(the longest has {longest} tokens).\n  Raise data.max_length, or shorten the prompt in the task file."
        )
    return made


def _describe(task: TaskFile, rows: Sequence[Row], made: Sequence[Row]) -> dict[str, Any]:
    keys: list[str] = task.metadata.get("split_by", [])
    labels = Counter(row["label"] for row in made)
    described: dict[str, Any] = {
        "rows": len(rows),
        "groups": {key: len({str(row[key]) for row in rows}) for key in keys},
    }
    if made:
        described["tokens"] = sum(row["tokens"] for row in made)
        if len(labels) <= 50:  # free text has about as many answers as rows
            described["labels"] = dict(sorted(labels.items()))
    return described
