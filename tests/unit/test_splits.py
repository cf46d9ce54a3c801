"""Splits that do not leak, by groups and by date."""

import json
import random
import unicodedata
from typing import Any

import pytest
from conftest import clause_rows

from sllm_tune.data.splits import (
    DEFAULT_SHARES,
    by_date,
    by_groups,
    groups_of,
    require_interval,
    split_rows,
    without_group,
)
from sllm_tune.errors import DataError
from sllm_tune.tasks.find import SPLITS

SHARES = {"train": 0.5, "validation": 0.2, "test": 0.3}
AFTER = {"field": "decided", "validation": "2023-01-01", "test": "2024-01-01"}


@pytest.mark.parametrize("seed", range(20))
def test_no_value_of_any_key_is_in_two_splits(seed: int):
    draw = random.Random(seed)
    sizes = [draw.randint(6, 30) for _ in range(2)]
    rows = [{"a": draw.randrange(sizes[0]), "b": f"b{draw.randrange(sizes[1])}", "n": n} for n in range(400)]
    split = by_groups(rows, ["a", "b"], SHARES, seed, "task")
    for key in ("a", "b"):
        for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
            assert not {row[key] for row in split[one]} & {row[key] for row in split[other]}
    kept = [row["n"] for name in SPLITS for row in split[name]]
    assert len(kept) == len(set(kept)) < 400
    assert min(len(split["train"]), len(split["test"])) > 0


def test_a_row_is_dropped_only_where_its_keys_disagree():
    rows = clause_rows()
    split = by_groups(rows, ["question", "clause"], SHARES, 42, "clauses")
    place = {(key, row[key]): name for name in SPLITS for row in split[name] for key in ("question", "clause")}
    kept = [row for name in SPLITS for row in split[name]]
    for row in rows:
        agree = place[("question", row["question"])] == place[("clause", row["clause"])]
        assert agree == (row in kept)


def test_the_shares_are_of_the_groups_of_each_key():
    rows = [{"a": n, "n": m} for n in range(20) for m in range(3)]
    split = by_groups(rows, ["a"], SHARES, 42, "task")
    assert {name: len({row["a"] for row in split[name]}) for name in SPLITS} == {
        "train": 10,
        "validation": 4,
        "test": 6,
    }
    assert sum(map(len, split.values())) == 60  # one key never disagrees with itself


def test_without_a_key_each_row_is_its_own_group():
    split = by_groups([{"n": n} for n in range(50)], [], DEFAULT_SHARES, 42, "task")
    assert {name: len(rows) for name, rows in split.items()} == {"train": 40, "validation": 5, "test": 5}


def test_the_seed_alone_decides_the_split():
    rows = clause_rows()
    first = by_groups(rows, ["question", "clause"], SHARES, 1, "clauses")
    shuffled = random.Random(0).sample(rows, len(rows))
    again = by_groups(shuffled, ["question", "clause"], SHARES, 1, "clauses")
    other = by_groups(rows, ["question", "clause"], SHARES, 2, "clauses")
    named = [{str(row) for row in split["test"]} for split in (first, again, other)]
    assert named[0] == named[1] != named[2]


@pytest.mark.parametrize("seed", range(5))
def test_no_value_of_a_template_is_in_two_splits(seed: int):
    rows = [{"code": f"{letter}{n:02}.{sub}"} for letter in "ABC" for n in range(15) for sub in range(3)]
    split = by_groups(rows, ["{{code[:3]}}"], SHARES, seed, "codes")
    categories = {name: {row["code"][:3] for row in split[name]} for name in SPLITS}
    assert sum(map(len, categories.values())) == len(set().union(*categories.values())) == 45
    assert sum(map(len, split.values())) == 135


def ruling(decided: Any, law: str) -> dict[str, Any]:
    return {"decided": decided, "law": law}


def test_newer_rows_are_held_out():
    days = ["2021-05-01", "2022.12.31", "20230101", "2023-06-30T10:00:00", "2024-01-01", "2025-02-03"]
    split = by_date([ruling(day, "a") for day in days], AFTER, [], "rulings")
    assert {name: [row["decided"] for row in rows] for name, rows in split.items()} == {
        "train": days[:2],
        "validation": days[2:4],
        "test": days[4:],
    }


def test_a_group_that_reaches_into_a_later_split_is_dropped_from_the_earlier_ones():
    rows = [ruling("2021-01-01", "a"), ruling("2021-01-01", "b"), ruling("2023-02-01", "b"), ruling("2024-02-01", "c")]
    rows += [ruling("2023-03-01", "c"), ruling("2021-01-01", "c")]
    split = by_date(rows, AFTER, ["law"], "rulings")
    assert {name: [row["law"] for row in rows] for name, rows in split.items()} == {
        "train": ["a"],
        "validation": ["b"],
        "test": ["c"],
    }


