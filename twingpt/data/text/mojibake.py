"""Text that some program read in a wrong encoding and wrote again, undone."""

import re
from collections.abc import Callable

from twingpt.core.language import mark
from twingpt.data.text.changes import Changes

_CP1252_HIGH = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
# Latin-1 is CP1252 but for these; programs read the five bytes that CP1252 leaves out as Latin-1.
_CP1252_BYTES = {ord(c): c.encode("cp1252")[0] for c in _CP1252_HIGH}
_FOLLOWING = f"\u0080-\u00bf{_CP1252_HIGH}"
# UTF-8's three-byte characters (Hangul, most symbols) and four-byte ones (emoji) as CP1252 or Latin-1 shows them.
_MOJIBAKE = re.compile(f"[\u00e0-\u00ef][{_FOLLOWING}]{{2}}|[\u00f0-\u00f4][{_FOLLOWING}]{{3}}")
_LATIN_RUN = re.compile(f"[\u0000-\u00ff{_CP1252_HIGH}]+")
_LATIN_PAIR = re.compile(f"[\u00c2-\u00df][{_FOLLOWING}]")


# The commonest syllables of Korean, 85 % of running text: of all that CP949 has, one in ten.
_COMMON = frozenset(
    "가각간감강같개거건걸것게격결경계고공과관교구국군권그금기김까나난날남내너네년노느는니다단당대더던데도독동되된두드든들등디때라람랑래러런레려력로"
    "록루르를름리린마막만말매며면명모못무문물미민밌바박반받발방배버번보본볼봐봤부분불비사살상생서선설성세션소속수스습시식신실심아악안않알았야어억언없"
    "엇었에여역연였영예오와요용우운원월위유으은을음의이인일임입있자작잘장재저적전절점정제조종좋주준중즈지직진짜차처천청체초최추출치카코크키타탄터토통"
    "트파판편평포표품프피하학한할함해했행현호화황회후히"
)
# Bytes A1 to FE as MacRoman shows them, those of the first byte of a syllable (B0 to C8) apart.
_MAC_HIGH = bytes(range(0xA1, 0xFF)).decode("mac_roman").replace("\xa0", "") + "\xa0¤"
_MAC_LEAD = bytes(range(0xB0, 0xC9)).decode("mac_roman")
_LATIN_SYLLABLES = re.compile("(?:[\u00b0-\u00c8][\u00a1-\u00fe] ?){2,}")
_MAC_SYLLABLES = re.compile(f"(?:[{re.escape(_MAC_LEAD)}][{re.escape(_MAC_HIGH)}] ?){{2,}}")
_MAC_RUN = re.compile(f"[\u0000-\u007f{re.escape(bytes(range(0x80, 0x100)).decode('mac_roman'))}¤]+")
# Mathematics looks like syllables in MacRoman, but has nothing else of what Korean text looks like there.
_MATHEMATICS = re.compile("[\u0000-\u007f∞±≤≥µ∂∑∏π∫Ω√≈∆≠÷◊¬]*")
_HIGH = re.compile("[\u0080-\u00ff]")
_REPAIRED = mark("mojibake lines repaired")
# So many lines of a text in CP949 show that the short ones among them are in it too.
_LINES_THAT_SHOW = 3


def repair_mojibake(text: str, changes: Changes) -> str:
    """Undo UTF-8 and CP949 that were read as CP1252, Latin-1 or MacRoman, line by line.

    Characters whose bytes were lost become U+FFFD. Of what a line may have been, that with the most common Korean
    syllables is taken; a line in which that makes no more of them is left as it stands.
    """
    utf8 = _MOJIBAKE.search(text) or _LATIN_PAIR.search(text)
    if not utf8 and not _LATIN_SYLLABLES.search(text) and not _MAC_SYLLABLES.search(text):
        return text
    lines = text.split("\n")
    found: dict[str, int] = {}
    for number, line in enumerate(lines):
        repaired = _from_utf8(line) if utf8 else line
        for name, undo in _UNDO_CP949.items():
            candidate = undo(line, sure=True)
            if candidate != line and _common(candidate) > _common(repaired):
                repaired = candidate
                found[name] = found.get(name, 0) + 1
        _put(lines, number, repaired, changes)
    for name in (name for name, count in found.items() if count >= _LINES_THAT_SHOW):
        rest = [number for number, line in enumerate(lines) if _UNDO_CP949[name](line, sure=False) != line]
        if len(rest) <= found[name]:
            for number in rest:
                _put(lines, number, _UNDO_CP949[name](lines[number], sure=False), changes)
    return "\n".join(lines)


