"""What the licences of data and base forbid, as far as their names and texts say."""

from __future__ import annotations

import re
from enum import Enum

from sllm_tune.evaluate.plain import CardDict, ResultsDict

_NON_COMMERCIAL = re.compile(
    r"(?<![a-z])nc(?![a-z])|non-?\s?commercial|no commercial|research[- ](?:only|purposes?)|비영리|비상업",
    re.IGNORECASE,
)
_NO_DERIVATIVES = re.compile(r"(?<![a-z])nd(?![a-z])|no[- ]?derivat|all rights reserved|변경\s?금지", re.IGNORECASE)
_UNKNOWN = re.compile(r"(?:not stated|unknown|unspecified|none|see the data ?set|\?)?", re.IGNORECASE)


class Commercial(Enum):
    """Whether rows may be used for gain."""

    ALLOWED = "allowed"
    FORBIDDEN = "forbidden"
    UNKNOWN = "unknown"


def trained_tasks(results: ResultsDict) -> dict[str, CardDict]:
    """The data cards of the tasks that are in the weights, by name: trained on, or replayed."""
    data = results["recipe"]["data"]
    names = [*data["tasks"], *(data["replay"]["tasks"] if data["replay"] else [])]
    return {name: results["data"]["tasks"][name] for name in names}


def commercial_use(card: CardDict) -> Commercial:
    """Whether the data card of a task allows commercial use."""
    licence = str(card.get("licence") or "")
    if card.get("commercial_use") is False or is_non_commercial(licence):
        return Commercial.FORBIDDEN
    return Commercial.UNKNOWN if is_unknown(licence) else Commercial.ALLOWED


def is_non_commercial(licence: str) -> bool:
    """Whether a licence's name or text forbids commercial use."""
    return bool(_NON_COMMERCIAL.search(licence))


def is_without_derivatives(licence: str) -> bool:
    """Whether a licence's name or text forbids what is derived from the work, such as a model that learned from it."""
    return bool(_NO_DERIVATIVES.search(licence))


def is_unknown(licence: str) -> bool:
    """Whether a licence says nothing."""
    return bool(_UNKNOWN.fullmatch(licence.strip()))
