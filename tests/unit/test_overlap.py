"""Planted duplicates and leaks in English and Korean, against texts that only look alike."""

import random

import pytest

from sllm_tune.data import overlap
from sllm_tune.data.overlap import Leak, leaks, near_duplicates


def listed(words):
    return words.split()


ENGLISH = listed(
    """
    account action agency agreement amount approval asset audit balance bank bond breach buyer capital carrier cause
    charge claim clause clinic closing company condition consent contract cost court credit custody damage data date
    dealer debt default defect delivery deposit director disease dose duty employer equity error estate event evidence
    exchange expense failure fee filing fund gain goods guarantee holder hospital income injury insurer interest
    invoice issue judge labour landlord law lease lender licence lien loan loss market member merger month notice
    office officer order owner partner party patient payment penalty period permit person pledge policy premium price
    product profit project property provider quality record refund region release remedy rent report request reserve
    right risk rule sale schedule security seller service share signature site state statute supplier symptom tax
    tenant term therapy title trade transfer treatment trial trust unit value vendor warranty witness year accept
    adjust agree allow amend appoint assign attach award begin bear bind cancel cease collect confirm deduct defend
    deliver demand deny disclose dismiss divide earn end enforce enter exceed exclude extend fail file forbid grant
    hold include inform inspect keep limit maintain make notify observe obtain occur offer operate pay perform prevent
    protect provide publish purchase reach receive recover reduce refuse register reject remain remove renew repair
    replace require resolve restrict retain return review revoke settle sign specify submit suspend take terminate use
    verify waive withdraw
    """
)
NOUNS = listed(
    """
    가격 감사 거래 검사 결정 경영 계약 계좌 고객 공급 공시 과세 관리 구매 권리 규정 근로 금액 금융 급여 기간 기록 기업
    기준 납부 납세 담보 당사자 대금 대리인 대출 등록 매도인 매수인 면책 명의 목적물 문서 물품 배당 법원 법인 변제 보고
    보증 보험 부동산 분쟁 비용 사업 상속 상품 상환 서류 선고 세금 소득 소송 손해 수수료 수익 수입 시설 신고 신청 약관
    약속 양도 업무 연체 영업 예금 완치 외래 원금 위임 위험 의무 의사 이사 이익 이자 인수 임금 임대인 임차인 입원 자금
    자산 자료 잔금 재산 재해 전염 절차 조건 조사 조세 증거 증상 증여 지급 지분 진단 진료 차임 채권 채무 책임 처방 청구
    출자 치료 통지 투자 판결 평가 품질 합의 해제 해지 협의 환자 회계 회사
    """
)
PARTICLES = listed("은 을 이 에 의 도 만 로 에서 부터 까지 에게 과 보다 마다")
VERBS = listed(
    """
    지급하여야 제출하였다 신고한다 인정된다 포함하고 제외하며 해당하는 적용되지 청구하면 통지받은 작성하여 보관한
    변경할 취소하고 승인하였으며 발생하는 부담하되 이행하지 않으면 거절할 보고하도록 확인되고 판단하였다 요구하는
    종료되면 계산한 반환하고
    """
)
RULE = (
    "임차인은 매월 말일까지 차임을 임대인이 지정한 계좌로 지급하여야 하고 "
    "이를 두 달 연체하면 임대인은 계약을 해지할 수 있다"
)
HANDWRITTEN = [
    ("Is my data sold?", "IS my data sold"),
    ("We keep your e-mail address for thirty days.", "We keep your e–mail\naddress for thirty days"),
    ("What does the ﬁne print say about refunds\uff1f", "what does the fine print say about refunds?"),
    ("유통기한이 얼마 안 남은 걸 받았네요", "유통기한이 얼마안남은걸 받았네요!!"),
    ("매출채권및기타유동채권", "매출채권 및 기타유동채권"),
]
LENGTHS = [10, 12, 15, 20, 33, 60, 120, 250, 500]


def english(rng, length):
    return " ".join(rng.choices(ENGLISH, k=length))


def korean(rng, length):
    endings = [
        rng.choice(NOUNS) + rng.choice(PARTICLES) if rng.random() < 0.75 else rng.choice(VERBS) for _ in range(length)
    ]
    return " ".join(endings)


def reworded(rng, text, write):
    """The text with a tenth of its words changed."""
    words = text.split()
    for at in rng.sample(range(len(words)), round(len(words) / 10)):
        words[at] = write(rng, 1)
    return " ".join(words)


