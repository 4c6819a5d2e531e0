"""The pages: what they show exists, the tutorial runs, the site builds, both languages say the same."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.pages import DOCS, FENCE, LANGUAGES, READMES, ROOT, blocks, lines
from twingpt.cli import app
from twingpt.core.params import parameter_count
from twingpt.core.presets import PRESETS
from twingpt.core.spec import GPTSpec
from twingpt.weights.targets import Target, approximable, family_of, obstacles

PAGES = (*READMES, ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md")))
# A README is what one reads before the first command. The pages have the rest.
README_LINES = 130
README_BYTES = 14_000
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

SPAN = re.compile(r"`([^`\n]+)`")
OPTION = re.compile(r"--[a-z][a-z-]*")

# What a test has no time for. Each must still be found in the tutorial.
TUTORIAL_OF_A_TEST = {
    "--time 5m": "--time 10s",
    "--steps 300": "--steps 6",
    "--stop-at 150": "--stop-at 4",
    "--steps 3 ": "--steps 2 ",
    "--prompts 20": "--prompts 2",
    "--max-new-tokens 60": "--max-new-tokens 8",
    "--max-tokens 60": "--max-tokens 8",
    "max_new_tokens=60": "max_new_tokens=8",
    "--seconds 10": "--seconds 0.5",
    "n_layer = 4": "n_layer = 2",
    "n_embd = 128": "n_embd = 64",
    "batch_size = 8": "batch_size = 2",
}
TUTORIAL_PORT = "8000"
SERVED = "served answer"


def _named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _command_lines(page: Path) -> Iterator[str]:
    """Lines of code, fenced or indented, that run twingpt; without variables before and redirections behind."""
    text = page.read_text(encoding="utf-8")
    fenced = [line for block in blocks(page) if block.language == "sh" for line in lines(block.text)]
    indented = [line for line in FENCE.sub("", text).splitlines() if line.startswith("    ")]
    for line in fenced + indented:
        command = re.sub(r"^\s*(?:[A-Z_]+=\S+ )*", "", line)
        if re.match(r"twingpt(?: |$)", command):
            yield re.split(r" [>|&]", command)[0]


def _spans(page: Path) -> Iterator[str]:
    yield from SPAN.findall(FENCE.sub("", page.read_text(encoding="utf-8")))


def _command(words: list[str]) -> tuple[Any, list[str]]:
    """(the command that the words begin with, the rest of them)."""
    assert words[0] in COMMANDS, f"there is no command {words[0]}"
    command = COMMANDS[words[0]]
    if words[0] != "data":
        return command, words[1:]
    assert words[1] in command.commands, f"there is no command data {words[1]}"
    return command.commands[words[1]], words[2:]


def _options(command: Any) -> set[str]:
    return {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help", "-h"}


ROOT_OPTIONS = _options(typer.main.get_command(app))
ALL_OPTIONS = ROOT_OPTIONS.union(
    *(_options(command) for name, command in COMMANDS.items() if name != "data"),
    *(_options(command) for command in COMMANDS["data"].commands.values()),
)


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_every_command_line_is_one_that_twingpt_takes(page: Path) -> None:
    for line in _command_lines(page):
        words = shlex.split(line, comments=True)[1:]
        if words[0].startswith("-"):
            assert set(words) <= ROOT_OPTIONS, line
            continue
        command, rest = _command(words)
        try:
            command.make_context("twingpt", rest)
        except Exception as error:
            pytest.fail(f"{_named(page)}: {line}: {error}")


def test_the_pages_have_command_lines() -> None:
    """The test above would pass on pages in which it finds nothing."""
    assert len(list(_command_lines(DOCS / "en" / "tutorial.md"))) >= 16
    for language in LANGUAGES:
        assert len(list(_command_lines(DOCS / language / "command-line.md"))) >= 12
    for page in READMES:
        assert [line.split()[1] for line in _command_lines(page)] == ["go", "prepare", "ask", "train", "serve"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_command_is_on_the_page_of_commands(language: str) -> None:
    text = (DOCS / language / "command-line.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if not re.search(rf"twingpt {name}\b", text)] == []


def _faults(readme: Path) -> Iterator[str]:
    """What makes a README too long, or leads its reader nowhere."""
    text = readme.read_text(encoding="utf-8")
    lines, size = len(text.splitlines()), len(text.encode())
    if lines > README_LINES:
        yield f"{lines} lines"
    if size > README_BYTES:
        yield f"{size:,} bytes"
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    if not pictures:
        yield "no picture"
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, anchor = link.partition("#")
        path = readme.parent / name
        if not path.is_file():
            yield f"no file {name}"
        elif anchor and anchor not in _anchors(path):
            yield f"no heading {link}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", READMES, ids=_named)
def test_a_readme_is_short_and_leads_somewhere(page: Path) -> None:
    assert list(_faults(page)) == []


def test_a_readme_that_is_too_long_or_leads_nowhere_is_found(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    (tmp_path / "page.md").write_text("# Page\n\n## Install it\n", encoding="utf-8")
    readme.write_text("[a](page.md#install-it) [b](page.md#remove-it) [c](no.md)\n" + "가" * 4700, encoding="utf-8")
    assert list(_faults(readme)) == ["14,158 bytes", "no picture", "no heading page.md#remove-it", "no file no.md"]
    readme.write_text("![p](page.md)\n" * 131, encoding="utf-8")
    assert list(_faults(readme)) == ["131 lines"]


def test_both_readmes_have_the_same_parts() -> None:
    """Headings, code that is no comment, pictures and pages, as far as a language has its own."""
    parts = []
    for page in READMES:
        text = page.read_text(encoding="utf-8")
        links = re.findall(r"\]\((?!https?:|README)([^)#]+)", text)
        parts.append((len(re.findall(r"^## ", text, re.MULTILINE)), [re.sub("docs/(en|ko)/", "", x) for x in links]))
    assert parts[0] == parts[1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_of_folders_names_every_one(language: str) -> None:
    text = (DOCS / language / "house.md").read_text(encoding="utf-8")
    package = ROOT / "twingpt"
    folders = {path.parent for path in package.rglob("__init__.py")} - {package}
    named = set(re.findall(r"^ +([\w/]+)/ ", text, re.MULTILINE))
    missing = [path for path in folders if path.parent in (package, package / "data", package / "backends")]
    assert sorted(path.name for path in missing if path.name not in named) == []
    assert sorted(name for name in named if not any(path.name == name for path in folders)) == [
        "benchmarks",
        "docs",
        "tests",
    ]


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_every_option_in_running_text_exists(page: Path) -> None:
    for span in _spans(page):
        words = span.removeprefix("twingpt ").split()
        found = set(OPTION.findall(span))
        if words[0] in COMMANDS and (span.startswith("twingpt ") or found):
            for name in (words[1] if words[0] == "data" else "").split("|"):
                command, _ = _command([words[0], *([name] if name else [])])
                assert found <= _options(command), f"{_named(page)}: `{span}`"
        elif span.startswith("--"):
            assert found <= ALL_OPTIONS, f"{_named(page)}: `{span}`"


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    scripts = re.findall(r"(?:benchmarks|tests)/[\w/]+\.py", text)
    linked = [] if page.is_relative_to(DOCS) else re.findall(r"\]\((?!https?:)([^)#]+)", text)
    for name in (*scripts, *linked):
        assert (ROOT / name).exists(), f"{_named(page)} names {name}"
    for name in re.findall(r"`([\w/*]+\.py)`", text):
        assert any((ROOT / "twingpt").rglob(name.removeprefix("twingpt/"))) or (ROOT / name).exists(), (
            f"{_named(page)} names {name}"
        )


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_tables_of_presets_are_what_the_code_says(language: str) -> None:
    text = (DOCS / language / "presets.md").read_text(encoding="utf-8")
    specs = {name: GPTSpec(vocab_size=16_000, **preset.model) for name, preset in PRESETS.items()}
    sizes = re.findall(r"^\| `([\w-]+)`[^|]*\| (\d+) x (\d+), (\d+) \| (\d+) \| ([\d.]+) M \|", text, re.MULTILINE)
    assert {row[0] for row in sizes} == set(specs)
    for name, *numbers in sizes:
        spec = specs[name]
        expected = (spec.n_layer, spec.n_embd, spec.n_head, spec.block_size)
        assert tuple(map(int, numbers[:4])) == expected, name
        assert numbers[4] == f"{parameter_count(spec) / 1e6:.1f}", name

    families = {"gpt2": "GPT-2", "llama": "Llama", "qwen3": "Qwen3"}
    targets: tuple[Target, ...] = ("hf", "mlx-lm", "gguf")
    rows = re.findall(
        r"^\| ((?:`[\w-]+`(?:, )?)+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$",
        text[text.index("llama.cpp, Ollama, LM Studio") :],
        re.MULTILINE,
    )
    told = {name: cells for names, *cells in rows[:4] for name in SPAN.findall(names)}
    assert set(told) == set(specs)
    for name, cells in told.items():
        spec = specs[name]
        for target, cell in zip(targets, cells, strict=True):
            opens = not obstacles(target, spec) or approximable(target, spec)
            assert cell.startswith(families[family_of(spec)]) == opens, (name, target, cell)
            assert ("--approximate gelu" in cell) == approximable(target, spec), (name, target, cell)


def test_both_languages_have_the_same_pages_and_the_same_code() -> None:
    english, korean = (
        {path.relative_to(DOCS / language) for path in (DOCS / language).rglob("*.md")} for language in LANGUAGES
    )
    reference = {path for path in english if path.parts[0] == "reference"}
    assert english - reference == korean - {Path("reference.md")}
    for path in english - reference:
        code = [
            [block for block in blocks(DOCS / language / path) if block.language in ("sh", "toml", "python")]
            for language in LANGUAGES
        ]
        assert code[0] == code[1], path
    readmes = [list(_command_lines(page)) for page in READMES]
    assert [line.split("#")[0].strip() for line in readmes[0]] == [line.split("#")[0].strip() for line in readmes[1]]


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("the tutorial uses curl")
    (tmp_path / "twingpt").symlink_to(ROOT / "twingpt")
    unused = set(TUTORIAL_OF_A_TEST)
    port, printed = free_port(), ""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with ExitStack() as servers:
        for block in blocks(DOCS / "en" / "tutorial.md"):
            text = block.text
            for found, shorter in TUTORIAL_OF_A_TEST.items():
                if found in text:
                    unused.discard(found)
                    text = text.replace(found, shorter)
            text = text.replace(TUTORIAL_PORT, str(port))
            if block.title == SERVED:
                # Shortened by some lines: each that is there was printed.
                assert [line for line in lines(block.text) if line not in printed.splitlines()] == []
            elif block.title:
                (tmp_path / block.title).write_text(text, encoding="utf-8")
            elif block.language == "python":
                printed = _run([sys.executable, "-c", text], tmp_path, environment)
            else:
                for line in lines(text):
                    if line.startswith("twingpt serve"):
                        servers.enter_context(Serving(line, port, tmp_path, environment))
                    else:
                        _run(["sh", "-c", line], tmp_path, environment)
    assert not unused
    assert blocks(DOCS / "en" / "tutorial.md")[-1].title == SERVED, "the tutorial ends in a served answer"
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step-00000006"
    assert len(lines((tmp_path / "answers.jsonl").read_text(encoding="utf-8"))) == 2
    for name in ("answers.txt", "run-hf/config.json", "run-mlx/config.json", "run-gguf/model.gguf", "bench.jsonl"):
        assert (tmp_path / name).stat().st_size > 0, name
    assert "[train]" in (tmp_path / "tuned.toml").read_text(encoding="utf-8")


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


class Serving:
    """`twingpt serve` while the block runs."""

    def __init__(
        self, line: str, port: int, folder: Path, environment: dict[str, str], path: str = "v1/models"
    ) -> None:
        self._url = f"http://127.0.0.1:{port}/{path}"
        self._log = (folder / "serve.log").open("w+")
        self._process = subprocess.Popen(
            shlex.split(line), cwd=folder, env=environment, stdout=self._log, stderr=subprocess.STDOUT
        )

    def __enter__(self) -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(self._url, timeout=60).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self._log.seek(0)
                    said = self._log.read()
                    self.__exit__()
                    pytest.fail(f"twingpt serve did not answer: {said}")
                time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        self._log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
