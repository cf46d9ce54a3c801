import functools
import itertools
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sllm_tune.data import pii
from sllm_tune.data.pii import KINDS, Found, finder, redact
from sllm_tune.errors import DataError

SET = [
    json.loads(line)
    for line in (Path(__file__).parent.parent / "data" / "pii.jsonl").read_text(encoding="utf-8").splitlines()
]
PIECES = [row["text"][start:end] for row in SET for start, end, _ in row["spans"]]
search = functools.cache(finder)  # Presidio takes seconds to import


def find(text):
    return search()(text)


def found(text):
    return [(text[start:end], kind) for start, end, kind in find(text)]


def test_the_labelled_set_has_every_kind_in_both_languages_and_hard_negatives():
    kinds = Counter((kind, row["language"]) for row in SET for _, _, kind in row["spans"])
    assert set(kinds) == {(kind, language) for kind in KINDS[:-1] for language in ("ko", "en")}
    assert min(kinds.values()) >= 8
    assert len(SET) >= 220
    for language in ("ko", "en"):
        negatives = sum(not row["spans"] for row in SET if row["language"] == language)
        assert negatives >= 60


def test_precision_and_recall_on_the_labelled_set_are_at_least_95_percent():
    marked = {(i, *span) for i, row in enumerate(SET) for span in row["spans"]}
    claimed = {(i, *piece) for i, row in enumerate(SET) for piece in find(row["text"])}
    right = len(marked & claimed)
    assert right / len(claimed) >= 0.95, sorted(claimed - marked)
    assert right / len(marked) >= 0.95, sorted(marked - claimed)


@pytest.mark.parametrize("particle", ["로", "으로", "은", "이며", "에서", "과", "번으로"])
def test_a_korean_particle_does_not_hide_a_number(particle):
    assert found(f"번호 010-0000-1234{particle} 연락") == [("010-0000-1234", "phone")]
    assert found(f"카드 4242424242424242{particle} 결제") == [("4242424242424242", "card_number")]
    assert found(f"메일은 kim@example.com{particle} 한다") == [("kim@example.com", "email")]


def test_a_resident_number_without_its_checksum_counts_only_after_a_label_or_with_a_birth_since_october_2020():
    kind = "resident_registration_number"
    valid, invalid = "900101-1991232", "900101-1991230"
    assert [pii._resident_checksum(number) for number in (valid, invalid)] == [True, None]
    assert found(f"관리 {valid} 건") == [(valid, kind)]
    assert found(f"관리 {invalid} 건") == []
    assert found(f"주민등록번호 {invalid}") == [(invalid, kind)]
    assert found("신생아 201015-3990000 등록") == [("201015-3990000", kind)]
    assert found("관리 200915-3990000 건") == []


def test_a_company_registration_number_is_no_person_even_where_the_checksum_happens_to_hold():
    number = "110111-1990018"
    assert pii._resident_checksum(number)
    assert found(f"등록 {number}") == [(number, "resident_registration_number")]
    assert found(f"법인등록번호 {number}") == []


@pytest.mark.parametrize("number", ["900230-1991237", "901301-1991237", "900132-1991237", "900431-1991237"])
def test_an_impossible_birth_date_is_no_resident_number_even_after_a_label(number):
    assert found(f"주민등록번호 {number}") == []


def test_a_card_number_needs_its_check_digit():
    assert found("결제 5555-5555-5555-4444 승인") == [("5555-5555-5555-4444", "card_number")]
    assert found("결제 5555-5555-5555-4445 승인") == []


def test_digits_inside_a_longer_number_or_code_are_nothing():
    for text in ("14242424242424242", "X4242424242424242", "AB-010-0000-1234", "010-0000-12345", "0.4242424242424242"):
        assert found(f"제품 {text} 재고") == []


def test_a_number_that_needs_its_label_is_nothing_without_it():
    for label, number, kind in [
        ("계좌번호", "100000123456", "account_number"),
        ("account number", "000123456789", "account_number"),
        ("여권번호", "910000123", "passport"),
        ("병록번호", "00421337", "medical_record_number"),
        ("MRN", "00421337", "medical_record_number"),
    ]:
        assert found(f"{label} {number}") == [(number, kind)]
        assert found(f"수량 {number}") == []


def test_an_amount_after_a_label_is_no_account_but_a_word_that_begins_like_a_unit_is_none():
    assert found("이체 계좌 한도 10000000000원") == []
    assert found("송금 계좌 10000000000 주식회사 앞") == [("10000000000", "account_number")]


