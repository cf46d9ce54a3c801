"""Check: everything that can be wrong before work starts, and three examples as the model will see them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from sllm_tune.data.stage import inputs, prepare_into
from sllm_tune.model.find import Base
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.resize.plan import plan
from sllm_tune.rows.read import Row
from sllm_tune.run.files import read_jsonl
from sllm_tune.said import said_once
from sllm_tune.tasks.encode import IGNORED, TODAY, Encoder
from sllm_tune.tasks.find import SPLITS
from sllm_tune.train.assemble import require_trainable
from sllm_tune.train.estimate import Size, describe, estimate
from sllm_tune.wording import visible

EXAMPLES = 3
NOTED = (
    "bad_rows_skipped",
    "duplicates_dropped",
    "answers_respelled",
    "choices_begin_another",
    "rows_without_group",
    "mixed_rows_dropped",
    "leaks_dropped",
    "left_out",
    "too_long_dropped",
)


@said_once()
def check(recipe: Recipe) -> str:
    """Fetch what the recipe names, prepare it in a temporary folder, and describe it.

    Returns:
        The splits of each task, and three training examples with every supervised token in brackets.

    Raises:
        BadInput: as `prepare`.
    """
    trainable = (recipe.train, recipe.resize, recipe.seed, recipe.data.max_length)
    require_trainable(*trainable)
    base = Base(section=recipe.base_model, folder=recipe.folder)
    with tempfile.TemporaryDirectory() as scratch:
        if recipe.resize:
            plan(base, recipe.resize)
        encoder = prepare_into(Path(scratch), inputs(recipe, base))
        card = json.loads((Path(scratch) / "data" / "card.json").read_text(encoding="utf-8"))
        rows = read_jsonl(Path(scratch) / "data" / "train.jsonl")
    require_trainable(*trainable, rows=len(rows))
    lines = [f"{recipe.name}: the recipe is good"]
    for name, entry in card["tasks"].items():
        counts = ", ".join(f"{entry['splits'][s]['rows']} {s}" for s in SPLITS if s in entry["splits"])
        lines.append(f"  {name}: {counts} ({entry['licence']})")
        lines += [f"    {line}" for line in _notes(entry)]
    if encoder.writes_date:
        lines.append(f"the chat template writes the date: {TODAY:%d %b %Y} wherever this run trains or scores")
    lengths = [row["tokens"] for row in rows]
    size = Size(rows=len(rows), tokens=sum(lengths), longest_tokens=max(lengths))
    price = recipe.evaluate.usd_per_hour
    lines += describe(estimate(base, recipe.train, size, recipe.hardware, price), recipe.hardware)
    shown = rows[:EXAMPLES]
    lines.append(f"{len(shown)} of {len(rows)} training examples; the loss is on the tokens in ⟦brackets⟧ only:")
    for number, row in enumerate(shown, 1):
        lines += [f"--- {number} ({row['task']}, {row['tokens']} tokens)", mark(row, encoder)]
    return visible("\n".join(lines))  # rows may hold what acts on a terminal


def _notes(entry: dict[str, Any]) -> list[str]:
    """What was left out or found, and how long the training rows are."""
    noted = {key: entry.get(key, 0) for key in NOTED}
    lines = [f"{count} {key.replace('_', ' ')}" for key, count in noted.items() if count]
    if tokens := entry["splits"].get("train", {}).get("tokens_by_row"):
        lines.append("tokens a row: " + ", ".join(f"{name} {count}" for name, count in tokens.items()))
    if personal := entry.get("personal_data"):
        kinds = ", ".join(f"{kind} {count}" for kind, count in personal["kinds"].items()) or "none found"
        lines.append(f"personal data ({personal['policy']}): {kinds}")
    return lines


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
