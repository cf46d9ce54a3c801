"""A tokenizer as llama.cpp reads it from a GGUF file.

llama.cpp knows how a byte-level tokenizer cuts text into words by a name in the file. The usual converter finds the
name by the hash of the tokens of one text, which no longer matches once a vocabulary is trimmed. How a tokenizer cuts
is written in it and does not change with its vocabulary, so the name is found by that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from typing_extensions import NotRequired, Required

from sllm_tune.errors import ModelError
from sllm_tune.wording import shown

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerFast

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_THREE_DIGITS, _ONE_DIGIT = _WORDS.replace("DIGITS", r"\p{N}{1,3}"), _WORDS.replace("DIGITS", r"\p{N}")
_BLANK = "▁"  # a space, as sentencepiece writes it


class Step(TypedDict, total=False):
    """A part of a normalizer or a pre-tokenizer, or several in their order."""

    type: Required[str]
    pretokenizers: list[Step]
    normalizers: list[Step]
    pattern: dict[str, str]
    add_prefix_space: bool
    use_regex: bool
    individual_digits: bool
    prepend_scheme: str


class Merging(TypedDict):
    """How text becomes tokens; only a byte-pair encoding has merges."""

    type: str
    vocab: dict[str, int]
    merges: list[str | list[str]]
    byte_fallback: NotRequired[bool]
    ignore_merges: NotRequired[bool]
    unk_token: NotRequired[str | None]


class Definition(TypedDict):
    """A `tokenizer.json`."""

    model: Merging
    normalizer: NotRequired[Step | None]
    pre_tokenizer: NotRequired[Step | None]


def add_vocabulary(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, rows: int, stop: int) -> None:
    """Write tokens, merges, special tokens and the chat template.

    Args:
        writer: Of a file whose metadata are not written yet.
        tokenizer: A fast tokenizer of transformers.
        rows: Embeddings that the model has; numbers without a token get a name that no text has.
        stop: Number of the token that ends an answer.

    Raises:
        ModelError: llama.cpp has no such tokenizer.
    """
    definition: Definition = json.loads(tokenizer.backend_tokenizer.to_str())
    model = definition["model"]
    if model["type"] != "BPE":
        raise ModelError(f"GGUF: the tokenizer is a {model['type']} model; only byte-pair encoding is exported.")
    bytewise = _has(definition, "ByteLevel")
    if not bytewise and not model.get("byte_fallback"):
        raise ModelError("GGUF: the tokenizer has no token for every byte, so llama.cpp cannot read any text with it.")
    tokens, types = _tokens(tokenizer, model, rows)
    merges = [tuple(one.split(" ", 1)) if isinstance(one, str) else tuple(one) for one in model["merges"]]
    writer.add_tokenizer_model("gpt2" if bytewise else "llama")
    writer.add_tokenizer_pre(_cutting(definition) if bytewise else "default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if bytewise:
        writer.add_token_merges([f"{one} {other}" for one, other in merges])
    else:
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(_puts_space_first(definition))
    _add_special(writer, tokenizer, stop)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.get_chat_template())


def stop_token(folder: Path) -> int:
    """The token that ends an answer: the first that `generation_config.json` of a checkpoint names.

    Raises:
        ModelError: it names none.
    """
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.exists() else None
        first = found[0] if isinstance(found, list) and found else found
        if isinstance(first, int):
            return first
    raise ModelError(f"{folder}: generation_config.json names no eos_token_id, so an export would never stop.")


def strips_as_phi(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether white space after an added token is no token, as in Phi 3; llama.cpp goes by the name of the model.

    It then looks for these tokens, and does not load a file without them.
    """
    stripped = any(added.rstrip for added in tokenizer.added_tokens_decoder.values())
    return stripped and {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= tokenizer.get_vocab().keys()


def _tokens(tokenizer: PreTrainedTokenizerFast, model: Merging, rows: int) -> tuple[list[str], list[int]]:
    """The text and kind of each token, by its number."""
    from gguf import TokenType

    tokens = [f"[unused{number}]" for number in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    for token, number in model["vocab"].items():
        if number < rows:
            tokens[number] = token
            is_byte = model.get("byte_fallback") and _is_byte(token)
            types[number] = int(TokenType.BYTE if is_byte else TokenType.NORMAL)
    for number, added in tokenizer.added_tokens_decoder.items():
        if number < rows:  # Gemma 3 has one token for images beyond them
            special = added.special or number in tokenizer.all_special_ids
            tokens[number] = str(added) if special else str(added).replace(_BLANK, " ")
            types[number] = int(TokenType.CONTROL if special else TokenType.USER_DEFINED)
    name = model.get("unk_token")
    unknown = None if name is None else model["vocab"].get(name)
    if unknown is not None and model.get("byte_fallback"):
        types[unknown] = int(TokenType.UNKNOWN)
    return tokens, types


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """What llama.cpp merges first has the highest score: of each token, when its first merge comes."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        rank.setdefault("".join(pair), number)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _cutting(definition: Definition) -> str:
    """llama.cpp's name of how a byte-level tokenizer cuts text into words before it merges.

    Raises:
        ModelError: it has none that we know.
    """
    steps = list(_steps(definition.get("pre_tokenizer")))
    kinds = [step["type"] for step in steps]
    last = steps[-1] if steps else {}
    plain = kinds[-1:] == ["ByteLevel"] and not last.get("add_prefix_space")
    pattern = steps[0].get("pattern", {}).get("Regex") if kinds == ["Split", "ByteLevel"] else None
    if plain and kinds == ["ByteLevel"] and last.get("use_regex", True):
        return "gpt-2"
    if plain and kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if plain and pattern == _ONE_DIGIT:
        return "qwen2"
    if plain and pattern == _THREE_DIGITS:  # the first takes a whole word that is a token, whatever its merges
        return "llama-bpe" if definition["model"].get("ignore_merges") else "dbrx"
    raise ModelError(
        f"GGUF: llama.cpp has no name that we know for how this tokenizer cuts text into words ({shown(kinds)}).\n"
        "  GPT-2, SmolLM2, Llama 3 and Qwen 2 and 3 are known; `--format merged` exports any."
    )


def _steps(part: Step | None) -> list[Step]:
    """The parts of a normalizer or a pre-tokenizer, in their order."""
    if part is None:
        return []
    inner = part.get("pretokenizers") or part.get("normalizers")
    return [step for one in inner for step in _steps(one)] if inner else [part]


def _has(definition: Definition, kind: str) -> bool:
    return any(step["type"] == kind for step in _steps(definition.get("pre_tokenizer")))


def _puts_space_first(definition: Definition) -> bool:
    steps = _steps(definition.get("normalizer")) + _steps(definition.get("pre_tokenizer"))
    return any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )


def _add_special(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, stop: int) -> None:
    begin, pad, unknown = (
        number if isinstance(number, int) else None
        for number in (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    )
    writer.add_add_bos_token(begin is not None and tokenizer("a")["input_ids"][0] == begin)
    writer.add_add_eos_token(False)
    if begin is not None:
        writer.add_bos_token_id(begin)
    writer.add_eos_token_id(stop)
    writer.add_eot_token_id(stop)
    if pad is not None:
        writer.add_pad_token_id(pad)
    if unknown is not None:
        writer.add_unk_token_id(unknown)