def test_full_width_digits_and_other_dashes_are_read_and_offsets_are_those_of_the_text():
    wide, dashed = "010-0000-1234".translate({c: c + 0xFEE0 for c in range(128)}), "010\u20130000\u20135678"
    text = f"연락처는 {wide} 또는 {dashed}이다."
    assert found(text) == [(wide, "phone"), (dashed, "phone")]
    assert redact(text, find(text)) == "연락처는 [PHONE] 또는 [PHONE]이다."


def test_finds_are_in_order_and_the_longest_of_two_that_overlap_is_kept():
    text = "계좌 110-000-123456, 문의 010-0000-1234, kim@example.com"
    assert [kind for _, kind in found(text)] == ["account_number", "phone", "email"]
    claims = [Found(4, 9, "phone"), Found(0, 8, "email"), Found(9, 12, "passport"), Found(9, 12, "phone")]
    assert pii._settle(claims) == [Found(0, 8, "email"), Found(9, 12, "phone")]


def test_every_piece_of_the_labelled_set_is_gone_once_redacted():
    for row in SET:
        redacted = redact(row["text"], find(row["text"]))
        assert find(redacted) == []


LABELS = [
    "계좌 ",
    "주민등록번호 ",
    "여권 ",
    "환자 등록번호",
    "MRN: ",
    "account ",
    "passport no. ",
    "전화",
    "call ",
    "법인등록번호 ",
]
JOINTS = ["", " ", "-", ", ", ".", "\n", "은 ", "로", "/", "(", ") ", "A", "1", "[", "]", "국민은행 ", "원"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, *LABELS, *JOINTS]) | st.text(max_size=6), max_size=9).map("".join))
def test_what_is_redacted_leaves_nothing_to_find(text):
    pieces = find(text)
    assert all(0 <= a.start < a.end <= len(text) for a in pieces)
    assert all(a.end <= b.start for a, b in itertools.pairwise(pieces))
    assert find(redact(text, pieces)) == []


def test_the_quick_look_passes_every_piece_of_the_labelled_set():
    assert [piece for piece in PIECES if not pii._ANY.search(piece)] == []


def test_text_without_digits_or_an_at_sign_does_not_reach_the_patterns(monkeypatch):
    monkeypatch.setattr(pii, "_settle", lambda claims: pytest.fail("reached"))
    assert find("The tenant shall pay the rent under section 12 in 2021.") == []


def test_long_text_is_searched_in_linear_time():
    text = "a.b-c_1-2 3.4 " * 20_000 + "계좌 국민은행 환자 account number is " * 5_000 + "1234-" * 20_000
    start = time.process_time()
    find(text)
    assert time.process_time() - start < 20


def test_nothing_is_asked_of_the_network(monkeypatch):
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, lambda *args, **kwargs: pytest.fail("network"))
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("network"))
    text = "kim@example.com, +44 20 7946 0018, DE89370400440532013000"
    assert [kind for _, _, kind in finder()(text)] == ["email", "phone", "account_number"]


def test_the_package_is_imported_without_presidio():
    libraries = "('presidio_analyzer', 'spacy', 'torch')"
    code = f"import sys, sllm_tune.data.pii; print([m for m in {libraries} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    monkeypatch.setitem(sys.modules, "presidio_analyzer.predefined_recognizers", None)
    with pytest.raises(DataError, match=r'pip install "sllm-tune\[pii\]"'):
        finder()


def test_names_need_a_model_that_the_error_names(monkeypatch):
    monkeypatch.setitem(pii.NAME_MODELS, "ko", "ko_not_there")
    with pytest.raises(DataError, match="python -m spacy download ko_not_there"):
        finder(names=True, language="ko")
    with pytest.raises(DataError, match="en or ko, not in 'fr'"):
        finder(names=True, language="fr")


def test_names_that_the_model_tags_are_found_beside_the_patterns(tmp_path, monkeypatch):
    import spacy

    for language, label, name in (("ko", "PS", "홍길동"), ("en", "PERSON", "Jane Roe")):
        pipeline = spacy.blank("en")  # spaCy's Korean tokenizer needs MeCab
        pipeline.add_pipe("entity_ruler").add_patterns(
            [{"label": label, "pattern": name}, {"label": "ORG", "pattern": "Court"}]
        )
        pipeline.to_disk(tmp_path / language)
        monkeypatch.setitem(pii.NAME_MODELS, language, str(tmp_path / language))
        text = f"Court {name} 010-0000-1234"
        pieces = finder(names=True, language=language)(text)
        assert redact(text, pieces) == "Court [NAME] [PHONE]"
