"""Search in Korean: a word is found by its middle too.

The search of the site looks for words that begin with what was typed. Korean writes words together: somebody who looks
for 손실 also wants 검증손실. So each part of the search index gets one more field with the ends of its Korean words,
and what was typed is the beginning of one of those.
"""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority

FIELD = "word_ends"
# A hit in the middle of a word comes after a hit at its beginning.
BOOST = 0.1
# One syllable begins too many words to find anything by it.
SHORTEST = 2
_TAG = re.compile(r"<[^>]*>")
_HANGUL = re.compile(r"[가-힣]+")


@event_priority(-100)
def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Write the index again, after the plugins that make it of both languages."""
    path = Path(config.site_dir) / "search" / "search_index.json"
    if path.is_file():
        index = with_word_ends(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(index, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def with_word_ends(index: dict[str, Any]) -> dict[str, Any]:
    index["config"]["fields"][FIELD] = {"boost": BOOST}
    for document in index["docs"]:
        ends = word_ends(f"{document['title']} {_TAG.sub(' ', document['text'])}")
        if ends:
            document[FIELD] = " ".join(ends)
    return index


def word_ends(text: str) -> list[str]:
    """손실값은 gives 실값은 and 값은: each once, in a fixed order."""
    words = set(_HANGUL.findall(text))
    return sorted({word[start:] for word in words for start in range(1, len(word) - SHORTEST + 1)})