@pytest.fixture(params=[english, korean])
def write(request):
    return request.param


def texts_of(write, seed=0, count=200):
    rng = random.Random(seed)
    return [write(rng, LENGTHS[number % len(LENGTHS)]) for number in range(count)]


def test_an_item_pasted_as_it_is_is_an_exact_leak_at_any_length(write):
    rng = random.Random(1)
    held_out = [write(rng, length) for length in [3, 4, 5, 7, *LENGTHS]]
    train = [write(rng, 20), *reversed(held_out), write(rng, 3)]
    expected = [Leak(len(held_out) - row, row, "exact") for row in range(len(held_out))]
    assert leaks(train, held_out) == sorted(expected)


@pytest.mark.parametrize(("text", "same"), HANDWRITTEN)
def test_case_width_punctuation_and_spacing_do_not_hide_an_exact_leak(text, same):
    assert leaks([same], [text]) == [Leak(0, 0, "exact")]
    assert near_duplicates([text, "another", same]) == [0, 1, 0]


def test_items_with_a_tenth_of_their_words_changed_are_caught(write):
    held_out, rng = texts_of(write), random.Random(2)
    train = [reworded(rng, text, write) for text in held_out]
    found = leaks(train, held_out)
    assert [(leak.train, leak.held_out) for leak in found] == [(row, row) for row in range(len(held_out))]
    assert {leak.kind for leak in found} <= {"exact", "near"}


def test_a_korean_text_with_another_particle_is_caught():
    train = [RULE.replace("차임을", "차임도").replace("임차인은", "임차인이"), RULE.replace("두 달", "석 달")]
    assert leaks(train, [RULE]) == [Leak(0, 0, "near"), Leak(1, 0, "near")]


def test_a_passage_of_13_words_inside_a_longer_text_is_caught_and_one_of_12_is_not(write):
    rng = random.Random(3)
    passages = [write(rng, 40) for _ in range(50)]
    for count, expected in ((13, [Leak(row, row, "13-gram") for row in range(50)]), (12, [])):
        held_out = [" ".join([write(rng, 30), *text.split()[5 : 5 + count], write(rng, 30)]) for text in passages]
        assert leaks(passages, held_out) == expected


def test_a_clause_pasted_whole_into_another_item_is_caught(write):
    rng = random.Random(4)
    clauses = [write(rng, length) for length in (13, 20, 60, 200)]
    train = [f"{write(rng, 9)}?\n{clause}" for clause in clauses]
    held_out = [f"{write(rng, 9)}?\n{clause}" for clause in clauses]
    assert [(leak.train, leak.held_out) for leak in leaks(train, held_out)] == [(row, row) for row in range(4)]


def test_unrelated_texts_raise_nothing(write):
    train, held_out = texts_of(write, seed=5, count=1000), texts_of(write, seed=6, count=1000)
    assert leaks(train, held_out) == []
    assert near_duplicates(train[:500] + held_out[:500]) == list(range(1000))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Is section 3 of the contract binding?", "Is section 4 of the contract binding?"),
        ("Fracture of left femur", "Fracture of right femur"),
        ("The rate is 1.5 percent", "The rate is 15 percent"),
        ("Revenue rose +5 %", "Revenue rose 5"),
        ("Yes", "No"),
        ("Yes", "Yes, if the tenant agrees"),
        ("제3조는 계약을 구속하는가?", "제4조는 계약을 구속하는가?"),
        ("?", "!"),
        ("", "-"),
    ],
)
def test_short_texts_of_one_form_are_different_texts(one, other):
    assert leaks([one], [other]) == leaks([other], [one]) == []
    assert near_duplicates([one, other]) == [0, 1]


def test_a_short_instruction_in_every_item_is_no_leak(write):
    rng = random.Random(7)
    ask = "Is the clause relevant to the question? Answer Yes or No."
    train, held_out = ([f"{ask} {write(rng, 30)} {ask}" for _ in range(60)] for _ in range(2))
    assert leaks(train, held_out) == []
    assert leaks([*train, held_out[7]], held_out) == [Leak(60, 7, "exact")]


