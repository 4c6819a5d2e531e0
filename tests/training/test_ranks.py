"""Several ranks are one run: the same losses, one writer, and an end for all when one is gone."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from tests.ranks import rank_environments, ranks
from tests.training.test_trainer import final_state
from twingpt.backends.torch_mps.engine import RESTARTS
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.world import Alone
from twingpt.training import launch
from twingpt.training.config import CONFIG_FILE, RunConfig
from twingpt.training.launch import launch_hosts, without_hosts
from twingpt.training.log import read_metrics
from twingpt.training.ranks import StopVote, check_launcher, local_batch, restarted
from twingpt.training.record import SESSIONS_FILE

# Measured over 50 losses at the size of preset tiny (benchmarks/ranks.py): 1.1e-6 at most in one engine.
TOLERANCE = 1e-5

OPTIONS = ["--preset", "tiny", "--dropout", "0", "--batch-size", "4", "--device", "cpu"]
OPTIONS += ["--log-every", "1", "--eval-every", "4", "--save-every", "4", "--block-size", "32"]


def train(backend: str, folder: Path, size: int, *options: str) -> list[str]:
    """What each rank printed; asserts that all of them ended well."""
    with ranks(backend, folder, size, *options) as processes:
        said = [process.communicate(timeout=240) for process in processes]
        assert [process.returncode for process in processes] == [0] * size, said
    return [out for out, _ in said]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run) if "loss" in line]


@pytest.fixture(scope="module", params=["mps", "mlx"])
def alone(
    request: pytest.FixtureRequest, plain_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """(engine, folder) of a run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    command = [sys.executable, "-m", "twingpt", "train", "--backend", request.param, "--data", str(plain_data)]
    subprocess.run([*command, "--out", str(folder / "run"), *OPTIONS, "--steps", "8"], check=True, capture_output=True)
    return request.param, folder


def test_two_ranks_follow_one(alone: tuple[str, Path], plain_data: Path, tmp_path: Path) -> None:
    backend, one = alone
    said = train(backend, tmp_path, 2, "--data", str(plain_data), *OPTIONS, "--steps", "8")
    assert "2 ranks" in said[0]
    assert said[1] == ""
    ours, theirs = losses(tmp_path / "run"), losses(one / "run")
    assert len(ours) == len(theirs) == 8
    assert np.abs(np.subtract(ours, theirs)).max() < TOLERANCE
    for name in ("val_loss", "bits_per_byte"):
        values = [[line[name] for line in read_metrics(run / "run") if name in line] for run in (one, tmp_path)]
        assert np.allclose(values[0], values[1], rtol=0, atol=TOLERANCE)
    assert [line["tokens"] for line in read_metrics(tmp_path / "run") if "tokens" in line] == [
        line["tokens"] for line in read_metrics(one / "run") if "tokens" in line
    ]


