"""Personal data in Korean and English text: found by shape, checksum and the words around it, then redacted.

Presidio runs the patterns; each is offline and needs no model. The patterns are ours where Presidio's end a number at
a word boundary, which a Korean particle hides ("010-0000-1234로"), or look up context with a language model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from sllm_tune.errors import DataError

if TYPE_CHECKING:
    from presidio_analyzer import PatternRecognizer

MIN_SCORE = 0.5  # a shape that means little by itself scores below it, and counts only if its checksum holds
NAME_MODELS = {"en": "en_core_web_sm", "ko": "ko_core_news_sm"}


class Found(NamedTuple):
    """A piece of personal data: `text[start:end]`."""

    start: int
    end: int
    kind: str


class _Kind(NamedTuple):
    guard: str  # cheap: a text without it has none of this kind
    patterns: tuple[tuple[str, float], ...]  # with Presidio's scores, 0 to 1
    check: Callable[[str], bool | None] | None = None  # None as its answer leaves the pattern's score as it is


def _gap(length: int, without: str = r"\d") -> str:
    """Up to `length` characters between a label and its number, with no other number, placeholder or `without`."""
    return rf"(?:(?!{without})[^\d\[\]]){{0,{length}}}?"


# A number inside a longer one, or a part of a code ("AB-010-...", "...-1234X"), is something else. Hangul may touch it.
_LEFT = r"(?<![\dA-Za-z_])(?<!\d[-.])(?<![A-Za-z]-)"
_RIGHT = r"(?![\dA-Za-z_])(?![-.]\d)"
_NOT_AN_AMOUNT = r"(?!원|만|억|달러|주|건|명|좌|%|\s?(?i:won|krw|usd|dollars?|shares?)\b)"
_OF_A_LABEL = (
    r"(?:[\s:#=(.,'\"-]|(?i:\b(?:numbers?|nos?|num|nr|ids?|identifier|is|was|are|of|the|held|in|with|at|as|to|for|from)"
    r"\b)){0,12}?"
)

_BIRTH = r"\d{2}(?:(?:0[13578]|1[02])(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)(?:0[1-9]|[12]\d|30)|02(?:0[1-9]|[12]\d))"
_RESIDENT_LABEL = (
    r"(?:주민\s?(?:등록)?\s?번호|외국인\s?(?:등록)?\s?번호|거소신고번호"
    r"|(?i:\b(?:RRN|(?:resident|alien|foreigner) registration)\b))"
)
_NOT_A_COMPANY = r"(?<!(?:법인\s?(?:등록)?\s?번호|(?i:corporate registration (?:number|no)))\W{0,4})"
_BANKS = "국민|신한|우리|하나|농협|기업|수협|씨티|제일|산업|부산|대구|광주|전북|경남|제주|아이엠|카카오|토스|케이"
_BANK = rf"(?:(?:{_BANKS})(?:은행|뱅크)|농협|신협|수협|우체국|새마을금고)"
_ACCOUNT_LABEL = r"(?i:(?<!(?:take|takes|took|taken|taking) into )\b(?:account|acct|a/c)\b)"
_ACCOUNT_GAP = _gap(15, "번호|금액|잔액|원금|문의|전화|연락|일자|사건|접수|주문|승인")
_HYPHENATED = r"(?=(?:\d-?){%s,14}(?![\d-]))\d{2,6}(?:-\d{1,8}){1,4}"
_DATE = r"(?:19|20)\d{2}-?(?:0[1-9]|1[0-2])-?(?:0[1-9]|[12]\d|3[01])(?!\d)"
_TOLL_FREE = r"8(?:00|88|77|66|55|44|33)"  # of a company, not of a person; so are Korea's 080 and 15xx
_PHONE_LABEL = r"(?:전화|연락처|휴대폰|핸드폰|팩스|(?i:\b(?:tel|phone|mobile|cell|fax|tty|call|calling|text)\b))"
_LANDLINE = r"0(?:2|3[1-3]|4[1-4]|5[1-5]|6[1-4]|70|50\d)"
_RECORD = r"(?:(?<![A-Za-z])[A-Z]{1,3}-?)?(?:\d{5,10}|\d{3,4}-\d{3,5}(?:-\d{2,4})?)"


def _resident_checksum(number: str) -> bool | None:
    """True where the check digit holds; one that does not proves nothing, since October 2020 it is random."""
    digits = [int(character) for character in number if character.isdigit()]
    total = sum(weight * digit for weight, digit in zip((2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5), digits, strict=False))
    foreigner = digits[6] >= 5
    return ((13 if foreigner else 11) - total % 11) % 10 == digits[12] or None


def _is_dialled(number: str) -> bool | None:
    """Whether a number with a country code is one that can be dialled there; others are left to their pattern."""
    import phonenumbers

    if not number.startswith("+"):
        return None
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number))
    except phonenumbers.NumberParseException:
        return False


def _luhn(number: str) -> bool | None:
    from presidio_analyzer.predefined_recognizers import CreditCardRecognizer

    return CreditCardRecognizer().validate_result(number)


# The first of two kinds that claim the same characters wins.
_KINDS = {
    # A number whose check digit fails counts only after a label, or hyphenated with a birth since October 2020: else
    # nine in ten company registration numbers (110111-1234567) would pass as a person's.
    "resident_registration_number": _Kind(
        guard=r"\d{6}\s?-?\s?\d{7}",
        patterns=(
            (rf"{_RESIDENT_LABEL}{_gap(15)}\K{_BIRTH}\s?-?\s?[1-8]\d{{6}}{_RIGHT}", 0.9),
            (rf"{_LEFT}{_NOT_A_COMPANY}(?=201[0-2]|2[1-9]){_BIRTH}-[3478]\d{{6}}{_RIGHT}", 0.6),
            (rf"{_LEFT}{_NOT_A_COMPANY}{_BIRTH}\s?-?\s?[1-8]\d{{6}}{_RIGHT}", 0.1),
        ),
        check=_resident_checksum,
    ),
    "card_number": _Kind(
        guard=r"\d{4}[- ]?\d{4,6}[- ]?\d{4}",
        patterns=(
            (rf"{_LEFT}(?:4\d|5[1-5]|2[2-7]|35|6\d)\d\d(?P<s>[- ]?)\d{{4}}(?P=s)\d{{4}}(?P=s)\d{{4}}{_RIGHT}", 0.1),
            (rf"{_LEFT}9\d{{3}}(?P<s>[- ])\d{{4}}(?P=s)\d{{4}}(?P=s)\d{{4}}{_RIGHT}", 0.1),
            (rf"{_LEFT}3[47]\d\d(?P<s>[- ]?)\d{{6}}(?P=s)\d{{5}}{_RIGHT}", 0.1),
            (rf"{_LEFT}3[0689]\d\d(?P<s>[- ]?)\d{{6}}(?P=s)\d{{4}}{_RIGHT}", 0.1),
        ),
        check=_luhn,
    ),
    "phone": _Kind(
        guard=rf"\+\d|010\d{{4}}|(?<!\d)0\d{{1,3}}[-. )]|[2-9]\d\d[-.)] ?[2-9]\d\d[-. ]|{_PHONE_LABEL}",
        patterns=(
            (rf"{_LEFT}010[-. ]?\d{{4}}[-. ]?\d{{4}}{_RIGHT}", 0.8),
            (rf"{_LEFT}(?:\(01[016-9]\) ?|01[016-9](?:[-. ]|\) ?))\d{{3,4}}[-. ]\d{{4}}{_RIGHT}", 0.7),
            (rf"{_LEFT}(?:\({_LANDLINE}\) ?|{_LANDLINE}(?:[-. ]|\) ?))\d{{3,4}}[-. ]\d{{4}}{_RIGHT}", 0.7),
            (r"\+82[-. ]?(?:\(0\) ?)?(?:1\d|2|[3-6]\d|70)[-. ]?\d{3,4}[-. ]?\d{4}" + _RIGHT, 0.7),
            (
                rf"(?:\+1[-. ]?|{_LEFT}(?:1[-. ])?)(?!\(?{_TOLL_FREE})(?:\([2-9]\d\d\) ?|[2-9]\d\d[-.])"
                rf"[2-9]\d\d[-. ]\d{{4}}{_RIGHT}",
                0.6,
            ),
            (
                r"(?<![\dA-Za-z+])\+\d{1,3}[-. ]?(?:\(\d{1,4}\)[-. ]?)?\d{1,5}(?:[-. ]?\d{2,5}){1,4}" + _RIGHT,
                0.4,
            ),
            (
                rf"{_PHONE_LABEL}{_gap(12, '[+]')}\K(?:0\d{{8,10}}|(?!{_TOLL_FREE})[2-9]\d\d ?[2-9]\d\d ?\d{{4}})"
                rf"{_RIGHT}{_NOT_AN_AMOUNT}",
                0.6,
            ),
        ),
        check=_is_dialled,
    ),
    "email": _Kind(
        guard="@",
        patterns=(
            (
                r"(?<![A-Za-z0-9._%+-])(?!git@)[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@"
                r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9])",
                0.8,
            ),
        ),
    ),
    "passport": _Kind(
        guard=r"\d{3}[A-Z]\d{4}|[A-Z]\d{6}|여권|(?i:passport)",
        patterns=(
            (rf"{_LEFT}(?:M\d{{8}}|[MSROD]\d{{3}}[A-Z]\d{{4}}){_RIGHT}", 0.6),
            (
                rf"(?:여권|(?i:passport)){_gap(20, '수수료|접수|(?i:fee|cost|receipt|applic|case)')}\K"
                rf"(?<![A-Za-z])(?:[A-Z]{{1,2}}\d{{6,8}}|[A-Z]\d{{3}}[A-Z]\d{{4}}|\d{{9}}){_RIGHT}",
                0.8,
            ),
        ),
    ),
    "medical_record_number": _Kind(
        guard=r"번호|환자|트|(?i:MRN|record|chart|patient|hospital)",
        patterns=(
            (
                r"(?:(?:병록|[차챠]트|의무기록|(?:환자|병원|진료)\s?(?:등록|카드)?)\s?(?:번호|(?i:id|no)\b)"
                rf"|(?:환자|외래|입원|내원|진료|수술){_gap(20)}(?<![가-힣])등록\s?번호){_gap(8)}\K{_RECORD}{_RIGHT}",
                0.7,
            ),
            (
                r"(?i:\b(?:MRN|medical\s+record|chart|(?:hospital|patient)\s+(?=(?:number|no|id|identifier)\b|#)))"
                rf"{_OF_A_LABEL}\K{_RECORD}{_RIGHT}",
                0.7,
            ),
        ),
    ),
    "account_number": _Kind(
        guard=rf"계좌|통장|예금주|입금|송금|이체|{_BANKS}|우체국|금고|신협|(?i:account|acct|a/c)",
        patterns=(
            (
                rf"(?:계좌|통장|{_BANK})(?:\s?번호)?{_ACCOUNT_GAP}\K(?:{_HYPHENATED % 10}|\d{{10,14}})"
                rf"{_RIGHT}{_NOT_AN_AMOUNT}",
                0.7,
            ),
            (rf"(?:예금주|입금|송금|이체|(?<![가-힣])(?:{_BANKS})){_ACCOUNT_GAP}\K{_HYPHENATED % 11}{_RIGHT}", 0.6),
            (
                rf"{_LEFT}(?:{_HYPHENATED % 10}|\d{{10,14}})(?=[\s(/,]{{0,3}}(?:예금주|계좌|통장|{_BANK}))",
                0.6,
            ),
            (
                rf"{_ACCOUNT_LABEL}{_OF_A_LABEL}\K(?!{_DATE})(?=(?:\d[- ]?){{8,17}}(?!\d))"
                rf"(?:\d{{8,17}}|\d{{2,6}}(?:-\d{{2,8}}){{1,4}}|\d{{2,4}}(?: \d{{2,4}}){{2,4}})"
                rf"{_RIGHT}{_NOT_AN_AMOUNT}",
                0.6,
            ),
        ),
    ),
}
KINDS = (*_KINDS, "name")

# What no kind can do without: an @, a country code, five digits on end, or a few digits, a sign or letter, and more.
_ANY = re.compile(r"[@\uff20+\uff0b\d](?:(?<=[@\uff20])|(?<=[+\uff0b])\d|\d{4}|\d{2,3}\W{1,3}\d{3}|\d{2}[A-Z]\d{4})")
_PLAIN = str.maketrans(
    {wide: chr(wide - 0xFEE0) for wide in range(0xFF01, 0xFF5F)}
    | dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-")
    | dict.fromkeys([0xA0, 0x2007, 0x2009, 0x202F, 0x3000], " ")
)


def finder(*, names: bool = False, language: str = "en") -> Callable[[str], list[Found]]:
    """A function that finds personal data in a text; building it takes seconds, calling it microseconds.

    Patterns of both languages are looked for in every text. What it finds is in order and does not overlap; of two
    that do, the longer is kept. Once redacted, a text has nothing left that these patterns find.

    Args:
        names: Whether names of persons are looked for too, with the spaCy model in `NAME_MODELS`.
        language: Of that model, `en` or `ko`.

    Raises:
        DataError: the extra `pii`, or the spaCy model, is not installed.
    """
    try:
        patterns = _pattern_finder()
    except ImportError as error:
        raise DataError(
            f'looking for personal data needs the extra "pii" ({error}).\n  Install it: pip install "sllm-tune[pii]"'
        ) from error
    if not names:
        return patterns
    people = _name_finder(language)
    return lambda text: _settle([*patterns(text), *people(text)])


def redact(text: str, found: Iterable[Found]) -> str:
    """The text with each piece replaced by its kind in brackets: `[PHONE]`."""
    for piece in sorted(found, reverse=True):
        text = f"{text[: piece.start]}[{piece.kind.upper()}]{text[piece.end :]}"
    return text


def _pattern_finder() -> Callable[[str], list[Found]]:
    from presidio_analyzer.predefined_recognizers import IbanRecognizer

    searches = [(kind, re.compile(_KINDS[kind].guard), _recogniser(kind)) for kind in _KINDS]
    searches.append(("account_number", re.compile(r"[A-Z]{2}\d{2}"), IbanRecognizer()))

    def find(text: str) -> list[Found]:
        if not _ANY.search(text):
            return []
        plain, found = text.translate(_PLAIN), list[Found]()
        while True:
            claims = [
                Found(result.start, result.end, kind)
                for kind, guard, recogniser in searches
                if guard.search(plain)
                for result in recogniser.analyze(plain, [kind])
                if result.score >= MIN_SCORE
            ]
            if not claims:
                return sorted(found)
            found += (settled := _settle(claims))
            for start, end, _ in settled:  # as a placeholder would stand there, so that redacting leaves no more
                plain = f"{plain[:start]}[{'_' * (end - start - 2)}]{plain[end:]}"

    return find


def _recogniser(kind: str) -> PatternRecognizer:
    from presidio_analyzer import Pattern, PatternRecognizer

    check = _KINDS[kind].check

    class Recogniser(PatternRecognizer):
        def validate_result(self, pattern_text: str) -> bool | None:
            return check(pattern_text) if check else None

    patterns = [Pattern(f"{kind} {i}", regex, score) for i, (regex, score) in enumerate(_KINDS[kind].patterns)]
    return Recogniser(supported_entity=kind, patterns=patterns, global_regex_flags=0)


def _name_finder(language: str) -> Callable[[str], list[Found]]:
    import spacy

    if language not in NAME_MODELS:
        raise DataError(f"names are looked for in {' or '.join(NAME_MODELS)}, not in {language!r}.")
    model = NAME_MODELS[language]
    try:
        pipeline = spacy.load(model)
    except OSError as error:
        raise DataError(
            f"looking for names in {language!r} needs the spaCy model {model}.\n"
            f"  Install it: python -m spacy download {model}"
        ) from error
    persons = ("PERSON", "PER", "PS")  # as the English, the multilingual and the Korean models call them
    return lambda text: [
        Found(span.start_char, span.end_char, "name") for span in pipeline(text).ents if span.label_ in persons
    ]


def _settle(claims: Iterable[Found]) -> list[Found]:
    """The longest of the claims that overlap, of equals the kind that comes first; in order."""
    kept: list[Found] = []
    for claim in sorted(claims, key=lambda c: (c.start - c.end, KINDS.index(c.kind))):
        if all(claim.end <= other.start or claim.start >= other.end for other in kept):
            kept.append(claim)
    return sorted(kept)
