"""The language in which a person is spoken to, Korean or English, and what is said in it.

The English message is the key of the catalogue, so that the code reads as what it says; where the catalogue has
nothing, English is said. `make catalogue` brings the catalogue up to date with the code.
"""

import os
import sys
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "ko")
VARIABLE = "TWINGPT_LANG"
DOMAIN = "twingpt"
FOLDER = Path(__file__).parent.parent / "locale"


def tr(message: str, /, **values: object) -> str:
    """The message in the language of whoever reads it, with the values in its {placeholders}."""
    said = _catalogue(language()).get(message, message)
    if not values:
        return said
    told = said.format(**values)
    return _with_particles(told) if language() == "ko" else told


def mark(message: str) -> str:
    """The message itself, for the catalogue: what is written once, as a key or a constant, is translated when shown."""
    return message


def padded(label: str, width: int) -> str:
    """The label with blanks after it; a Hangul syllable is as wide as two other letters on a terminal."""
    import unicodedata

    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in label)
    return label + " " * max(width - len(label) - wide, 0)


def os_reason(error: OSError) -> str:
    """What the system says is wrong with a file. Its words are English in every locale, as Python never asks for "
    "others."""
    return tr(error.strerror or str(error))


REASONS = (
    mark("File exists"),
    mark("File name too long"),
    mark("Is a directory"),
    mark("No space left on device"),
    mark("No such file or directory"),
    mark("Not a directory"),
    mark("Operation not permitted"),
    mark("Permission denied"),
    mark("Read-only file system"),
    mark("Address already in use"),
)


@cache
def language() -> str:
    """By TWINGPT_LANG, else the locale; a Mac without one is asked which language it is set to."""
    for variable in (VARIABLE, "LC_ALL", "LC_MESSAGES", "LANG"):
        if os.environ.get(variable):
            return _named(os.environ[variable])
    return _named(_of_the_mac()) if sys.platform == "darwin" else "en"


def choose(chosen: str) -> None:
    """From now on, here and in the processes that are started from here."""
    os.environ[VARIABLE] = chosen
    language.cache_clear()


def _named(locale: str) -> str:
    """ko, ko_KR.UTF-8 and ko-PH are Korean. Whatever has no catalogue is spoken to in English."""
    return "ko" if locale.lower().replace("-", "_").split(".")[0].split("_")[0] == "ko" else "en"


def _of_the_mac() -> str:
    """The first of its languages, such as ko-PH: a Mac whose region has no locale of that language leaves LANG "
    "empty."""
    import subprocess

    try:
        shown = subprocess.run(
            ["/usr/bin/defaults", "read", "-g", "AppleLanguages"], capture_output=True, text=True, timeout=5, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return "en"
    first, *_ = [line.strip(' ",') for line in shown.splitlines() if line.strip(" ,()")] or ["en"]
    return first


PARTICLES = {
    "은(는)": ("은", "는"),
    "이(가)": ("이", "가"),
    "을(를)": ("을", "를"),
    "과(와)": ("과", "와"),
    "(으)로": ("으로", "로"),
}
"""As they stand in the catalogue after a {placeholder} -> what follows a consonant, and a vowel."""
_ENDS_IN_A_CONSONANT = {digit: digit in "013678" for digit in "0123456789"}
"""Digits as they are read: 영, 일, 이, 삼, ..."""


def _with_particles(text: str) -> str:
    """Korean whose particles fit the words before them, where these are Hangul or digits; else both stay."""
    import re

    def chosen(match: "re.Match[str]") -> str:
        last, after, particle = match[1], match[2], match[3]
        if "가" <= last <= "힣":
            final = (ord(last) - ord("가")) % 28
            closed = bool(final) and not (particle == "(으)로" and final == _RIEUL)
        elif last in _ENDS_IN_A_CONSONANT:
            closed = _ENDS_IN_A_CONSONANT[last] and not (particle == "(으)로" and last in "178")
        else:
            return match[0]
        return last + after + PARTICLES[particle][0 if closed else 1]

    return re.sub(_PARTICLE, chosen, text)


_RIEUL = 8
"""Number of the final consonant after which 로 stands as after a vowel."""
_PARTICLE = (
    r"(\w)([\"'`)\]]*)(" + "|".join(particle.replace("(", r"\(").replace(")", r"\)") for particle in PARTICLES) + ")"
)


@cache
def _catalogue(language: str) -> dict[str, str]:
    """Message -> translation; empty for English, which needs none."""
    if language == "en":
        return {}
    import gettext

    found = gettext.translation(DOMAIN, FOLDER, [language], fallback=True)
    return {key: text for key, text in getattr(found, "_catalog", {}).items() if key and isinstance(key, str)}