def test_a_run_goes_on_with_fewer_ranks_and_in_the_other_engine(
    alone: tuple[str, Path], plain_data: Path, tmp_path: Path
) -> None:
    backend, one = alone
    train(backend, tmp_path, 2, "--data", str(plain_data), *OPTIONS, "--steps", "8", "--stop-at", "4")
    other = {"mps": "mlx", "mlx": "mps"}[backend]
    command = [sys.executable, "-m", "twingpt", "train", "--backend", other, "--out", str(tmp_path / "run"), "--resume"]
    subprocess.run([*command, "--device", "cpu"], check=True, capture_output=True)
    assert np.abs(np.subtract(losses(tmp_path / "run"), losses(one / "run"))).max() < TOLERANCE
    ours, theirs = (final_state(run / "run") for run in (tmp_path, one))
    assert int(ours["adamw.count"]) == int(theirs["adamw.count"]) == 8


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--learning-rate", "0.5"], "train.learning_rate than rank 0 (0.5 there, 0.002 on rank 0)"),
        (["--stop-at", "3"], "--stop-at than rank 0 (3 there, None on rank 0)"),
    ],
)
def test_a_rank_that_would_train_something_else_is_named(
    options: list[str], name: str, backend_name: str, plain_data: Path, tmp_path: Path
) -> None:
    of_rank = {1: options}
    with ranks(backend_name, tmp_path, 2, "--data", str(plain_data), *OPTIONS, of_rank=of_rank) as processes:
        for process in processes:
            _, error = process.communicate(timeout=120)
            assert process.returncode == 1
            assert f"rank 1 has another {name}" in error
            assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ranks_with_other_weights_are_named(backend_name: str, plain_data: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "run", tmp_path / "stale"]
    for seed, run in enumerate(runs):
        command = [sys.executable, "-m", "twingpt", "train", "--backend", "mlx", "--out", str(run), *OPTIONS]
        command += ["--data", str(plain_data), "--steps", "2", "--warmup-steps", str(seed)]
        subprocess.run(command, check=True, capture_output=True)
    (runs[1] / CONFIG_FILE).write_bytes((runs[0] / CONFIG_FILE).read_bytes())
    of_rank = {1: ["--out", str(runs[1])]}
    options = ["--resume", "--steps", "4", "--device", "cpu"]
    with ranks(backend_name, tmp_path, 2, *options, of_rank=of_rank) as processes:
        for process in processes:
            _, error = process.communicate(timeout=120)
            assert "rank 1 has another checkpoint than rank 0" in error


LOST = """
import os, signal, sys
from twingpt.core.backend import join_world
from twingpt.core.errors import PeerLostError
world = join_world(sys.argv[1], 20.0)
world.gather(b"together")
if world.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    world.gather(b"alone...")
except PeerLostError:
    os._exit(7)
"""


def test_what_a_lost_rank_did_not_say_is_not_made_up(backend_name: str, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", LOST, backend_name], env={**os.environ, **environment})
        for environment in rank_environments(backend_name, 2, tmp_path)
    ]
    assert [process.wait(timeout=60) for process in processes] == [7, -signal.SIGKILL]


def test_a_rank_that_nobody_joins_gives_up(backend_name: str, plain_data: Path, tmp_path: Path) -> None:
    environment = rank_environments(backend_name, 2, tmp_path)[0]
    command = [sys.executable, "-m", "twingpt", "train", "--backend", backend_name, "--out", str(tmp_path / "run")]
    options = ["--data", str(plain_data), *OPTIONS, "--rank-timeout", "3"]
    alone = subprocess.run(
        [*command, *options], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert alone.returncode == 1
    assert "Traceback" not in alone.stderr
    assert alone.stderr.splitlines()[-1].startswith({"mps": "error: ", "mlx": "waiting for"}[backend_name])
    assert not (tmp_path / "run").exists()


def test_the_last_step_is_evaluated_though_it_is_saved_too(plain_data: Path, tmp_path: Path) -> None:
    options = [*OPTIONS, "--steps", "2", "--eval-every", "0", "--save-every", "2"]
    train("mlx", tmp_path, 1, "--data", str(plain_data), *options)
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "val_loss" in line] == [2]


