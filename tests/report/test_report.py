"""The report of a run: what stands in it, of which states of a run, and that it is one page that loads nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report.conftest import MakeRun, session, update, validation
from tests.serve.test_page import CHROMIUM, require_browser
from twingpt.core.errors import TwinGPTError
from twingpt.core.presets import PRESETS
from twingpt.core.spec import GPTSpec
from twingpt.data.tokens.manifest import Manifest
from twingpt.report.compare import compare_runs, write_comparison
from twingpt.report.history import read_history
from twingpt.report.plots import MAX_POINTS, smoothed, thin
from twingpt.report.run_page import openings, write_report
from twingpt.report.words import WORDS
from twingpt.training.restart import RunningMark
from twingpt.weights.targets import check

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

EVIL = '</pre><script>window.alerted = 1</script><img src=x onerror="window.alerted = 2"> {{ 7 * 7 }} ${x}$'
LINES = [
    *(update(step, 5.0 - step / 2) for step in (1, 2, 3, 4)),
    validation(4, 3.5, f"질문\n{EVIL}"),
    {"step": 5, "spike_loss": 9.0, "running_mean": 3.0},
    *(update(step, 5.0 - step / 2) for step in (5, 6, 7, 8)),
    validation(8, 2.25, "여권을 잃어버리면"),
]


class Page(HTMLParser):
    """Elements, their attributes, and the text that is shown."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[str]:
        return [value for found, value in self.attributes if found == name]


def test_the_page_tells_the_run(make_run: MakeRun, plain_data: Path) -> None:
    run = make_run("여행", LINES, sessions=[session(0, "mps"), session(4, "mlx")], data=plain_data, checkpoint=8)
    files = write_report(run, None, None)
    assert files[0] == run / "report.html"
    page = Page(files[0])
    for text in (
        "mps (cpu), mlx (cpu)",
        "2.2500",
        "0.7500",
        "Test Chip",
        "2026-01-02 03:04:05",
        Manifest.load(plain_data).train.sha256[:16],
        "여권을 잃어버리면",
        "step 5: the loss jumped to 9.0000, from a running mean of 3.0000",
        WORDS["handover"][1],
        "n_embd",
        "learning_rate",
        # 8 steps of 4 x 32 tokens at 1000 a second.
        "0:00:01",
        "52.4 MB",
    ):
        assert text in page.text, text
    assert {path.name for path in files[1:]} == {
        f"report-{name}.png"
        for name in ("loss", "bits-per-byte", "learning-rate", "gradient-norm", "tokens-per-second", "memory")
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files[1:])
    assert page.tags.count("svg") == 6


