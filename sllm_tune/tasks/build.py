"""A task is an lm-evaluation-harness task file: the same lines make the training text and grade the answers.

Tasks of a domain folder (`tasks/*.yaml` beside the recipe, or in `general/tasks/`) name their rows in
`metadata.source`; any other name is one that the harness ships. A task file of a folder holds no code, and its
templates are rendered by our rules (`templates`): a run folder gets the rendered rows, and a task file that names
their columns.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sllm_tune.bounded import Expressions
from sllm_tune.errors import TaskError
from sllm_tune.rows.read import Row, row_id
from sllm_tune.sandbox import Sandbox
from sllm_tune.sandbox import sandbox as bounded_sandbox
from sllm_tune.tasks.file import read_task_file
from sllm_tune.tasks.find import SPLITS, TaskFile
from sllm_tune.tasks.keys import TaskKeys
from sllm_tune.tasks.render import render
from sllm_tune.tasks.templates import Rendered, explained, render_row
from sllm_tune.wording import hint, shown

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

# Where a task file names the rows of a hub data set; a run folder has split files of its own.
HUB_KEYS = ("dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split", "fewshot_split")
# What a run folder's task files name, beside `choices` and `description`: the columns of its split files.
PROMPT, TARGET, LABEL, ID, GROUP = "prompt", "target", "label", "id", "group"


def resolve(task: TaskFile, data_files: dict[str, str], *, scored: str = "choices") -> TaskKeys:
    """The task file as the harness reads it from a run folder: its fields name the columns of that folder's rows.

    Args:
        task: As the domain has it.
        data_files: Parquet files by split, relative to the run folder.
        scored: The column of the choices that are scored; `scored_choices` where the stop token belongs to them.
    """
    left_out = (*HUB_KEYS, "fewshot_config")
    made = {
        **{key: value for key, value in task.config.items() if key not in left_out},
        "task": task.name,
        "dataset_path": "parquet",  # the harness's JSON reader turns text that looks like a date into one
        "dataset_kwargs": {"data_files": data_files},
        "test_split": "test",
        "doc_to_text": PROMPT,
        "doc_to_target": TARGET,
        # An example has one answer, also where several are right.
        "fewshot_config": {"sampler": "first_n", "doc_to_target": LABEL},
    }
    config = cast(TaskKeys, made)
    if "doc_to_choice" in config:
        config["doc_to_choice"] = scored
    for field in ("description", "gen_prefix"):
        if config.get(field):
            config[field] = field
    if "train" in data_files:
        # The first rows, not random ones: every item then shares one prefix, which is encoded once.
        config["training_split"] = config["fewshot_split"] = "train"
    if "validation" in data_files:
        config["validation_split"] = "validation"
    return config


def materialised(task: TaskFile, rows: Sequence[Row], stop: str) -> tuple[list[Row], str]:
    """Rows as lm-eval reads them, and the column of the choices that are scored.

    Where one choice begins another (`breach`, `breach of contract`), the longer one could never have the higher
    probability. The stop token, which is taught behind every answer, then belongs to the scored text of each.

    Args:
        task: Its templates fit all of the rows.
        rows: As they were read.
        stop: Text of the stop token.
    """
    found = [render_row(task.config, row) for row in rows]
    several = any(len(one.answers) > 1 for one in found)
    stopped = any(one.choices and begins_another(one.choices) for one in found)
    made: list[Row] = []
    for row, one in zip(rows, found, strict=True):
        right: Sequence[int | str] = one.positions if one.choices else one.answers
        answer = {TARGET: right if several else right[0], LABEL: one.answers[0]}
        made.append(question_doc(task.config, row, one, stop if stopped else None) | answer)
    return made, "scored_choices" if stopped else "choices"


def question_doc(config: TaskKeys, row: Row, asked: Rendered, stop: str | None) -> Row:
    """What a row asks, in the columns that a resolved task file names; `stop`, if given, ends each scored choice."""
    doc: Row = {ID: row_id(row), PROMPT: asked.prompt}
    if asked.choices:
        doc["choices"] = asked.choices
    if stop is not None:
        doc["scored_choices"] = [choice + stop for choice in asked.choices or []]
    for field in ("description", "gen_prefix"):
        if template := config.get(field):
            doc[field] = render(template, row)
    return doc


def is_rendered(doc: Row) -> bool:
    """Whether a row is one of `materialised`, and not one of a task that lm-eval ships."""
    return {ID, PROMPT, TARGET, LABEL} <= doc.keys()


def begins_another(choices: Sequence[str]) -> bool:
    """Whether one choice is the beginning of another."""
    ordered = sorted(choices)  # one that begins another comes right before some that it begins
    return any(other.startswith(one) for one, other in pairwise(ordered))


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write materialised rows as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    types: dict[str, pa.DataType] = dict.fromkeys(("choices", "scored_choices", GROUP), pa.list_(pa.string()))
    columns = {name: pa.array([row[name] for row in rows], type=types.get(name)) for name in rows[0]}
    pq.write_table(pa.table(columns), path)


def split_files(config: TaskKeys) -> dict[str, str]:
    """Parquet files by split, relative to the run folder, that a task file of `resolve` names."""
    return config.get("dataset_kwargs", {})["data_files"]


def read_resolved(path: Path) -> TaskKeys:
    """The task file of a run folder.

    Raises:
        TaskError: it is not what `resolve` writes: an edited file could name other rows, or other templates.
    """
    config = read_task_file(path)
    files = config.get("dataset_kwargs", {}).get("data_files")
    ours = {split: f"tasks/{path.stem}/{split}.parquet" for split in SPLITS if split in (files or ())}
    expected = resolve(TaskFile(path.stem, path, config), ours, scored=str(config.get("doc_to_choice")))
    if ours != files or any(config.get(key) != value for key, value in expected.items()):
        raise TaskError(
            f"{path}: is not the task file that prepare wrote.\n  Remove the run's data/ folder to make it again."
        )
    choices = config.get("doc_to_choice")
    if choices not in (None, "choices", "scored_choices"):
        raise TaskError(f"{path}: doc_to_choice: names {choices!r}, which prepare does not write.")
    return config


def build(config: TaskKeys, *, root: Path) -> ConfigurableTask:
    """lm-eval's own task object for a resolved task file whose data files are relative to `root`.

    The files are read here and not by `datasets`, which would take a path for a pattern or an address, and keep a copy
    of the rows in its cache.
    """
    import pyarrow.parquet as pq
    from datasets import Dataset

    files = split_files(config).items()
    return build_over_docs(config, {split: Dataset(pq.read_table(root / name)) for split, name in files})


def build_over(task: TaskFile, rows: Sequence[Row]) -> ConfigurableTask:
    """lm-eval's own task object over rows of any kind, as a run folder would have them, in the test split."""
    from datasets import Dataset

    docs, scored = materialised(task, rows, "")
    return build_over_docs(resolve(task, {}, scored=scored), {"test": Dataset.from_list(docs)})