def test_a_date_that_cannot_be_read_is_refused_with_its_row():
    with pytest.raises(
        DataError, match=r"^rulings, row 2: 'decided' is not a date such as 2024-03-01 \(got 'soon'\)\.\n  These forms"
    ):
        by_date([ruling("2021-01-01", "a"), ruling("soon", "b")], AFTER, [], "rulings")
    with pytest.raises(DataError, match=r"^rulings: metadata\.split_after\.test is not a date"):
        by_date([ruling("2021-01-01", "a")], {**AFTER, "test": "2024-13-01"}, [], "rulings")


def test_a_split_by_date_without_test_rows_is_refused():
    with pytest.raises(DataError, match="rulings: the test split is empty: metadata"):
        by_date([ruling("2021-01-01", "a")], AFTER, [], "rulings")


def test_a_split_by_date_names_its_field_and_both_dates():
    with pytest.raises(DataError, match=r"split_after needs field, validation and test, got \{'field': 'decided'"):
        split_rows([ruling("2021-01-01", "a")], {"split_after": {"field": "decided"}}, 42, "rulings")


@pytest.mark.parametrize("nothing", [None, "", "  ", float("nan"), "\u200b", "\u3164", "absent"])
@pytest.mark.parametrize("key", ["contract", "{{contract[:3]}}", "{{contract | string}}-{{part}}"])
def test_a_row_without_a_group_is_a_group_of_its_own(nothing: Any, key: str):
    if nothing == "absent" and key != "contract":
        return  # of a table, every row has every column
    rows: list[dict[str, Any]] = [{"n": n, "part": "a", "contract": f"c{n // 3:02}"} for n in range(60)]
    for row in rows[::2]:
        row["contract"] = nothing
    if nothing == "absent":
        rows = [{k: v for k, v in row.items() if v != "absent"} for row in rows]
    split = by_groups(rows, [key], DEFAULT_SHARES, 42, "clauses")
    without = {name: sum(row["n"] % 2 == 0 for row in part) for name, part in split.items()}
    assert min(without.values()) > 0, "they fell into one split together"
    assert sum(map(len, split.values())) == 60
    assert len(set(groups_of(rows, key, "clauses"))) == 30 + 20
    assert without_group(rows, [key], "clauses") == 30
    assert without_group(rows[:1], [key], "clauses") == 1


@pytest.mark.parametrize("nothing", [[], {}])
def test_an_empty_list_is_no_group(nothing: Any):
    rows = [{"n": n, "contract": nothing if n % 2 else [f"c{n // 4}"]} for n in range(8)]
    assert without_group(rows, ["contract"], "clauses") == 4
    assert len(set(groups_of(rows, "contract", "clauses"))) == 4 + 2


@pytest.mark.parametrize(
    "spellings",
    [
        [1, "1", 1.0, " 1"],
        ["Soci\u00e9t\u00e9 A", "Socie\u0301te\u0301 A", "Soci\u00e9t\u00e9\u00a0A", "Soci\u00e9t\u00e9  A\t"],
        ["임대차", unicodedata.normalize("NFD", "임대차")],
        ["A-1", "A-1\u200b", "\ufeffA-1", "A\u00ad-1"],
        [{"a": 1, "b": 2}, {"b": 2, "a": 1}],
    ],
)
@pytest.mark.parametrize("key", ["contract", "{{contract}}"])
def test_a_group_is_the_same_however_its_name_is_spelled(spellings: list[Any], key: str):
    if key != "contract" and isinstance(spellings[0], dict | int):
        return  # a template prints text, and says itself how
    rows = [{"n": n, "contract": spelling} for n, spelling in enumerate(spellings)]
    assert len(set(groups_of(rows, key, "clauses"))) == 1


def test_groups_that_look_different_are_different():
    rows = [{"contract": value} for value in ("a", "A", "a.", "a b", "ab", 1, 1.5, "01", True)]
    assert len(set(groups_of(rows, "contract", "clauses"))) == len(rows)


def test_a_key_that_is_named_twice_is_refused():
    with pytest.raises(DataError, match=r"^clauses: metadata\.split_by names 'a' twice\."):
        split_rows([{"a": n} for n in range(30)], {"split_by": ["a", "b", "a"]}, 42, "clauses")


def test_rows_are_counted_once_whichever_of_their_keys_they_lack():
    rows = [{"a": "x", "b": None}, {"a": None, "b": None}, {"a": "y", "b": "z"}, {"a": None, "b": "z"}]
    assert without_group(rows, ["a", "b"], "task") == 3
    assert without_group(rows, [], "task") == 0
    split = by_groups([{**row, "n": n} for n in range(30) for row in rows], ["a"], SHARES, 1, "task")
    together = [name for name in SPLITS for row in split[name] if row["a"] == "x"]
    assert len(set(together)) == 1


def test_a_template_that_provides_for_what_is_missing_makes_the_group():
    rows = [{"a": None, "b": "z"}, {"a": "y", "b": "z"}]
    assert groups_of(rows, "{{a or b}}", "task") == ["z", "y"]


