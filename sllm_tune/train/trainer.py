"""The trainer: TRL's, with a cheaper loss on a CPU, an order of rows that can be resumed, and no NaN without a word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer
from typing_extensions import override

from sllm_tune.errors import JobFailed
from sllm_tune.model.checkpoint import is_finite
from sllm_tune.model.probe import Probe, probe
from sllm_tune.tasks.encode import IGNORED

MOST_ROWS_NAMED = 16


class FiniteTrainer(SFTTrainer):
    """SFTTrainer that ends with a JobFailed, and the rows, where a loss, a gradient or a weight is NaN or infinite."""

    _batches: tuple[Tensor, ...] = ()  # of this step, for its gradient

    @property
    def module(self) -> Module:
        """The model that is trained."""
        assert isinstance(self.model, Module)
        return self.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own."""
        assert isinstance(self.processing_class, PreTrainedTokenizerBase)
        return self.processing_class

    @property
    def examples(self) -> list[Dataset]:
        """Those to train on and, where there are any, those to validate on, as `assemble` gave them."""
        return cast("list[Dataset]", [rows for rows in (self.train_dataset, self.eval_dataset) if rows])

    def probed(self) -> Probe:
        """What the model makes of a few rows, by which its merged checkpoint is known again."""
        return probe(self.module, self.examples[-1])

    @override
    def training_step(
        self, model: Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._batches = (*self._batches, inputs["input_ids"])
        if not is_finite(loss):
            self._fail(f"the loss of step {self.state.global_step + 1} is {float(loss)}", [inputs["input_ids"]])
        return loss

    @override
    def _get_grad_norm(self, model: Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # In fp16 the scaler leaves out a step whose gradients overflow, and tries the next with a smaller scale.
        if norm is not None and self.accelerator.scaler is None and not math.isfinite(float(norm)):
            self._fail(f"the gradient of step {self.state.global_step + 1} is {float(norm)}", self._batches)
        self._batches = ()
        return norm

    @override
    def prediction_step(
        self,
        model: Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        found = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if not is_finite(found[0]):
            what = f"the loss on validation rows after step {self.state.global_step} is {float(found[0].max())}"
            self._fail(what, [inputs["input_ids"]])
        return found

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.accelerator.scaler is not None and not math.isfinite(logs.get("grad_norm") or 0):
            del logs["grad_norm"]  # of a step that was left out
        super().log(logs, start_time)
        for name, value in logs.items():
            if isinstance(value, float) and not math.isfinite(value):
                self._fail(f"{name} at step {self.state.global_step} is {value}", [])

    @override
    def _save_checkpoint(self, model: Module, trial: object) -> None:
        self.require_finite_weights()
        super()._save_checkpoint(model, trial)

    def require_finite_weights(self) -> None:
        """Raises JobFailed: a weight that was trained is NaN or infinite."""
        for name, tensor in self.module.named_parameters():
            if tensor.requires_grad and not is_finite(tensor):
                said = name.removeprefix("base_model.model.")
                self._fail(f"{said} has NaN or infinite numbers after step {self.state.global_step}", [])

    def _fail(self, what: str, batches: Sequence[Tensor]) -> None:
        known: dict[tuple[int, ...], str] = {}
        for split in self.examples if batches else []:
            known |= {tuple(ids): str(name) for ids, name in zip(split["input_ids"], split["id"], strict=True)}
        pad = self.tokenizer.pad_token_id
        ids = [_row_id(row.tolist(), known, pad) for batch in batches for row in batch]
        more = f" and {len(ids) - MOST_ROWS_NAMED} more" if len(ids) > MOST_ROWS_NAMED else ""
        rows = f" Rows: {', '.join(ids[:MOST_ROWS_NAMED])}{more}." if ids else ""
        raise JobFailed(
            f"train: {what}.{rows}\n"
            "  The training ends here, and no adapter is kept.\n"
            f"  Lower learning_rate (now {self.args.learning_rate:g}); if that does not help, look at these rows."
        )


class AnswerTrainer(FiniteTrainer):
    """SFTTrainer, which on a CPU projects only the answer's positions onto the vocabulary.

    TRL's fused head does that with Triton; elsewhere it scores every position, and for a small model whose answers are
    short that is most of the work. And an epoch's order depends on the seed and the epoch alone, so that a run that was
    cut off in its second epoch goes on with the rows that it had not seen.
    """

    @cached_property
    def order(self) -> torch.Generator:
        """What shuffles the rows, seeded at the beginning of each epoch."""
        return torch.Generator()

    @override
    def _get_train_sampler(self, train_dataset: torch.utils.data.Dataset[object] | None = None) -> Sampler[int] | None:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.generator = self.order
        return sampler

    @override
    def evaluate(self, *given: Any, **options: Any) -> dict[str, float]:
        """As TRL's, and dropout goes on as if there had been none: a run that goes on may not make it again."""
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            return super().evaluate(*given, **options)

    @property
    def has_plain_loss(self) -> bool:
        """Whether the loss is the cross-entropy and nothing else; TRL's own code has the others."""
        args = self.args
        assert isinstance(args, SFTConfig)
        return args.loss_type == "nll" and not args.label_smoothing_factor and not self.aux_loss_enabled

    @override
    def compute_loss(
        self,
        model: Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, object]:
        labels = inputs["labels"]
        if labels.device.type != "cpu" or return_outputs or not self.has_plain_loss:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # The logits at t predict the token at t + 1, so they are needed where the next label counts.
        columns = (labels[:, 1:] != IGNORED).any(0).nonzero().flatten()
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=columns).logits
        answers = labels[:, columns + 1]
        summed = cross_entropy(logits.float().flatten(0, 1), answers.flatten(), ignore_index=IGNORED, reduction="sum")
        if num_items_in_batch is None:
            return summed / (answers != IGNORED).sum().clamp(min=1)
        # Like TRL: the count is over all processes, and DDP averages their gradients.
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return summed / torch.as_tensor(num_items_in_batch).clamp(min=1) * processes


def _row_id(ids: list[int], known: dict[tuple[int, ...], str], pad: object) -> str:
    """The id of a row of a batch, which is padded on the right with a token that may also end the row itself."""
    while ids and tuple(ids) not in known and ids[-1] == pad:
        ids = ids[:-1]
    return known.get(tuple(ids), "unknown")
