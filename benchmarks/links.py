"""Is the cost model of `twingpt plan` right? Two processes, a throttled cable between them, predicted and measured.

    python benchmarks/links.py allreduce [--backend mps mlx] [--gbits 1 2.5 0] [--megabytes 1 10 25 50]
    python benchmarks/links.py train [--backend mps mlx] [--gbits 1] [--size small] [--batch-size 4] [--rounds 3]

Needs root, for two network namespaces joined by a cable that tc's tbf slows down; --gbits 0 leaves it as fast as this
machine copies, --delay adds ms where the kernel has netem. `allreduce` times the runtimes' sum of float32 values alone.
`train` times whole updates: first the whole batch on one process (one in each namespace, so that both cores are busy
then too), which tells the plan how fast a machine is, then the two together, in turns; the plan must come within 25 %.
Each process has one core and one thread. Writes results/links.json beside this file.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from estimates import make_data
from namespaces import ADDRESSES, PAYLOAD, Cable

RESULTS = Path(__file__).parent / "results" / "links.json"
RAW_BYTES = 50_000_000
PINGS = 300
REPEATS = 5
VOCABULARY = 4000
MODELS = {
    "small": {"n_layer": 4, "n_head": 4, "n_embd": 256},
    "seed": {"n_layer": 6, "n_head": 6, "n_embd": 384},
}
TOLERANCE = 0.25

Row = dict[str, Any]


def all_reduces(options: argparse.Namespace) -> list[Row]:
    """Every rate, engine and size: the median of some sums, in ms, and what the plan says."""
    from twingpt.measure.cost import all_reduce_seconds

    rows = []
    for gbits in options.gbits:
        with Cable(gbits, options.delay) as cable:
            raw = raw_link(cable)
            print(f"{gbits:g} Gbit/s: TCP {raw['gbits']:.2f} Gbit/s both ways, {raw['latency_ms']:.3f} ms", flush=True)
            link = planned_link(gbits, options.delay, raw)
            for backend in options.backend:
                sizes = [str(megabytes) for megabytes in options.megabytes]
                for megabytes, seconds in both(cable, backend, sizes):
                    row = {
                        "backend": backend,
                        "gbits": gbits,
                        "delay_ms": options.delay,
                        "megabytes": megabytes,
                        "planned": all_reduce_seconds(megabytes * 1e6, 2, link, backend),
                        "measured": seconds,
                        "raw": raw,
                    }
                    rows.append(row)
                    print_row(f"{backend} {megabytes:g} MB", row)
    return rows


def trainings(options: argparse.Namespace) -> list[Row]:
    """Every rate and engine: the median time of an update of both together, and what the plan says."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        make_data(data, VOCABULARY)
        config = Path(folder) / "model.toml"
        config.write_text("[model]\n" + "".join(f"{name} = {value}\n" for name, value in MODELS[options.size].items()))
        for gbits in options.gbits:
            with Cable(gbits, options.delay) as cable:
                raw = raw_link(cable)
                for backend in options.backend:
                    command = train_command(data, config, backend, options)
                    speeds: dict[str, list[float]] = {"alone": [], "together": []}
                    for number in range(options.rounds):
                        for how in ("alone", "together") if number % 2 == 0 else ("together", "alone"):
                            speeds[how].append(train(cable, Path(folder) / "run", command, together=how == "together"))
                    row = compare(
                        backend, gbits, options, raw, {how: statistics.median(s) for how, s in speeds.items()}
                    )
                    rows.append({**row, "speeds": speeds})
                    print_row(f"{backend} {gbits:g} Gbit/s, {row['alone']:.3f} s alone", row)
    return rows


