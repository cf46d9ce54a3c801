"""Rows of tables, and of the records inside nested JSON and XML files."""

import re
from pathlib import Path
from typing import Any

import pytest

from sllm_tune.errors import TaskError
from sllm_tune.rows.read import read_rows, row_id


def rows_in(tmp_path: Path, name: str, content: str | bytes, records: Any = None) -> list[dict[str, Any]]:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(tmp_path / name, records, "task.yaml: metadata.records")


def unreadable(tmp_path: Path, name: str, content: str | bytes, records: Any = None) -> str:
    with pytest.raises(TaskError) as caught:
        rows_in(tmp_path, name, content, records)
    return str(caught.value).replace(str(tmp_path / name), name).removeprefix(name)


# --- rows of a file


def test_rows_are_read_from_every_kind_of_table(tmp_path: Path):
    rows = [{"a": "1", "b": "가, 나"}, {"a": "2", "b": ""}]
    assert rows_in(tmp_path, "x.jsonl", '{"a": "1", "b": "가, 나"}\n\n{"a": "2", "b": ""}\r\n') == rows
    assert rows_in(tmp_path, "x.json", '[{"a": "1", "b": "가, 나"},\n{"a": "2", "b": ""}]') == rows
    assert rows_in(tmp_path, "x.csv", 'a,b\r\n1,"가, 나"\r\n2,\r\n') == rows
    assert rows_in(tmp_path, "x.tsv", "a\tb\n1\t가, 나\n2\t\n") == rows


def test_a_line_separator_inside_a_text_does_not_end_the_row(tmp_path: Path):
    assert rows_in(tmp_path, "x.jsonl", '{"a": "one\u2028two"}\n') == [{"a": "one\u2028two"}]


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path):
    assert rows_in(tmp_path, "x.csv", b"\xef\xbb\xbfa\n1\n") == [{"a": "1"}]


def test_a_file_that_is_not_utf8_is_refused_with_the_byte(tmp_path: Path):
    assert unreadable(tmp_path, "x.jsonl", '{"a": "조항"}'.encode("cp949")) == (
        ": not UTF-8 (byte 7 is 0xc1).\n  Convert it, for example with: iconv -f cp949 -t utf-8"
    )


def test_a_broken_line_of_json_is_named(tmp_path: Path):
    said = unreadable(tmp_path, "x.jsonl", '{"a": 1}\n{"a": 2\n{"a": 3}\n')
    assert said == ", line 2, column 8: not JSON (Expecting ',' delimiter)."
    assert unreadable(tmp_path, "x.json", '[{"a": 1},\n{"a" 2}]').startswith(", line 2, column 6: not JSON")


def test_json_that_is_not_a_list_of_objects_is_refused(tmp_path: Path):
    assert unreadable(tmp_path, "x.json", '{"a": 1}') == ": expected a list of objects, got dict."
    assert unreadable(tmp_path, "x.jsonl", '{"a": 1}\n[2]\n') == ", row 2: expected an object, got list."


def test_a_line_of_csv_with_too_many_or_too_few_fields_is_named(tmp_path: Path):
    assert unreadable(tmp_path, "x.csv", "a,b\n1,2\n1,2,3\n") == ", line 3: more fields than the first line names."
    assert unreadable(tmp_path, "x.tsv", "a\tb\n1\n") == ", line 2: fewer fields than the first line names."


def test_an_empty_file_has_no_rows(tmp_path: Path):
    assert [rows_in(tmp_path, f"x.{kind}", "") for kind in ("jsonl", "json", "csv")] == [[], [], []]


def test_a_row_is_named_by_its_content_alone():
    assert row_id({"a": 1, "b": "가"}) == row_id({"b": "가", "a": 1})
    assert row_id({"a": 1}) != row_id({"a": 2})
    assert re.fullmatch("[0-9a-f]{16}", row_id({"a": 1}))