def _put(lines: list[str], number: int, repaired: str, changes: Changes) -> None:
    line = lines[number]
    if repaired == line:
        return
    changes.count(_REPAIRED)
    changes.example(_REPAIRED, line[:60], repaired[:60])
    lines[number] = repaired
    if lost := repaired.count("\ufffd") - line.count("\ufffd"):
        changes.count(mark("characters that mojibake had lost"), lost)


def _common(text: str) -> int:
    return sum(c in _COMMON for c in text)


def _from_utf8(line: str) -> str:
    """Hangul is undone here, run by run, since a line of notes may hold both kinds and lost bytes; `ftfy`, which weighs
    whether a line of Latin letters is meant as it stands, decides on the rest.
    """
    if _MOJIBAKE.search(line):
        return _LATIN_RUN.sub(_undo_run, line)
    if not _LATIN_PAIR.search(line):
        return line
    import ftfy

    repaired = ftfy.fix_encoding(line)
    # A pair among many letters that stay odd is a chance, and no UTF-8.
    return repaired if 2 * len(_HIGH.findall(repaired)) < len(_HIGH.findall(line)) else line


def _undo_latin(line: str, *, sure: bool) -> str:
    if sure and not _LATIN_SYLLABLES.search(line):
        return line
    return _undo_cp949(line, _LATIN_RUN, lambda run: run.translate(_CP1252_BYTES).encode("latin-1"), 2, sure=sure)


def _undo_mac(line: str, *, sure: bool) -> str:
    if sure and (not _MAC_SYLLABLES.search(line) or all(map(_MATHEMATICS.fullmatch, _MAC_RUN.findall(line)))):
        return line
    return _undo_cp949(line, _MAC_RUN, lambda run: run.replace("¤", "€").encode("mac_roman"), 3, sure=sure)


_UNDO_CP949 = {"Latin-1": _undo_latin, "MacRoman": _undo_mac}


def _undo_cp949(line: str, runs: re.Pattern[str], to_bytes: Callable[[str], bytes], least: int, *, sure: bool) -> str:
    """The line with its runs as CP949; itself if they are not, or if what comes out is hardly Korean.

    sure: the line alone has to show it, with `least` syllables of which most are common.
    """

    made: list[str] = []

    def undone(match: re.Match[str]) -> str:
        made.append(to_bytes(match.group()).decode("cp949"))
        return made[-1]

    try:
        candidate = runs.sub(undone, line)
    except UnicodeError:
        return line
    letters = [c for c in "".join(made) if c > "\x7f"]
    syllables = sum("가" <= c <= "힣" for c in letters)
    if syllables < (least if sure else 1) or syllables < 0.6 * len(letters):
        return line
    enough = (0.5 if syllables >= 4 else 0.75) * syllables
    return candidate if not sure or _common("".join(letters)) >= enough else line


def _undo_run(match: re.Match[str]) -> str:
    run = match.group()
    if not _MOJIBAKE.search(run):
        return run
    from ftfy.fixes import restore_byte_a0

    data = run.translate(_CP1252_BYTES).encode("latin-1")
    # The byte A0 became a no-break blank, which some programs then made an ordinary one.
    for candidate in (data, restore_byte_a0(data)):
        try:
            return candidate.decode("utf-8")
        except UnicodeDecodeError:
            continue
    text = data.decode("utf-8", errors="replace")
    made = sum(1 for c in text if c > "\u07ff" and c != "\ufffd")
    return text if 2 * made >= text.count("\ufffd") else run
