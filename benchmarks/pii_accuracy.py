"""Does the search for personal data find what `tests/data/pii.jsonl` marks, and nothing else?

The set is Korean and English, written by hand with made-up and test numbers: every kind, and texts whose numbers only
look like one (dates, case numbers, amounts, codes, failed check digits). A find counts if start, end and kind are
right. Names of persons, which need a model, are not part of it. The set shows that the stated shapes are found and
what they are told apart from; text of your own has shapes that it has not, so read what `pii: report` lists there.

Acceptance: precision and recall over all kinds and both languages at least 0.95.
Budget: 1 minute.
"""

from __future__ import annotations

import sys
import time
import timeit
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import Record, parse, parser
from sllm_tune.data.pii import KINDS, Found, finder
from sllm_tune.runs.files import read_jsonl, sha256

LEAST, SMOKE_ROWS = 0.95, 20
PLAIN = "The tenant shall pay the rent on the first day of each month, in advance."  # 15 words, no number
DATED = "임대인은 2021년 3월 12일 선고된 2020다1234567 판결에 따라 보증금 35000000원을 반환한다."


def main() -> int:
    options = parser("pii_accuracy", __doc__)
    options.add_argument("--set", type=Path, default=Path("tests/data/pii.jsonl"), help="default: %(default)s")
    given = parse(options)
    rows = read_jsonl(given.set)[: SMOKE_ROWS if given.smoke else None]
    record = Record(given, {"set": given.set.name, "sha256": sha256(given.set)})
    start = time.perf_counter()
    find = finder()
    seconds_to_build = time.perf_counter() - start
    counts, wrong = count(rows, find)
    figures = {f"{kind} {language}": rates(counts, kind, language) for kind in KINDS[:-1] for language in ("ko", "en")}
    figures |= {f"all {language}": rates(counts, None, language) for language in ("ko", "en")}
    figures["all"] = overall = rates(counts, None, None)
    rounds = 100 if given.smoke else 20_000
    speed = {
        "plain": microseconds([PLAIN], find, rounds),
        "digits, nothing personal": microseconds([DATED], find, rounds // 20),
        "the set": microseconds([row["text"] for row in rows], find, 1),
    }
    record.save(figures=figures, wrong=wrong, microseconds_per_text=speed, seconds_to_build=seconds_to_build)
    print(f"{len(rows)} texts, {sum(not row['spans'] for row in rows)} of them with nothing to find")
    print(f"{'kind and language':32} {'marked':>6} {'found':>6} {'precision':>9} {'recall':>9}")
    for name, row in figures.items():
        print(f"{name:32} {row['marked']:6} {row['found']:6} {row['precision']:9.3f} {row['recall']:9.3f}")
    for line in wrong:
        print(line)
    print(f"built in {seconds_to_build:.1f} s; " + ", ".join(f"{name}: {us:.1f} µs" for name, us in speed.items()))
    return record.finish(
        [
            (overall["precision"] >= LEAST, f"precision at least {LEAST}", f"{overall['precision']:.3f}"),
            (overall["recall"] >= LEAST, f"recall at least {LEAST}", f"{overall['recall']:.3f}"),
        ]
    )


def count(rows: list[dict[str, Any]], find: Callable[[str], list[Found]]) -> tuple[Counter[Any], list[str]]:
    """Pieces by outcome, kind and language, and a line for each that was missed or found wrongly."""
    counts: Counter[Any] = Counter()
    wrong: list[str] = []
    for row in rows:
        text, marked = row["text"], {Found(*span) for span in row["spans"]}
        found = set(find(text))
        for name, pieces in (("right", marked & found), ("missed", marked - found), ("false", found - marked)):
            counts.update((name, piece.kind, row["language"]) for piece in pieces)
            if name != "right":
                wrong += [f"{name} {piece.kind} {text[piece.start : piece.end]!r} in: {text}" for piece in pieces]
    return counts, wrong


def rates(counts: Counter[Any], kind: str | None, language: str | None) -> dict[str, float]:
    """Precision and recall of a kind in a language; None is all of them."""
    total: Counter[str] = Counter()
    for (name, of_kind, of_language), n in counts.items():
        if kind in (None, of_kind) and language in (None, of_language):
            total[name] += n
    marked, found = total["right"] + total["missed"], total["right"] + total["false"]
    precision = total["right"] / found if found else 1.0
    return {"marked": marked, "found": found, "precision": precision, "recall": total["right"] / max(1, marked)}


def microseconds(texts: list[str], find: Callable[[str], list[Found]], rounds: int) -> float:
    """Time of a text, the least of five: what else runs on the machine can only add to it."""
    least = min(timeit.repeat(lambda: [find(text) for text in texts], number=rounds, repeat=5))
    return least / rounds / len(texts) * 1e6


if __name__ == "__main__":
    sys.exit(main())
