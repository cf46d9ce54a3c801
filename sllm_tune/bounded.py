"""Regular expressions of others, and whatever else a user wrote, stopped in bounded time.

The clock of `within` is for what the limits of `sandbox` leave, such as a comparison of two long lists in every step of
a loop.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import functools
import re
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

import regex

from sllm_tune.errors import BadInput

T = TypeVar("T")
Found = list[str] | list[tuple[str, ...]]
"""What `re.findall` finds: texts, or one tuple of texts each where the expression has several groups."""

VALUE_LIMIT = 1_000_000
"""Size of one value that a template makes: its characters, and eight for each member, those inside it included."""

REGEX_SECONDS = 0.5
_PATTERN_LIMIT = 1_000


class TooLarge(BadInput):
    """A template makes a value or a text without a reasonable end, or takes too many steps."""


class TookTooLong(BadInput):
    """Something that a user wrote did not come to an end in the time it was given."""


@contextlib.contextmanager
def within(seconds: float, what: str) -> Generator[None]:
    """Ends the block by TookTooLong if it is still running after `seconds`; `what` begins the message.

    It stops Python code in any thread, between two of its steps: a single call of C code is waited for. Nothing is
    raised after the block. Entering starts a thread, about 0.1 ms: put it around many rows, not around each.

    Raises:
        TookTooLong: the block took longer.
    """

    class Late(TookTooLong):  # raised in the thread by its class
        def __init__(self) -> None:
            super().__init__(f"{what} took longer than {seconds:g} s and was stopped.")

    # The token is taken by the block that ends or by the clock: no lock is held where an exception arrives.
    thread, token = threading.get_ident(), [True]
    ended, sent = _thread.allocate_lock(), threading.Event()
    ended.acquire()

    def watch() -> None:
        if not ended.acquire(timeout=seconds) and _taken(token):
            _raise_in(thread, Late)
            sent.set()

    try:
        _thread.start_new_thread(watch, ())
        yield
    finally:
        if not _taken(token):
            _settle(sent, thread)
            raise Late
        ended.release()


def _taken(token: list[bool]) -> bool:
    try:
        return token.pop()
    except IndexError:
        return False


def _settle(sent: threading.Event, thread: int) -> None:
    """Sees to it that no exception is on its way to this thread."""
    while True:
        try:
            sent.wait()
            _raise_in(thread, None)
            return
        except TookTooLong:  # it arrived here, or that of a block around this one, which says so itself
            continue


def _raise_in(thread: int, error: type[Exception] | None) -> None:
    wanted = ctypes.py_object(error) if error else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), wanted)


class Pattern:
    """A regular expression that a user wrote; a search that does not end raises TookTooLong."""

    def __init__(self, pattern: str, where: str) -> None:
        self.pattern, self._where = pattern, where
        self._compiled = regex.compile(pattern)

    def fullmatch(self, text: str) -> object:
        """As `re.fullmatch`: what is false where nothing is found."""
        return self._bounded(self._compiled.fullmatch, text)

    def search(self, text: str) -> object:
        """As `re.search`: what is false where nothing is found."""
        return self._bounded(self._compiled.search, text)

    def findall(self, text: str) -> Found:
        """As `re.findall`."""
        return self._bounded(self._compiled.findall, text)

    def sub(self, to: str, text: str, count: int = 0) -> str:
        """As `re.sub`.

        Raises:
            TooLarge: the text could become longer than a value may be.
        """
        if len(to) * (len(text) + 1) > VALUE_LIMIT and sum(1 for _ in self.findall(text)) * len(to) > VALUE_LIMIT:
            raise TooLarge(f"{self._where}: {self.pattern[:60]} makes more than {VALUE_LIMIT:,} characters.")
        return self._bounded(self._compiled.sub, to, text, count)

    def _bounded(self, method: Callable[..., T], *given: object) -> T:
        try:
            return method(*given, timeout=REGEX_SECONDS)
        except TimeoutError:
            raise TookTooLong(
                f"{self._where}: {self.pattern[:60]} took longer than {REGEX_SECONDS:g} s on one text and was "
                "stopped.\n  A repetition inside a repetition, as in (a+)+, can take for ever; write it with one."
            ) from None


def compiled(pattern: object, where: str) -> Pattern:
    """A user's regular expression, in the syntax of Python's `re`.

    Args:
        pattern: As the user wrote it.
        where: File and key, for messages.

    Raises:
        BadInput: it is not text, not a regular expression, or too long.
    """
    if not isinstance(pattern, str):
        raise BadInput(f"{where}: must be a regular expression as text, got {type(pattern).__name__}.")
    if len(pattern) > _PATTERN_LIMIT:
        raise BadInput(f"{where}: a regular expression of {len(pattern):,} characters; {_PATTERN_LIMIT:,} is the most.")
    repeats = functools.reduce(lambda all, n: all * max(1, int(n[:9])), re.findall(r"\{(?:\d*,)?(\d+)\}", pattern), 1)
    if repeats > VALUE_LIMIT:
        raise BadInput(f"{where}: the repetitions of {pattern[:60]} multiply to {repeats:,}; write smaller ones.")
    try:
        re.compile(pattern)  # its messages name the place
        return Pattern(pattern, where)
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise BadInput(f"{where}: not a regular expression ({error}): {pattern[:60]}") from None


class Expressions:
    """Stands for `re` in a module that runs a user's expressions; those have been through `compiled`."""

    def __getattr__(self, name: str) -> object:
        return getattr(re, name)

    @staticmethod
    def compile(pattern: str) -> Pattern:
        """As `re.compile`; searches that do not end raise TookTooLong."""
        return Pattern(pattern, "a regular expression of the task")

    @classmethod
    def findall(cls, pattern: str, text: str) -> Found:
        """As `re.findall`."""
        return cls.compile(pattern).findall(text)

    @classmethod
    def sub(cls, pattern: str, to: str, text: str) -> str:
        """As `re.sub`."""
        return cls.compile(pattern).sub(to, text)
