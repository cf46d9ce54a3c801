"""`scores/results.json`: the shape of every figure that a report, a gate, a model card or a notebook shows."""

from __future__ import annotations

import html
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from sllm_tune.data.card import Card
from sllm_tune.model.steps import StepRecord
from sllm_tune.runs.record import Record


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class Figure(_Part):
    """A mean, in the unit of the scores."""

    value: float
    ci95: tuple[float, float]
    """Its 95 % interval."""


class PairedFigure(Figure):
    """Ours minus theirs on the same items; positive means that ours is better."""

    p_value: float
    test: str
    """How the p-value was found."""

    improved: int
    """Items on which ours scores higher."""

    regressed: int
    """Items on which it scores lower."""


class Gain(Figure):
    """Specialist minus base over the domain's tasks, each of the same weight."""

    p_value: float


class Flip(_Part):
    """An item that base and specialist answer differently."""

    id: str
    prompt: str
    target: str
    base: str
    specialised: str


class TaskResults(_Part):
    """One task."""

    kind: Literal["domain", "general"]
    metric: str
    """The first of the task file."""

    higher_is_better: bool
    n: int
    """Graded items."""

    test_runs: int
    """How often models were scored on the test rows of this run; each choice made on them is a leak."""

    scores: dict[str, Figure]
    """By who answered: `specialised`, `base`, and the controls that the task has."""

    differences: dict[str, PairedFigure]
    """By `specialised vs NAME`."""

    flips: list[Flip] = []
    """Some of them; none where items are not to be shown."""


class Followed(_Part):
    """How many everyday instructions of one language were followed, as a share by who answered."""

    n: int
    shares: dict[str, float]


class LabelReplies(_Part):
    """Replies that are a label of the domain and nothing else, though the instruction offers none."""

    n: int
    """Instructions, without those that offer such a label themselves."""

    shares: dict[str, Figure]
    """By who answered, with the exact interval of a share."""

    difference: PairedFigure
    """Specialist minus base; positive is a collapse."""


class Prose(_Part):
    """General prose of one language, as it is read."""

    n: int
    """Texts that base and specialist read whole."""

    base: float
    """Perplexity: e to the mean loss a token in nats."""

    specialised: float
    """The same for the specialist, a token of the base, also where its own vocabulary is another."""

    ratio: Figure
    """Specialist by base; above 1 it reads less well."""


class Reply(_Part):
    """What base and specialist reply to one instruction."""

    id: str
    prompt: str
    base: str
    specialised: str
    followed: list[str]
    """Who follows it."""


class Everyday(_Part):
    """What base and specialist make of what the domain never asked."""

    n: int
    """Instructions."""

    followed: dict[str, Figure]
    """Share of the instructions whose form a reply has, by who answered."""

    difference: PairedFigure
    """Specialist minus base; intervals draw instructions of one kind together."""

    by_language: dict[str, Followed]
    labels: LabelReplies
    prose: dict[str, Prose]
    """By language."""

    replies: list[Reply] = []
    """Some of them; none where items are not to be shown."""


class ModelResults(_Part):
    """Size, speed and cost of one who answered; a control has only what means something for it."""

    path: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    """Of the weights."""

    dtype: str | None = None
    """Of the weights, in which speed and memory are measured."""

    scored_in: str | None = None
    """Number format that its answers were computed in."""

    latency_ms: float | None = None
    """Median of one item at batch size 1."""

    tokens_per_second: float | None = None
    """Prompts and answers, batched."""

    peak_memory_bytes: int | None = None
    energy_wh: float | None = None
    usd_per_million_tokens: float | None = None
    """At `evaluate.usd_per_hour`."""

    num_fewshot: int | None = None
    """Worked examples in the prompt; the fewest of any task."""


class Verdict(_Part):
    """One outcome of the comparison."""

    outcome: Literal["better", "worse", "no difference shown"]
    """Shown only if the interval leaves out 0 and p < 0.05."""

    gain: Gain
    controls_as_good: list[str]
    """Controls that the specialist is not shown to beat."""

    not_compared: dict[str, list[str]]
    """Tasks that a control was not measured on."""


class Agreement(_Part):
    """Whether the merged model answers as the base with its adapter does, on validation items."""

    value: float
    """Share of equal answers."""

    n: int
    flipped: int
    merged_score: float | None = None
    adapter_score: float | None = None


class Gate(_Part):
    """The recipe's gate, judged."""

    passed: bool
    reasons: list[str]
    """A sentence for each limit, in the recipe's language."""


class Point(_Part):
    """A loss at a step of training."""

    step: int
    loss: float


class Training(_Part):
    """Loss curves, and the extent of the training."""

    loss: list[Point]
    validation_loss: list[Point]
    examples: int
    seconds: float | None
    world_size: int | None
    """Processes."""


class Results(Record):
    """Every figure of a run."""

    SCHEMA: ClassVar[int] = 2

    schema_number: int = Field(default=2, alias="schema")
    """Which shape the file has; another number is another shape."""

    smoke: bool
    """Whether the models are tiny and random, and the figures mean nothing."""

    name: str
    domain: str
    language: Literal["en", "ko"]
    made_at: str
    """In UTC."""

    models: dict[str, ModelResults]
    tasks: dict[str, TaskResults]
    verdict: Verdict
    forgetting: Figure | None
    """Base minus specialist over the general tasks; null without any."""

    everyday: Everyday | None = None
    """Null in results of a version that did not measure it."""

    merge_agreement: Agreement | None
    """Null without validation items."""

    gate: Gate | None
    """Null where the recipe sets none."""

    data: Card
    training: Training
    resize: list[StepRecord] | None
    """The base and each step; null where the recipe does not resize."""

    lineage: dict[str, str]
    """What the adapter was trained on: the name and hash of its base, the hash of its rows."""

    recipe: dict[str, JsonValue]
    """All of it, without local paths."""

    versions: dict[str, str]
    hardware: str
    seconds: dict[str, float | None]
    """What each stage took."""

    def as_html(self) -> str:
        """Scores with their intervals, a row for each task and one who answered."""
        rows = [
            f"<tr><td>{html.escape(task)}</td><td>{html.escape(found.metric)}</td><td>{found.n}</td>"
            f"<td>{html.escape(name)}</td><td>{score.value:.3f}</td>"
            f"<td>{score.ci95[0]:.3f} to {score.ci95[1]:.3f}</td></tr>"
            for task, found in self.tasks.items()
            for name, score in found.scores.items()
        ]
        head = "".join(f"<th>{name}</th>" for name in ("task", "metric", "items", "model", "score", "95 % interval"))
        return f"<table><tr>{head}</tr>{''.join(rows)}</table>"
