"""The keys of a task file as lm-eval is given them: what `TaskConfig` made of those that were written."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import Required, TypedDict


class MetricKeys(TypedDict, total=False):
    """How an answer is graded."""

    metric: Required[str]
    aggregation: str
    higher_is_better: bool
    hf_evaluate: bool
    ignore_case: bool
    ignore_punctuation: bool
    ignore_numbers: bool
    regexes_to_ignore: list[str]


class MetadataKeys(TypedDict, total=False):
    """What the harness has no field for."""

    version: float | str
    source: str
    sha256: str
    licence: str
    commercial_use: bool
    on_bad_row: Literal["fail", "skip"]
    records: dict[str, object]
    split_by: list[str]
    split: dict[str, float]
    split_after: dict[str, object]


class TaskKeys(TypedDict, total=False):
    """Those of a task file of a domain, or of a run folder; one that lm-eval ships may have others besides."""

    task: str
    task_alias: str
    tag: list[str]
    dataset_path: str
    dataset_name: str
    dataset_kwargs: dict[str, Any]
    training_split: str
    validation_split: str
    test_split: str
    fewshot_split: str
    output_type: Required[Literal["multiple_choice", "generate_until"]]
    doc_to_text: Required[str]
    doc_to_choice: str | list[str]
    doc_to_target: Required[str | int]
    description: str
    target_delimiter: str
    fewshot_delimiter: str
    gen_prefix: str
    metric_list: Required[list[MetricKeys]]
    generation_kwargs: dict[str, object]
    filter_list: list[dict[str, object]]
    fewshot_config: dict[str, str]
    metadata: MetadataKeys
