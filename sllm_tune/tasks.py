"""A task is an lm-evaluation-harness task file: the same lines make the training text and grade the answers.

Tasks of a domain folder (`tasks/*.yaml` beside the recipe, or in `general/tasks/`) name their rows in
`metadata.source`; any other name is one that the harness ships. Templates run in Jinja's sandbox, and a task file of a
folder holds no code.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import difflib
import hashlib
import io
import json
import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sllm_tune.errors import TaskError
from sllm_tune.faults import hint, shown

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

Row = dict[str, Any]
Template = Callable[..., str]
SPLITS = ("train", "validation", "test")


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
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()


def find_task(name: str, recipe_dir: Path) -> TaskFile:
    """The task file `name` of the recipe's domain, of `general/`, or of lm-eval.

    Raises:
        TaskError: no such task (the nearest names are offered), or its file cannot be read.
    """
    folders = [recipe_dir / "tasks", recipe_dir.parent / "general" / "tasks"]
    for folder in folders:
        if "/" not in name and (path := folder / f"{name}.yaml").is_file():
            return TaskFile(name, path, _read_task_yaml(path))
    manager = _manager()
    if name in manager.all_subtasks:
        return TaskFile(name, None, {"task": name})
    ours = [path.stem for folder in folders for path in folder.glob("*.yaml")]
    near = difflib.get_close_matches(name, [*ours, *manager.all_subtasks], n=3, cutoff=0.5)
    if name in manager.all_groups or name in manager.all_tags:
        raise TaskError(f"task {name!r} is a group of tasks in lm-eval; name its tasks one by one, such as {near}.")
    offered = f" Nearest: {', '.join(near)}." if near else ""
    looked = ", ".join(map(str, folders))
    raise TaskError(f"task {name!r} is neither in {looked} nor one that lm-eval ships.{offered}")


def read_rows(path: Path) -> list[Row]:
    """Rows of a .jsonl, .json (a list of objects), .csv or .tsv file, in order.

    Raises:
        TaskError: not UTF-8 (names the byte), not parseable (names the line), or not a table of objects.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path}: not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}).\n"
            "  Convert it, for example with: iconv -f cp949 -t utf-8"
        ) from error
    if path.suffix in (".csv", ".tsv"):
        return _read_separated(path, text, "\t" if path.suffix == ".tsv" else ",")
    rows: Any = []
    for first, part in [(1, text)] if path.suffix == ".json" else enumerate(text.split("\n"), 1):
        try:
            if part.strip():
                rows.append(json.loads(part))
        except json.JSONDecodeError as error:
            line = first + error.lineno - 1
            raise TaskError(f"{path}, line {line}, column {error.colno}: not JSON ({error.msg}).") from error
    if path.suffix == ".json" and rows:
        rows = rows[0]
    if not isinstance(rows, list):
        raise TaskError(f"{path}: expected a list of objects, got {type(rows).__name__}.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise TaskError(f"{path}, row {number}: expected an object, got {type(row).__name__}.")
    return rows


def _read_separated(path: Path, text: str, delimiter: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[Row] = []
    try:
        for row in reader:
            if None in row or None in row.values():
                many = "more" if None in row else "fewer"
                raise TaskError(f"{path}, line {reader.line_num}: {many} fields than the first line names.")
            rows.append(row)
    except csv.Error as error:
        raise TaskError(f"{path}, line {reader.line_num}: cannot be read ({error}).") from error
    return rows


def row_id(row: Row) -> str:
    """16 hex digits of the SHA-256 of the row's canonical JSON; names the row in every artefact."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()[:16]


def resolve(task: TaskFile, data_files: dict[str, str]) -> dict[str, Any]:
    """The task file as the harness reads it from a run folder: its rows are the split files of that folder."""
    config = {
        **task.config,
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


def build(config: dict[str, Any], *, root: Path, cache_dir: Path) -> ConfigurableTask:
    """lm-eval's own task object for a resolved task file whose data files are relative to `root`."""
    _sandbox_templates()
    from lm_eval.api.task import ConfigurableTask

    files = {split: str(root / name) for split, name in config["dataset_kwargs"]["data_files"].items()}
    kwargs = {"data_files": files, "cache_dir": str(cache_dir)}
    return ConfigurableTask(config={**config, "dataset_kwargs": kwargs})


def build_in_memory(task: TaskFile, rows: Sequence[Row], source: str = "the data") -> ConfigurableTask:
    """lm-eval's task object over `rows`, as the test split.

    Raises:
        TaskError: lm-eval does not know a key or a metric of the task file, its templates do not fit the first row, or
            the rows do not make a table.
    """
    _sandbox_templates()
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    _check_names(task)
    splits = {"test": Dataset(_table(task, rows, source))}
    config = {**task.config, "task": task.name, "test_split": "test", "custom_dataset": lambda **_: splits}  # pyright: ignore[reportUnknownLambdaType]
    with _explained(task, rows[0], 1, source):
        return ConfigurableTask(config=config)


def _check_names(task: TaskFile) -> None:
    """Keys and metrics are lm-eval's own: it would look for any other metric on the hub, and run the code it finds."""
    import lm_eval.api.metrics  # pyright: ignore[reportUnusedImport]  # noqa: F401  fills the registry
    from lm_eval.api import registry
    from lm_eval.config.task import TaskConfig

    keys = [field.name for field in dataclasses.fields(TaskConfig)]
    metrics: Any = registry.metric_registry
    for key in task.config:
        if key not in keys:
            raise TaskError(f"{task.path}: unknown key {key!r}{hint(str(key), keys)}")
    for entry in task.config["metric_list"]:
        name = entry.get("metric") if isinstance(entry, dict) else entry
        if name not in metrics or entry.get("hf_evaluate"):
            raise TaskError(f"{task.path}: {name!r} is not a metric of lm-eval{hint(str(name), metrics)}")


def _table(task: TaskFile, rows: Sequence[Row], source: str) -> Any:
    """The rows as a table, every value as it is; what a row lacks is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {}
    for column in dict.fromkeys(column for row in rows for column in row):
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


def build_shipped(name: str) -> ConfigurableTask:
    """A task that lm-eval ships, with its own data from the hub.

    Raises:
        TaskError: its data cannot be had.
    """
    _sandbox_templates()
    try:
        return _manager().load(name)["tasks"][name]
    except Exception as error:  # datasets raises many kinds; all of them mean that the rows are not to be had
        raise TaskError(
            f"task {name!r} of lm-eval: its data cannot be loaded ({type(error).__name__}: {error})."
        ) from error


def check_rows(task: TaskFile, built: ConfigurableTask, rows: Iterable[Row], source: str) -> None:
    """Render every row's prompt, choices and answer once.

    Raises:
        TaskError: the first row that the task file does not fit, with the field and the columns that the row has.
    """
    for number, row in enumerate(rows, 1):
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
    except (ValueError, TypeError, SyntaxError, IndexError) as error:
        raise TaskError(f"{where}: {task.path} does not fit it ({type(error).__name__}: {error}).") from error


def _missing_column(config: dict[str, Any], row: Row) -> tuple[str, str]:
    """The first column that a template reads and `row` lacks, and the fields that read it; or two empty texts."""
    from jinja2 import meta
    from lm_eval import utils

    for field in ("doc_to_text", "doc_to_choice", "doc_to_target"):
        template = config.get(field)
        if isinstance(template, str):
            columns = meta.find_undeclared_variables(utils.env.parse(template)) or {template}
            for column in sorted(columns - set(row)):
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
    source = (config.get("metadata") or {}).get("source")
    lacking = [k for k in ("output_type", "doc_to_text", "doc_to_target", "metric_list") if k not in config]
    lacking += [] if source else ["metadata.source"]
    if lacking:
        raise TaskError(f"{path}: no {', '.join(lacking)}.")
    return config


def _sandbox_templates() -> None:
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
        utils.env = sandbox


_managers: list[Any] = []


def _manager() -> Any:
    """lm-eval's index of the tasks it ships; reading its thousands of files takes seconds, so once a process."""
    if not _managers:
        from lm_eval.tasks import TaskManager

        _managers.append(TaskManager())
    return _managers[0]