def train_command(data: Path, config: Path, backend: str, options: argparse.Namespace) -> list[str]:
    return [
        *(sys.executable, "-m", "twingpt", "train", "--data", str(data), "--config", str(config)),
        *("--backend", backend, "--device", "cpu", "--dropout", "0", "--optimizer", options.optimizer),
        *("--batch-size", str(options.batch_size), "--micro-batch", str(options.batch_size // 2)),
        *("--steps", str(options.steps), "--log-every", "3", "--eval-every", "0", "--save-every", "0"),
    ]


def train(cable: Cable, run: Path, command: list[str], *, together: bool) -> float:
    """Tokens a second: of the two as ranks of one run, or the mean of two runs side by side."""
    outs = [run, run] if together else [run.with_suffix(f".{rank}") for rank in range(2)]
    try:
        commands = ([*command, "--out", str(outs[0])], [*command, "--out", str(outs[1])])
        backend = command[command.index("--backend") + 1]
        environments = [cable.environment(rank, backend) if together else {} for rank in range(2)]
        cable.run(commands, (environments[0], environments[1]))
        return statistics.mean(speed_of(out) for out in dict.fromkeys(outs))
    finally:
        for out in outs:
            shutil.rmtree(out, ignore_errors=True)


def speed_of(run: Path) -> float:
    """The median of what the run logged, without the first line: it holds the start."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    speeds: list[float] = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    return statistics.median(speeds[1:])


def compare(backend: Any, gbits: float, options: argparse.Namespace, raw: Row, speeds: dict[str, float]) -> Row:
    from twingpt.core.spec import GPTSpec
    from twingpt.measure.cost import predict
    from twingpt.measure.speeds import from_speed
    from twingpt.training.config import TrainConfig

    spec = GPTSpec(vocab_size=VOCABULARY, block_size=256, dropout=0.0, **MODELS[options.size])  # type: ignore[arg-type]
    config = TrainConfig(
        batch_size=options.batch_size, micro_batch=options.batch_size // 2, optimizer=options.optimizer
    )
    machine = from_speed("here", None, spec, config, speeds["alone"], "measured")
    cost = predict(spec, config, backend, machine, planned_link(gbits, options.delay, raw), 2)
    return {
        "backend": backend,
        "size": options.size,
        "batch_size": options.batch_size,
        "gbits": gbits,
        "delay_ms": options.delay,
        "planned": cost.step,
        "measured": cost.tokens / speeds["together"],
        "alone": cost.tokens / speeds["alone"],
        "parts": {name: getattr(cost, name) for name in ("compute", "communication", "exposed", "copies", "update")},
        "raw": raw,
    }


def planned_link(gbits: float, delay: float, raw: Row) -> Any:
    """What tbf lets through; a cable that nothing slows down is as fast as it was measured."""
    from twingpt.measure.links import own_link

    return own_link(gbits * PAYLOAD if gbits else raw["gbits"], delay or raw["latency_ms"])


def print_row(what: str, row: Row) -> None:
    error = row["planned"] / row["measured"] - 1.0
    print(f"  {what}: planned {row['planned']:.4f} s, measured {row['measured']:.4f} s ({error:+.0%})", flush=True)


def raw_link(cable: Cable) -> Row:
    """Plain TCP: Gbit/s of payload with both directions full, and half a round trip of one byte in ms."""
    out, _ = cable.run((_worker("raw", 0), _worker("raw", 1)), ({}, {}))
    row: Row = json.loads(out.splitlines()[-1])
    return row


def both(cable: Cable, backend: str, sizes: list[str]) -> list[tuple[float, float]]:
    """(megabytes, seconds) of each size, as rank 0 saw them."""
    commands = (_worker(backend, 0, *sizes), _worker(backend, 1, *sizes))
    out, _ = cable.run(commands, (cable.environment(0, backend), cable.environment(1, backend)))
    return [(megabytes, seconds) for megabytes, seconds in json.loads(out.splitlines()[-1])]


def _worker(kind: str, rank: int, *sizes: str) -> list[str]:
    return [sys.executable, __file__, "worker", kind, str(rank), *sizes]


def work(kind: str, rank: int, sizes: list[str]) -> None:
    """What a process in a namespace does; rank 0 prints the answer."""
    if kind == "raw":
        answer: Any = raw(rank)
    else:
        start = torch_sum if kind == "mps" else mlx_sum
        answer = [(float(size), timed(start(int(float(size) * 1e6 / 4)), start(2))) for size in sizes]
    print(json.dumps(answer))
    if kind == "mps":
        import torch.distributed as dist

        dist.destroy_process_group()


def raw(rank: int) -> Row:
    with connected(rank) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = []
        for _ in range(PINGS):
            start = time.perf_counter()
            if rank == 0:
                peer.sendall(b"x")
                peer.recv(1)
            else:
                peer.recv(1)
                peer.sendall(b"x")
            trips.append(time.perf_counter() - start)
        data = memoryview(bytearray(RAW_BYTES))
        seconds = min(exchange(peer, data) for _ in range(3))
    return {"gbits": RAW_BYTES * 8 / seconds / 1e9, "latency_ms": statistics.median(trips) / 2 * 1000}


def connected(rank: int) -> socket.socket:
    if rank == 0:
        with socket.create_server((ADDRESSES[0], 6000)) as server:
            return server.accept()[0]
    for _ in range(200):
        try:
            return socket.create_connection((ADDRESSES[0], 6000))
        except OSError:
            time.sleep(0.05)
    raise TimeoutError("the other namespace does not answer")


def exchange(peer: socket.socket, data: memoryview) -> float:
    """Seconds in which all of `data` went each way at once."""
    buffer = bytearray(1 << 20)
    sender = threading.Thread(target=peer.sendall, args=(data,))
    start = time.perf_counter()
    sender.start()
    left = len(data)
    while left:
        left -= peer.recv_into(buffer, min(left, len(buffer)))
    sender.join()
    return time.perf_counter() - start


def torch_sum(count: int) -> Callable[[], None]:
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
    values = torch.ones(count)
    return lambda: dist.all_reduce(values) and None


def mlx_sum(count: int) -> Callable[[], None]:
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    group = mx.distributed.init(strict=True, backend="ring")
    values = mx.ones(count)
    mx.eval(values)
    return lambda: mx.eval(mx.distributed.all_sum(values, group=group))


def timed(together: Callable[[], None], meet: Callable[[], None]) -> float:
    """The median; the first one, which takes memory, is left out."""
    together()
    seconds = []
    for _ in range(REPEATS):
        meet()
        start = time.perf_counter()
        together()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        work(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["allreduce", "train"])
    parser.add_argument("--backend", nargs="+", default=["mps", "mlx"])
    parser.add_argument("--gbits", nargs="+", type=float)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--megabytes", nargs="+", type=float, default=[1, 10, 25, 50])
    parser.add_argument("--size", choices=list(MODELS), default="small", help="small: one group of gradients")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--optimizer", default="adamw")
    options = parser.parse_args()
    options.gbits = options.gbits or ([1.0, 2.5, 0.0] if options.what == "allreduce" else [1.0])
    rows = all_reduces(options) if options.what == "allreduce" else trainings(options)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[options.what] = {"machine": platform.platform(), "cores": os.cpu_count(), "rows": rows}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if options.what == "train" and any(abs(row["planned"] / row["measured"] - 1) > TOLERANCE for row in rows):
        sys.exit(f"the plan is off by more than {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
