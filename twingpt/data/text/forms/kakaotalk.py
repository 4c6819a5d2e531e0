"""Chats that KakaoTalk exported: only what people wrote is text; names, times and notices of the program are not.

A name would become the title of a document and the subject of questions. A day's messages are one block.
"""

import re
from collections.abc import Iterator

from twingpt.core.language import mark
from twingpt.data.text.forms.csv_rows import rows
from twingpt.data.text.forms.form import ReadAs, TextForm, lines

_CLOCK = r"(?:오전 |오후 |AM |PM )?\d{1,2}:\d\d(?::\d\d)?(?: ?[AP]M)?"
_DATE = (
    r"(?:\d{4}년 \d{1,2}월 \d{1,2}일|\d{4}[.\-/] ?\d{1,2}[.\-/] ?\d{1,2}\.?"
    r"|[A-Z][a-z]+ \d{1,2}, \d{4}(?: at|,)?|\d{1,2} [A-Z][a-z]+ \d{4}(?: at|,)?)"
)
_WEEKDAY = r"(?:,? ?(?:[월화수목금토일]요일|\w+day))?"
_WINDOWS_MESSAGE = re.compile(rf"\[[^\n]+?\] \[{_CLOCK}\] ?(.*)")
_WINDOWS_DAY = re.compile(r"-{5,} .*\d{4}.* -{5,}")
_MOBILE_MESSAGE = re.compile(rf"{_DATE} {_CLOCK}, .{{1,80}}? : (.*)")
_MOBILE_NOTICE = re.compile(rf"{_DATE} {_CLOCK}(?:[,:] .*)?")
_MOBILE_DAY = re.compile(rf"(?:\w+day, )?{_DATE}{_WEEKDAY}(?: {_CLOCK})?")
_HEADER = re.compile(r".*카카오톡 대화$|저장한 날짜 ?:|KakaoTalk Chats? with |Date Saved ?:|Talk_[\d. :\-]+\.txt$")
_NOTICE = re.compile(
    r".{1,80}님이 (?:들어왔습니다|나갔습니다|.{1,80}(?:초대했습니다|내보냈습니다|가렸습니다))\.?.*"
    r"|.{1,80} (?:joined|left) this chatroom\.|채팅방 관리자가 메시지를 가렸습니다\.|메시지가 삭제되었습니다\."
)
# What stands in the place of a message that had no words.
_NO_WORDS = re.compile(
    r"(?:사진|사진 \d+장|동영상|이모티콘|음성메시지|<사진 읽지 않음>|<미디어 파일을 제외한 텍스트 메시지만 보냅니다>"
    r"|삭제된 메시지입니다\.|(?:보이스톡|페이스톡|라이브톡)(?: .{1,20})?|(?:파일|샵검색|지도|투표): .*"
    r"|Photo|Photos? \d+|Video|Emoticons?|Voice Message|This message was deleted\.)"
)
_CSV_HEADER = ["Date", "User", "Message"]
_CSV_FIRST = re.compile(r'\ufeff?"?Date"?,"?User"?,"?Message"?\r?(?:\n|$)')
_KEPT = mark("chat messages kept without name and time")
_DROPPED = mark("chat lines without a message dropped")


def _looks_like(head: str, message: re.Pattern[str]) -> bool:
    found = [line.rstrip("\r") for line in head.lstrip("\ufeff").split("\n")[:400]]
    found = [line for line in found if line.strip()]
    messages = sum(message.fullmatch(line) is not None for line in found)
    if any(_HEADER.match(line) for line in found[:3]):
        return messages > 0
    return messages >= 3 and messages >= 0.3 * len(found)


def _messages(
    pieces: Iterator[str], read_as: ReadAs, message: re.Pattern[str], day: re.Pattern[str], notice: re.Pattern[str]
) -> Iterator[str]:
    # A line after a message goes on with it; a line after a notice or before the first message belongs to nobody.
    inside = False
    for line in lines(pieces):
        if found := message.fullmatch(line):
            inside = True
            yield from _said(found[1], read_as)
        elif day.fullmatch(line):
            inside = False
            read_as.changes.count(_DROPPED)
            yield "\n"
        elif notice.fullmatch(line) or _NOTICE.fullmatch(line):
            inside = False
            read_as.changes.count(_DROPPED)
        elif inside:
            yield f"{line}\n"
        elif line.strip():
            read_as.changes.count(_DROPPED)
            read_as.changes.example(_DROPPED, line[:60], "")


def _said(text: str, read_as: ReadAs) -> Iterator[str]:
    if not text.strip() or _NO_WORDS.fullmatch(text.strip()):
        read_as.changes.count(_DROPPED)
        return
    read_as.changes.count(_KEPT)
    yield f"{text}\n"


def _read_windows(pieces: Iterator[str], read_as: ReadAs) -> Iterator[str]:
    return _messages(pieces, read_as, _WINDOWS_MESSAGE, _WINDOWS_DAY, _NOTICE)


def _read_mobile(pieces: Iterator[str], read_as: ReadAs) -> Iterator[str]:
    return _messages(pieces, read_as, _MOBILE_MESSAGE, _MOBILE_DAY, _MOBILE_NOTICE)


def _read_csv(pieces: Iterator[str], read_as: ReadAs) -> Iterator[str]:
    day = ""
    for row in rows(pieces, ","):
        if len(row) != len(_CSV_HEADER) or row == _CSV_HEADER:
            continue
        if row[0][:10] != day:
            day = row[0][:10]
            yield "\n"
        if _NOTICE.fullmatch(row[2].strip()):
            read_as.changes.count(_DROPPED)
        else:
            yield from _said(row[2], read_as)


WINDOWS = TextForm(mark("KakaoTalk chat (Windows)"), lambda head: _looks_like(head, _WINDOWS_MESSAGE), _read_windows)
MOBILE = TextForm(mark("KakaoTalk chat (Android, iOS)"), lambda head: _looks_like(head, _MOBILE_MESSAGE), _read_mobile)
CSV = TextForm(mark("KakaoTalk chat (CSV)"), lambda head: _CSV_FIRST.match(head) is not None, _read_csv)