# --- values that JSON has not, or that could not be kept


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": [1, {"b": -Infinity}]}', "-Infinity is not JSON"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ('{"a": "cut \\ud83d"}', "half a character (\\ud83d)"),
        ('{"\\uDE00": 1}', "half a character (\\ude00)"),
        ('{"a": 1, "b": 2, "a": 3}', "an object has 'a' twice"),
        ('{"m": [{"role": "u", "role": "v"}]}', "an object has 'role' twice"),
        ('{"a": ' + "7" * 5000 + "}", "a number of 5,000 digits"),
        ('{"a": ' + "[" * 150 + "]" * 150 + "}", "lists and objects more than 100 deep"),
        ('{"a": ' + '{"b": ' * 5000 + "1" + "}" * 5001, "lists and objects more than 100 deep"),
    ],
)
def test_a_value_that_could_not_be_kept_is_refused_with_its_line_or_left_out(tmp_path: Path, row: str, fault: str):
    lines = f'{{"a": 1}}\n\n{row}\n{{"a": 2}}\n'
    assert unreadable(tmp_path, "x.jsonl", lines).startswith(f", line 3: {fault}")
    as_list = "[" + ",".join(lines.replace("\n\n", "\n").splitlines(keepends=True)) + "]"
    assert unreadable(tmp_path, "x.json", as_list).startswith(f", line 2: {fault}")
    bad: list[TaskError] = []
    assert read_rows(tmp_path / "x.jsonl", bad=bad) == [{"a": 1}, {"a": 2}]
    assert len(bad) == 1


def test_a_whole_emoji_and_a_long_number_in_quotes_are_kept(tmp_path: Path):
    row = '{"a": "\\ud83d\\ude00", "n": "' + "7" * 5000 + '", "c": [[[]]], "big": 123456789012345678901234567890}'
    found = rows_in(tmp_path, "x.jsonl", row)[0]
    assert (found["a"], found["n"], found["big"]) == ("\U0001f600", "7" * 5000, 123456789012345678901234567890)


def test_bad_lines_are_left_out_one_by_one(tmp_path: Path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": 2\n[3]\n{"a": NaN}\n{"a": 5}\n')
    bad: list[TaskError] = []
    assert read_rows(tmp_path / "x.jsonl", bad=bad) == [{"a": 1}, {"a": 5}]
    assert [str(fault).split("x.jsonl")[1][:8] for fault in bad] == [", line 2", ", row 3:", ", line 4"]


def test_a_json_list_that_does_not_end_well_is_refused_with_its_place(tmp_path: Path):
    places = {'[{"a": 1},\n{"a": 2}': (2, 9), '[{"a": 1}\n{"a": 2}]': (2, 1), '[{"a": 1}]\n\nx': (3, 1), "[": (1, 2)}
    places |= {'[{"a": 1},]': (1, 11), '[{"a": 1}}': (1, 10)}
    for text, (line, column) in places.items():
        assert unreadable(tmp_path, "x.json", text).startswith(f", line {line}, column {column}: not JSON (")


def test_rows_under_another_name_of_json_are_refused_with_what_to_do(tmp_path: Path):
    said = unreadable(tmp_path, "x.json", '{"a": 1}\n{"a": 2}\n')
    assert said == ": one JSON object a line, which is JSON lines.\n  Name the file .jsonl."
    said = unreadable(tmp_path, "x.json", '{"version": 1, "data": [{"a": 1}]}')
    assert said.startswith(": expected a list of objects, got dict.\n  It has one under 'data': ")
    assert "jq '.[\"data\"]' x.json" in said
    said = unreadable(tmp_path, "x.json", '{"Cash": {"n": 1}}')
    assert "If each entry is a row, say so in metadata.records: {key: COLUMN" in said
    for text in ('[{"a": 1}]', "[\n  {}\n]"):
        assert unreadable(tmp_path, "x.jsonl", text).endswith("name it .json.")


# --- encodings and kinds of files


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-be"])
def test_text_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str):
    mark = "" if encoding in ("utf-8-sig", "utf-16", "utf-32") else "\ufeff"
    assert rows_in(tmp_path, "x.csv", (mark + "a,b\r\n가,\U0001f600\r\n").encode(encoding)) == [
        {"a": "가", "b": "\U0001f600"}
    ]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_its_mark_is_named(tmp_path: Path, encoding: str):
    for text in ('{"text": "renewal"}', '{"text": "갱신 조항 notice"}'):
        said = unreadable(tmp_path, "x.jsonl", text.encode(encoding))
        assert "UTF-16 without a byte order mark" in said or "not UTF-8" in said
        assert "cp949" not in said


