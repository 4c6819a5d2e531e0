"""Every command that the README and the pages show is run, with less text and fewer steps than a reader takes.

The tutorial has a test of its own (test_docs.py), and so has the page "From Python" (test_from_python.py). What cannot
run here is named below with the reason; a line that is in neither place is a fault.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]
import pytest

from tests.conftest import EXAMPLE
from tests.pages import DOCS, FENCE, READMES, ROOT, blocks, lines
from tests.test_docs import Serving, free_port
from twingpt.training import launch

# In the order in which they need what others wrote. Both languages have the same lines (test_docs.py).
PAGES = (
    "command-line.md",
    "answers.md",
    "reports.md",
    "serve.md",
    "convert.md",
    "how/training.md",
    "checkpoint-format.md",
    "several-macs.md",
    "tuning.md",
    "shell.md",
    "house.md",
)
ELSEWHERE = {"tutorial.md", "how/by-hand.md", "python.md"}

# What a line begins with, and why it does not run here.
NOT_RUN = {
    "make ": "continuous integration runs make test, and test_demo.py the demo",
    "pip install": "would change the environment of the tests",
    "python3 -m venv": "would make a new environment",
    ". .venv/bin/activate": "the tests run in an environment already",
    "lm_eval": "tests/serve/test_real_clients.py runs it, where lm-eval is installed",
    "caffeinate": "a program of macOS, and two Macs",
    "mlx.launch": "two machines",
    "env GLOO_SOCKET_IFNAME": "two machines; below it is compared with what `train --hosts` prints",
    "ssh": "a second machine",
    "rsync": "a second machine",
    "iperf3": "a second machine",
}

SMALL = "--config small.toml"
# What a test has no time for, by what the line begins with: (found, put in its place); "$" is the end of the line.
SHORTER = {
    "twingpt demo": [("$", " --minutes 0.1")],
    "twingpt go": [("20m", "10s"), ("$", " --no-open")],
    "twingpt train --data data --out run": [("$", f" {SMALL} --steps 6 --stop-at 4")],
    "twingpt train --data data2": [("$", " --steps 2")],
    "twingpt eval": [("--prompts 100 ", ""), ("$", " --prompts 1 --max-new-tokens 8")],
    "twingpt generate": [("$", " --max-new-tokens 8")],
    "twingpt bench": [("$", f" {SMALL} --vocab-size 600 --seconds 0.2")],
    "twingpt tune": [("$", f" {SMALL} --vocab-size 600 --steps 2 --batch-size 2")],
    "twingpt plan --measure": [("$", f" {SMALL} --vocab-size 600 --batch-size 2")],
}
SMALL_TOML = """
[model]
n_layer = 1
n_head = 2
n_embd = 32

