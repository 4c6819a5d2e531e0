"""The site: it builds, loads nothing from outside, links words to the glossary, and is searched in Korean."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.pages import DOCS, LANGUAGES, ROOT

pytest.importorskip("mkdocs")


def hook(name: str) -> Any:
    """A file of docs/hooks, which is no package: MkDocs loads it by its path."""
    found = importlib.util.spec_from_file_location(f"hook_{name}", DOCS / "hooks" / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_outside(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 2 * 10
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img|iframe|link)[^>]+(?:src|href)=\"?(https?:[^\s\">]+)", page.read_text("utf-8")
        )
        assert loaded == [], page


def hits(site: Path, *queries: str) -> dict[str, list[str]]:
    """Where the search of the site finds each of them: its own program, as the browser runs it."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("the search of the site is a program for node or a browser")
    done = subprocess.run(
        [node, str(ROOT / "tests" / "search.cjs"), str(site), *queries], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_the_search_finds_korean_words_by_their_beginning_and_by_their_middle(site: Path) -> None:
    """토크 begins 토크나이저, 나이저 ends it, and 이저 is two syllables within 토크나이저를."""
    found = hits(site, "토크", "나이저", "이저", "울타리나무")
    for query in ("토크", "나이저", "이저"):
        assert any(place.startswith("ko/how/tokens/") for place in found[query]), query
    assert found["울타리나무"] == []


@pytest.mark.slow
def test_without_the_ends_of_words_the_middle_is_not_found(site: Path, tmp_path: Path) -> None:
    """What the hook is there for: when this fails, the search can do it by itself and the hook can go."""
    plain = tmp_path / "site"
    for part in ("assets/javascripts", "search"):
        shutil.copytree(site / part, plain / part)
    path = plain / "search" / "search_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    field = hook("search").FIELD
    del index["config"]["fields"][field]
    for document in index["docs"]:
        document.pop(field, None)
    path.write_text(json.dumps(index), encoding="utf-8")
    assert hits(plain, "나이저") == {"나이저": []}


def test_the_ends_of_words() -> None:
    search = hook("search")
    assert search.word_ends("손실값은 BPE 값은 손실") == ["값은", "실값은"]
    index = {"config": {"fields": {}}, "docs": [{"title": "a", "text": "<p>검증손실</p>"}, {"title": "b", "text": "c"}]}
    made = search.with_word_ends(index)
    assert made["docs"] == [
        {"title": "a", "text": "<p>검증손실</p>", "word_ends": "손실 증손실"},
        {"title": "b", "text": "c"},
    ]
    assert made["config"]["fields"]["word_ends"]["boost"] < 1


GLOSSARY = "# Words\n\n## Loss\n\nx\n\n## 토큰 (token)\n\nx\n\n## `n_layer`\n\nx\n\n## Seed\n\nx\n"


def linked(html: str) -> str:
    glossary = hook("glossary")
    root = ET.fromstring(f"<div>{html}</div>")
    glossary.Linker(glossary.terms_of(GLOSSARY), "../glossary.md").link(root)
    return ET.tostring(root, encoding="unicode").removeprefix("<div>").removesuffix("</div>")


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>A loss, the loss.</p>", '<p>A <a href="../glossary.md#loss">loss</a>, the loss.</p>'),
        ("<p><b>x</b> Losses</p>", "<p><b>x</b> Losses</p>"),
        ("<p>토큰은 <i>token</i></p>", '<p><a href="../glossary.md#토큰-token">토큰</a>은 <i>token</i></p>'),
        (
            "<p>i <code>n_layer</code> j <b>loss</b> loss</p>",
            '<p>i <a href="../glossary.md#n_layer"><code>n_layer</code></a> j '
            '<b><a href="../glossary.md#loss">loss</a></b> loss</p>',
        ),
        (
            '<p><a href="x">loss</a> tokens</p>',
            '<p><a href="x">loss</a> <a href="../glossary.md#토큰-token">tokens</a></p>',
        ),
        ("<h2>Loss</h2>", "<h2>Loss</h2>"),
        ("<p>lossless val_loss <code>--loss 1</code> seed</p>", "<p>lossless val_loss <code>--loss 1</code> seed</p>"),
    ],
)
def test_the_first_use_of_a_word_leads_to_the_glossary(html: str, expected: str) -> None:
    assert linked(html) == expected


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_glossary_has_the_words_in_order_and_each_once(language: str) -> None:
    glossary = hook("glossary")
    terms = glossary.terms_of((DOCS / language / "glossary.md").read_text(encoding="utf-8"))
    forms = [form.lower() for term in terms for form in term.forms]
    assert sorted(forms) == sorted(set(forms))
    # Hangul before Latin letters, as a Korean dictionary has it.
    heads = [(not re.match("[가-힣]", term.forms[0]), term.forms[0].lower()) for term in terms]
    assert heads == sorted(heads)
    wanted = "n_layer block_size micro-batch epoch retrieval bm25 checkpoint perplexity bpe vocab_size mps metal"
    assert set(f"{wanted} safetensors gguf passage".split()) <= set(forms)
    assert {"bits per byte", "averaged weights"} <= set(forms)


def test_both_glossaries_explain_the_same_settings() -> None:
    """A name of a setting is the same in both languages."""
    names = []
    for language in LANGUAGES:
        text = (DOCS / language / "glossary.md").read_text(encoding="utf-8")
        headings = " ".join(re.findall(r"^## (.+)$", text, re.MULTILINE))
        names.append(set(re.findall(r"[a-z]+_[a-z]+", headings)) - {"val_loss"})
    assert names[0] == names[1]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["tutorial", "how/training", "ko/tutorial", "ko/how/training"])
def test_the_pages_of_the_site_link_to_the_glossary(site: Path, page: str) -> None:
    html = (site / page / "index.html").read_text(encoding="utf-8")
    anchors = re.findall(r'<a href="(?:\.\./)+glossary/#([^"]+)"', html)
    assert len(anchors) > 8 and len(anchors) == len(set(anchors))
