"""Runs side by side: what differs, what stands out, and what to keep in mind."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.report.conftest import SPEC, MakeRun, session, update, validation
from tests.report.test_report import Page
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.report.compare import compare_runs, panels, print_comparison, write_comparison
from twingpt.report.words import WORDS


def two(make_run: MakeRun) -> list[Path]:
    """The second learns faster a step, and is slower."""
    first = [*(update(step, 5.0 - step / 4) for step in (1, 2, 3, 4)), validation(2, 4.0), validation(4, 3.6)]
    second = [
        *(update(step, 5.0 - step / 2, tokens=50 * step, tokens_per_second=400.0) for step in (1, 2, 3, 4)),
        validation(2, 3.5),
        validation(4, 3.0),
    ]
    return [
        make_run("a", first, sessions=[session(0, "mps")]),
        make_run(
            "b",
            second,
            sessions=[session(0, "mlx", "gpu")],
            train={"optimizer": "muon", "learning_rate": 2e-2},
            spec=replace(SPEC, norm="rmsnorm", bias=False),
        ),
    ]


def test_only_what_differs_is_listed(make_run: MakeRun) -> None:
    comparison = compare_runs(two(make_run))
    assert comparison.differences == {
        "model.norm": ["layernorm", "rmsnorm"],
        "model.bias": ["true", "false"],
        "train.learning_rate": ["0.0003", "0.02"],
        "train.optimizer": ["adamw", "muon"],
    }
    assert comparison.notes == []


def test_the_run_that_stands_out_is_marked(make_run: MakeRun) -> None:
    comparison = compare_runs(two(make_run))
    assert [
        comparison.best(name) for name in ("best_val_loss", "best_bits_per_byte", "tokens_per_second", "seconds")
    ] == [
        1,
        1,
        0,
        0,
    ]
    assert [comparison.best(name) for name in ("parameters", "steps", "peak_memory")] == [None, None, None]
    assert [figures.best_step for figures in comparison.figures] == [4, 4]


def test_curves_over_steps_and_over_tokens(make_run: MakeRun) -> None:
    drawn = {panel.name: panel for panel in panels(compare_runs(two(make_run)))}
    assert [line.points for line in drawn["val-loss-over-steps"].lines] == [[(2, 4.0), (4, 3.6)], [(2, 3.5), (4, 3.0)]]
    assert [line.points for line in drawn["val-loss-over-tokens"].lines] == [
        [(200, 4.0), (400, 3.6)],
        [(100, 3.5), (200, 3.0)],
    ]
    colours = {line.colour for panel in drawn.values() for line in panel.lines if line.label == "a"}
    assert colours == {"s1"}


def test_what_makes_figures_hard_to_compare_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    lines = [update(1, 2.0)]
    one = make_run(
        "one", lines, sessions=[session(0, "mps", chip="A")], checkpoint=1, fingerprint={"tokenizer": "x", "data": "x"}
    )
    other = make_run(
        "other",
        lines,
        sessions=[session(0, "mps", chip="B")],
        checkpoint=1,
        fingerprint={"tokenizer": "y", "data": "y"},
    )
    comparison = compare_runs([one, other])
    assert comparison.notes == ["other_tokenizer", "other_data", "other_machine"]
    page = Page(write_comparison(comparison, tmp_path / "compare.html")[0])
    for note in comparison.notes:
        assert WORDS[note][0] in page.text
        assert WORDS[note][1] in page.text


def test_runs_of_one_name_are_told_apart(make_run: MakeRun) -> None:
    runs = [make_run(name, [update(1, 2.0)]) for name in ("x/run", "y/run", "z")]
    assert compare_runs(runs[:2]).names == ["x/run", "y/run"]
    assert compare_runs([runs[0], runs[2]]).names == ["run", "z"]
    assert len(set(compare_runs([runs[0], runs[0]]).names)) == 2


def test_the_table_of_the_terminal(make_run: MakeRun) -> None:
    console = Console(width=120, file=io.StringIO())
    print_comparison(compare_runs(two(make_run)), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("mlx (gpu)", "3.0000 (4)", "1,000", "train.optimizer", "muon"):
        assert part in text, part


def test_names_are_no_markup(make_run: MakeRun, tmp_path: Path) -> None:
    evil = "<script>alert(1)<" + "script> [red]x[ $a$"
    run = make_run(evil, [update(1, 2.0), validation(1, 2.0)])
    comparison = compare_runs([run, make_run("한글", [update(1, 3.0)])])
    files = write_comparison(comparison, tmp_path / "compare.html")
    page = Page(files[0])
    assert "script" not in page.tags
    assert evil in page.text
    assert all(path.stat().st_size > 1000 for path in files)
    console = Console(width=200, file=io.StringIO())
    print_comparison(comparison, console)
    assert "[red]" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_two_runs_to_six(make_run: MakeRun, count: int) -> None:
    with pytest.raises(UsageError, match=f"2 to 6 runs, not {count}"):
        compare_runs([Path("run")] * count)


def test_a_run_without_a_line_is_named(make_run: MakeRun) -> None:
    good, empty = make_run("good", [update(1, 2.0)]), make_run("empty", [])
    with pytest.raises(TwinGPTError, match="empty has logged nothing yet"):
        compare_runs([good, empty])


def test_json_for_a_program(make_run: MakeRun, tmp_path: Path) -> None:
    runs = two(make_run)
    command = ["compare", *runs, "--json", "--out", tmp_path / "pages" / "c.html"]
    done = subprocess.run([sys.executable, "-m", "twingpt", *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [run["name"] for run in answer["runs"]] == ["a", "b"]
    assert [run["best_val_loss"] for run in answer["runs"]] == [3.6, 3.0]
    assert answer["differences"]["train.optimizer"] == ["adamw", "muon"]
    assert "c.html" in done.stderr
    assert len(list((tmp_path / "pages").glob("c-*.png"))) == 8


def test_no_framework_is_loaded_to_look_at_runs(make_run: MakeRun) -> None:
    runs = [str(run) for run in two(make_run)]
    program = (
        "import sys\nfrom pathlib import Path\nfrom twingpt.report.compare import compare_runs\n"
        f"compare_runs([Path(run) for run in {runs!r}])\nprint({{'torch', 'mlx', 'matplotlib'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
