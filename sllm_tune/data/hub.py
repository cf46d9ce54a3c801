"""Rows of a task file that names a data set of the hub in the harness's own words, such as `dataset_path`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sllm_tune.errors import TaskError
from sllm_tune.model.find import HUB_ID
from sllm_tune.model.hub import require_no_folder, use_hub
from sllm_tune.rows.read import Row
from sllm_tune.tasks.find import TaskFile

if TYPE_CHECKING:
    from datasets import Dataset

OWN_SPLIT = ("split", "split_by", "split_after")


def hub_rows(task: TaskFile, used: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Rows of the splits that the task file names, and the split of each.

    Args:
        task: A task file with `dataset_path`.
        used: The splits that are needed, of "train", "validation" and "test"; one that is split anew is read whole.

    Returns:
        Rows, and for each "train", "validation" or "test", or "" where `metadata` asks for a split of its own.

    Raises:
        TaskError: the data set is not available, is not one of the hub, or its splits cannot be told apart.
    """
    from datasets import load_dataset, packaged_modules

    readers = packaged_modules.__dict__["_PACKAGED_DATASETS_MODULES"]  # of files: csv, json, ...

    path, config = task.dataset_path, task.config
    named = {"test": config.get("test_split"), "validation": config.get("validation_split")}
    named["train"] = config.get("training_split")
    resplit = any(key in task.metadata for key in OWN_SPLIT)
    wanted = {split: str(name) for split, name in named.items() if name and (resplit or split in used)}
    if not resplit and not {*used} - {"validation"} <= wanted.keys():
        raise TaskError(
            f"{task.path}: names no training_split and test_split of {path}.\n"
            "  Name them, or say with metadata.split_by and metadata.split how its rows are to be split."
        )
    files = task.data_files
    reads_files = path in readers and bool(files) and all(Path(file).is_absolute() for file in files)
    if not reads_files and (not HUB_ID.fullmatch(path) or path in readers):
        # what it then reads would depend on the working folder
        raise TaskError(
            f"{task.path}: dataset_path {path!r} is not a data set of the hub.\n"
            "  For a file, name it in metadata.source, from the folder of the task file on; or give "
            "dataset_kwargs.data_files whole paths."
        )
    if not reads_files:
        require_no_folder(path, task.path)
        use_hub()
    options = config.get("dataset_kwargs") or {}
    rows: list[Row] = []
    given: list[str] = []
    try:
        # Test rows first: a row that is in two splits stays in the one that is graded.
        for split, name in wanted.items():
            found = load_dataset(path, config.get("dataset_name"), split=name, **options)
            rows += [dict(row) for row in cast("Dataset", found)]
            given += ["" if resplit else split] * (len(rows) - len(given))
    except Exception as error:  # datasets raises many kinds; all of them mean that the rows are not available
        raise TaskError(
            f"{task.path}: {path} cannot be loaded from the hub ({type(error).__name__}: {error}).\n"
            f"  Check the name and the network, or give a local file with data.source.{task.name}=FILE."
        ) from error
    return rows, given
