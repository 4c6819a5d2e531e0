"""Korean: the catalogue is whole, the language is chosen as documented, and a Korean run prints no English sentence."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog

from tests.catalogue import MO, PACKAGE, compiled, placeholders, said, translated, untranslated
from tests.conftest import EXAMPLE
from twingpt.commands.language import chosen_language, refusal
from twingpt.core import language as spoken
from twingpt.core.errors import UsageError
from twingpt.core.language import VARIABLE, choose, language, padded, tr


@pytest.fixture(scope="module")
def template() -> Catalog:
    return said()


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing of a language; what a test chooses is forgotten after it."""
    for name in (VARIABLE, "LC_ALL", "LC_MESSAGES", "LANG", "LANGUAGE"):
        monkeypatch.setenv(name, "")
    language.cache_clear()
    monkeypatch.setattr(spoken, "choose", choose)
    return monkeypatch


@pytest.fixture(autouse=True)
def english_again() -> None:
    language.cache_clear()


def test_no_message_is_missing_in_korean_and_none_is_left_over(template: Catalog) -> None:
    assert untranslated(template, translated()) == []
    assert {message.id for message in translated()} - {message.id for message in template} == set()


def test_a_message_without_its_korean_is_noticed(template: Catalog) -> None:
    catalogue = translated()
    message = catalogue.get("2. train")
    assert message is not None
    message.string = ""
    assert untranslated(template, catalogue) == ["2. train"]


def test_placeholders_agree() -> None:
    wrong = [
        message.id
        for message in translated()
        if message.id and "%" not in message.id and placeholders(str(message.id)) != placeholders(str(message.string))
    ]
    assert wrong == []


def test_what_is_compiled_is_what_is_written() -> None:
    assert MO.read_bytes() == compiled(translated())


def test_each_message_in_the_code_is_a_text_that_the_catalogue_can_hold(template: Catalog) -> None:
    """An f-string, or a call inside of one, would never be found in it."""
    lost = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("tr", "mark"):
                told = node.args[0] if node.args else None
                text = told.value if isinstance(told, ast.Constant) else None
                if isinstance(told, ast.JoinedStr) or (text is not None and template.get(str(text)) is None):
                    lost.append(f"{path.name}:{node.lineno}")
    assert lost == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "en"),
        ({"LANG": "ko_KR.UTF-8"}, "ko"),
        ({"LANG": "ko_KR.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "ko_KR"}, "ko"),
        ({"LANG": "en_US.UTF-8", VARIABLE: "ko"}, "ko"),
        ({"LANG": "kok_IN"}, "en"),
    ],
)
def test_the_variables_that_choose_the_language(
    unsaid: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name, value in variables.items():
        unsaid.setenv(name, value)
    unsaid.setattr(sys, "platform", "linux")
    assert language() == expected


@pytest.mark.parametrize(
    ("shown", "expected"), [('(\n    "ko-PH",\n    "en-PH"\n)\n', "ko"), ('(\n    "en-PH"\n)\n', "en")]
)
def test_a_mac_without_a_locale_is_asked_for_its_languages(
    unsaid: pytest.MonkeyPatch, shown: str, expected: str
) -> None:
    unsaid.setattr(sys, "platform", "darwin")
    unsaid.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=shown))
    assert language() == expected
    language.cache_clear()
    # A locale that is set is what counts, and the Mac is not asked.
    unsaid.setenv("LANG", "en_US.UTF-8")
    assert language() == "en"


def test_lang_stands_before_or_after_a_command_and_is_not_seen_by_it(unsaid: pytest.MonkeyPatch) -> None:
    assert chosen_language(["--lang", "ko", "ask", "RUN"]) == ["ask", "RUN"]
    assert language() == "ko"
    assert chosen_language(["ask", "RUN", "--lang=en"]) == ["ask", "RUN"]
    assert language() == "en"
    assert chosen_language(["ask", "RUN", "--", "--lang"]) == ["ask", "RUN", "--", "--lang"]
    for wrong in (["--lang", "fr"], ["--lang"]):
        with pytest.raises(UsageError, match="choose one of en, ko"):
            chosen_language(wrong)


