"""The tokenizer of a model of fewer tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from pydantic import JsonValue

from sllm_tune.errors import ModelError
from sllm_tune.resize.cut import Cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Bpe(TypedDict):
    """The `model` of a tokenizer.json."""

    type: str
    vocab: dict[str, int]
    merges: list[str | list[str]]
    unk_token: str | None


class AddedToken(TypedDict):
    """One of its `added_tokens`, which has more keys."""

    id: int


class Definition(TypedDict):
    """A tokenizer.json, as far as a smaller vocabulary changes it."""

    model: Bpe
    added_tokens: list[AddedToken]
    post_processor: JsonValue
    padding: JsonValue
    truncation: JsonValue


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, cut: Cut, folder: Path) -> None:
    """Write the tokenizer that numbers its tokens as `cut` does, for `AutoTokenizer.from_pretrained(folder)`."""
    tokenizer.save_pretrained(folder)
    if cut.tokens is None:
        return
    place = cut.token_places()
    definition = definition_of(tokenizer)
    model = definition["model"]
    model["vocab"] = {token: place[old] for token, old in model["vocab"].items() if old in place}
    left = set(model["vocab"])
    model["merges"] = [[a, b] for a, b in merges_of(model) if {a, b, a + b} <= left]
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


def definition_of(tokenizer: PreTrainedTokenizerBase) -> Definition:
    """A fast BPE tokenizer's own JSON. Raises ModelError for any other."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("trim_vocabulary: the tokenizer has no tokenizer.json; convert it to a fast one first.")
    definition: Definition = json.loads(backend.to_str())
    if (kind := definition["model"]["type"]) != "BPE":
        raise ModelError(f"trim_vocabulary: the tokenizer is a {kind} model; only byte-pair encoding can be trimmed.")
    return definition


def merges_of(model: Bpe) -> list[tuple[str, str]]:
    """In the order of their rank; a file may hold pairs, or texts with a space between the two."""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return [(one, other) for one, other in pairs]


def _renumbered(part: Any, place: dict[int, int]) -> JsonValue:
    """A post-processor with the new ids of the tokens that it puts around a text."""
    if isinstance(part, list):
        return [_renumbered(entry, place) for entry in part]
    if not isinstance(part, dict):
        return part
    made: dict[str, JsonValue] = {}
    for key, value in part.items():
        if key == "ids":
            made[key] = [place[old] for old in value]
        elif key in ("sep", "cls"):  # of BERT and RoBERTa: the token and its id
            made[key] = [value[0], place[value[1]]]
        else:
            made[key] = _renumbered(value, place)
    return made
