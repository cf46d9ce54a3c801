"""Splits that do not leak, by groups and by date."""

import random
from typing import Any

import pytest
from conftest import clause_rows

from sllm_tune.errors import DataError
from sllm_tune.splits import DEFAULT_SHARES, by_date, by_groups, split_rows
from sllm_tune.tasks import SPLITS

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
        DataError, match=r"^rulings, row 2: 'decided' is not a date such as 2024-03-01 \(got 'soon'\)\.$"
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
