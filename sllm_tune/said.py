"""What libraries warn of, said once each, with how often: nothing is switched off and nothing repeats."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections import Counter
from collections.abc import Generator, Mapping, Sequence

LIBRARIES = ("lm_eval", "transformers")
# Warnings that say nothing to the user, each with the reason.
HARMLESS = {
    "Custom kwargs can be passed to `--metadata`": "said of every task whose rows are handed over, and ours always are",
    "`pretrained` model kwarg is not of type `str`": "the model is loaded here, and no other argument is given",
    "Passed an already-initialized model through `pretrained`": "one process scores",
}


class _Once(logging.Handler):
    """Says the first warning of each kind and counts the others."""

    def __init__(self, harmless: Sequence[str]) -> None:
        super().__init__(logging.WARNING)
        self.harmless = tuple(harmless)
        self.first: dict[str, str] = {}
        self.counted: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a warning, or what is worse than one."""
        text = " ".join(record.getMessage().split())
        if any(part in text for part in self.harmless):
            return
        kind = _kind(record, text)
        if kind not in self.first:
            self.first[kind] = f"{record.name.split('.')[0]}: {text}"
            print(f"warning: {self.first[kind]}", file=sys.stderr, flush=True)
        self.counted[kind] += 1


@contextlib.contextmanager
def said_once(harmless: Mapping[str, str] = HARMLESS) -> Generator[None]:
    """Print each kind of warning of lm-eval and transformers once, and at the end how often those came that came again.

    Args:
        harmless: Parts of messages that are left out, each with the reason why it says nothing to the user.
    """
    once = _Once(tuple(harmless))
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [once], False
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        for kind, count in once.counted.items():
            if count > 1:
                print(f"{count} times: {once.first[kind]}", file=sys.stderr, flush=True)


def _kind(record: logging.LogRecord, text: str) -> str:
    """The same warning about another row or number is of the same kind."""
    return str(record.msg) if record.args else re.sub(r"\d+", "#", text)
