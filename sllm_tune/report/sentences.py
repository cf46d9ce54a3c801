"""`templates/strings.yaml`: every sentence of the report, in "en" and "ko"; here are those that code puts together."""

from __future__ import annotations

from importlib import resources
from typing import TypedDict, cast

import yaml


class Outcome(TypedDict):
    """A verdict by itself, and one with what is to be said of controls."""

    alone: str
    linked: str


VerdictSentences = TypedDict(
    "VerdictSentences",
    {
        "better": Outcome,
        "worse": Outcome,
        "no difference shown": Outcome,
        "as_good": dict[str, str],
        "as_good_and_higher": dict[str, str],
        "ahead": dict[str, str],
        "not_compared": str,
        "join": str,
    },
)


class ResizedTitles(TypedDict):
    """Of the section on a resize."""

    smaller: str
    other: str


class Sentences(TypedDict):
    """Sentences and names by what they are called; templates print more of them."""

    smoke: str
    not_measured: str
    gate: str
    gate_passed: str
    gate_failed: str
    n_items: str
    interval: str
    difference: str
    between: str
    points: str
    raw: str
    on_tasks: str
    verdict: VerdictSentences
    controls: dict[str, str]
    models: dict[str, str]
    shots: dict[str, str]
    domains: dict[str, str]
    metrics: dict[str, str]
    tests: dict[str, str]
    splits: dict[str, str]
    stages: dict[str, str]
    languages: dict[str, str]
    minutes: str
    share: str
    pii_none: str

    n_items: str
    interval: str
    difference: str
    next_commands: dict[str, str]
    next: dict[str, str]

    forgetting_lost: str
    forgetting_won: str
    forgetting_even: str
    forgetting_even_choices: str
    everyday_headline: str
    everyday_collapse: str
    everyday_lost: str
    everyday_won: str
    prose_lost: str
    prose_ratio: str

    resized: ResizedTitles
    step_kinds: dict[str, str]
    did: dict[str, str]
    widths: dict[str, str]
    depth_methods: dict[str, str]
    divergences: dict[str, str]
    importance_axes: dict[str, str]
    healed_by: str
    healed_alone: str
    healed_loss: str
    heads: str
    heads_share: str
    cost_rows: dict[str, str]
    format_names: dict[str, str]
    format_weighed: str
    format_alike: str
    format_columns: dict[str, str]
    seconds: str
    next_commands: dict[str, str]
    next: dict[str, str]


def sentences(language: str) -> Sentences:
    """The report's sentences in one language, by their names."""
    strings = yaml.safe_load(resources.files("sllm_tune.report").joinpath("templates/strings.yaml").read_text("utf-8"))
    return cast(Sentences, strings[language])
