"""Logits in float32 of a model in fewer bits.

In bfloat16 a logit between 32 and 64 is a multiple of 0.25. Two choices then often get the same likelihood to the last
bit, and which of them is the answer is decided by their order; a loss is computed from probabilities that are off by a
tenth. The products of the last layer are few, so they can be kept whole.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

ROWS_AT_A_TIME = 1 << 14  # of the vocabulary; their copy in float32 is in memory once


class ExactHead(torch.nn.Linear):
    """A layer of weights in fewer bits that multiplies and sums in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Logits in float32; on an accelerator in training as the model has them, where float32 would double a step."""
        if input.is_cuda and torch.is_grad_enabled():
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            hidden = input.float()
            logits = torch.cat([linear(hidden, rows.float()) for rows in self.weight.split(ROWS_AT_A_TIME)], -1)
            bias = cast("Tensor | None", self.bias)
            return logits if bias is None else logits + bias.float()


def with_exact_head(model: Any) -> Any:
    """The same model with logits in float32, where its last layer is a plain one; its weights and names stay."""
    head = model.get_output_embeddings()
    if type(head) is torch.nn.Linear and head.weight.dtype in (torch.bfloat16, torch.float16):
        head.__class__ = ExactHead
    return model
