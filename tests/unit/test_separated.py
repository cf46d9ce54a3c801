"""Tables of separated values: every row is read as it was written, or the line that leaves a doubt is named."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sllm_tune.errors import TaskError
from sllm_tune.rows.read import read_rows

cells = st.text(st.sampled_from('ab가 ,;\t"\n\r'), max_size=6)
tables = st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6)
quick = settings(max_examples=200, derandomize=True, deadline=None)


def read(folder: Path, text: str, name: str = "x.csv", bad: list[TaskError] | None = None) -> list[dict[str, Any]]:
    (folder / name).write_bytes(text.encode())
    return read_rows(folder / name, bad=bad)


def refusal(folder: Path, text: str, name: str = "x.csv", bad: list[TaskError] | None = None) -> str:
    with pytest.raises(TaskError) as caught:
        read(folder, text, name, bad)
    return str(caught.value).replace(str(folder / name), "").split("\n")[0]


def written(rows: list[Any], **how: Any) -> str:
    text = io.StringIO()
    csv.writer(text, **how).writerows([("id", "text", "label"), *rows])
    return text.getvalue()


def read_or_refused(folder: Path, text: str, name: str, bad: list[TaskError] | None = None) -> list[Any] | str:
    try:
        return read(folder, text, name, bad)
    except TaskError as error:
        return str(error)


@quick
@given(rows=tables, how=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
def test_whatever_a_writer_puts_into_quotes_is_read_again(tmp_path_factory: Any, rows: list[Any], how: Any):
    found = read_or_refused(tmp_path_factory.mktemp("table"), written(rows, quoting=how), "x.csv")
    if isinstance(found, str):  # a field of two lines that could be two rows
        assert "looks like a row" in found
    else:
        assert [tuple(row.values()) for row in found] == rows


@quick
@given(text=st.text(st.sampled_from('ab,\t"\n'), max_size=30), name=st.sampled_from(["x.csv", "x.tsv"]))
def test_no_line_is_lost_in_a_field_whose_quote_is_not_closed(tmp_path_factory: Any, text: str, name: str):
    bad: list[TaskError] = []
    header = "a,b\n" if name == "x.csv" else "a\tb\n"
    rows = read_or_refused(tmp_path_factory.mktemp("table"), header + text, name, bad)
    if isinstance(rows, str):
        assert "line " in rows
    elif not bad:  # every letter is in a row, and every line that is in no field of several lines is one
        cells = [cell for row in rows for cell in row.values()]
        assert sum(cell.count("a") + cell.count("b") for cell in cells) == text.count("a") + text.count("b")
        if not any("\n" in cell for cell in cells):
            assert len(rows) == sum(map(bool, text.split("\n")))


def test_a_field_of_several_lines_is_read(tmp_path: Path):
    text = 'label,text\nx,"1. Rent, due\n2. Deposit\n\n3. Term, ""fixed"", of years"\ny,short\n'
    assert [row["text"].count("\n") for row in read(tmp_path, text)] == [3, 0]
    assert read(tmp_path, 'label,text\nx,"first line\nsecond, with a comma"\ny,b\n')[0]["label"] == "x"


@pytest.mark.parametrize(
    ("row", "line", "fault"),
    [
        ('x,"begun and never closed', 3, "is never closed"),
        ('x,"Term" means the time', 3, "is closed in the middle of one"),
        ('x,"a ""b" c', 3, "is closed in the middle of one"),
        ('x,"two\nlines"" ', 3, "is never closed"),
        ('"x\n\n,"y"', 3, "is closed in the middle of one"),
    ],
)
def test_a_quote_without_its_pair_is_refused_with_the_line_where_it_begins(
    tmp_path: Path, row: str, line: int, fault: str
):
    text = f"label,text\nx,a\n{row}\ny,b\ny,c\n"
    for newline in ("\n", "\r\n", "\r"):
        said = refusal(tmp_path, text.replace("\n", newline))
        assert said.startswith(f", line {line}: the quote sign that begins a field here (")
        assert fault in said
        assert refusal(tmp_path, text.replace("\n", newline), bad=[]) == said


def test_a_quote_inside_a_field_is_text(tmp_path: Path):
    text = 'label,text\nx,the "Term" means\ny,5" pipe\nx,a "\n'
    assert [row["text"] for row in read(tmp_path, text)] == ['the "Term" means', '5" pipe', 'a "']


@pytest.mark.parametrize("lines", [1, 2, 20])
def test_two_stray_quotes_do_not_make_one_row_of_many(tmp_path: Path, lines: int):
    between = "".join(f"{'xy'[n % 2]},clause {n}\n" for n in range(lines - 1))
    text = f'label,text\nx,a\ny,b\nx,"Term of years\n{between}y,measured as 5"\nx,c\n'
    said = refusal(tmp_path, text)
    assert said.startswith(
        f", line 4: a quote opens here and closes {lines} lines below, and each of these lines looks"
    )
    rows = read(tmp_path, text.replace(",", "\t"), "x.tsv")
    assert len(rows) == lines + 4
    assert rows[2]["text"] == '"Term of years'


def test_quotes_of_a_tsv_are_text_where_they_are_not_paired_or_not_needed(tmp_path: Path):
    for own in ('"Affiliate" has the meaning of the Act', '"Confidential Information"', '"never closed', '5" and 6"'):
        rows = read(tmp_path, f"text\tlabel\n{own}\tx\nplain\ty\n", "x.tsv")
        assert [row["text"] for row in rows] == [own, "plain"]


def test_quotes_that_a_writer_needs_are_taken_off_in_a_tsv_too(tmp_path: Path):
    rows = [("1", 'the "Term"', "x"), ("2", "a\tb", "y"), ("3", "two\nlines", "y")]
    for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        found = read(tmp_path, written(rows, delimiter="\t", quoting=how), "x.tsv")
        assert [tuple(row.values()) for row in found] == rows


def test_a_tsv_with_quotes_of_both_kinds_is_refused(tmp_path: Path):
    said = refusal(tmp_path, 'text\tlabel\n"Term" means\tx\n"the ""Act"""\ty\n', "x.tsv")
    assert said.startswith(", line 3: ")
    assert "is written as a field in quotes, and elsewhere" in said
    assert refusal(tmp_path, 'text\tlabel\n"Term" means\tx\nb\n', "x.tsv", bad=[]).startswith(", line 3: fewer fields")