def test_the_strongest_leak_of_a_training_text_is_named():
    rng = random.Random(8)
    text = english(rng, 40)
    nearer, near = text + " indeed", reworded(rng, text, english)
    inside = english(rng, 30) + " " + text
    assert leaks([text], [inside, near, text, nearer, text]) == [Leak(0, 2, "exact")]
    assert leaks([text], [inside, near, nearer]) == [Leak(0, 2, "near")]
    assert leaks([text], [english(rng, 40), inside]) == [Leak(0, 1, "13-gram")]


def test_texts_without_a_word_leak_nothing():
    assert leaks(["", " ", "?!", "..."], ["", "?!", "word"]) == []
    assert leaks([], ["word"]) == leaks(["word"], []) == leaks([], []) == []
    assert near_duplicates([]) == []
    assert near_duplicates(["?!", "", "...", "?!", " "]) == [0, 1, 2, 0, 1]


def test_groups_join_exact_and_near_duplicates_and_are_numbered_in_order(write):
    rng = random.Random(9)
    first, second = write(rng, 40), write(rng, 25)
    texts = [second, first, write(rng, 40), reworded(rng, first, write), second.upper() + " .", first]
    assert near_duplicates(texts) == [0, 1, 2, 1, 0, 1]


def test_groups_do_not_depend_on_the_order_of_the_texts(write):
    rng = random.Random(10)
    texts = texts_of(write, seed=11)
    texts += [reworded(rng, rng.choice(texts), write) for _ in range(200)]
    groups = near_duplicates(texts, threshold=0.75)
    order = rng.sample(range(len(texts)), len(texts))
    shuffled = near_duplicates([texts[at] for at in order], threshold=0.75)
    pairs = {(groups[at], group) for at, group in zip(order, shuffled, strict=True)}
    assert len(pairs) == len(set(groups)) == len(set(shuffled)) == 200
    assert near_duplicates(texts, threshold=0.75) == groups


def test_leaks_are_the_same_from_both_sides_and_in_any_order(write):
    rng = random.Random(12)
    held_out = texts_of(write, seed=13, count=60)
    train = [
        reworded(rng, text, write) if row % 2 else text + " " + write(rng, 60) for row, text in enumerate(held_out)
    ]
    found = leaks(train, held_out)
    assert len(found) == sum(len(text.split()) >= 13 or row % 2 for row, text in enumerate(held_out))
    assert sorted(leak._replace(train=leak.held_out, held_out=leak.train) for leak in leaks(held_out, train)) == found
    backwards = leaks(train[::-1], held_out[::-1])
    assert sorted(leak._replace(train=59 - leak.train, held_out=59 - leak.held_out) for leak in backwards) == found


def test_the_threshold_decides_what_is_near(write):
    held_out, rng = texts_of(write, count=90), random.Random(14)
    train = [reworded(rng, text, write) for text in held_out]
    kinds = [leak.kind for leak in leaks(train, held_out, threshold=1.0)]
    assert "near" not in kinds
    assert near_duplicates(held_out + train, threshold=1.0) == list(range(180))
    assert near_duplicates(held_out + train, threshold=0.75) == list(range(90)) * 2
    for threshold in (0.0, 1.1, -1):
        with pytest.raises(ValueError, match="threshold must be over 0 and at most 1"):
            near_duplicates([], threshold=threshold)
        with pytest.raises(ValueError, match="threshold must be over 0 and at most 1"):
            leaks([], [], threshold=threshold)


def test_candidates_come_from_minhash(monkeypatch):
    """Without its buckets no near duplicate is found, exact ones and windows still are."""
    text = english(random.Random(15), 12)
    near = text.replace(text.split()[3], "otherwise")
    assert near_duplicates([text, near]) == [0, 0]
    monkeypatch.setattr(overlap, "_band_keys", lambda texts, rows, banding: iter(()))
    assert near_duplicates([text, near, text]) == [0, 1, 0]


def test_a_crowd_of_like_texts_is_compared_with_few_each(monkeypatch):
    compared = []
    jaccard = overlap._jaccard
    monkeypatch.setattr(overlap, "_jaccard", lambda *sides: compared.append(len(sides[1])) or jaccard(*sides))
    rng = random.Random(16)
    form = english(rng, 30)
    crowd = [f"{form} {english(rng, 4)}" for _ in range(1000)]
    assert near_duplicates(crowd) == [0] * 1000
    assert sum(compared) < 10 * overlap._NEIGHBOURS * len(crowd)
    assert len(leaks(crowd[:500], crowd[500:])) == 500
