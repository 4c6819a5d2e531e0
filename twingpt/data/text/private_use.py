"""Characters that only one program or font gives a meaning, in a form that every program knows."""

import re
import unicodedata

# Numbers in a box, and in a filled one, as HWP has them; there are circles for all of them.
_HWP = {first + number: chr(0x2460 + number) for first in (0xF02B1, 0xF02CE) for number in range(20)}
# Word and HWP write bullets as characters of the fonts Symbol and Wingdings: U+F000 and the byte.
_FONTS = {
    **dict.fromkeys((0xF06C, 0xF0B7, 0xF09F), "•"),
    **dict.fromkeys((0xF06E, 0xF0A7), "■"),
    **dict.fromkeys((0xF06F, 0xF070, 0xF071, 0xF072, 0xF0A8), "□"),
    **dict.fromkeys((0xF06D, 0xF0A1, 0xF0A2), "○"),
    **dict.fromkeys((0xF073, 0xF074, 0xF075, 0xF076, 0xF077), "◆"),
    **dict.fromkeys((0xF0D8, 0xF0E0, 0xF0E8, 0xF0F0), "→"),
    **dict.fromkeys((0xF0FB, 0xF0FD), "✗"),
    **dict.fromkeys((0xF0FC, 0xF0FE), "✓"),
    0xF028: "☎",
    0xF02A: "✉",
    0xF046: "☞",
    0xF09E: "·",
    0xF0AB: "★",
}
KNOWN = {**_HWP, **_FONTS}
KNOWN_CLASS = "".join(map(chr, KNOWN))
PRIVATE_CLASS = "\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd"

# U+FFA0 is a filler, and goes with the others.
HALF_WIDTH_CLASS = "\uffa1-\uffdc"
_LEADS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
_VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
_TAILS = "ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"
# A consonant that comes twice, as in laughter, ends no syllable.
_SYLLABLE = re.compile(f"([{_LEADS}])([{_VOWELS}])(?:([{_TAILS}])(?![{_VOWELS}]|\\3))?")


def whole_jamo(half: str) -> str:
    """Half-width jamo as the letters they are, and as syllables where they make some."""
    letters = "".join(
        chr(int(parts[1], 16)) if len(parts := unicodedata.decomposition(c).split()) == 2 else "" for c in half
    )

    def syllable(match: re.Match[str]) -> str:
        tail = _TAILS.index(match[3]) + 1 if match[3] else 0
        return chr(0xAC00 + (_LEADS.index(match[1]) * 21 + _VOWELS.index(match[2])) * 28 + tail)

    return _SYLLABLE.sub(syllable, letters)
