"""A task that lm-eval ships: over its own data of the hub, or over a local file in the same columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sllm_tune.errors import TaskError
from sllm_tune.model.hub import require_no_folder, use_hub
from sllm_tune.rows.read import Row, read_rows
from sllm_tune.tasks.build import sandbox_templates, table
from sllm_tune.tasks.find import TaskFile, manager
from sllm_tune.tasks.keys import TaskKeys

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


def build_shipped(name: str, path: Path | None = None) -> ConfigurableTask:
    """A task that lm-eval ships, with its own data from the hub, or with the rows of a local file in the same schema.

    Raises:
        TaskError: its data are not available, or the file's rows do not fit it.
    """
    sandbox_templates()
    if path is not None:
        return _build_over(name, path)
    require_no_folder(str(_config(name).get("dataset_path") or name), f"task {name!r} of lm-eval")
    use_hub()
    try:
        return _loaded(name, name)
    except Exception as error:  # datasets raises many kinds; all of them mean that the rows are not available
        raise TaskError(
            f"task {name!r} of lm-eval: its data cannot be loaded ({type(error).__name__}: {error})."
        ) from error


def _config(name: str) -> TaskKeys:
    """The keys of a task file that lm-eval ships; no code of it is run."""
    from lm_eval.tasks._yaml_loader import load_yaml

    path = manager().task_index[name].yaml_path
    assert path is not None  # of a class that was registered in Python
    return cast(TaskKeys, load_yaml(path, resolve_func=False))


def _loaded(what: str | dict[str, object], name: str) -> ConfigurableTask:
    """The task `name` of what lm-eval is asked for; it makes each one of a file a ConfigurableTask."""
    return cast("ConfigurableTask", manager().load(what)["tasks"][name])


def _build_over(name: str, path: Path) -> ConfigurableTask:
    from datasets import Dataset

    rows = read_rows(path)
    config = _config(name)
    task = TaskFile(name, None, config)
    splits = {split: Dataset(table(task, part, str(path))) for split, part in _deal(task, rows, path).items()}
    # The harness changes a key of a task that it ships only inside a group.
    changed: dict[str, object] = {"group": "local", "task": [{"task": name, "custom_dataset": lambda **_: splits}]}  # pyright: ignore[reportUnknownLambdaType]
    try:
        built = _loaded(changed, name)
        docs: list[Any] = [*built.eval_docs, *(built.training_docs() or [])]
        for doc in docs:
            built.doc_to_text(doc)
            built.doc_to_target(doc)
    except Exception as error:  # the harness's own functions read the rows, and raise whatever they trip over
        raise TaskError(
            f"{path}: its rows do not fit task {name!r} of lm-eval ({type(error).__name__}: {error}).\n"
            f"  They need the columns of {config.get('dataset_path')}; the first row has {sorted(rows[0])}."
        ) from error
    return built


def _deal(task: TaskFile, rows: Sequence[Row], path: Path) -> dict[str, list[Row]]:
    """Rows of one file by the harness's name of each split that a task reads.

    Dealt in turn, so that a file sorted by its answers gives mixed splits: of seven rows two are graded, one is for
    validation and four are for training, where the task has all of these.
    """
    config = task.config
    graded, training = config.get("test_split") or config.get("validation_split"), config.get("training_split")
    shots = [config.get("fewshot_split"), (config.get("fewshot_config") or {}).get("split")]
    others = dict.fromkeys(name for name in [config.get("validation_split"), *shots] if name not in (graded, training))
    order = [graded, training, *others, training, graded, training, training]
    turns: list[str] = [split for split in order if split]
    if len(rows) < len(turns):
        raise TaskError(
            f"{path}: {len(rows)} rows, too few for the splits of task {task.name!r} ({', '.join(set(turns))}).\n"
            f"  Give it at least {len(turns)}."
        )
    dealt: dict[str, list[Row]] = {split: [] for split in turns}
    for position, row in enumerate(rows):
        dealt[turns[position % len(turns)]].append(row)
    return dealt
