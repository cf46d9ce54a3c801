"""A task is an lm-evaluation-harness task file: the same lines make the training text and grade the answers.

Tasks of a domain folder (`tasks/*.yaml` beside the recipe, or in `general/tasks/`) name their rows in
`metadata.source`; any other name is one that the harness ships. Templates run in Jinja's sandbox, and a task file of a
folder holds no code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import io
import json
import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sllm_tune.errors import DataError, TaskError
from sllm_tune.faults import hint, shown
from sllm_tune.rows import Row

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

Template = Callable[..., str]
SPLITS = ("train", "validation", "test")
# Where a task file names the rows of a hub data set; a run folder has split files of its own.
HUB_KEYS = ("dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split", "fewshot_split")


@dataclass(frozen=True)
class TaskFile:
    """A task by name; `path` is None when it ships with lm-eval."""

    name: str
    path: Path | None
    config: dict[str, Any]

    @property
    def metadata(self) -> dict[str, Any]:
        """What the harness has no field for: source, sha256, licence, split_by, split."""
        return self.config.get("metadata") or {}

    @property
    def sha256(self) -> str:
        """Of the file's content; a task that ships with lm-eval is pinned by its version instead."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode()).hexdigest()


def find_task(name: str, recipe_dir: Path) -> TaskFile:
    """The task file `name` of the recipe's domain, of `general/`, or of lm-eval.

    Raises:
        TaskError: no such task (the nearest names are offered), or its file cannot be read.
    """
    folders = [recipe_dir / "tasks", recipe_dir.parent / "general" / "tasks"]
    for folder in folders:
        if "/" not in name and (path := folder / f"{name}.yaml").is_file():
            return TaskFile(name, path, _read_task_yaml(path))
    index = manager()
    if name in index.all_subtasks:
        return TaskFile(name, None, {"task": name})
    ours = [path.stem for folder in folders for path in folder.glob("*.yaml")]
    near = difflib.get_close_matches(name, [*ours, *index.all_subtasks], n=3, cutoff=0.5)
    if name in index.all_groups or name in index.all_tags:
        raise TaskError(f"task {name!r} is a group of tasks in lm-eval; name its tasks one by one, such as {near}.")
    offered = f" Nearest: {', '.join(near)}." if near else ""
    looked = ", ".join(map(str, folders))
    raise TaskError(f"task {name!r} is neither in {looked} nor one that lm-eval ships.{offered}")