def wait_for_checkpoint(run: Path, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        time.sleep(0.05)


def test_a_killed_rank_ends_the_others_and_the_run_goes_on_without_it(
    backend_name: str, plain_data: Path, tmp_path: Path
) -> None:
    with ranks(backend_name, tmp_path, 2, "--data", str(plain_data), *OPTIONS, "--steps", "100000") as processes:
        wait_for_checkpoint(tmp_path / "run", processes)
        processes[1].kill()
        _, error = processes[0].communicate(timeout=30)
        assert processes[0].returncode == 1
        assert "another rank of this run is gone" in error
        assert "Traceback" not in error
    step = max(int(path.name.removeprefix("step-")) for path in (tmp_path / "run").glob("checkpoints/step-*"))
    train(backend_name, tmp_path, 1, "--resume", "--steps", str(step + 4), "--device", "cpu")


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_others(backend_name: str, plain_data: Path, tmp_path: Path) -> None:
    options = [*OPTIONS, "--steps", "100000", "--rank-timeout", "10"]
    with ranks(backend_name, tmp_path, 2, "--data", str(plain_data), *options) as processes:
        wait_for_checkpoint(tmp_path / "run", processes)
        processes[1].send_signal(signal.SIGSTOP)
        _, error = processes[0].communicate(timeout=30)
        assert processes[0].returncode == 1
        assert "--rank-timeout" in error or "another rank of this run is gone" in error


def test_a_signal_to_one_rank_stops_all_in_good_order(backend_name: str, plain_data: Path, tmp_path: Path) -> None:
    with ranks(backend_name, tmp_path, 2, "--data", str(plain_data), *OPTIONS, "--steps", "100000") as processes:
        wait_for_checkpoint(tmp_path / "run", processes)
        processes[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=60) for process in processes]
        assert [process.returncode for process in processes] == [143, 143], said
        assert "stopped at step" in said[0][0]
    steps = [int(path.name.removeprefix("step-")) for path in (tmp_path / "run").glob("checkpoints/step-*")]
    assert max(steps) == len(losses(tmp_path / "run"))


class Two(Alone):
    """The other rank wishes nothing and is as fast as this one."""

    size = 2

    def gather(self, data: bytes) -> list[bytes]:
        wish, seconds = struct.unpack("2d", data)
        return [struct.pack("2d", wish, seconds), struct.pack("2d", 0.0, seconds)]


