"""The ladder's rungs 7, 9 and 10 on the command line: one run, whichever engine trains it, and one text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CROSS_ENGINE = Path(__file__).parents[1] / "benchmarks" / "cross_engine.py"
# Nats a token. Behind each: the largest error measured on a CPU (x86-64, torch 2.13, mlx 0.32.4).
EARLY_STEPS = 20
TOLERANCES = {
    "tiny": {
        "handed over": 4e-5,  # 4.3e-6, over the 50 steps in the other engine
        "early": 3e-5,  # 2.9e-6, over the first EARLY_STEPS
        "from the start": 8e-3,  # 8.6e-4, over 100 steps; one engine with weights moved by 1 ulp parts as far
    },
    "modern": {
        "handed over": 1e-5,  # 1.2e-6
        "early": 1.5e-5,  # 1.9e-6
        "from the start": 4e-5,  # 4.8e-6
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("preset", TOLERANCES)
def test_a_hundred_steps_are_the_same_run_in_either_engine_and_across_both(preset: str, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, str(CROSS_ENGINE), "--preset", preset, "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads(out.read_text())
    losses = figures["losses"]
    assert losses.keys() == {"mps", "mlx", "mps+mlx", "mlx+mps"}
    for curve in losses.values():
        assert len(curve) == 100
        assert curve[-1] < curve[0] - 1.0
    for first, second, rung in (
        ("mps", "mps+mlx", "handed over"),
        ("mlx", "mlx+mps", "handed over"),
        ("mps", "mlx", "from the start"),
    ):
        assert figures["largest_loss_difference"][f"{first} / {second}"] < TOLERANCES[preset][rung], (first, second)
    early = zip(losses["mps"][:EARLY_STEPS], losses["mlx"][:EARLY_STEPS], strict=True)
    assert max(abs(a - b) for a, b in early) < TOLERANCES[preset]["early"]
    # The halves that the same engine did from the same start are the same arithmetic.
    assert losses["mps+mlx"][:50] == losses["mps"][:50]
    assert losses["mlx+mps"][:50] == losses["mlx"][:50]
    assert figures["sampled_texts"]["same"] == figures["sampled_texts"]["of"] == 5