def resolve(task: TaskFile, data_files: dict[str, str]) -> dict[str, Any]:
    """The task file as the harness reads it from a run folder: its rows are the split files of that folder."""
    config = {
        **_without_hub(task.config),
        "task": task.name,
        "dataset_path": "parquet",  # the harness's JSON reader turns text that looks like a date into one
        "dataset_kwargs": {"data_files": data_files},
        "test_split": "test",
    }
    if "train" in data_files:
        # The first rows, not random ones: every item then shares one prefix, which is encoded once.
        config |= {"training_split": "train", "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    if "validation" in data_files:
        config |= {"validation_split": "validation"}
    return config


def _without_hub(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in HUB_KEYS}


def build(config: dict[str, Any], *, root: Path, cache_dir: Path) -> ConfigurableTask:
    """lm-eval's own task object for a resolved task file whose data files are relative to `root`."""
    sandbox_templates()
    from lm_eval.api.task import ConfigurableTask

    import sllm_tune.rouge  # pyright: ignore[reportUnusedImport]  # noqa: F401  registers rouge_l

    files = {split: str(root / name) for split, name in config["dataset_kwargs"]["data_files"].items()}
    kwargs = {"data_files": files, "cache_dir": str(cache_dir)}
    return ConfigurableTask(config={**config, "dataset_kwargs": kwargs})


def build_in_memory(task: TaskFile, rows: Sequence[Row], source: str = "the data") -> ConfigurableTask:
    """lm-eval's task object over `rows`, as the test split.

    Raises:
        TaskError: lm-eval does not know a key or a metric of the task file, its templates do not fit the first row, or
            the rows do not make a table.
    """
    sandbox_templates()
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    _check_names(task)
    splits = {"test": Dataset(table(task, rows, source))}
    config = _without_hub(task.config) | {"task": task.name, "test_split": "test"}
    config["custom_dataset"] = lambda **_: splits  # pyright: ignore[reportUnknownLambdaType]
    with _explained(task, rows[0], 1, source):
        return ConfigurableTask(config=config)


def _check_names(task: TaskFile) -> None:
    """Keys and metrics are lm-eval's own: it would look for any other metric on the hub, and run the code it finds."""
    from lm_eval.api import registry
    from lm_eval.config.task import TaskConfig

    import sllm_tune.rouge  # pyright: ignore[reportUnusedImport]  # noqa: F401  fills the registry, and adds rouge_l

    keys = [field.name for field in dataclasses.fields(TaskConfig)]
    metrics: Any = registry.metric_registry
    for key in task.config:
        if key not in keys:
            raise TaskError(f"{task.path}: unknown key {key!r}{hint(str(key), keys)}")
    for entry in task.config["metric_list"]:
        name = entry.get("metric") if isinstance(entry, dict) else entry
        if name not in metrics or entry.get("hf_evaluate"):
            raise TaskError(f"{task.path}: {name!r} is not a metric of lm-eval{hint(str(name), metrics)}")


def table(task: TaskFile, rows: Sequence[Row], source: str) -> Any:
    """The rows as a table, every value as it is; what a row lacks is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {}
    for column in dict.fromkeys(column for row in rows for column in row):
        if "\0" in column:
            number = next(number for number, row in enumerate(rows, 1) if column in row)
            raise TaskError(f"{task.name}, row {number} of {source}: {column!r} is no name of a column; rename it.")
        values = [row.get(column) for row in rows]
        kind = next((type(value) for value in values if value is not None), type(None))
        try:
            columns[column] = pa.array(values)
            pq.write_table(pa.table({column: columns[column]}), io.BytesIO())
            kept = columns[column].to_pylist()
            other = next((i for i, value in enumerate(values) if json.dumps(value) != json.dumps(kept[i])), None)
        except (pa.ArrowException, OverflowError):
            other = next((i for i, value in enumerate(values) if type(value) not in (kind, type(None))), 0)
        if other is not None:
            raise TaskError(
                f"{task.name}, row {other + 1} of {source}: {column!r} does not go together with the other rows' "
                f"(it is {shown(values[other])}).\n"
                "  Give a column the same kind of value, with the same keys, in every row."
            )
    return pa.table(columns)


def check_rows(task: TaskFile, built: ConfigurableTask, rows: Iterable[Row], source: str, *, first: int = 1) -> None:
    """Render every row's prompt, choices and answer once.

    Args:
        task: The task file.
        built: lm-eval's object for it.
        rows: As they were read.
        source: Where they come from, for messages.
        first: Number of the first of them in the source.

    Raises:
        TaskError: the first row that the task file does not fit, with the field and the columns that the row has.
    """
    for number, row in enumerate(rows, first):
        with _explained(task, row, number, source):
            built.doc_to_text(row)
            target = built.doc_to_target(row)
            choices = built.doc_to_choice(row) if built.config.doc_to_choice is not None else None
        if not all(str(answer).strip() for answer in choices or [target]):
            raise TaskError(
                f"{task.name}, row {number} of {source}: an answer is empty.\n  Mend the row or {task.path}."
            )
        if choices is not None and not _is_answer(target, choices):
            raise TaskError(
                f"{task.name}, row {number} of {source}: the answer {target!r} is none of the choices {choices}.\n"
                f"  doc_to_target in {task.path} makes it; mend the row or the template."
            )


def example(built: ConfigurableTask, doc: Row, template: Template | None) -> Row:
    """What the model is shown and what it should answer: exactly what the harness would grade.

    Returns:
        `prompt` (the user's text), `context` (prompt as the model gets it, template applied), `target` (with the
        delimiter the harness puts before an answer) and `label` (the answer without it).
    """
    context = built.fewshot_context(doc, 0, None, template is not None, False, template, built.doc_to_prefix(doc))
    request = built.construct_requests(
        doc=doc, ctx=context, apply_chat_template=template is not None, metadata=("", 0, 1)
    )
    target: Any = built.doc_to_target(doc)
    if isinstance(target, list):  # several answers are right; the first is taught
        target = target[0]
    if isinstance(request, list):
        if built.multiple_input:
            raise TaskError(
                f"task {built.task_name!r} puts its choices into the prompt; it can be graded, not trained on."
            )
        choices = built.doc_to_choice(doc)
        index = target if isinstance(target, int) else choices.index(target)
        label, answer = choices[index], request[index].arguments[1]
    else:
        label = str(target)
        answer = label if template is not None else f"{built.config.target_delimiter}{label}"
    return {"prompt": str(built.doc_to_text(doc)), "context": context, "target": answer, "label": label}


def item_text(built: ConfigurableTask, row: Row) -> str:
    """What is particular to an item: the columns that its prompt is made of, without the words around them."""
    template = built.config.doc_to_text
    if not isinstance(template, str):  # a function of lm-eval's own
        return str(built.doc_to_text(row))
    read = _columns_read(template)
    return "\n".join(str(value) for column, value in row.items() if column in read)


@cache
def _columns_read(template: str) -> set[str]:
    """The columns that a template reads, or the one that it names."""
    from jinja2 import meta
    from lm_eval import utils

    return meta.find_undeclared_variables(utils.env.parse(template)) or {template}


def _is_answer(target: Any, choices: Sequence[str]) -> bool:
    if isinstance(target, list):
        return all(_is_answer(one, choices) for one in target)
    return 0 <= target < len(choices) if isinstance(target, int) else target in choices


@contextlib.contextmanager
def _explained(task: TaskFile, row: Row, number: int, source: str) -> Generator[None]:
    """Turns what a template can raise on a row into a TaskError that names the row, the field and the mend."""
    from jinja2 import TemplateSyntaxError, UndefinedError
    from jinja2.exceptions import SecurityError

    where = f"{task.name}, row {number} of {source}"
    try:
        yield
    except SecurityError as error:
        raise TaskError(f"{task.path}: a template reaches for Python internals and was stopped ({error}).") from error
    except TemplateSyntaxError as error:
        raise TaskError(
            f"{task.path}: a template is not valid Jinja: {error.message} (line {error.lineno})."
        ) from error
    except (UndefinedError, KeyError) as error:
        missing, fields = _missing_column(task.config, row)
        raise TaskError(
            f"{where}: no {missing or str(error)!r}.\n"
            f"  {fields or 'A template'} in {task.path} reads it; this row has {sorted(map(str, row))}.\n"
            "  Mend the row or the template."
        ) from error
    except Exception as error:  # a template raises whatever its arithmetic or its filters raise
        raise TaskError(f"{where}: {task.path} does not fit it ({type(error).__name__}: {error}).") from error


def _missing_column(config: dict[str, Any], row: Row) -> tuple[str, str]:
    """The first column that a template reads and `row` lacks, and the fields that read it; or two empty texts."""
    for field in ("doc_to_text", "doc_to_choice", "doc_to_target"):
        template = config.get(field)
        if isinstance(template, str):
            for column in sorted(_columns_read(template) - set(row)):
                readers = [f for f in ("doc_to_text", "doc_to_choice", "doc_to_target") if column in str(config.get(f))]
                return column, " and ".join(readers)
    return "", ""


def _read_task_yaml(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        code = " (a task file of a domain folder holds no code)" if "!function" in reason else ""
        raise TaskError(f"{path}: not valid YAML{code}: {reason}") from error
    if not isinstance(config, dict):
        raise TaskError(f"{path}: expected keys such as doc_to_text, got {type(config).__name__}.")
    source = (config.get("metadata") or {}).get("source") or config.get("dataset_path")
    lacking = [k for k in ("output_type", "doc_to_text", "doc_to_target", "metric_list") if k not in config]
    lacking += [] if source else ["metadata.source or dataset_path"]
    if lacking:
        raise TaskError(f"{path}: no {', '.join(lacking)}.")
    return config


def group_of(row: Row, key: str, name: str) -> str:
    """A row's value of a `metadata.split_by` entry: of the column of that name, or of a Jinja template over the row.

    Args:
        row: The row.
        key: Such as `code`, or `{{code[:3]}}`.
        name: The task's, for messages.

    Raises:
        DataError: there is no such column, or the template is not valid or does not fit the row.
    """
    from jinja2 import TemplateSyntaxError
    from jinja2.exceptions import SecurityError
    from lm_eval import utils

    if "{{" not in key and "{%" not in key:
        if key not in row:
            raise DataError(f"{name}: metadata.split_by names {key!r}, which is no column; there are {sorted(row)}.")
        return str(row[key])
    where = f"{name}: the template {key!r} in metadata.split_by"
    try:
        sandbox_templates()
        return utils.env.from_string(key).render(row)
    except SecurityError as error:
        raise DataError(f"{where} reaches for Python internals and was stopped ({error}).") from error
    except TemplateSyntaxError as error:
        raise DataError(f"{where} is not valid Jinja: {error.message}.") from error
    except Exception as error:  # whatever its arithmetic or its filters raise
        raise DataError(f"{where} does not fit a row with {sorted(row)} ({error}).") from error


def sandbox_templates() -> None:
    """lm-eval renders templates with plain Jinja, where one can reach any Python object; ours cannot."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if not isinstance(utils.env, ImmutableSandboxedEnvironment):
        sandbox = ImmutableSandboxedEnvironment(
            loader=utils.env.loader,
            undefined=utils.env.undefined,
            keep_trailing_newline=utils.env.keep_trailing_newline,
        )
        sandbox.filters.update(utils.env.filters)
        # lm-eval compiles a template for every row, which takes longer than rendering it.
        compiled: Any = lru_cache(maxsize=256)(sandbox.from_string)
        sandbox.from_string = compiled
        utils.env = sandbox


_managers: list[Any] = []


def manager() -> Any:
    """lm-eval's index of the tasks it ships; reading its thousands of files takes seconds, so once a process."""
    if not _managers:
        from lm_eval.tasks import TaskManager

        _managers.append(TaskManager())
    return _managers[0]
