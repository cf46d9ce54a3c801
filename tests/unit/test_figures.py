"""No figure in a README is typed: tables come from benchmarks/results/, and so do the decimals of the sentences."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import figures

PROSE_ONLY = re.compile(
    r"<!-- figures .*?<!-- end -->|```.*?```|`[^`]*`|https?://\S+|arXiv:\S+|doi:\S+|Python 3\.\d+", re.DOTALL
)
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d{2,}(?![\w.]*\d)|(?<![\w.])\d+\.\d+(?= %)")


def test_every_table_of_a_readme_is_what_the_records_give():
    done = subprocess.run(
        [sys.executable, "scripts/figures.py", "--check"], cwd=figures.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_table_stands_in_a_readme():
    found = {name for path in figures.READMES for _, name, _ in figures.BLOCK.findall(path.read_text(encoding="utf-8"))}
    assert found == set(figures.TABLES)


def test_a_table_that_was_edited_is_put_right():
    text = (figures.ROOT / "README.md").read_text(encoding="utf-8")
    assert figures.filled(text) == text
    edited = re.sub(r"(\*\*specialist\*\* \| )0\.\d+", r"\g<1>0.999", text)
    assert edited != text
    assert figures.filled(edited) == text


@pytest.mark.parametrize("path", figures.READMES, ids=lambda path: path.relative_to(figures.ROOT).as_posix())
def test_a_decimal_in_a_sentence_is_in_a_record(path: Path):
    known = {shown for record in figures.RESULTS.glob("*.json") for shown in decimals(json.loads(record.read_text()))}
    assert [found for found in typed(path.read_text(encoding="utf-8")) if found not in known] == []


def test_a_typed_decimal_is_seen():
    assert typed("ahead by 0.126 (5.1 % of `0.999`), version 2.7.0, arXiv:1911.00841, v0.1") == ["0.126", "5.1"]


def test_no_record_names_a_place_of_a_machine_and_each_says_where_it_is_from():
    records = sorted(figures.RESULTS.glob("*.json"))
    assert records
    for record in records:
        text = record.read_text(encoding="utf-8")
        assert not re.search(r'"(/|~)[^"]*"', text), record
        assert {"taken", "versions"} & json.loads(text).keys(), record


def test_a_smoke_run_is_not_published(tmp_path: Path):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "results.json").write_text(json.dumps({"name": "x", "smoke": True, "tasks": {}}))
    with pytest.raises(SystemExit, match="a smoke run"):
        figures.take(tmp_path)


def typed(text: str) -> list[str]:
    return DECIMAL.findall(PROSE_ONLY.sub("", text))


def decimals(value: Any) -> Iterator[str]:
    """A record's numbers as a sentence may show them."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from decimals(part)
    elif isinstance(value, int | float):
        yield from (f"{abs(value):.2f}", f"{abs(value):.3f}", f"{abs(value) * 100:.1f}")
