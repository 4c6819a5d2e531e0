"""The ladder's rungs 6, 8 and 9 on the command line: one run, whichever engine trains it, and one text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CROSS_ENGINE = Path(__file__).parents[1] / "benchmarks" / "cross_engine.py"
TOLERANCE = 1e-4


@pytest.mark.slow
def test_a_hundred_steps_are_the_same_run_in_either_engine_and_across_both(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    result = subprocess.run([sys.executable, CROSS_ENGINE, "--out", out], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads(out.read_text())
    losses = figures["losses"]
    assert losses.keys() == {"mps", "mlx", "mps+mlx", "mlx+mps"}
    for curve in losses.values():
        assert len(curve) == 100
        assert curve[-1] < curve[0] - 1.0
    differences = figures["largest_loss_difference"]
    assert {pair: error for pair, error in differences.items() if error > TOLERANCE} == {}
    # The halves that the same engine did from the same start are the same arithmetic.
    assert losses["mps+mlx"][:50] == losses["mps"][:50]
    assert losses["mlx+mps"][:50] == losses["mlx"][:50]
    assert figures["sampled_texts"]["same"] == figures["sampled_texts"]["of"] == 5
