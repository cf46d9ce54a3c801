"""Vocabulary trimming: drop the tokens that a field never uses, with their rows of the embeddings.

Sources:
    Ushio et al. 2023, "An Efficient Multilingual Language Model Compression through Vocabulary Trimming",
        arXiv:2305.15020: half of the vocabulary of multilingual models at the same scores in the language kept.
    Bogoychev et al. 2023, arXiv:2311.09709: nearly half of the memory of small language models saved, at best a quarter
        of the time; less of either in larger models.
    Nozaki et al., COLING 2025 industry track: the same on medical text, with fine-tuning to make up for the loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue
from tokenizers import pre_tokenizers

from sllm_tune.recipe.resize import TrimVocabulary
from sllm_tune.resize.cut import Cut
from sllm_tune.resize.source import Source
from sllm_tune.resize.tokenizer import definition_of, merges_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def take(step: TrimVocabulary, source: Source, out: Path) -> dict[str, JsonValue]:
    """Drop the tokens that the examples never use."""
    tokenizer = source.tokenizer
    cut = trim_vocabulary(tokenizer, source.used, keep_first=step.keep_first, rows=source.config.vocab_size)
    source.write(cut, out)
    return {"tokens": len(cut.tokens or []), "tokens_before": len(tokenizer)}


def trim_vocabulary(
    tokenizer: PreTrainedTokenizerBase, used: Iterable[int], *, keep_first: int = 0, rows: int | None = None
) -> Cut:
    """The tokens to keep: those used, what they are merged from, every byte, and every special or added token.

    Every text still has tokens, and a text whose tokens are all among `used` has the same ones as before.

    Args:
        tokenizer: A fast BPE tokenizer of transformers.
        used: Token ids that occur in the field's text.
        keep_first: Of the tokens in the order of their ids, so many are kept whether they are used or not. Byte-pair
            encoding numbers tokens in the order it learned them, so the first are the most frequent in general text.
        rows: Rows of the model's embeddings. A token beyond them cannot be kept; Gemma 3's for images is one.

    Returns:
        A cut of tokens, in the old order.

    Raises:
        ModelError: the tokenizer is not a fast one, or not of byte-pair encoding.
    """
    model = definition_of(tokenizer)["model"]
    vocabulary = model["vocab"]
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    name = {number: token for token, number in {**vocabulary, **added}.items()}
    kept = {name[number] for number in used} | set(added) | set(tokenizer.all_special_tokens)
    kept |= {token for token in (*_bytes(), model.get("unk_token")) if token in vocabulary}
    kept |= {name[number] for number in sorted(name)[:keep_first]}
    parts: dict[str, set[str]] = {}
    for one, other in merges_of(model):
        parts.setdefault(one + other, set()).update((one, other))
    pending = list(kept)
    while pending:
        new = parts.get(pending.pop(), set()) - kept
        kept |= new
        pending += new
    numbers = (number for number, token in name.items() if token in kept)
    return Cut(tokens=sorted(number for number in numbers if rows is None or number < rows))


def _bytes() -> set[str]:
    """Tokens that stand for single bytes: those of byte-level encoding, and those that sentencepiece falls back on."""
    return {*pre_tokenizers.ByteLevel.alphabet(), *(f"<0x{byte:02X}>" for byte in range(256))}
