"""A conversation with a finished run's specialist, through its chat template, up to the stop token it was taught."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from transformers import TextStreamer

from sllm_tune.deliver.specialist import Specialist
from sllm_tune.errors import BadInput
from sllm_tune.tasks.encode import Encoder
from sllm_tune.wording import listed, shown, visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_ANSWER = 512  # tokens


class Writer(Protocol):
    """A transformers model; its generation config decides how it answers."""

    device: torch.device

    def generate(self, **options: object) -> object:
        """Write what follows `input_ids`, into `streamer` as well."""
        ...


class _Shown(TextStreamer):
    """Prints an answer word by word as it is made, as a terminal may show it, and keeps it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.made = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with what has become whole words."""
        self.made += text
        print(visible(text), end="\n" if stream_end else "", flush=True)


def chat(run_dir: Path) -> None:
    """Answer each line of standard input until it ends or says `/exit`; `/new` begins a new conversation.

    Raises:
        BadInput: as `Specialist`, or it was trained on plain text and knows no conversation.
    """
    specialist = Specialist(run_dir)
    encoder = specialist.encoder
    if not encoder.chat_template:
        raise BadInput(
            f"{run_dir}: trained on plain text (base_model.chat_template: false), so it knows no conversation.\n"
            "  Ask it: sllm-tune ask."
        )
    short = [name for name in specialist.domain if _is_choice(specialist, name)]
    if short:
        _tell(
            f"{listed(short, 'and')} taught it to answer with a short label, and it may do so here too; "
            "what was measured is sllm-tune ask"
        )
    _tell("/new begins a new conversation, /exit leaves, Ctrl-C stops an answer")
    Conversation(specialist.lm.model, encoder).hold(_line)


class Conversation:
    """Turns of a user and a model.

    Args:
        model: What answers.
        encoder: Its tokenizer and template.
    """

    def __init__(self, model: Writer, encoder: Encoder) -> None:
        self.model, self.encoder = model, encoder
        self.messages: list[dict[str, str]] = []

    def hold(self, line: Callable[[], str | None]) -> None:
        """Take lines and print answers until there are no more."""
        while (text := line()) is not None and text != "/exit":
            if text == "/new":
                self.messages = []
                _tell("a new conversation")
            elif text:
                self.answer(text)

    def answer(self, text: str) -> None:
        """Print the answer to a text; it is a turn of the conversation, also where Ctrl-C ends it."""
        if found := self.encoder.control_tokens(text):
            _tell(f"{shown(found[0])} is a control token of the tokenizer, not text; leave it out")
            return
        asked = [*self.messages, {"role": "user", "content": text}]
        context, _ = self.encoder.split_lead(self.encoder.render(asked))
        ids = self.encoder.ids(context)
        room = LONGEST_ANSWER if self.encoder.window is None else min(LONGEST_ANSWER, self.encoder.window - len(ids))
        if room < 1:
            _tell(f"{len(ids)} tokens, and the model reads {self.encoder.window}; /new begins a new conversation")
            return
        streamed = _Shown(self.encoder.tokenizer)
        try:
            self._generate(ids, room, streamed)
        except KeyboardInterrupt:
            streamed.end()
        said = self.encoder.answer_text(streamed.made).strip()
        self.messages = [*asked, {"role": "assistant", "content": said}]

    def _generate(self, ids: list[int], room: int, streamed: _Shown) -> None:
        prompt = torch.tensor([ids], device=self.model.device)
        self.model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=room, streamer=streamed
        )


def _line() -> str | None:
    """The next line that the user writes; None at the end."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            print()  # the line is given up; /exit and the end of file leave


def _is_choice(specialist: Specialist, name: str) -> bool:
    return (specialist.dir / "tasks" / f"{name}.yaml").exists() and specialist.task(name).is_choice


def _tell(text: str) -> None:
    print(f"chat: {visible(text)}", file=sys.stderr, flush=True)
