"""The command line as a user meets it: what works end to end, and one clear line for every mistake."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

from twingpt.checks.parity import perturbed
from twingpt.cli import app, main
from twingpt.core.errors import UsageError
from twingpt.core.presets import PRESETS
from twingpt.core.spec import GPTSpec
from twingpt.training import session
from twingpt.training.recipe import TrainConfig
from twingpt.training.session import TrainRequest
from twingpt.weights.checkpoint import CheckpointStore, Progress

Cli = Callable[..., tuple[int, str, str]]
TINY = ["--preset", "tiny", "--batch-size", "2", "--block-size", "32", "--device", "cpu"]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run twingpt in this process: (exit code, stdout, stderr)."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["twingpt", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def trained(plain_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    args = ["train", "--data", plain_data, "--out", run, "--backend", "mlx", "--steps", "4", *TINY]
    subprocess.run([sys.executable, "-m", "twingpt", *map(str, args)], check=True, capture_output=True)
    return run


def assert_one_line(result: tuple[int, str, str], code: int, *words: str) -> None:
    """The exit code, and exactly one line of error that says what was wrong."""
    assert result[0] == code, result
    assert "Traceback" not in result[2]
    lines = result[2].strip().splitlines()
    assert len(lines) == 1, result[2]
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def test_train_resume_in_the_other_engine_evaluate_and_generate(cli: Cli, tmp_path: Path, plain_data: Path) -> None:
    run = tmp_path / "run"
    train = ("train", "--out", run, "--data", plain_data)
    code, out, _ = cli(*train, "--backend", "mps", "--steps", 6, "--stop-at", 3, "--log-every", 1, *TINY)
    assert code == 0
    assert "PyTorch on cpu" in out
    assert cli("train", "--out", run, "--resume", "--backend", "mlx", "--device", "cpu")[0] == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert (run / "checkpoints" / "step-00000006" / "state.json").is_file()

    figures = []
    for backend in ("mps", "mlx"):
        code, out, _ = cli("eval", run, "--data", plain_data, "--backend", backend, "--device", "cpu", "--json")
        assert code == 0
        figures.append(json.loads(out))
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=1e-6)
    assert figures[0]["text_bytes"] == figures[1]["text_bytes"] > 1000

    texts = []
    for backend in ("mps", "mlx"):
        args = ("--prompt", "여권", "--backend", backend, "--device", "cpu", "--max-new-tokens", 20)
        code, out, _ = cli("generate", run, *args)
        assert code == 0
        texts.append(out)
        code, out, _ = cli("generate", run, *args, "--json")
        assert json.loads(out)["text"] == texts[-1].removesuffix("\n")
    assert texts[0] == texts[1]


def test_torch_is_another_name_of_mps(cli: Cli, trained: Path) -> None:
    options = ["--prompt", "여권", "--device", "cpu", "--max-new-tokens", 3, "--json"]
    answers = {name: json.loads(cli("generate", trained, "--backend", name, *options)[1]) for name in ("torch", "mps")}
    assert answers["torch"] == answers["mps"] and answers["torch"]["backend"] == "mps"
    assert_one_line(cli("generate", trained, "--backend", "tourch", *options), 2, "unknown backend 'tourch'", "mlx")


def test_a_step_folder_can_be_named(cli: Cli, trained: Path) -> None:
    step = trained / "checkpoints" / "step-00000004"
    assert cli("generate", step, "--prompt", "여권", "--device", "cpu", "--max-new-tokens", 3)[0] == 0


def test_eval_as_a_table(cli: Cli, trained: Path, plain_data: Path) -> None:
    code, out, _ = cli("eval", trained, "--data", plain_data, "--device", "cpu")
    assert code == 0
    assert "bits_per_byte" in out


def test_a_resumed_run_is_not_given_other_settings_in_silence(
    cli: Cli, trained: Path, plain_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    resume = ["train", "--out", run, "--resume", "--backend", "mlx", "--device", "cpu"]
    assert_one_line(cli(*resume, "--preset", "modern"), 2, "model.position", "--resume leave out --preset and --config")
    assert_one_line(cli(*resume, "--config", tmp_path / "none.toml"), 1, "none.toml does not exist")
    (tmp_path / "data.toml").write_text('data = "elsewhere"\n')
    assert_one_line(cli(*resume, "--config", tmp_path / "data.toml"), 2, "data in", "--data")
    # What the run was begun with says the same, as a restart after running out of memory does.
    code, out, err = cli(*resume, "--preset", "tiny", "--block-size", "32", "--steps", "6", "--schedule", "cosine")
    assert code == 0, err
    assert "6 steps instead of 4: the learning rate goes on at" in out


def test_eval_refuses_the_data_of_another_tokenizer(cli: Cli, trained: Path, plain_data: Path, tmp_path: Path) -> None:
    """Of the same size, so that nothing but its hash tells."""
    data = tmp_path / "data"
    shutil.copytree(plain_data, data)
    manifest = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps({**manifest, "tokenizer_sha256": "0" * 64}))
    code, _, err = cli("eval", trained, "--data", data, "--device", "cpu")
    assert code == 2
    assert f"{data} was packed with another tokenizer than {trained} was trained with" in err.replace("\n", "")


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version")[1].startswith("twingpt ")
    commands = [
        "prepare",
        "data",
        "train",
        "generate",
        "eval",
        "report",
        "compare",
        "convert",
        "parity",
        "bench",
        "tune",
        "serve",
        "demo",
        "doctor",
    ]
    out = cli("--help")[1]
    assert all(command in out for command in commands)
    for command in commands:
        assert cli(command, "--help")[0] == 0


def mistakes(data: Path, run: Path, tmp: Path) -> dict[str, tuple[list[Any], int, list[str]]]:
    """Arguments, exit code, and words that the line must hold."""
    (tmp / "bad.toml").write_text("[train]\nlearningrate = 1\n")
    (tmp / "latin.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp / "notes.txt").write_text("hello")
    out = tmp / "out"
    train = ["train", "--out", out, "--data", data]
    return {
        "no data folder": (["train", "--out", out, "--data", tmp / "none"], 1, ["manifest.json", "twingpt prepare"]),
        "data not given": (["train", "--out", out], 2, ["--data"]),
        "unknown backend": ([*train, "--backend", "cuda"], 2, ["cuda", "mps, mlx"]),
        "unknown preset": ([*train, "--preset", "huge"], 2, ["huge", "seed"]),
        "unknown config key": ([*train, "--config", tmp / "bad.toml"], 2, ["train.learningrate"]),
        "missing config": ([*train, "--config", tmp / "none.toml"], 1, ["none.toml", "does not exist"]),
        "block_size beyond the data": ([*train, "--block-size", 9_000_000], 1, ["9000000", "smaller block_size"]),
        "bad schedule": ([*train, "--schedule", "linear"], 2, ["constant, cosine"]),
        "bad precision": ([*train, "--precision", "int8"], 2, ["float32, bfloat16"]),
        "micro-batch": ([*train, "--batch-size", 4, "--micro-batch", 3], 2, ["micro_batch = 3"]),
        "resume of nothing": (["train", "--out", out, "--resume"], 1, ["cannot be resumed"]),
        "run is there": (["train", "--out", run, "--data", data], 2, ["--resume"]),
        "generate from nothing": (["generate", tmp / "none", "--prompt", "x"], 1, ["none", "does not exist"]),
        "generate from an empty folder": (["generate", tmp, "--prompt", "x"], 1, ["holds no checkpoint"]),
        "neither prompt nor question": (["generate", run], 2, ["one of --prompt, --question"]),
        "both": (["generate", run, "--prompt", "x", "--question", "y"], 2, ["one of --prompt, --question"]),
        "doc without question": (["generate", run, "--prompt", "x", "--doc", tmp / "notes.txt"], 2, ["--doc"]),
        "doc missing": (["generate", run, "--question", "x", "--doc", tmp / "none"], 1, ["none"]),
        "doc not UTF-8": (["generate", run, "--question", "x", "--doc", tmp / "latin.txt"], 1, ["latin.txt", "UTF-8"]),
        "a question to plain text": (["generate", run, "--question", "여권?"], 1, ["plain text", "--prompt"]),
        "temperature": (["generate", run, "--prompt", "x", "--temperature", -1], 2, ["--temperature"]),
        "unknown backend to generate": (["generate", run, "--prompt", "x", "--backend", "jax"], 2, ["jax"]),
        "eval without data": (["eval", run, "--data", tmp / "none"], 1, ["manifest.json"]),
        "unknown tracker": ([*train, "--log", "mlflow"], 2, ["mlflow", "tensorboard, wandb, trackio"]),
        "report on nothing": (["report", tmp / "none"], 1, ["none", "does not exist"]),
        "report on a folder that is no run": (["report", tmp], 1, ["config.toml", "does not exist"]),
        "report with other data": (["report", run, "--data", tmp, "--out", out], 1, ["manifest.json"]),
        "report to where nothing can be": (["report", run, "--out", tmp / "notes.txt" / "x"], 1, ["notes.txt"]),
        "compare of one": (["compare", run], 2, ["2 to 6 runs, not 1"]),
        "compare with nothing": (["compare", run, tmp / "none"], 1, ["none", "does not exist"]),
        "convert of nothing": (["convert", tmp / "none", out, "--to", "hf"], 1, ["none", "does not exist"]),
        "convert of a text": (
            ["convert", tmp / "notes.txt", out, "--to", "hf"],
            2,
            ["no checkpoint that twingpt knows"],
        ),
        "convert to nothing known": (["convert", run, out, "--to", "onnx"], 2, ["onnx", "native, hf"]),
        "convert onto something": (["convert", run, tmp, "--to", "hf"], 2, ["exists"]),
    }


NAMES = sorted(mistakes(Path(), Path(), Path(os.devnull).parent / "shm")) if Path("/dev/shm").is_dir() else []


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    cli: Cli, tmp_path: Path, plain_data: Path, trained: Path, name: str
) -> None:
    args, code, words = mistakes(plain_data, trained, tmp_path)[name]
    before = sorted(tmp_path.rglob("*"))
    assert_one_line(cli(*args), code, *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_of_another_shape_is_refused(cli: Cli, tmp_path: Path, plain_data: Path, trained: Path) -> None:
    spec = GPTSpec(vocab_size=999, block_size=32, n_layer=1, n_head=1, n_embd=8)
    CheckpointStore(tmp_path / "run").save(spec, perturbed(spec), Progress(step=1))
    for name in ("config.toml", "tokenizer.json"):
        (tmp_path / "run" / name).write_bytes((trained / name).read_bytes())
    result = cli("train", "--out", tmp_path / "run", "--data", plain_data, "--resume", "--device", "cpu")
    assert_one_line(result, 1, "another model", "n_layer", "n_embd")
    assert_one_line(cli("eval", tmp_path / "run", "--data", plain_data, "--device", "cpu"), 2, "999")


def test_a_framework_that_is_not_installed_is_named(
    cli: Cli, tmp_path: Path, plain_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twingpt.core import engines

    monkeypatch.setattr(engines, "framework_installed", lambda module: False)
    for name, extra in (("mps", "twingpt[torch]"), ("mlx", "twingpt[mlx]")):
        result = cli("train", "--out", tmp_path / "run", "--data", plain_data, "--backend", name)
        assert_one_line(result, 1, extra, "not installed")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named_before_anything_is_done(
    cli: Cli, tmp_path: Path, plain_data: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from twingpt.training import trackers

    monkeypatch.setattr(trackers, "framework_installed", lambda module: module != name)
    result = cli("train", "--out", tmp_path / "run", "--data", plain_data, "--log", name)
    assert_one_line(result, 1, f"twingpt[{name}]", "not installed")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_a_report_names_the_extra_that_it_needs(
    cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for args in (("report", trained), ("compare", trained, trained, "--out", tmp_path / "c.html")):
        assert_one_line(cli(*args), 1, module, "twingpt[report]")
    assert cli("compare", trained, trained)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(
    tmp_path: Path, plain_data: Path, backend_name: str, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    args = ["train", "--out", run, "--data", plain_data, "--backend", backend_name, "--steps", 100_000, *TINY]
    command = [sys.executable, "-m", "twingpt", *map(str, args), "--log-every", "1", "--eval-every", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == ""
    assert "--resume" in out
    steps = CheckpointStore(run).steps()
    assert len(steps) == 1
    logged = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1] == steps[0]


def test_convert_to_hugging_face_and_back(cli: Cli, tmp_path: Path, trained: Path) -> None:
    assert cli("convert", trained, tmp_path / "hf", "--to", "hf")[0] == 0
    assert cli("convert", tmp_path / "hf", tmp_path / "back", "--to", "native")[0] == 0
    texts = [
        cli("generate", run, "--prompt", "여권", "--device", "cpu", "--max-new-tokens", 10)[1]
        for run in (trained, tmp_path / "back")
    ]
    assert texts[0] == texts[1] != ""


def test_a_reader_that_goes_away_is_no_error(trained: Path) -> None:
    command = f"{sys.executable} -m twingpt generate {trained} --prompt x --device cpu | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout.strip() in ("0", "1")


# Stands in for PyTorch, which reads the variable when it is imported.
TORCH = """
import os, pathlib

