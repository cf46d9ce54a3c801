"""A task file as it may be written: lm-eval's keys with the types that they need, held against them before lm-eval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, cast

from jinja2 import TemplateSyntaxError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from sllm_tune.bounded import compiled
from sllm_tune.errors import BadInput, RecipeError, TaskError
from sllm_tune.recipe.faults import own_problem
from sllm_tune.recipe.file import read_yaml
from sllm_tune.recipe.section import SHA256, Section, Text
from sllm_tune.tasks.keys import TaskKeys
from sllm_tune.tasks.render import columns_read
from sllm_tune.tasks.templates import FIELDS
from sllm_tune.wording import shown


def _as_choices(value: object) -> object:
    """A column or template, or the choices themselves; a whole number is the text that names it."""
    if isinstance(value, str):
        return value
    items = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(items, list) or not items:
        raise PydanticCustomError(
            "choices", "must be a list of texts, a column or a template (got {got})", {"got": shown(value)}
        )
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int) or item == "":
            text = "holds {got}, which is not text; put each choice in quotes (YAML reads an unquoted Yes as true)"
            raise PydanticCustomError("choices", text, {"got": shown(item)})
    return [str(item) for item in items]


def _as_template(value: object) -> object:
    if not isinstance(value, str):
        raise PydanticCustomError("template", "must be text: a column or a template (got {got})", {"got": shown(value)})
    return value


def _as_target(value: object) -> object:
    return value if isinstance(value, int) and not isinstance(value, bool) else _as_template(value)


def _as_texts(value: object) -> object:
    """One text or a list of them."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise PydanticCustomError("texts", "must be text or a list of texts (got {got})", {"got": shown(value)})
    return texts


def _as_metric(value: object) -> object:
    return {"metric": value} if isinstance(value, str) else value


def _as_regex(value: object) -> object:
    try:
        return compiled(value, "is wrong").pattern
    except BadInput as error:
        raise PydanticCustomError("regex", "{why}", {"why": str(error)}) from None


Template = Annotated[str, BeforeValidator(_as_template)]
Texts = Annotated[list[str], BeforeValidator(_as_texts)]


class Metric(Section):
    """How an answer is graded, and how grades are put together."""

    metric: Text
    aggregation: Text | None = None
    higher_is_better: bool | None = None
    hf_evaluate: bool = False
    ignore_case: bool = False
    ignore_punctuation: bool = False
    ignore_numbers: bool = False
    regexes_to_ignore: list[Annotated[str, BeforeValidator(_as_regex)]] | None = None


class Generation(Section):
    """How a written answer is generated."""

    until: Texts | None = None
    max_gen_toks: int | None = Field(default=None, gt=0)
    do_sample: bool = False
    temperature: float = Field(default=0.0, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)


class FilterStep(BaseModel):
    """One function of a filter; its other keys are the function's own."""

    model_config = ConfigDict(frozen=True, extra="allow")

    function: Text
    regex_pattern: Annotated[str, BeforeValidator(_as_regex)] | None = None


class Filter(Section):
    """What is done to an answer before it is graded."""

    name: Text
    filter: list[FilterStep] = Field(min_length=1)


class Fewshot(Section):
    """How a run folder's task file takes its examples; a recipe says how many."""

    sampler: Literal["first_n"]
    doc_to_target: Literal["label"] | None = None


class Metadata(Section):
    """What the harness has no field for."""

    version: float | str | None = None
    source: Text | None = None
    sha256: Annotated[str, Field(pattern=SHA256)] | None = None
    licence: Text = "not stated"
    commercial_use: bool = True
    on_bad_row: Literal["fail", "skip"] = "fail"
    records: dict[str, object] | None = None
    split_by: list[Text] = Field(default=[])
    split: dict[str, float] | None = None
    split_after: dict[str, object] | None = None


class TaskConfig(Section):
    """The keys of a task file; those that lm-eval has besides hold code, or do what a recipe does."""

    task: Text | None = None
    task_alias: Text | None = None
    tag: Texts | None = None
    dataset_path: Text | None = None
    dataset_name: Text | None = None
    dataset_kwargs: dict[str, object] | None = None
    training_split: Text | None = None
    validation_split: Text | None = None
    test_split: Text | None = None
    fewshot_split: Text | None = None
    output_type: Literal["multiple_choice", "generate_until"]
    doc_to_text: Template
    doc_to_choice: Annotated[str | list[str] | None, BeforeValidator(_as_choices)] = None
    doc_to_target: Annotated[str | int, BeforeValidator(_as_target)]
    description: Template = ""
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    gen_prefix: Template | None = None
    metric_list: list[Annotated[Metric, BeforeValidator(_as_metric)]] = Field(min_length=1)
    generation_kwargs: Generation | None = None
    filter_list: list[Filter] | None = None
    fewshot_config: Fewshot | None = None
    metadata: Metadata = Metadata()


def read_task_file(path: Path) -> TaskKeys:
    """The keys of a task file, as it has them.

    Raises:
        TaskError: it cannot be read, is not a mapping, or has a key or a value that a task file does not have.
    """
    try:
        values, repeated = read_yaml(path)
    except RecipeError as error:
        code = "; a task file of a domain folder holds no code" if "!function" in str(error) else ""
        raise TaskError(f"{error}{code}") from error
    if repeated:
        raise TaskError(f"{path}: {repeated[0].text}")
    return checked(values, path)


def checked(values: Mapping[object, object], path: object) -> TaskKeys:
    """The keys that are given, in the types that lm-eval needs.

    Raises:
        TaskError: all faults, each with its key.
    """
    try:
        config = TaskConfig.model_validate(values)
    except ValidationError as error:
        problems = [
            own_problem(details, TaskConfig, {SHA256: "64 hexadecimal digits"})
            for details in error.errors(include_url=False)
        ]
        raise TaskError(
            "\n  ".join([f"{path}: {problems[0].line([])}", *(problem.line([]) for problem in problems[1:])])
        ) from error
    for field in FIELDS:
        template = getattr(config, field)
        try:
            _ = columns_read(template) if isinstance(template, str) else None
        except TemplateSyntaxError as error:  # here, so that what explains one template does not trip over another
            raise TaskError(f"{path}: {field}: a template is not valid Jinja: {error.message}.") from error
    lacking: list[str] = []
    if config.output_type == "multiple_choice" and config.doc_to_choice is None:
        lacking.append("doc_to_choice, which a task of multiple_choice needs")
    if config.output_type == "generate_until" and config.doc_to_choice is not None:
        raise TaskError(
            f"{path}: doc_to_choice: a task of generate_until has no choices.\n"
            "  Leave it out, or set output_type: multiple_choice."
        )
    until = config.generation_kwargs.until if config.generation_kwargs else None
    if config.output_type == "generate_until" and until is None and not config.fewshot_delimiter:
        raise TaskError(
            f"{path}: fewshot_delimiter: is empty, and lm-eval would end every answer there, before it begins.\n"
            "  Set generation_kwargs.until to a text that no answer has."
        )
    if config.metadata.source is None and config.dataset_path is None:
        lacking.append("metadata.source or dataset_path")
    if lacking:
        raise TaskError(f"{path}: no {', '.join(lacking)}.")
    return cast(TaskKeys, config.model_dump(exclude_unset=True, exclude_none=True))
