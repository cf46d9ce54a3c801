"""`results.json` as plain JSON values, as pages and cards print it: the parts of `schema.Results` that code reads.

A figure may be null where a page says "not measured" of it. Names are those of the schema.
"""

from __future__ import annotations

from typing import Literal, TypedDict, TypeVar, cast

from pydantic import JsonValue
from typing_extensions import NotRequired

from sllm_tune.data.card import PersonalDict
from sllm_tune.evaluate.schema import Results
from sllm_tune.wording import visible

T = TypeVar("T")


class FigureDict(TypedDict):
    """A mean and its 95 % interval."""

    value: float
    ci95: list[float]


class GainDict(FigureDict):
    """A difference and its p-value."""

    p_value: float


class PairedDict(GainDict):
    """A difference on the same items."""

    test: str
    improved: int
    regressed: int


class TaskDict(TypedDict):
    """One task."""

    kind: Literal["domain", "general"]
    metric: str
    n: int
    scores: dict[str, FigureDict]
    differences: dict[str, PairedDict]


class ModelDict(TypedDict):
    """One who answered; its sizes and costs are only printed."""

    num_fewshot: NotRequired[int | None]


class FollowedDict(TypedDict):
    """Instructions of one language."""

    n: int
    shares: dict[str, float]


class LabelsDict(TypedDict):
    """Replies that are a label of the domain."""

    n: int
    shares: dict[str, FigureDict]
    difference: PairedDict


class ProseDict(TypedDict):
    """General prose of one language."""

    n: int
    base: float
    specialised: float
    ratio: FigureDict


class ReplyDict(TypedDict):
    """What base and specialist reply to one instruction."""

    id: str
    prompt: str
    base: str
    specialised: str
    followed: list[str]


class EverydayDict(TypedDict):
    """What the domain never asked."""

    n: int
    followed: dict[str, FigureDict]
    difference: PairedDict
    by_language: dict[str, FollowedDict]
    labels: LabelsDict
    prose: dict[str, ProseDict]
    replies: list[ReplyDict]


class VerdictDict(TypedDict):
    """The outcome of the comparison."""

    outcome: Literal["better", "worse", "no difference shown"]
    gain: GainDict
    controls_as_good: list[str]
    not_compared: dict[str, list[str]]


class GateDict(TypedDict):
    """The gate, judged."""

    passed: bool
    reasons: list[str]


class PointDict(TypedDict):
    """A loss at a step of training."""

    step: int
    loss: float | None


class TrainingDict(TypedDict):
    """Loss curves, and the extent of the training."""

    loss: list[PointDict]
    validation_loss: list[PointDict]
    examples: int
    seconds: float | None
    world_size: int | None


class StepScoreDict(TypedDict):
    """How a checkpoint answers some items of one task."""

    kind: Literal["domain", "general"]
    value: float
    n: int


class TriedDict(TypedDict):
    """A size that a search tried."""

    layers: int
    intermediate_size: int
    tokens: int
    chosen: bool


class StepDict(TypedDict):
    """The base, or a step of a resize: its figures, and what its kind has besides; its kind says which are there."""

    kind: str
    parameters: float | None
    bytes: float | None
    tokens_per_second: float | None
    perplexity: float | None
    scores: dict[str, StepScoreDict]
    tokens: int
    tokens_before: int
    method: str
    layers: list[int]
    importance: list[float | None]
    intermediate_size: int | None
    num_attention_heads: int | None
    hidden_size: int | None
    kv_heads: list[list[int]]
    importance_of_heads: list[list[float]] | None
    divergence: str
    share: float
    healed_tokens: int | None
    loss: float | None
    quantization: dict[str, JsonValue]
    tried: list[TriedDict]


class CardDict(TypedDict):
    """The rows of one task."""

    source: str
    licence: str
    commercial_use: NotRequired[bool]
    personal_data: NotRequired[PersonalDict | None]


class DataDict(TypedDict):
    """The data card."""

    tasks: dict[str, CardDict]


class BaseModelDict(TypedDict):
    """`base_model` of a recipe."""

    path: str
    chat_template: bool


class ReplayDict(TypedDict):
    """`data.replay` of a recipe."""

    tasks: list[str]


class RecipeDataDict(TypedDict):
    """`data` of a recipe."""

    tasks: list[str]
    replay: ReplayDict | None


class RecipeEvaluateDict(TypedDict):
    """`evaluate` of a recipe."""

    batch_size: int


class RecipeReportDict(TypedDict):
    """`report` of a recipe."""

    show_items: NotRequired[bool]


class RecipeDict(TypedDict):
    """A resolved recipe."""

    base_model: BaseModelDict
    data: RecipeDataDict
    evaluate: RecipeEvaluateDict
    report: NotRequired[RecipeReportDict]


class ResultsDict(TypedDict):
    """Every figure of a run."""

    smoke: NotRequired[bool]
    name: str
    domain: str
    language: Literal["en", "ko"]
    models: dict[str, ModelDict]
    tasks: dict[str, TaskDict]
    verdict: VerdictDict
    forgetting: NotRequired[FigureDict | None]
    everyday: NotRequired[EverydayDict | None]
    gate: NotRequired[GateDict | None]
    data: DataDict
    training: TrainingDict
    resize: NotRequired[list[StepDict] | None]
    lineage: dict[str, str]
    recipe: RecipeDict
    versions: dict[str, str]


def as_plain(results: Results) -> ResultsDict:
    """The JSON of results, whose model has checked its shape."""
    return cast(ResultsDict, results.as_json())


def seen(value: T) -> T:
    """JSON values in which every text is visible as a whole."""
    return cast(T, _seen(value))


def _seen(value: object) -> object:
    if isinstance(value, dict):
        return {_seen(key): _seen(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_seen(inner) for inner in value]
    return visible(value) if isinstance(value, str) else value