pathlib.Path(os.environ["TOLD"]).write_text(os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK", "not set"))
raise SystemExit(3)
"""


@pytest.mark.parametrize(("option", "told"), [([], "not set"), (["--mps-fallback"], "1")])
def test_the_fallback_to_the_cpu_is_set_before_torch_and_only_when_asked_for(
    tmp_path: Path, plain_data: Path, option: list[str], told: str
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(TORCH)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    environment = {name: value for name, value in os.environ.items() if name != "PYTORCH_ENABLE_MPS_FALLBACK"}
    args = ["train", "--data", plain_data, "--out", tmp_path / "run", "--backend", "mps", *TINY, *option]
    result = subprocess.run(
        [sys.executable, "-m", "twingpt", *map(str, args)],
        env={**environment, "PYTHONPATH": path, "TOLD": str(tmp_path / "told")},
        capture_output=True,
        check=False,
    )
    assert result.returncode == 3, result.stderr
    assert (tmp_path / "told").read_text() == told


def test_json_of_train_is_json(cli: Cli, tmp_path: Path, plain_data: Path) -> None:
    args = ("--backend", "mlx", "--steps", 1, *TINY, "--json")
    code, out, _ = cli("train", "--out", tmp_path / "run", "--data", plain_data, *args)
    assert code == 0
    assert np.isfinite(json.loads(out)["metrics"][0]["loss"])


def _train_options() -> dict[str, tuple[type, Any]]:
    """Options of `train` that are fields of its settings -> (the dataclass, the option)."""
    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    options = {option.name: option for option in command.params}
    kinds = {"dropout": GPTSpec, "block_size": GPTSpec}
    return {
        name: (kinds.get(name, TrainConfig), option)
        for name, option in options.items()
        if name in kinds or name in {each.name for each in dataclasses.fields(TrainConfig)}
    }


def test_options_of_train_are_what_the_fields_say() -> None:
    options = _train_options()
    assert len(options) == 24
    for name, (kind, option) in options.items():
        (field,) = [each for each in dataclasses.fields(kind) if each.name == name]
        assert option.help == field.metadata["help"]
        assert option.opts == ["--" + name.replace("_", "-")]
        assert option.secondary_opts == (["--no-" + name.replace("_", "-")] if field.default is False else [])
        assert option.default is None and not option.required
        named = any(name in {**preset.model, **preset.train} for preset in PRESETS.values())
        told = "no" if field.default is False else str(field.default)
        assert option.show_default == (field.metadata["none"] or ("the preset's" if named else told))


def test_only_options_that_are_given_are_settings(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    asked = []

    def opened(request: TrainRequest) -> None:
        asked.append(request)
        raise UsageError("seen")

    monkeypatch.setattr(session, "open_session", opened)
    assert cli("train", "--out", "x", "--device", "cpu")[0] == 2
    cli("train", "--out", "x", "--device", "cpu", "--steps", 7, "--no-activation-checkpointing", "--optimizer", "muon")
    cli("train", "--out", "x", "--device", "cpu", "--dropout", 0, "--block-size", 9, "--schedule", "wsd", "--seed", 0)
    assert [request.train for request in asked] == [
        {},
        {"steps": 7, "activation_checkpointing": False, "optimizer": "muon"},
        {"schedule": "wsd", "seed": 0},
    ]
    assert [request.model for request in asked] == [{}, {}, {"dropout": 0.0, "block_size": 9}]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--steps", 0, "train.steps = 0: it must be at least 1"),
        ("--warmup-steps", -1, "train.warmup_steps = -1: it must be at least 0"),
        ("--learning-rate", 0, "train.learning_rate = 0.0: it must be above 0"),
        ("--learning-rate", "nan", "train.learning_rate = nan: it must be above 0"),
        ("--dropout", 1, "model.dropout = 1.0: it must be at least 0 and below 1"),
        ("--block-size", 0, "model.block_size = 0: it must be at least 1"),
    ],
)
def test_a_setting_out_of_its_bounds_is_one_line(
    cli: Cli, tmp_path: Path, plain_data: Path, option: str, value: Any, said: str
) -> None:
    result = cli("train", "--out", tmp_path / "run", "--data", plain_data, *TINY, "--steps", 1, option, value)
    assert_one_line(result, 2, said)
