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
    if subprocess.run(
        [node, "-e", "require.resolve('playwright-core')"], cwd=SCRIPT.parent, capture_output=True
    ).returncode:
        pytest.skip("npm install playwright-core, and set NODE_PATH to the node_modules that it made")
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
        with running("serve", run, "--backend", "mlx", "--port", 0) as server:
            url = address(server)
            done = subprocess.run(
                [node, str(SCRIPT), url, str(tmp_path), str(CHROMIUM)], capture_output=True, text=True, timeout=600
            )
    seen: dict[str, Any] = json.loads(done.stdout)
    assert "failed" not in seen, seen
    check(seen, url)


def check(seen: dict[str, Any], url: str) -> None:
    assert seen["problems"] == []
    assert [f"http://{host}/" for host in seen["hosts"]] == [url]
    assert (seen["language"], seen["narrowLanguage"]) == ("ko", "en")
    assert seen["mode"] == "find" and len(seen["examples"]) == 4
    assert seen["sections"] == ["요약", "체크리스트", "연락처", "상세 설명", "출처"]
    assert seen["cited"] == seen["firstLine"].strip()
    assert seen["file"].endswith("ph_life_ko.txt")
    assert seen["notFound"] == "글에서 찾지 못했습니다."
    # The answer was seen to grow, and ended as it grew.
    assert len(seen["lengths"]) > 5
    assert seen["lengths"] == sorted(seen["lengths"])
    assert "토큰/초" in seen["meta"]
    assert seen["stopped"] == "멈췄습니다"
    assert seen["formed"].startswith("요약:")
    assert seen["state"] == "running"
    assert int(seen["laterStep"].replace(",", "")) > int(seen["firstStep"].replace(",", ""))
    assert set(seen["charts"]) >= {"손실", "초당 토큰", "학습률", "기울기 크기"}
    assert seen["samples"] >= 1
    assert "불러온 체크포인트" in seen["loaded"]
    assert max(seen["narrowAsk"], seen["narrowTraining"]) <= 390