def build_over_docs(config: TaskKeys, splits: Mapping[str, Dataset]) -> ConfigurableTask:
    """lm-eval's own task object for a resolved task file over `datasets` of rendered rows, by split."""
    sandbox_templates()
    from lm_eval.api.task import ConfigurableTask

    import sllm_tune.tasks.rouge  # pyright: ignore[reportUnusedImport]  # noqa: F401  registers rouge_l

    plain = {key: value for key, value in config.items() if key not in ("dataset_path", "dataset_kwargs")}
    return ConfigurableTask(config={**plain, "custom_dataset": lambda **_: splits})  # pyright: ignore[reportUnknownLambdaType]


def build_in_memory(task: TaskFile, rows: Sequence[Row], source: str = "the data") -> ConfigurableTask:
    """lm-eval's task object that takes rows as they were read, with the templates rendered by our rules.

    Raises:
        TaskError: lm-eval does not know a metric, an aggregation or a filter of the task file, or its templates do not
            fit the first row.
    """
    _check_names(task)
    with explained(task.config, task.path, rows[0], f"{task.name}, row 1 of {source}"):
        docs, _ = materialised(task, rows[:1], "")
    from datasets import Dataset

    try:
        return _own_task()(task, {**resolve(task, {}), "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)}})
    except Exception as error:  # lm-eval raises many kinds for what it cannot be built of
        raise TaskError(f"{task.path}: lm-eval cannot use it ({type(error).__name__}: {error}).") from error


@cache
def _own_task() -> Callable[[TaskFile, dict[str, object]], ConfigurableTask]:
    sandbox_templates()
    from lm_eval.api.task import ConfigurableTask

    class OwnTask(ConfigurableTask):
        """lm-eval's prompts and requests over rows that are not rendered yet."""

        file: TaskFile | None = None  # set when lm-eval has looked at its one rendered row
        last: tuple[Row, Rendered] | None = None  # lm-eval asks for a row's prompt, choices and answer one by one

        def rendered(self, doc: Row) -> Rendered:
            assert self.file is not None
            if self.last is None or self.last[0] is not doc:
                self.last = doc, render_row(self.file.config, doc)
            return self.last[1]

        def doc_to_text(self, doc: Row, doc_to_text: Any = None) -> object:
            return self.rendered(doc).prompt if self.file else super().doc_to_text(doc, doc_to_text)

        def doc_to_choice(self, doc: Row, doc_to_choice: Any = None) -> Any:
            return self.rendered(doc).choices if self.file else super().doc_to_choice(doc, doc_to_choice)

        def doc_to_target(self, doc: Any, doc_to_target: Any = None) -> int | str | list[int] | list[str]:
            if self.file is None:
                return super().doc_to_target(doc, doc_to_target)
            found = self.rendered(doc)
            right = found.positions or found.answers
            return right[0] if len(right) == 1 else right

        def doc_to_prefix(self, doc: Row) -> str | None:
            prefix = self.file.config.get("gen_prefix") if self.file else None
            return render(prefix, doc) if prefix else None

        def resolve_field(self, doc: Row, field: str | None = None) -> str | None:  # type: ignore[override]
            template = self.file.config.get(field) if self.file and field else None
            return render(template, doc) if template else None

    def made(task: TaskFile, config: dict[str, object]) -> ConfigurableTask:
        built = OwnTask(config=config)
        built.file = task
        return built

    return made


def _check_names(task: TaskFile) -> None:
    """Metrics and aggregations are lm-eval's own: it would look for another metric on the hub, and run it."""
    from lm_eval.api import registry

    import sllm_tune.tasks.rouge  # pyright: ignore[reportUnusedImport]  # noqa: F401  fills the registry, and adds rouge_l

    metrics = registry.metric_registry
    for entry in task.config["metric_list"]:
        name, aggregation = entry["metric"], entry.get("aggregation")
        if name not in metrics or entry.get("hf_evaluate"):
            raise TaskError(f"{task.path}: {shown(name)} is not a metric of lm-eval{hint(name, metrics)}")
        if aggregation and aggregation not in registry.aggregation_registry:
            near = hint(aggregation, registry.aggregation_registry)
            raise TaskError(f"{task.path}: {shown(aggregation)} is not an aggregation of lm-eval{near}")


def table(task: TaskFile, rows: Sequence[Row], source: str) -> Any:
    """The rows as a table, every value as it is; what a row lacks is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, pa.Array] = {}
    for column in dict.fromkeys(column for row in rows for column in row):
        if "\0" in column:
            number = next(number for number, row in enumerate(rows, 1) if column in row)
            raise TaskError(f"{task.name}, row {number} of {source}: {column!r} is not a column name; rename it.")
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


def sandbox_templates() -> None:
    """lm-eval's templates can reach any Python object, and its expressions search for ever; these cannot."""
    from lm_eval import utils
    from lm_eval.api import metrics
    from lm_eval.filters import extraction, transformation

    utils.env = lm_eval_sandbox()
    for module in (metrics, extraction, transformation):
        vars(module)["re"] = Expressions()


@cache
def lm_eval_sandbox() -> Sandbox:
    """The sandbox for templates of the tasks that lm-eval ships, which print as lm-eval prints."""
    from lm_eval import utils

    made = bounded_sandbox(undefined=utils.env.undefined, filters=dict(utils.env.filters))
    # lm-eval compiles a template for every row, which takes longer than rendering it.
    compiled: Any = lru_cache(maxsize=256)(made.from_string)
    made.from_string = compiled
    return made
