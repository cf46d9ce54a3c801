"""Instructions that a reply's form can be checked by, and the share of replies that are a label nobody asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from sllm_tune.answer.rules import RULES, is_degenerate, is_echo, normal, tidy

INSTRUCTIONS = Path(__file__).with_name("instructions.yaml")
OFFERED = ("one_of", "first_word")  # rules that name the answers to choose from


class Instruction(BaseModel):
    """One thing to ask, and what a reply that follows it looks like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    text: str
    rules: Mapping[str, JsonValue] = Field(min_length=1)
    """By the name of a rule what it is given; the first is the kind of instruction."""

    @field_validator("rules")
    @classmethod
    def _known(cls, value: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        if unknown := [name for name in value if name not in RULES]:
            raise ValueError(f"no rule is called {unknown[0]!r}")
        return value

    @property
    def language(self) -> str:
        """Of what is asked: "en" or "ko"."""
        return self.id.split("-")[0]

    @property
    def kind(self) -> str:
        """What instructions have in common that are followed or not for the same reason: intervals draw them together.

        Three fruits and three kinds of weather are not independent evidence.
        """
        return next(iter(self.rules))

    @property
    def offers(self) -> list[str]:
        """The answers that it offers to choose from."""
        given = [self.rules.get(name) for name in OFFERED]
        return [str(option) for options in given if isinstance(options, list) for option in options]

    def failures(self, reply: str) -> list[str]:
        """The rules that a reply breaks, by their names; none where it follows the instruction.

        Two are of every instruction: `degenerate` (empty, or one passage again and again) and `echo` (the instruction
        said back), so that length alone earns nothing.
        """
        text = tidy(reply)
        if is_degenerate(text):
            return ["degenerate", *self.rules]
        broken = ["echo"] if is_echo(text, self.text) else []
        return broken + [name for name, value in self.rules.items() if not RULES[name](text, value)]


@cache
def instructions() -> tuple[Instruction, ...]:
    """The fixed list that comes with the package: 60 in English, then 40 in Korean."""
    listed = yaml.safe_load(INSTRUCTIONS.read_text(encoding="utf-8"))
    return tuple(Instruction(**one) for language in ("en", "ko") for one in listed[language])


def label_replies(asked: Sequence[Instruction], replies: Sequence[str], labels: Collection[str]) -> list[float | None]:
    """Of each reply 1 where it is one of the labels and nothing else, 0 where it is not.

    None where the instruction itself offers one of the labels. Compared is as `exact_match` does without case and
    punctuation; a label that is only punctuation is no label here.
    """
    known = {normal(label) for label in labels} - {""}
    return [
        None if any(normal(option) in known for option in one.offers) else float(normal(reply) in known)
        for one, reply in zip(asked, replies, strict=True)
    ]
