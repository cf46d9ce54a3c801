"""Words of messages: names and values as they are shown, the nearest right name, and text that is safe to show."""

import difflib
import re
import unicodedata
from collections.abc import Iterable

# Control characters but tabs and line ends, line separators, marks that turn the direction of text, half characters.
_UNSEEN = re.compile(
    "\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters by their category, of which nothing is seen


def nearest(name: str, names: Iterable[str]) -> str:
    """The text " did you mean 'x'?" with the one of `names` most like `name`; "" where none is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" did you mean '{near[0]}'?" if near else ""


def hint(name: str, names: Iterable[str]) -> str:
    """`nearest` as the end of a sentence: "; did you mean 'x'?" or ""."""
    near = nearest(name, names)
    return f";{near}" if near else ""


def listed(names: Iterable[object], last: str) -> str:
    """The names in quotes, `last` in front of the last one: "'a', 'b' and 'c'"."""
    *head, tail = [shown(name) for name in names]
    return f"{', '.join(head)} {last} {tail}" if head else tail


def shown(value: object) -> str:
    """A value as YAML writes it, cut to 60 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_blank(text: str) -> bool:
    """True for text of which nothing is seen: white space and what takes no room."""
    return all(letter.isspace() or _is_unseen(letter) for letter in text)


def as_seen(text: str) -> str:
    """Text as a reader tells it from another: composed (NFC), without what takes no room, no white space around it."""
    if not text.isascii():
        text = "".join(letter for letter in unicodedata.normalize("NFC", text) if not _is_unseen(letter))
    return text.strip()


def _is_unseen(letter: str) -> bool:
    return letter in _FILLERS or unicodedata.category(letter) == "Cf"


def visible(text: str) -> str:
    r"""Text from data as a terminal or a report may show it: what would act there instead of being seen is written out.

    An escape sequence could rewrite what was said before, and a change of direction shows text in another order than
    the model reads it: `\x1b` and `\u202e` then stand in their places.
    """
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)


def without_secrets(text: str) -> str:
    """Text without tokens of a hub, in which no address has a password or a query, where indexes take theirs."""
    text = re.sub(r"(?<=://)[^/@\s]+@", "****@", text)
    text = re.sub(r"(://[^\s?#'\"]*\?)[^\s#'\"]+", r"\1****", text)
    return re.sub(r"\bhf_[A-Za-z0-9]{8,}|(?<=[Bb]earer )\S+", "****", text)
