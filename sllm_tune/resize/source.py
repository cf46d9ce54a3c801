"""What a step of resize starts from: a checkpoint, the base as it was, and the field's own text in tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sllm_tune.errors import DataError
from sllm_tune.model.load import load_config, load_tokenizer
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.resize.cut import Cut, cut_checkpoint
from sllm_tune.resize.tokenizer import write_tokenizer
from sllm_tune.tasks.encode import Encoder
from sllm_tune.train.assemble import encode_rows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

CALIBRATION_EXAMPLES = 128  # of the training rows; importance settles with a few thousand tokens


@dataclass(frozen=True)
class Source:
    """Read when it is asked for, and once."""

    folder: Path
    """The checkpoint that the step starts from."""

    original: Path
    """The base before any step."""

    base: BaseModelSection
    data: Path
    """Holds `train.jsonl` and `validation.jsonl`."""

    work: Path
    """Where healing keeps its checkpoints."""

    seed: int
    key: str
    """Of the recipe, that holds the step."""

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the checkpoint."""
        return load_tokenizer(str(self.folder), self.base)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Of the checkpoint."""
        return load_config(str(self.folder), self.base)

    @cached_property
    def encoder(self) -> Encoder:
        """Of the checkpoint's tokenizer."""
        return Encoder(self.tokenizer, chat_template=self.base.chat_template)

    @cached_property
    def training(self) -> list[list[int]]:
        """Token ids of every training example, prompt and answer.

        Raises:
            DataError: there is none.
        """
        if not (texts := self._texts("train")):
            raise DataError("resize: there are no training examples to choose by what is kept.")
        return texts

    @cached_property
    def validation(self) -> list[list[int]]:
        """Token ids of every validation example."""
        return self._texts("validation")

    @cached_property
    def calibration(self) -> list[list[int]]:
        """Token ids of the training examples that importance is measured on."""
        return random.Random(self.seed).sample(self.training, min(CALIBRATION_EXAMPLES, len(self.training)))

    @cached_property
    def used(self) -> set[int]:
        """Token ids of the examples, and of what the chat template says itself, such as a default system prompt."""
        frame = self.encoder.render([{"role": "user", "content": "?"}]) if self.encoder.chat_template else ""
        said: Sequence[int] = self.encoder.harness.tok_encode(frame)
        return {token for ids in (*self.training, *self.validation, said) for token in ids}

    def write(self, cut: Cut, out: Path) -> None:
        """Write to `out` what the cut leaves of the checkpoint, with the tokenizer that goes with it."""
        cut_checkpoint(self.folder, out, cut)
        write_tokenizer(self.tokenizer, cut, out)

    def _texts(self, split: str) -> list[list[int]]:
        return [row.input_ids for row in encode_rows(self.data / f"{split}.jsonl", self.encoder, answers_only=False)]
