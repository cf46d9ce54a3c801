"""The trainer of a cut model, whose loss has two parts: what its teacher predicts, and the examples' own tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import nll_loss
from typing_extensions import override

from sllm_tune.recipe.resize import Distill
from sllm_tune.tasks.encode import IGNORED
from sllm_tune.train.distil import divergence
from sllm_tune.train.teacher import TopK, with_rest
from sllm_tune.train.trainer import AnswerTrainer

CHUNK_TOKENS = 256  # of logits in float32 at a time: 50 MB for a vocabulary of 49 thousand


class Distiller(AnswerTrainer):
    """The trainer that heals: its loss is the teacher's divergence beside the cross-entropy of the examples."""

    def teach(self, teacher: Module | TopK | None, places: list[int], step: Distill) -> None:
        """Set what it learns from, a model, a `TopK` or nothing; called once, before training."""
        self.teacher = teacher
        if isinstance(teacher, Module):
            self.teacher = teacher.requires_grad_(False).to(self.args.device)
        self.places = torch.tensor(places, device=self.args.device)
        self.step = step

    @override
    def compute_loss(
        self,
        model: Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, object]:
        if return_outputs or not model.training:  # an evaluation: the plain cross-entropy
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels, ids, mask = inputs["labels"], inputs["input_ids"], inputs["attention_mask"]
        # The logits at t predict the token at t + 1, so they are needed where the next label counts.
        columns = (labels[:, 1:] != IGNORED).any(0).nonzero().flatten()
        asked = {"attention_mask": mask, "use_cache": False, "logits_to_keep": columns}
        answers = labels[:, columns + 1]
        counted = answers != IGNORED
        logits, answers = model(input_ids=ids, **asked).logits[counted], answers[counted]
        likeliest = taught = None
        if isinstance(self.teacher, TopK):
            likeliest, taught = self.teacher.of(ids, mask)
        elif self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher(input_ids=self.places[ids], **asked).logits[counted]
        total = logits.new_zeros((), dtype=torch.float32)
        # Split, not sliced: the gradient of a slice is as large as that of the whole, once for every chunk.
        for chunk, own in enumerate(logits.split(CHUNK_TOKENS)):
            at = slice(chunk * CHUNK_TOKENS, (chunk + 1) * CHUNK_TOKENS)
            own = own.float()[:, : len(self.places)].log_softmax(-1)
            if self.step.share < 1:
                total = total + (1 - self.step.share) * nll_loss(own, answers[at], reduction="sum")
            if taught is None:
                continue
            if likeliest is None:
                theirs = taught[at, self.places].float().log_softmax(-1)
            else:
                own, theirs = with_rest(own.gather(1, likeliest[at])), with_rest(taught[at])
            total = total + self.step.share * divergence(own, theirs, self.step.divergence)
        if num_items_in_batch is None:
            return total / max(1, len(answers))
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total / torch.as_tensor(num_items_in_batch).clamp(min=1) * processes