@pytest.mark.parametrize(
    ("seconds", "votes"), [(0.001, [0, 1, 11, 21]), (0.5, [0, 1, 5, 9, 13, 17, 21]), (30.0, list(range(25)))]
)
def test_ranks_vote_often_enough_for_torchrun(
    seconds: float, votes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kills 30 s after a Ctrl-C, however long a step takes."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stops = StopVote(Two(), 0, at_most=10)
    asked = []
    for step in range(25):
        if stops(step, wish=True):
            asked.append(step)
        now += seconds
    assert asked == votes


def test_torchrun_restarts_what_it_began_and_nothing_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = datetime.fromtimestamp(psutil.Process(os.getppid()).create_time(), UTC)
    monkeypatch.setenv(RESTARTS, "1")
    assert not restarted(tmp_path)
    for minutes, ours in ((-1, False), (1, True)):
        session = {"step": 0, "started": (began + timedelta(minutes=minutes)).isoformat(timespec="seconds")}
        (tmp_path / SESSIONS_FILE).write_text(json.dumps({**session, "backend": "mps", "device": "cpu"}) + "\n")
        assert restarted(tmp_path) == ours
    monkeypatch.setenv(RESTARTS, "0")
    assert not restarted(tmp_path)


def test_what_cannot_be_launched_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Three(Alone):
        size = 3

    with pytest.raises(UsageError, match="cannot be shared by 3 ranks"):
        local_batch(4, Three())
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(UsageError, match=r"started by torchrun, .* start it with mlx\.launch"):
        check_launcher("mlx")
    with pytest.raises(UsageError, match=r"started by torchrun, .* it trains in one process"):
        check_launcher("reference")
    check_launcher("mps")


@pytest.mark.parametrize(
    ("system", "named", "interfaces"),
    [
        ("darwin", "bridge0", ["bridge0", "bridge0"]),
        ("darwin", "en0", ["en0", None]),
        ("linux", "enp3s0", ["enp3s0", None]),
        ("darwin", None, ["bridge0", "bridge0"]),
        ("linux", None, [None, None]),
    ],
)
def test_gloo_is_told_an_interface_that_is_there(
    system: str, named: str | None, interfaces: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """named: by which the first host is this machine; None where the command is typed on a third one."""
    addresses = {"lo": "127.0.0.1", **({named: "198.51.100.1"} if named else {})}
    found = {name: [SimpleNamespace(address=address)] for name, address in addresses.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(launch, "_is_local", lambda address: address in addresses.values())
    lines = launch_hosts(["198.51.100.1", "198.51.100.2"], "mps", ["train"]).on_hosts.values()
    told = [line[1].removeprefix("GLOO_SOCKET_IFNAME=") if line[0] == "env" else None for line in lines]
    assert told == interfaces
    assert all("torchrun" in line[:3] for line in lines)


def test_hosts_become_the_launchers_own_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = without_hosts(["train", "--hosts", "a,b", "--out", "my run", "--hosts=a,b"])
    assert arguments == ["train", "--out", "my run"]
    here = launch_hosts(["localhost", "127.0.0.1"], "mps", arguments).here
    assert here is not None
    assert here[1:] == [
        *("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
        *("--nproc-per-node", "2", "-m", "twingpt"),
        *arguments,
    ]
    lines = launch_hosts(["198.51.100.1", "198.51.100.2"], "mps", arguments).on_hosts
    assert [line[line.index("--node-rank") + 1] for line in lines.values()] == ["0", "1"]
    assert all(line[line.index("--master-addr") + 1] == "198.51.100.1" for line in lines.values())
    ring = launch_hosts(["198.51.100.1", "198.51.100.2"], "mlx", arguments).here
    assert ring is not None
    hosts = json.loads(Path(ring[ring.index("--hostfile") + 1]).read_text())
    assert hosts == [{"ssh": f"198.51.100.{i}", "ips": [f"198.51.100.{i}"]} for i in (1, 2)]
    with pytest.raises(UsageError, match="cannot reach localhost"):
        launch_hosts(["localhost", "198.51.100.2"], "mlx", arguments)
    for name in ("no-such-host.invalid", "a..b"):
        with pytest.raises(UsageError, match="has no address"):
            launch_hosts([name], "mlx", arguments)
    with pytest.raises(UsageError, match="a name is missing"):
        launch_hosts(["localhost", ""], "mlx", arguments)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TwinGPTError, match=r"mlx\.launch"):
        launch_hosts(["198.51.100.1", "198.51.100.2"], "mlx", arguments)


@pytest.mark.slow
def test_the_engines_launchers_start_the_ranks(backend_name: str, plain_data: Path, tmp_path: Path) -> None:
    options = ["--data", str(plain_data), *OPTIONS, "--steps", "2", "--hosts", "localhost,localhost"]
    command = [sys.executable, "-m", "twingpt", "train", "--backend", backend_name, "--out", str(tmp_path / "run")]
    result = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=240, check=False, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, result.stderr
    assert "2 ranks" in result.stdout
    assert RunConfig.load(tmp_path / "run").train.batch_size == 4
    assert len(losses(tmp_path / "run")) == 2


@pytest.mark.slow
def test_torchrun_starts_the_ranks_again_and_they_resume(plain_data: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = tmp_path / "run"
    options = ["--backend", "mps", "--out", str(run), "--data", str(plain_data), *OPTIONS, "--steps", "40"]
    process = subprocess.Popen(
        [*launcher, "--max-restarts", "1", "-m", "twingpt", "train", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        wait_for_checkpoint(run, [process])
        psutil.Process(process.pid).children()[1].kill()
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    said = " ".join(said.split())  # the lines are cut at the width of a terminal
    assert "from step 0 to 40" in said
    assert re.search(r"from step [1-9]\d* to 40", said), said
    assert len(losses(run)) == 40


@pytest.mark.slow
def test_torchrun_does_not_go_on_with_what_was_refused(plain_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["-m", "twingpt", "train", "--backend", "mps", "--out", str(run), "--data", str(plain_data), *OPTIONS]
    subprocess.run([sys.executable, *options, "--steps", "4"], check=True, capture_output=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, "--max-restarts", "1", *options, "--steps", "8"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode != 0
    assert result.stderr.count("holds a run at step 4: add --resume") >= 2
    assert len(losses(run)) == 4
