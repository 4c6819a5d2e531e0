"""Contacts in any text a person brings: right or absent, of the right country, under the right name."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twingpt.core.errors import UsageError
from twingpt.data.contacts import mask, standardise
from twingpt.data.contacts.labels import LABEL
from twingpt.data.contacts.numbers import COUNTRIES, digits, plain_of
from twingpt.data.prepare.pipeline import prepare
from twingpt.data.prepare.settings import PrepareSettings
from twingpt.data.text.clean import CleanSettings, clean_chunk

HERE = Path(__file__).parent


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


CASES = _lines("any_text_contacts.jsonl")
NAMES = _lines("any_text_names.jsonl")


def _cleaned(case: dict[str, Any], contacts: Any = "keep") -> tuple[str, list[Any]]:
    chunk = clean_chunk(case["text"], CleanSettings(contacts=contacts, country=case.get("country", "PH")))
    return "\n\n".join(document.decode() for document in chunk.documents), chunk.contacts


@pytest.mark.parametrize("case", CASES, ids=[f"{case['kind']}: {case['text'][:40]}" for case in CASES])
def test_contacts(case: dict[str, Any]) -> None:
    text, stored = _cleaned(case)
    # Which line is a fax is not what these cases are about.
    assert {(c.kind, c.value) for c in stored if c.kind != "FAX"} == {(kind, value) for kind, value in case["contacts"]}
    if not stored:
        assert text == case["text"]
    for contact in stored:
        assert contact.value in text or contact.original in text
    masked = _cleaned(case, "mask")[0]
    for contact in stored:
        assert contact.original not in masked
        if contact.kind in ("TEL", "FAX"):
            assert digits(contact.value)[-7:] not in digits(plain_of(masked))


@pytest.mark.parametrize("case", NAMES, ids=[next(iter(case["belongs_to"])) for case in NAMES])
def test_names(case: dict[str, Any]) -> None:
    assert {c.entity: c.value for c in _cleaned(case)[1] if c.kind == "TEL"} == case["belongs_to"]


PIECES = [case["text"] for case in CASES + NAMES]
MIXTURES = st.lists(
    st.tuples(st.sampled_from(PIECES), st.sampled_from(["\n", "\n\n", " ", ", ", " / "])), min_size=1, max_size=4
).map(lambda parts: "".join(piece + glue for piece, glue in parts))


@settings(max_examples=300, deadline=None)
@given(MIXTURES, st.sampled_from(["PH", "KR", "US"]))
def test_cleaning_twice_is_cleaning_once(text: str, country: str) -> None:
    once, contacts = standardise(text, country)
    again, found = standardise(once, country)
    assert again == once
    assert [(c.kind, c.value) for c in found] == [(c.kind, c.value) for c in contacts]


@settings(max_examples=200, deadline=None)
@given(MIXTURES)
def test_digits_of_a_contact_stand_in_the_text(text: str) -> None:
    """But for the country code, and for what a number takes from the one before it."""
    raw = digits(plain_of(text))
    for contact in standardise(text)[1]:
        if contact.kind == "TEL":
            assert digits(contact.value.split(" 내선")[0])[-4:] in raw


def test_every_case_is_read_alike_after_cleaning() -> None:
    for case in CASES:
        once, contacts = standardise(case["text"], case.get("country", "PH"))
        again, found = standardise(once, case.get("country", "PH"))
        assert (again, [(c.kind, c.value) for c in found]) == (once, [(c.kind, c.value) for c in contacts]), case


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("전화: 02-8555-0123\n(8555-0123으로 걸어도 된다)", "TEL: [TEL_1]\n([TEL_1]으로 걸어도 된다)"),
        ("전화: 02-8555-0123. 시내에서는 8555-0123 번", "TEL: [TEL_1]. 시내에서는 [TEL_1] 번"),
        ("왓츠앱 wa.me/639175550126", "왓츠앱 wa.me/[TEL_1]"),
        ("[전화](tel:+639175550123)", "[전화](tel:[TEL_1])"),
    ],
)
def test_masked(text: str, masked: str) -> None:
    assert mask(*standardise(text)) == masked


def test_masking_counts_lines_that_still_look_like_numbers() -> None:
    case = {"text": "전화: 02-8555-0123\n계좌번호: 0012-3456-7890"}
    chunk = clean_chunk(case["text"], CleanSettings(contacts="mask"))
    counts = {kind: change["count"] for kind, change in chunk.changes.to_json().items()}
    assert counts["lines that still hold digits like those of a telephone number"] == 1


def test_the_report_tells_the_country(tmp_path: Path) -> None:
    (tmp_path / "raw.txt").write_text(
        "\n\n".join(f"안내 {n}\n전화: 02-8555-01{n:02}" for n in range(60)), encoding="utf-8"
    )
    for country, code in (("PH", "+63"), ("KR", "+82")):
        settings = PrepareSettings(country=country, dedup=False)
        report = prepare([str(tmp_path / "raw.txt")], tmp_path / "data", settings, workers=1, stages=["clean"]).report
        assert report["clean"]["country"] == report["settings"]["country"] == country
        assert f"TEL: {code} 2 8555 0101" in (tmp_path / "data" / "cleaned.txt").read_text(encoding="utf-8")


def test_a_lone_title_goes_with_what_follows() -> None:
    """Joined to the document before it, it would leave its contact without a name."""
    entries = [f"{name} 상회\n\n영업시간: 09:00-18:00\n전화: 02-8555-010{n}" for n, name in enumerate(["가나", "다라"])]
    text = "\n\n".join(entries)
    first, second = clean_chunk(text, CleanSettings()).documents
    assert first.decode().startswith("가나 상회\n") and second.decode().startswith("다라 상회\n")


def test_country_is_one_that_has_numbers() -> None:
    assert PrepareSettings(country="VN").country == "VN"
    assert {"PH", "KR", "US", "VN", "JP"} <= COUNTRIES
    with pytest.raises(UsageError, match="--country XX"):
        PrepareSettings(country="XX")


def _hangul(text: str) -> str:
    """The syllables of a text without its labels, which TEL: and the like stand for."""
    return "".join(re.findall("[가-힣]", re.sub("내선|구내", "", LABEL.sub("", text))))


@settings(max_examples=200, deadline=None)
@given(MIXTURES)
def test_no_hangul_is_lost(text: str) -> None:
    assert _hangul(standardise(text)[0]) == _hangul(text)