def test_particles_follow_the_sound_before_them(unsaid: pytest.MonkeyPatch) -> None:
    unsaid.setenv(VARIABLE, "ko")
    message = "{path} does not exist"
    assert [tr(message, path=path) for path in ("글", "'나무'", "판 3", "판 2", "a.txt")] == [
        "글이 없습니다",
        "'나무'가 없습니다",
        "판 3이 없습니다",
        "판 2가 없습니다",
        "a.txt이(가) 없습니다",
    ]
    wrote = "--lang {language}: choose one of {choices}"
    assert tr(wrote, language="은(는)", choices="x") == "--lang 은(는): x 가운데 하나를 고르십시오"


def test_labels_are_padded_to_their_width_on_a_terminal() -> None:
    assert (padded("모델", 8), padded("model", 8)) == ("모델    ", "model   ")


def test_what_typer_says_in_english_only_is_said_in_korean(unsaid: pytest.MonkeyPatch) -> None:
    unsaid.setenv(VARIABLE, "ko")
    said_in_english = (
        "Invalid value for '--seed': Input should be a valid integer, unable to parse string as an integer"
    )
    assert refusal(said_in_english) == "'--seed'의 값이 잘못되었습니다: 정수여야 합니다"
    assert refusal("something else") == "something else"


SENTENCE = re.compile(r"[A-Za-z]{2,}[ ,]+[a-z]{2,} [a-z]{2,}")
"""Three words of English one after another."""
TYPED = re.compile(r"twingpt [a-z]+ .*")
"""A command to type, which is the same in every language."""


def _run(folder: Path, *arguments: str, code: int = 0) -> str:
    """What a Korean reads on the terminal; the user's own text is not what we say."""
    environment = {**os.environ, "LANG": "ko_KR.UTF-8", "PYTHONPATH": str(PACKAGE.parent), "COLUMNS": "160"}
    environment.pop(VARIABLE, None)
    ended = subprocess.run(
        [sys.executable, "-m", "twingpt", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    shown = ended.stdout + ended.stderr
    assert ended.returncode == code, shown
    assert re.search("[가-힣]", shown)
    return shown


def test_a_korean_run_prints_no_english_sentence(tmp_path: Path) -> None:
    (tmp_path / "raw.txt").write_text(EXAMPLE.read_text(encoding="utf-8")[:3000], encoding="utf-8")
    train = ["train", "--data", "data", "--out", "run", "--preset", "tiny", "--steps", "2", "--device", "cpu"]
    train += ["--batch-size", "1"]
    shown = [
        # Samples of the text itself end where the times of the stages begin.
        re.sub(r"(?s)\n샘플 1\n.*?\n\ndata:", "\ndata:", _run(tmp_path, "prepare", "raw.txt", "--out", "data")),
        re.sub(r"(?s)바이트당 \S+비트\n.*?(?=\d+스텝을)", "", _run(tmp_path, *train)),
        _run(tmp_path, "ask", "data", "여권을 잃어버리면?"),
        _run(tmp_path, "train", "--out", "run", "--data", "data", code=2),
        _run(tmp_path, "ask", "nowhere", "무엇?", code=1),
        _run(tmp_path, "train", "--out", "run", "--seed", "many", code=2),
        _run(tmp_path, "trian", code=2),
    ]
    found = [line for text in shown for line in text.splitlines() if SENTENCE.search(TYPED.sub("", line))]
    assert found == []


@pytest.mark.parametrize("command", ["", "go", "prepare", "train", "ask", "serve", "data"])
def test_korean_help_has_no_english_sentence(tmp_path: Path, command: str) -> None:
    shown = _run(tmp_path, *command.split(), "--help")
    assert [line for line in shown.splitlines() if SENTENCE.search(line)] == []
    assert "사용법:" in shown
    assert "이 도움말을 보여 주고 끝냅니다." in shown
    assert "…" not in shown.replace("...", ""), "a syllable is cut off at the end of a line"