@pytest.mark.parametrize("header", ["label,text,label", '"label",text,label', "text,a,b,a"])
def test_a_column_named_twice_is_refused(tmp_path: Path, header: str):
    twice = "a" if header.endswith("a") else "label"
    said = refusal(tmp_path, f"{header}\n" + ",".join("1" * (header.count(",") + 1)) + "\n", bad=[])
    assert said == f", line 1: two columns are named {twice!r}, and only one could be kept."


def test_a_column_without_a_name_is_refused_if_anything_is_in_it(tmp_path: Path):
    for header, rows in (
        (",text,label", "0,a,x\n1,b,y\n"),
        ("text,,label", "a,,x\na,0,x\n"),
        ("text,label, ", "a,x,z\n"),
    ):
        assert " has no name, and line " in refusal(tmp_path, f"{header}\n{rows}", bad=[])
    assert read(tmp_path, "text,label,,\na,x,,\n") == [{"text": "a", "label": "x", "": ""}]


@pytest.mark.parametrize("size", [131_073, 1_000_000])
def test_a_field_of_any_size_is_read(tmp_path: Path, size: int):
    limit = csv.field_size_limit()
    for text in ("가" * size, '"' + "a,\n" * (size // 3) + '"'):
        assert len(read(tmp_path, f"label,text\nx,{text}\n")[0]["text"]) >= size - 3
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(("separator", "name"), [(";", "x.csv"), ("|", "x.csv"), ("\t", "x.csv"), (",", "x.tsv")])
def test_another_separator_is_named(tmp_path: Path, separator: str, name: str):
    text = "label,text\nx,a\ny,b\n".replace(",", separator)
    assert refusal(tmp_path, text, name).startswith(f", line 1: the separator is {separator!r}, and .")


def test_a_row_with_too_many_or_too_few_fields_can_be_left_out_and_counted(tmp_path: Path):
    bad: list[TaskError] = []
    rows = read(tmp_path, 'a,b\n1,2\n1,2,3\n"4\n",5\n6\n7,8\n', bad=bad)
    assert [row["a"] for row in rows] == ["1", "4\n", "7"]
    assert [str(fault).rsplit("x.csv", 1)[1] for fault in bad] == [
        ", line 3: more fields than the first line names.",
        ", line 6: fewer fields than the first line names.",
    ]