[train]
batch_size = 2
eval_every = 2
save_every = 2
"""
# The same for the Python of the pages.
SHORTER_PYTHON = {
    "steps=300": "steps=4",
    "steps=600": "steps=6",
    'preset="tiny", steps=4, batch_size=8': 'preset="tiny", config="small.toml", steps=4, resume=False',
    "10_000": "400",
    '"other", data': '"other", preset="tiny", config="small.toml", data',
    "http://127.0.0.1:8000": "{url}",
}


class Shown(NamedTuple):
    """What a page tells its reader to run: lines of a shell, or a piece of Python."""

    page: str
    text: str
    python: bool = False


def shown_by(page: Path) -> Iterator[Shown]:
    name = str(page.relative_to(ROOT if page in READMES else DOCS / "en"))
    text = page.read_text(encoding="utf-8")
    if page in READMES:
        # Indented code, with what it does behind a "#"; a line that begins with "$" shows an answer.
        for line in re.findall(r"^ {4}(\S.*)$", FENCE.sub("", text), re.MULTILINE):
            if re.match(r"(?:twingpt|make|\$ twingpt|\. )", line):
                yield Shown(name, re.split(r"\s{2,}#|\s#", line.removeprefix("$ "))[0].strip())
    for block in blocks(page):
        if block.language == "sh":
            for line in lines(block.text.replace("\\\n", " ")):
                yield Shown(name, line.strip())
        elif block.language == "python":
            yield Shown(name, block.text, python=True)


def all_shown() -> list[Shown]:
    return [each for page in (*(DOCS / "en" / name for name in PAGES), READMES[0]) for each in shown_by(page)]


def reason_not_to_run(line: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if line.startswith(start)), None)


def shortened(line: str) -> str:
    for start, changes in SHORTER.items():
        if line.startswith(start):
            for found, put in changes:
                if found == "$":
                    head, mark, tail = line.partition(" > ")
                    line = head + put + mark + tail
                else:
                    line = line.replace(found, put)
            return line
    return line


def test_no_page_with_commands_is_left_out() -> None:
    known = {*PAGES, *ELSEWHERE}
    for page in (DOCS / "en").rglob("*.md"):
        name = str(page.relative_to(DOCS / "en"))
        assert name in known or not list(shown_by(page)), f"{name} shows commands that no test runs"


def test_what_is_not_run_and_what_is_shortened_stands_on_a_page() -> None:
    shown = [each.text for each in all_shown()]
    for start in (*NOT_RUN, *SHORTER):
        assert any(text.startswith(start) for text in shown), start
    python = "\n".join(each.text for each in all_shown() if each.python)
    for found in SHORTER_PYTHON:
        assert found in python or "steps=4" in found, found


def test_a_line_is_run_unless_there_is_a_reason() -> None:
    lines_of_a_shell = [each.text for each in all_shown() if not each.python]
    run = [line for line in lines_of_a_shell if reason_not_to_run(line) is None]
    assert len(run) >= 50
    # A command of ours always runs, but for those that need a second machine.
    ours = [line for line in lines_of_a_shell if re.search(r"\btwingpt [a-z]", line) and line not in run]
    assert {line.split()[0] for line in ours} == {"caffeinate", "mlx.launch", "env"}


def test_the_lines_for_two_machines_are_those_that_train_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac that the other one reaches by the Thunderbolt Bridge."""
    local = {"bridge0": [SimpleNamespace(address="10.0.0.1")]}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: local)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(launch, "_is_local", lambda address: address == "10.0.0.1")
    shown = [shlex.split(each.text) for each in all_shown() if each.text.startswith("env GLOO")]
    arguments = shown[0][shown[0].index("train") :]
    printed = launch.launch_hosts(["10.0.0.1", "10.0.0.2"], "mps", arguments).on_hosts
    assert len(shown) == 2
    assert [[Path(word).name for word in line] for line in printed.values()] == [
        [Path(word).name for word in line] for line in shown
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a reader has by then: a text, the older half of it, a document, and models of others."""
    texts = EXAMPLE.read_text(encoding="utf-8").split("\n\n")
    for name, part in (("raw.txt", texts), ("old.txt", texts[:60]), ("new.txt", texts[60:])):
        (tmp_path / name).write_text("\n\n".join(part), encoding="utf-8")
    # With its question it has to fit into the context of a small model.
    (tmp_path / "note.txt").write_text(texts[0][:150], encoding="utf-8")
    (tmp_path / "small.toml").write_text(SMALL_TOML, encoding="utf-8")
    return tmp_path


def others_models(folder: Path) -> None:
    """A folder of Hugging Face, nanoGPT's checkpoint, a model in the cache of the Hub, and a run like README's."""
    import torch

    from twingpt.checks.parity import perturbed
    from twingpt.core.spec import GPTSpec
    from twingpt.core.state import MODEL
    from twingpt.weights.naming import NANOGPT, to_foreign

    shape = {"vocab_size": 211, "block_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 32}
    spec = GPTSpec(**shape, tie_embeddings=True, residual_init="scaled", dropout=0.0)  # type: ignore[arg-type]
    weights = {key.removeprefix(MODEL): array for key, array in perturbed(spec).items()}
    tensors = {name: torch.from_numpy(array) for name, array in to_foreign(NANOGPT, spec, weights).items()}
    content = {"model": tensors, "model_args": {**shape, "bias": True, "dropout": 0.0}, "iter_num": 1}
    torch.save(content, folder / "ckpt.pt")

    shutil.copytree(folder / "run-hf", folder / "hf-folder")
    cached, revision = folder / "hub" / "models--openai-community--gpt2", "0" * 40
    shutil.copytree(folder / "run-hf", cached / "snapshots" / revision)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(revision)


def anew(line: str, folder: Path) -> None:
    """A page begins where the one before did, so that what a line writes may be there already."""
    words = line.split()
    written = words[3] if words[:2] == ["twingpt", "convert"] else None
    if "--out" in words and words[1] in ("train", "go") and "--resume" not in words:
        written = words[words.index("--out") + 1]
    if written is not None:
        shutil.rmtree(folder / written, ignore_errors=True)


@pytest.mark.slow
def test_every_command_of_the_pages_runs(folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    shutil.copytree(folder, folder / "run-a", ignore=shutil.ignore_patterns("run-a"))
    done: dict[str, bool] = {}
    for shown in all_shown():
        if shown.python:
            run_python(shown, folder, environment)
            continue
        if reason_not_to_run(shown.text) is not None:
            continue
        line = shortened(shown.text)
        if line in done and line.startswith(("twingpt parity", "twingpt demo", "twingpt prepare", "twingpt go")):
            continue
        done[line] = True
        before(shown.text, folder)
        anew(line, folder)
        run_line(shown, line, folder, environment)


def before(line: str, folder: Path) -> None:
    """What the line needs from outside of the page."""
    if line.startswith("twingpt convert hf-folder"):
        others_models(folder)
    if line.startswith("twingpt compare run-a"):
        for name in ("run-a", "run-b"):
            shutil.rmtree(folder / name, ignore_errors=True)
            shutil.copytree(folder / "run", folder / name)
    if line.startswith("twingpt convert run my-model"):
        shutil.rmtree(folder / "my-model", ignore_errors=True)
    if line.startswith("twingpt go"):
        shutil.rmtree(folder / "raw-twingpt", ignore_errors=True)


def run_line(shown: Shown, line: str, folder: Path, environment: dict[str, str]) -> None:
    """A server is up as soon as it answers; everything else ends with exit code 0."""
    if "twingpt serve" in line:
        variables = dict(re.findall(r"\b([A-Z_]+)=(\S+) ", line))
        command = re.sub(r"^(?:[A-Z_]+=\S+ )*", "", line)
        port = free_port()
        with Serving(f"{command} --port {port}", port, folder, {**environment, **variables}, path="health"):
            return
    # A line after the command, so that the shell stays its parent: the completion asks which shell that is.
    done = subprocess.run(
        ["bash", "-c", f"{line}\nexit $?"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, f"{shown.page}: {line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def run_python(shown: Shown, folder: Path, environment: dict[str, str]) -> None:
    code, port = shown.text, free_port()
    for found, shorter in SHORTER_PYTHON.items():
        code = code.replace(found, shorter.format(url=f"http://127.0.0.1:{port}"))
    if shown.page == "how/training.md":
        code = "import numpy as np\nnp.save('tokens.npy', np.arange(2000) % 97)\n" + code
        shutil.rmtree(folder / "run", ignore_errors=True) if '"run"' in code else None
    if shown.page == "checkpoint-format.md":
        newest = sorted((folder / "run" / "checkpoints").glob("step-*"))[-1]
        code = code.replace("step-00001000", newest.name)
    command = [sys.executable, "-c", code]
    if "base_url" in code:
        with Serving(f"twingpt serve run --port {port}", port, folder, environment):
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    else:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shown.page}\n{code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
