"""ROUGE-L of one generated text against its reference, registered with lm-eval as the metric `rouge_l`.

lm-eval has no summary metric that scores an item on its own, and the tokenizer of `rouge_score` drops every letter that
is not ASCII, so that any two Korean texts would score 0. Importing this module is what registers the metric:

    python -c "import sllm_tune.tasks.rouge; from lm_eval.__main__ import cli_evaluate; cli_evaluate()" --tasks ...

is the `lm_eval` command with it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import lm_eval.api.metrics  # pyright: ignore[reportUnusedImport]  # noqa: F401  registers the aggregation `mean`
from lm_eval.api.registry import register_metric
from rouge_score.rouge_scorer import RougeScorer

WORD = re.compile(r"[^\W_]+")


class UnicodeTokenizer:
    """Letters and digits of any script, in lower case; for ASCII text the words of `rouge_score`'s own tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        """Words in order. Korean is cut at spaces only, so a noun with another particle is another word."""
        return WORD.findall(unicodedata.normalize("NFC", text).lower())


_scorer = RougeScorer(["rougeL"], tokenizer=UnicodeTokenizer())


@register_metric(metric="rouge_l", higher_is_better=True, output_type="generate_until", aggregation="mean")
def rouge_l(references: Sequence[str], predictions: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words, in [0, 1].

    Args:
        references: The right text; lm-eval hands over one item at a time.
        predictions: The generated text.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.
    """
    (reference,), (prediction,) = references, predictions
    return float(_scorer.score(reference, prediction)["rougeL"].fmeasure)