@pytest.mark.parametrize(
    "data", ["café".encode("latin-1"), "naïve “quote”".encode("cp1252"), b"a\xff\xfe\x00", b"a\n\x80"]
)
def test_an_encoding_is_advised_only_where_the_bytes_are_text_in_it(tmp_path: Path, data: bytes):
    said = unreadable(tmp_path, "x.csv", data)
    assert said.startswith(": not UTF-8 (byte ")
    assert "cp949" not in said


@pytest.mark.parametrize(
    ("begins", "kind"),
    [
        (b"PK\x03\x04.....xl/workbook.xml", "an Excel workbook (.xlsx)"),
        (b"PK\x03\x04.....word/document.xml", "a Word document (.docx)"),
        (b"PK\x03\x04.....[Content_Types].xml", "an Office file (.xlsx, .docx)"),
        (b"PK\x03\x04.....rows.csv", "a zip file"),
        (b"PAR1\x15\x00", "a Parquet file"),
        (b"\x1f\x8b\x08\x00", "packed with gzip"),
        (b"%PDF-1.7", "a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "a pointer of Git LFS"),
        (b"\x28\xb5\x2f\xfd\x24", "packed with zstd"),
        (b"\x93NUMPY\x01", "a NumPy array"),
        (b"SQLite format 3\x00", "an SQLite database"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file (.xls, .doc)"),
    ],
)
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.xml", "x.parquet", "x"])
def test_a_file_of_another_kind_is_named_whatever_its_suffix(tmp_path: Path, begins: bytes, kind: str, name: str):
    said = unreadable(tmp_path, name, begins)
    assert said.startswith(f": not a file of text but {kind}.\n  ")


def test_a_suffix_is_read_in_any_case_and_an_unknown_one_is_refused(tmp_path: Path):
    assert rows_in(tmp_path, "DATA.CSV", "a\n1\n") == rows_in(tmp_path, "X.Jsonl", '{"a": "1"}') == [{"a": "1"}]
    for name in ("x.txt", "x", "x.jsonl.bak"):
        said = unreadable(tmp_path, name, '{"a": 1}')
        assert said.startswith(": a file of rows ends in .jsonl, .ndjson, .json, .csv, .tsv or .xml.")


def test_a_folder_or_a_file_that_is_gone_is_refused(tmp_path: Path):
    for path in (tmp_path, tmp_path / "gone.csv"):
        with pytest.raises(TaskError, match="cannot be read"):
            read_rows(path)


# --- records inside a JSON object

TAGS = '{"Cash": {"statement": "Balance", "n": 1}, "Revenues": {"n": 2, "statement": "Income"}}'
BY_TAG = {"key": "tag", "columns": ["statement"]}


def test_an_object_of_objects_is_one_row_an_entry(tmp_path: Path):
    assert rows_in(tmp_path, "x.json", TAGS, BY_TAG) == [
        {"tag": "Cash", "statement": "Balance"},
        {"tag": "Revenues", "statement": "Income"},
    ]


def test_an_entry_without_a_column_is_named(tmp_path: Path):
    assert unreadable(tmp_path, "x.json", TAGS, {"key": "tag", "columns": ["statement", "section"]}) == (
        ", record 1 ('Cash'): no 'section'.\n"
        "  task.yaml: metadata.records names it; this record has ['n', 'statement']."
    )


def test_entries_that_are_no_records_are_left_out_by_their_keys(tmp_path: Path):
    text = TAGS[:-1] + ', "_about": {"version": 3}, "old_Cash": {}}'
    left_out = {**BY_TAG, "skip": "_about|old_.*"}
    assert rows_in(tmp_path, "x.json", text, left_out) == rows_in(tmp_path, "x.json", TAGS, BY_TAG)
    assert unreadable(tmp_path, "x.json", text, {**BY_TAG, "skip": "_about|old"}).startswith(", record 4 ('old_Cash')")
    said = unreadable(tmp_path, "x.json", TAGS, left_out)
    assert said == "task.yaml: metadata.records.skip: _about|old_.* is not a key of x.json.\n  Fix it or leave it out."
    said = unreadable(tmp_path, "x.json", TAGS, {**BY_TAG, "skip": "old_("})
    assert said.startswith("task.yaml: metadata.records.skip: not a regular expression (missing ), unterminated subp")


def test_an_entry_that_is_no_object_is_named(tmp_path: Path):
    said = unreadable(tmp_path, "x.json", '{"Cash": {"statement": "B"}, "Revenues": "Income"}', BY_TAG)
    assert said == ", record 2 ('Revenues'): expected an object, got str."
    said = unreadable(tmp_path, "x.json", "[1]", BY_TAG)
    assert said == ": task.yaml: metadata.records wants an object of objects, got list."


def test_a_name_that_an_object_has_twice_is_refused_since_one_would_be_lost(tmp_path: Path):
    said = unreadable(tmp_path, "x.json", '{"Cash": {"statement": "B"}, "Cash": {"statement": "I"}}', BY_TAG)
    assert said == ": an object has 'Cash' twice, and only one of them could be kept."


@pytest.mark.parametrize(
    "records",
    [
        "tag",
        {},
        {"key": "tag"},
        {"key": "tag", "columns": []},
        {"key": 1, "columns": ["a"]},
        {"each": "//a"},
        {**BY_TAG, "skip": 1},
    ],
)
def test_a_wrong_description_of_json_records_is_refused_with_the_right_form(tmp_path: Path, records: Any):
    said = unreadable(tmp_path, "x.json", TAGS, records)
    assert said.startswith(
        "task.yaml: metadata.records: of a .json file it is {key: COLUMN, columns: [COLUMN, ...]}, and skip: REGEX "
    )


def test_a_key_that_is_also_a_column_is_refused(tmp_path: Path):
    said = unreadable(tmp_path, "x.json", TAGS, {"key": "n", "columns": ["n"]})
    assert said == "task.yaml: metadata.records: 'n' is both the key and a column; give the key another name."


def test_a_table_has_no_records(tmp_path: Path):
    said = unreadable(tmp_path, "x.csv", "a\n1\n", BY_TAG)
    assert said == "task.yaml: metadata.records: describes a .json or .xml file, and x.csv is a table.\n  Leave it out."


# --- records inside XML

CODES = """\
<?xml version="1.0" encoding="utf-8"?>
<tabular>
  <chapter><name>1</name>
    <diag><name>A00</name>
      <diag><name>A00.0</name>
        <inclusionTerm><note>Classical <b>cholera</b></note><note> 콜레라 </note></inclusionTerm>
      </diag>
    </diag>
  </chapter>
  <chapter><name>2</name>
    <diag id="c"><name>C00</name><!-- not text -->
      <inclusionTerm><note>Lip<!-- nor this -->, upper</note></inclusionTerm>
    </diag>
  </chapter>
</tabular>
"""
NOTES = {
    "each": "//inclusionTerm/note",
    "columns": {"term": ".", "code": "../../name", "chapter": "ancestor::chapter/name"},
}


def of_notes(**columns: str) -> dict[str, Any]:
    return {"each": NOTES["each"], "columns": columns}


def test_the_nodes_of_an_xpath_are_rows_of_nested_and_outer_values(tmp_path: Path):
    assert rows_in(tmp_path, "x.xml", CODES, NOTES) == [
        {"term": "Classical cholera", "code": "A00.0", "chapter": "1"},
        {"term": "콜레라", "code": "A00.0", "chapter": "1"},
        {"term": "Lip, upper", "code": "C00", "chapter": "2"},
    ]


def test_attributes_and_figures_can_be_columns(tmp_path: Path):
    records = {"each": "//diag[@id]", "columns": {"id": "@id", "terms": "count(.//note)"}}
    assert rows_in(tmp_path, "x.xml", CODES, records) == [{"id": "c", "terms": 1.0}]


def test_a_record_without_a_value_or_with_several_is_named_with_its_line(tmp_path: Path):
    assert unreadable(tmp_path, "x.xml", CODES, of_notes(id="../../@id")) == (
        ", record 1 (line 6): no 'id'; ../../@id finds nothing.\n"
        "  Fix the path, or let it choose: (PATH)[1] is the first."
    )
    said = unreadable(tmp_path, "x.xml", CODES, of_notes(code="ancestor::diag/name"))
    assert said.startswith(", record 1 (line 6): no 'code'; ancestor::diag/name finds 2 values, where one belongs.")


def test_what_a_path_cannot_make_a_number_of_is_named_with_its_line(tmp_path: Path):
    said = unreadable(tmp_path, "x.xml", CODES, of_notes(n="number(.)"))
    assert said == ", record 1 (line 6): 'n' is not a number; number(.) makes one of it."


def test_a_path_that_is_no_xpath_is_refused(tmp_path: Path):
    said = unreadable(tmp_path, "x.xml", CODES, of_notes(term="..["))
    assert said == "task.yaml: metadata.records.columns.term: not an XPath (Invalid expression): ..["
    said = unreadable(tmp_path, "x.xml", CODES, {**NOTES, "each": "//x:note"})
    assert said == "task.yaml: metadata.records.each: //x:note cannot be evaluated (Undefined namespace prefix)."


def test_a_path_that_finds_no_record_is_refused_with_the_root(tmp_path: Path):
    for each in ("//note/term", "string(//note)"):
        said = unreadable(tmp_path, "x.xml", '<t xmlns="urn:x"><note/></t>', {**NOTES, "each": each})
        assert said == (
            f": task.yaml: metadata.records.each ({each}) finds no element; the root is {{urn:x}}t.\n"
            "  Of names in a namespace, as {uri}name is, write *[local-name()='name']."
        )


@pytest.mark.parametrize("records", [None, "//note", {"each": "//note"}, {"each": "//note", "columns": ["term"]}])
def test_a_wrong_description_of_xml_records_is_refused_with_the_right_form(tmp_path: Path, records: Any):
    said = unreadable(tmp_path, "x.xml", CODES, records)
    assert said.startswith(
        "task.yaml: metadata.records: of an .xml file it is {each: XPATH, columns: {COLUMN: XPATH, ...}}, got "
    )


def test_xml_that_is_cut_short_is_refused_with_its_line(tmp_path: Path):
    assert unreadable(tmp_path, "x.xml", CODES[:200], NOTES).startswith(", line 6: not XML (Premature end")
    assert unreadable(tmp_path, "x.xml", "", NOTES).startswith(", line 1: not XML (Document is empty")


def test_an_entity_of_an_xml_file_reads_no_other_file(tmp_path: Path):
    (tmp_path / "secret.txt").write_text("secret")
    dtd = f'<!DOCTYPE t [<!ENTITY own "text"><!ENTITY file SYSTEM "{tmp_path / "secret.txt"}">]>\n'
    for name in ("own", "file"):
        said = unreadable(
            tmp_path, "x.xml", f"{dtd}<t>\n<note>&{name};</note></t>", {"each": "//note", "columns": {"a": "."}}
        )
        assert said == (
            f", line 3: the entity &{name}; is not expanded, because one can read other files.\n"
            "  Write its text into the file."
        )
