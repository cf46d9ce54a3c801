"""Public data sets as they are published, read into rows; and sample rows written as they would be, for `--smoke`."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import sample_rows
from sllm_tune.runs.files import read_jsonl, write_jsonl, write_text

Rows = list[dict[str, Any]]
Span = tuple[int, int]

CLAUSE_WORDS = 150  # of a contract clause; 95 of 100 are shorter
RULING_CHARACTERS = 200  # of a tax ruling, 460 tokens: the base has a token for few Korean syllables
VALIDATION_SHARE, SEED = 0.1, 42  # of the training rows, where a data set has no validation rows


def jsonl(path: Path) -> dict[str, Rows]:
    return {"": read_jsonl(path)}


def clauses(path: Path) -> dict[str, Rows]:
    """Clauses by their first words: a few run over pages, and their first sentence says what they are."""
    rows = [{**row, "text": " ".join(row["text"].split()[:CLAUSE_WORDS])} for row in read_jsonl(path)]
    return {"": rows}


def rulings(path: Path) -> dict[str, Rows]:
    """Rulings by their title and the first words of their summary."""
    rows = read_jsonl(path)
    for row in rows:
        row["재결요지"] = (row["재결요지"] or "")[: max(0, RULING_CHARACTERS - len(row["사건명"]))]
    return {"": rows}


def banking77(path: Path) -> dict[str, Rows]:
    def read(name: str) -> Rows:
        with (path / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    train = random.Random(SEED).sample(read("train"), len(read("train")))
    cut = round(VALIDATION_SHARE * len(train))
    return {"train": train[cut:], "validation": train[:cut], "test": read("test")}


def sentfin(path: Path) -> dict[str, Rows]:
    """A row for each company of a headline."""
    score = {"positive": 1, "neutral": 0, "negative": -1}
    pair = re.compile(r"""["'](.*?)["']\s*:\s*["'](positive|neutral|negative)["']""")
    with path.open(encoding="utf-8-sig", newline="") as file:
        found = [(row["Title"], *match) for row in csv.DictReader(file) for match in pair.findall(row["Decisions"])]
    return {"": [{"sentence": title, "target": name, "score": score[opinion]} for title, name, opinion in found]}


def ncbi(path: Path) -> dict[str, Rows]:
    """Sentences of the corpus, their words apart by spaces, and their mentions."""

    def read(name: str) -> Rows:
        blocks = (path / f"{name}.tsv").read_text(encoding="utf-8").strip().split("\n\n")
        rows: Rows = []
        for block in blocks:
            words, tags = zip(*(line.split("\t")[:2] for line in block.splitlines()), strict=True)
            spans = tagged(tags)
            rows.append(
                {"sentence": " ".join(words), "mentions": [" ".join(words[a:b]) for a, b in spans], "tags": list(tags)}
            )
        return rows

    return {"train": read("train"), "validation": read("devel"), "test": read("test")}


def tagged(tags: Sequence[str]) -> list[Span]:
    """First word and the word after the last, of each run of B and I tags."""
    starts = [i for i, tag in enumerate(tags) if tag[0] == "B"]
    return [(a, next((i for i in range(a + 1, len(tags)) if tags[i][0] != "I"), len(tags))) for a in starts]


FILES = {
    "cuad_clause_type": "legal_cuad_clauses/cuad_clause_types_dedup.jsonl",
    "overruling": "legal_overruling/overruling_dedup.jsonl",
    "banking77": "finance_banking77",
    "headline_sentiment": "finance_sentfin/SEntFiN.csv",
    "tax_ruling_type": "legal_ko_tax_rulings/rulings.jsonl",
    "ncbi_disease": "medical_ncbi_disease",
}
READERS: dict[str, Callable[[Path], dict[str, Rows]]] = {
    "cuad_clause_type": clauses,
    "overruling": jsonl,
    "banking77": banking77,
    "headline_sentiment": sentfin,
    "tax_ruling_type": rulings,
    "ncbi_disease": ncbi,
}


def write_sample(task: str, path: Path) -> None:
    """The sample rows of a task in the form in which its data set is published."""
    if task == "ncbi_disease":
        for split, count in (("train", 24), ("devel", 6), ("test", 12)):
            blocks = [tagged_words(f"{split} patient {number} had fever and") for number in range(count)]
            write_text(path / f"{split}.tsv", "\n\n".join(blocks))
        return
    rows = sample_rows(task)
    if task == "banking77":
        intents = [[row["text"], row["label_text"]] for row in rows]
        write_csv(path / "train.csv", ["text", "category"], intents[:50])
        write_csv(path / "test.csv", ["text", "category"], intents[50:])
    elif task == "headline_sentiment":
        opinions = ["neutral", "positive", "negative"]  # by the sign of the score
        signs = [(row["score"] > 0.2) - (row["score"] < -0.2) for row in rows]
        pairs = [str({row["target"]: opinions[sign]}) for row, sign in zip(rows, signs, strict=True)]
        lines = [[row["sentence"], pair] for row, pair in zip(rows, pairs, strict=True)]
        write_csv(path, ["Title", "Decisions"], lines)
    elif task == "cuad_clause_type":
        write_jsonl(path, [{"text": row["clause"], "label": row["label"]} for row in rows])
    else:
        write_jsonl(path, rows)


def tagged_words(beginning: str) -> str:
    """A sentence that ends in a disease, a word and its tag a line."""
    words = [*beginning.split(), "breast", "cancer", "."]
    return "\n".join(map("\t".join, zip(words, [*"O" * (len(words) - 3), "B", "I", "O"], strict=True)))


def write_csv(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
