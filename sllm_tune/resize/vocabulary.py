"""Vocabulary trimming: drop the tokens that a field never uses, with their rows of the embeddings.

Sources:
    Ushio et al. 2023, "An Efficient Multilingual Language Model Compression through Vocabulary Trimming",
        arXiv:2305.15020: half of the vocabulary of multilingual models at the same scores in the language kept.
    Bogoychev et al. 2023, arXiv:2311.09709: nearly half of the memory of small language models saved, at best a quarter
        of the time; less of either in larger models.
    Nozaki et al., COLING 2025 industry track: the same on medical text, with fine-tuning to make up for the loss.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sllm_tune.errors import ModelError
from sllm_tune.resize.cut import Cut


def trim_vocabulary(tokenizer: Any, used: Iterable[int], *, keep_first: int = 0, rows: int | None = None) -> Cut:
    """The tokens to keep: those used, what they are merged from, every byte, and every special or added token.

    Any text still has tokens, and a text whose tokens are all among `used` has the same ones as before.

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
    model = _definition(tokenizer)["model"]
    vocabulary: dict[str, int] = model["vocab"]
    added = tokenizer.get_added_vocab()
    name = {number: token for token, number in {**vocabulary, **added}.items()}
    kept = {name[number] for number in used} | set(added) | set(tokenizer.all_special_tokens)
    kept |= {token for token in _bytes() if token in vocabulary} | {model.get("unk_token")} & vocabulary.keys()
    kept |= {name[number] for number in sorted(name)[:keep_first]}
    parts: dict[str, set[str]] = {}
    for one, other in _merges(model):
        parts.setdefault(one + other, set()).update((one, other))
    pending = list(kept)
    while pending:
        new = parts.get(pending.pop(), set()) - kept
        kept |= new
        pending += new
    numbers = (number for number, token in name.items() if token in kept)
    return Cut(tokens=sorted(number for number in numbers if rows is None or number < rows))


def write_tokenizer(tokenizer: Any, cut: Cut, folder: Path) -> None:
    """Write the tokenizer that numbers its tokens as `cut` does, for `AutoTokenizer.from_pretrained(folder)`."""
    tokenizer.save_pretrained(folder)
    if cut.tokens is None:
        return
    place = cut.token_places()
    definition = _definition(tokenizer)
    model = definition["model"]
    model["vocab"] = {token: place[old] for token, old in model["vocab"].items() if old in place}
    left: set[str] = set(model["vocab"])
    model["merges"] = [[a, b] for a, b in _merges(model) if {a, b, a + b} <= left]
    added = [entry for entry in definition["added_tokens"] if entry["id"] in place]
    definition["added_tokens"] = [{**entry, "id": place[entry["id"]]} for entry in added]
    definition["post_processor"] = _renumbered(definition["post_processor"], place)
    definition["padding"] = definition["truncation"] = None
    (folder / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] = {
            str(place[int(old)]): entry for old, entry in settings["added_tokens_decoder"].items() if int(old) in place
        }
        file.write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")
    for superseded in ("vocab.json", "merges.txt", "added_tokens.json"):
        (folder / superseded).unlink(missing_ok=True)


def _definition(tokenizer: Any) -> dict[str, Any]:
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError("trim_vocabulary: the tokenizer has no tokenizer.json; convert it to a fast one first.")
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    if (kind := definition["model"]["type"]) != "BPE":
        raise ModelError(f"trim_vocabulary: the tokenizer is a {kind} model; only byte-pair encoding can be trimmed.")
    return definition


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """In the order of their rank; a file may hold pairs, or texts with a space between the two."""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return [(one, other) for one, other in pairs]


def _bytes() -> set[str]:
    """Tokens that stand for single bytes: those of byte-level encoding, and those that sentencepiece falls back on."""
    from tokenizers import pre_tokenizers

    return {*pre_tokenizers.ByteLevel.alphabet(), *(f"<0x{byte:02X}>" for byte in range(256))}


def _renumbered(part: Any, place: dict[int, int]) -> Any:
    """A post-processor with the new ids of the tokens that it puts around a text."""
    if isinstance(part, list):
        return [_renumbered(entry, place) for entry in part]
    if not isinstance(part, dict):
        return part
    made: dict[str, Any] = {}
    for key, value in part.items():
        if key == "ids":
            made[key] = [place[old] for old in value]
        elif key in ("sep", "cls"):  # of BERT and RoBERTa: the token and its id
            made[key] = [value[0], place[value[1]]]
        else:
            made[key] = _renumbered(value, place)
    return made
