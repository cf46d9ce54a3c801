"""Check: everything that can be wrong before work starts, and three examples as the model will see them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from sllm_tune.data import prepare_into
from sllm_tune.encode import IGNORED, Encoder
from sllm_tune.recipe import Recipe
from sllm_tune.run import read_jsonl
from sllm_tune.tasks import SPLITS, Row

EXAMPLES = 3


def check(recipe: Recipe) -> str:
    """Fetch what the recipe names, prepare it in a temporary folder, and describe it.

    Returns:
        The splits of each task, and three training examples with every supervised token in brackets.

    Raises:
        BadInput: as `prepare`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        encoder = prepare_into(Path(scratch), recipe)
        card = json.loads((Path(scratch) / "data" / "card.json").read_text(encoding="utf-8"))
        rows = read_jsonl(Path(scratch) / "data" / "train.jsonl")
    lines = [f"{recipe.name}: the recipe is good"]
    for name, entry in card["tasks"].items():
        counts = ", ".join(f"{entry['splits'][s]['rows']} {s}" for s in SPLITS if s in entry["splits"])
        lines.append(f"  {name}: {counts or 'graded in place'} ({entry['licence']})")
    shown = rows[:EXAMPLES]
    lines.append(f"{len(shown)} of {len(rows)} training examples; the loss is on the tokens in ⟦brackets⟧ only:")
    for number, row in enumerate(shown, 1):
        lines += [f"--- {number} ({row['task']}, {row['tokens']} tokens)", mark(row, encoder)]
    return "\n".join(lines)


def mark(row: Row, encoder: Encoder) -> str:
    """An example decoded from its token ids, each supervised token in brackets.

    Tokens that are a character only together, as in Korean, share a pair of brackets.
    """
    tokens = encoder.supervise(row["context"], row["target"])
    start = next(i for i, label in enumerate(tokens.labels) if label != IGNORED)
    marked, pending = str(encoder.tokenizer.decode(tokens.input_ids[:start])), list[int]()
    for token in tokens.input_ids[start:]:
        pending.append(token)
        text = str(encoder.tokenizer.decode(pending))
        if not text.endswith("\ufffd"):  # what a decoder writes for the beginning of a character
            marked += f"⟦{text}⟧"
            pending.clear()
    return marked