def test_the_page_is_whole_and_loads_and_runs_nothing(make_run: MakeRun, plain_data: Path) -> None:
    page = Page(write_report(make_run("run", LINES, data=plain_data, checkpoint=8), None, None)[0])
    assert not {"script", "img", "iframe", "object", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for name in ("src", "href", "xlink:href"):
        assert all(value.startswith(("#", "data:")) for value in page.all(name))
    assert "url(" not in re.sub(r"url\(#", "", page.source)
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert all(value[1:] in ids for value in page.all("xlink:href") if value.startswith("#"))
    assert EVIL in page.text


def test_no_path_but_the_run_as_it_was_named(
    make_run: MakeRun, plain_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("run", LINES, data=plain_data, checkpoint=8)
    report = {"inputs": [str(tmp_path / "secret" / "raw.txt"), "-"], "clean": {}}
    shutil.copytree(plain_data, tmp_path / "data")
    (tmp_path / "data" / "report.json").write_text(json.dumps(report))
    source = write_report(run, tmp_path / "data", None)[0].read_text()
    assert "raw.txt" in source
    assert str(tmp_path) not in source
    assert "secret" not in source
    monkeypatch.chdir(tmp_path)
    assert "twingpt serve run\n" in write_report(Path("run"), None, None)[0].read_text().replace("</pre>", "\n")


def test_every_text_is_there_in_both_languages_and_used(make_run: MakeRun, plain_data: Path) -> None:
    page = Page(write_report(make_run("run", LINES, data=plain_data, checkpoint=8), None, None)[0])
    languages = page.all("lang")
    assert languages.count("en") - languages.count("ko") in (-1, 1)  # <html> itself has one more
    code = "".join(path.read_text() for path in Path(sys.modules["twingpt.report"].__path__[0]).rglob("*.*[yl]"))
    for key, (english, korean) in WORDS.items():
        assert code.count(f'"{key}"') > 1, key
        assert re.findall(r"{\w+}", english) == sorted(re.findall(r"{\w+}", english), key=english.index)
        assert set(re.findall(r"{\w+}", english)) == set(re.findall(r"{\w+}", korean)), key
        assert re.search("[가-힣]", korean), key


@pytest.mark.parametrize(("value", "language"), [("ko_KR.UTF-8", "ko"), ("C.UTF-8", "en"), ("en_US.UTF-8", "en")])
def test_it_opens_in_the_language_of_who_made_it(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, value: str, language: str
) -> None:
    monkeypatch.setenv("LC_ALL", value)
    source = write_report(make_run("run", LINES), None, None)[0].read_text()
    assert f'<html lang="{language}">' in source
    assert f'id="in-{language}" checked' in source


def test_a_run_under_way_with_a_line_cut_off(make_run: MakeRun) -> None:
    run = make_run("run", LINES[:3])
    with (run / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 4, "loss": 3.0, "sample": "여'.encode()[:-1])
    RunningMark(os.getpid(), 4, 4).write(run)
    history = read_history(run)
    assert (history.status, history.figures.steps, len(history.updates)) == ("running", 3, 3)
    page = Page(write_report(run, None, None)[0])
    assert WORDS["running"][0] in page.text
    assert WORDS["no_checkpoint"][0] in page.text
    assert WORDS["data_gone"][0] in page.text
    assert WORDS["no_sessions"][0] in page.text
    assert WORDS["no_samples"][1] in page.text


@pytest.mark.parametrize(("lines", "status"), [(LINES, "finished"), (LINES[:3], "stopped")])
def test_how_a_run_ended(make_run: MakeRun, lines: list[dict[str, object]], status: str) -> None:
    run = make_run("run", lines)
    assert read_history(run).status == status
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    RunningMark(gone.pid, 4, 4).write(run)
    assert read_history(run).status == "killed"


@pytest.mark.parametrize("content", [None, "", '{"step": 1, "lo'])
def test_a_run_in_which_nothing_was_logged_is_one_line(make_run: MakeRun, content: str | None) -> None:
    run = make_run("run", [])
    (run / "metrics.jsonl").unlink()
    if content is not None:
        (run / "metrics.jsonl").write_text(content)
    with pytest.raises(TwinGPTError, match=r"run has logged nothing yet: metrics\.jsonl") as caught:
        write_report(run, None, None)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


def test_other_data_than_it_was_trained_on_is_said(make_run: MakeRun, plain_data: Path) -> None:
    tokenizer = Manifest.load(plain_data).tokenizer_sha256
    other = make_run("other", LINES, data=plain_data, checkpoint=8, fingerprint={"tokenizer": tokenizer, "data": "x"})
    assert WORDS["data_changed"][0] in Page(write_report(other, None, None)[0]).text
    same = make_run("same", LINES, data=plain_data, checkpoint=8, fingerprint={"tokenizer": tokenizer})
    assert WORDS["data_changed"][0] not in Page(write_report(same, None, None)[0]).text


def test_the_data_of_a_trained_run_is_recognised(tmp_path: Path, plain_data: Path) -> None:
    run = tmp_path / "run"
    model = ["--preset", "tiny", "--batch-size", "2", "--block-size", "32", "--device", "cpu", "--backend", "mlx"]
    train = ["train", "--data", plain_data, "--out", run, "--steps", "2", *model]
    subprocess.run([sys.executable, "-m", "twingpt", *map(str, train)], check=True, capture_output=True)
    report = ["report", run, "--out", tmp_path / "pages" / "index.html"]
    subprocess.run([sys.executable, "-m", "twingpt", *map(str, report)], check=True, capture_output=True)
    page = Page(tmp_path / "pages" / "index.html")
    assert WORDS["data_changed"][0] not in page.text
    assert set(read_history(run).fingerprint) >= {"data", "tokenizer"}
    assert "mlx (cpu)" in page.text
    assert (tmp_path / "pages" / "index-loss.png").is_file()


def test_values_that_are_not_finite_leave_gaps(make_run: MakeRun) -> None:
    lines = [
        update(1, 3.0),
        update(2, float("nan"), grad_norm=float("inf")),
        update(3, 2.0),
        validation(3, float("nan")),
    ]
    history = read_history(make_run("run", lines))
    assert history.points("loss") == [(1, 3.0), (3, 2.0)]
    assert history.points("val_loss") == []
    assert history.figures.best_val_loss is None
    files = write_report(history_run := Path(history.config.data).parent / "run", None, None)
    assert history_run / "report-loss.png" in files
    assert history_run / "report-bits-per-byte.png" not in files


@pytest.mark.parametrize("preset", PRESETS)
def test_the_targets_are_those_that_convert_takes(preset: str) -> None:
    spec = GPTSpec(vocab_size=100, **PRESETS[preset].model)
    for opening in openings(spec):
        if opening.reasons:
            with pytest.raises(TwinGPTError) as caught:
                check(opening.target, spec)
            assert opening.reasons.split()[0] in str(caught.value)
            assert opening.approximable == ("--approximate gelu" in str(caught.value))
        else:
            check(opening.target, spec)


def test_the_speed_of_a_chip_is_told_only_where_it_is_known(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from twingpt.measure.chips import describe
    from twingpt.report import run_page as report

    monkeypatch.setattr(report, "this_chip", lambda: describe("Apple M4 Max", 40))
    run = make_run("run", LINES, sessions=[session(0, "mps", "mps", "Apple M4 Max")])
    assert "of this chip's GPU" in Page(write_report(run, None, None)[0]).text.replace("’", "'")
    for other in (session(0, "mps", "cpu", "Apple M4 Max"), session(0, "mps", "mps", "Apple M1")):
        (run / "sessions.jsonl").write_text(json.dumps(other))
        assert "of this chip's GPU" not in Page(write_report(run, None, None)[0]).text


def test_long_curves_are_thinned_and_noisy_ones_smoothed() -> None:
    points = [(float(step), float(step % 2)) for step in range(10 * MAX_POINTS)]
    short = thin(points)
    assert len(short) == MAX_POINTS
    assert short[0] == (4.5, 0.5)
    assert thin(points[:5]) == points[:5]
    # A line stays itself, to its ends; what alternates is halved out.
    assert smoothed(range(100)) == pytest.approx(range(100))
    assert smoothed([y for _, y in points])[4000] == pytest.approx(0.5, abs=0.02)
    assert smoothed([y for _, y in points])[0] == 0.0


@pytest.mark.slow
def test_both_pages_in_a_browser(make_run: MakeRun, plain_data: Path, tmp_path: Path) -> None:
    node = require_browser()
    long = [update(step, 3.0 + 5.0 / step) for step in range(1, 100)]
    first = make_run("first", [*LINES, *long[8:]], sessions=[session(0, "mps"), session(40, "mlx")], data=plain_data)
    second = make_run("두 번째 & $x$", long, train={"learning_rate": 1e-2})
    write_report(first, None, tmp_path / "report.html")
    write_comparison(compare_runs([first, second]), tmp_path / "compare.html")
    script = Path(__file__).with_name("page.cjs")
    pages = [str(tmp_path / name) for name in ("report.html", "compare.html")]
    done = subprocess.run(
        [node, str(script), str(tmp_path), str(CHROMIUM), *pages], capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    views = json.loads(done.stdout)
    assert len(views) == 16
    for view in views:
        assert view["problems"] == [], view
        assert view["faults"] == [], view
        assert view["cut"] == 0, view
        assert view["overflow"] <= 0, view
        assert view["otherLanguage"] == 0, view
        assert view["thisLanguage"] > 20, view
        # WCAG 2: 4.5 for text, 3 for what a picture is made of.
        assert view["textContrast"] >= 4.5, view
        assert view["lineContrast"] >= 3, view
        assert view["smallest"] >= 9, view
        assert view["alerts"] == 0, view
