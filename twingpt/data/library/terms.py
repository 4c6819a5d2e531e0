"""What text is indexed by: pairs of syllables, which need no dictionary and see through particles and endings."""

import re
import unicodedata

_RUN = re.compile(r"[가-힣]+|[一-鿿]+|[0-9a-z]+")


def terms(text: str) -> list[str]:
    """The terms of a text in its order, repeats included.

    A Korean word becomes its pairs of neighbouring syllables, so that 대사관에서 and 대사관은 share 대사, 사관; a word
    of one syllable stays as it is. Latin words and numbers stay whole, in lower case.
    """
    found: list[str] = []
    for run in _RUN.findall(unicodedata.normalize("NFKC", text).lower()):
        if len(run) == 1 or run.isascii():
            found.append(run)
        else:
            found += [run[i : i + 2] for i in range(len(run) - 1)]
    return found