def test_a_key_of_which_no_row_has_anything_is_refused():
    for rows in ([{"a": None}, {"a": ""}], [{"a": float("nan")}]):
        with pytest.raises(DataError, match=r"^task: metadata\.split_by names 'a', and no row has anything in it"):
            by_groups(rows, ["a"], DEFAULT_SHARES, 1, "task")
    with pytest.raises(DataError, match="which is not a column"):
        by_groups([{"b": 1}], ["a"], DEFAULT_SHARES, 1, "task")


def test_rows_by_date_without_a_group_are_not_dropped_for_each_other():
    rows = [ruling(f"20{year}-0{month}-01", None) for year in (21, 23, 24) for month in (1, 2)]
    rows.append(ruling("2021-05-01", "a"))
    assert sum(map(len, by_date(rows, AFTER, ["law"], "rulings").values())) == 7


@pytest.mark.parametrize(
    "day",
    [
        *(
            "2023. 1. 5.",
            "2023.1.5",
            "2023. 01. 05. 선고",
            "2023년 1월 5일",
            "2023 년 01 월 05 일",
            "2023.\u00a01.\u00a05.",
        ),
        *("2023-1-5", "2023/01/05", "20230105", 20230105, "2023-01-05T10:00:00+09:00", "2023-01-05 10:00"),
        "2023.01.05(목)",
    ],
)
def test_dates_are_read_as_they_are_written(day: Any):
    others = [ruling("2021-01-01", "a"), ruling("2025-01-01", "a")]
    for first, part in (("2023-01-05", "validation"), ("2023-01-06", "train")):
        split = by_date([*others, ruling(day, "b")], {**AFTER, "validation": first}, [], "rulings")
        assert [row["law"] for row in split[part]][-1:] == ["b"]


@pytest.mark.parametrize(
    "day",
    [
        *("05/01/2023", "23. 1. 5.", "2023", "2023-01", "2023105", "1 5 2023", "2023-13-01", "2023. 2. 30.", "2023년"),
        *(20230105.0, None, True, "", "2023-1", [2023, 1, 5], "2023 1 5", "202301051200", "2023-1/5", "2023-01-05-06"),
    ],
)
def test_no_date_is_guessed(day: Any):
    with pytest.raises(DataError, match=r"^rulings, row 1: 'decided' is not a date such as 2024-03-01 \(got .*\)\.\n"):
        by_date([ruling(day, "a")], AFTER, [], "rulings")


STRANGE = [None, True, 0, 1.5, "a", "", [], [1], [None], {}, {"train": 1}, [[]], float("nan"), {"a": {"b": []}}]


@pytest.mark.parametrize("value", STRANGE, ids=json.dumps)
@pytest.mark.parametrize("key", ["split", "split_by", "split_after", "field", "validation", "test", "train", "share"])
def test_a_value_of_any_kind_is_refused_with_its_key(key: str, value: Any):
    rows = [{"decided": f"202{n}-01-01", "a": n} for n in range(9)]
    metadata: dict[str, Any] = {
        "field": {"split_after": {**AFTER, "field": value}},
        "validation": {"split_after": {**AFTER, "validation": value}},
        "test": {"split_after": {**AFTER, "test": value}},
        "train": {"split": {**SHARES, "train": value}},
        "share": {"split": dict.fromkeys(SPLITS, value)},
    }.get(key, {key: value})
    if (key, value) in (("split_by", []), ("field", "a")):
        return
    with pytest.raises(DataError, match=r"^rulings(: metadata\.split|: the test split)"):
        split_rows(rows, metadata, 42, "rulings")


def test_a_share_that_is_no_number_or_not_finite_is_refused():
    wrong: list[Any] = [{**SHARES, "train": share} for share in (float("nan"), float("inf"), "0.5", None, -0.1)]
    wrong += [{"train": True, "validation": 0, "test": 0}, {"train": 1.2, "validation": -0.5, "test": 0.3}]
    for shares in wrong:
        with pytest.raises(DataError, match=r"metadata\.split must give train, validation and test shares"):
            by_groups([{"n": n} for n in range(9)], [], shares, 1, "task")


def test_dates_in_the_wrong_order_are_refused():
    with pytest.raises(DataError, match=r"metadata\.split_after\.validation is after test \(2025-01-01, 2024-01-01\)"):
        by_date([ruling("2021-01-01", "a")], {**AFTER, "validation": "2025-01-01"}, [], "rulings")


def test_what_can_have_no_interval_is_refused_before_training():
    for items, groups in ((2, None), (2, 2), (50, 2)):
        require_interval(items, groups, "clauses")
    for items, groups, said in (
        (0, None, "0 graded items,"),
        (1, 1, "1 graded item,"),
        (9, 1, "all 9 graded items are in"),
        (0, 0, "0 graded items,"),
        (2, 1, "all 2 graded items are in"),
    ):
        with pytest.raises(DataError, match=f"^clauses: {said}"):
            require_interval(items, groups, "clauses")
