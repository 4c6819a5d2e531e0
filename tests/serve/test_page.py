"""The page in headless Chromium, on a run that trains meanwhile. Pictures of it are left in the test's folder."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EXAMPLE

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("page.cjs")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
CONFIG = """
[model]
block_size = 256
n_layer = 2
n_head = 2
n_embd = 64
"""


def require_browser() -> str:
    node = shutil.which("node")
    if node is None or CHROMIUM is None:
        pytest.skip("the page is driven by node in Chromium: install both")
    needed = "require.resolve('playwright-core'); require.resolve('axe-core')"
    if subprocess.run([node, "-e", needed], cwd=SCRIPT.parent, capture_output=True).returncode:
        pytest.skip("npm install playwright-core axe-core, and set NODE_PATH to the node_modules that it made")
    return node


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "twingpt", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=120)


def address(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if match := re.search(r"page\s+(http://\S+)", line):
            return match[1]
    raise AssertionError("the server did not start")


def test_ask_and_watch_a_run_train(tmp_path: Path) -> None:
    node = require_browser()
    data, run, config = tmp_path / "data", tmp_path / "run", tmp_path / "config.toml"
    config.write_text(CONFIG)
    prepare = ["prepare", EXAMPLE, "--out", data, "--vocab-size", 1200, "--json"]
    subprocess.run([sys.executable, "-m", "twingpt", *map(str, prepare)], check=True, stdout=subprocess.DEVNULL)
    every = ("--eval-every", 30, "--save-every", 30, "--log-every", 2)
    train = ("train", "--data", data, "--out", run, "--config", config, "--steps", 100_000, "--batch-size", 1, *every)
    with running(*train, "--json") as training:
        deadline = time.monotonic() + 240
        while not list(run.glob("checkpoints/step-*/state.json")):
            assert training.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        fresh, parts = begun(run, tmp_path)
        served = ("--backend", "mlx", "--port", 0)
        with running("serve", run, *served) as server, running("serve", fresh, *served) as other:
            url, fresh_url = address(server), address(other)
            arguments = map(str, (url, fresh_url, fresh, parts, tmp_path, CHROMIUM))
            done = subprocess.run([node, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=1200)
    seen: dict[str, Any] = json.loads(done.stdout)
    assert "failed" not in seen, seen
    check(seen, [url, fresh_url])


def begun(run: Path, folder: Path) -> tuple[Path, Path]:
    """A run as it is before its first line of metrics, and what it gets later: a checkpoint, and a sample."""
    fresh, parts = folder / "fresh", folder / "parts"
    shutil.copytree(run, fresh, ignore=shutil.ignore_patterns("checkpoints", "metrics.jsonl", "best"))
    newest = max(path.parent for path in run.glob("checkpoints/step-*/state.json"))
    shutil.copytree(newest, parts / "checkpoints" / newest.name)
    line = {"step": 1, "val_loss": 6.0, "bits_per_byte": 2.0, "sample": "여\ufffd권"}
    (parts / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return fresh, parts


def check(seen: dict[str, Any], urls: list[str]) -> None:
    assert seen["problems"] == []
    assert seen["faults"] == []
    assert [f"http://{host}/" for host in seen["hosts"]] == urls
    assert (seen["language"], seen["languageLater"]) == ("ko", "en")
    assert seen["paper"] == "rgb(19, 22, 21)"
    assert seen["tab"] == "tab-ask" and len(seen["examples"]) == 4
    assert float(seen["temperature"]) <= 0.5
    assert seen["telephone"].startswith("tel:+")
    assert seen["sections"] == ["요약", "체크리스트", "연락처", "상세 설명", "출처"]
    assert seen["cited"] == seen["firstLine"].strip()
    assert seen["file"].endswith("ph_life_ko.txt")
    assert seen["notFound"] == "글에서 찾지 못했습니다."
    # The answer was seen to grow, and ended as it grew.
    assert len(seen["lengths"]) > 5
    assert seen["lengths"] == sorted(seen["lengths"])
    assert "초당" in seen["meta"]
    assert seen["stopped"] == "멈췄습니다"
    assert seen["formed"].startswith("요약:")
    assert seen["state"] == "running"
    assert int(seen["laterStep"].replace(",", "")) > int(seen["firstStep"].replace(",", ""))
    assert set(seen["charts"]) >= {"손실", "초당 토큰", "학습률", "그래디언트 노름"}
    assert {"초당 토큰", "남은 시간"} <= set(seen["stats"])
    assert seen["samples"] >= 1
    steps = [int(re.sub(r"\D", "", text)) for text in seen["loaded"]]
    assert steps[0] < steps[1]
    # A mistake is told in the reader's language.
    assert re.search("[가-힣]", seen["mistake"]) and not re.search("[A-Za-z]", seen["mistake"])
    fresh = seen["fresh"]
    assert (fresh["ask"], fresh["free"], fresh["freeLater"]) == (True, False, True)
    assert fresh["state"] == "running"
    assert not re.search("null|undefined|NaN", fresh["text"])
    assert fresh["sample"] == "여권"
    assert len(seen["widths"]) == 32
    assert [name for name, width, scrolled in seen["widths"] if scrolled > width] == []
