"""Do many clients at once get what each gets alone, for minutes, in flat memory, and how much faster than one by one?

    python benchmarks/serve_load.py RUN [--backend mlx] [--clients 64] [--seconds 300] [--slots 16] [--ask] [--out FILE]

Starts `twingpt serve RUN` and asks CLIENTS greedy questions, first one after the other, then all of them over and over
for SECONDS, streamed and not, as chat and as completion. An answer must equal the one given alone; where it first
differs, the two likeliest tokens must have lain no further apart than ten times the largest error of a log-probability
measured on the way. With --ask each is answered from the run's own text instead, and must be the same to the letter.
Writes results/serve_load.json beside this file; exits 1 if anything failed.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]

GAP_FACTOR = 10.0
SAMPLE_SECONDS = 2.0
FLAT = 1.05
SUBJECTS = ("여권", "비자", "집", "병원", "학교", "은행", "택시", "휴대전화")
WISHES = ("잃어버렸을 때", "연장할 때", "구할 때", "바꿀 때", "갈 때", "만들 때", "탈 때", "쓸 때")


@dataclass(frozen=True)
class Answer:
    """names: the tokens; logprobs: of each; gaps: between the two likeliest in its place."""

    names: list[str]
    logprobs: list[float]
    gaps: list[float]


@dataclass
class Tally:
    answers: int = 0
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    unequal: list[tuple[float, int]] = field(default_factory=list)
    """(gap alone where an answer first differs, client)."""
    error: float = 0.0
    """Largest difference of a log-probability from the one alone, over equal beginnings."""
    memory: list[int] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


def question(client: int) -> str:
    return f"{SUBJECTS[client % 8]} {WISHES[client // 8 % 8]} 할 일 {client}"


async def ask(http: httpx.AsyncClient, client: int, options: argparse.Namespace, *, stream: bool) -> Answer:
    """Odd clients chat, even ones complete; where the run's text answers, all chat."""
    chat = client % 2 == 1 or options.ask
    body: dict[str, Any] = {"stream": stream, "user": str(client)}
    if chat:
        body |= {"messages": [{"role": "user", "content": question(client)}]}
    else:
        body |= {"prompt": question(client), "logprobs": 2}
    if options.ask:
        body |= {"model": options.run.name}
    else:
        body |= {"model": f"{options.run.name}:free", "temperature": 0, "max_tokens": options.tokens}
        body |= {"logprobs": True, "top_logprobs": 2} if chat else {}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    if not stream:
        response = await http.post(path, json=body)
        response.raise_for_status()
        return read([response.json()], chat)
    async with http.stream("POST", path, json=body) as response:
        response.raise_for_status()
        lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    if lines[-1] != "data: [DONE]":
        raise RuntimeError("a stream ended early")
    return read([json.loads(line.removeprefix("data: ")) for line in lines[:-1]], chat)


def read(parts: list[dict[str, Any]], chat: bool) -> Answer:
    answer = Answer([], [], [])
    for part in parts:
        if "error" in part:
            raise RuntimeError(part["error"]["message"])
        choice = part["choices"][0]
        given = choice.get("logprobs")
        if given is None:
            # From the run's own text: there are no tokens, and the text must be the same to the last character.
            for character in (choice.get("message") or choice.get("delta") or {}).get("content") or "":
                answer.names.append(character)
                answer.logprobs.append(0.0)
                answer.gaps.append(float("inf"))
            continue
        if chat:
            answer.names.extend(entry["token"] for entry in given["content"])
            answer.logprobs.extend(entry["logprob"] for entry in given["content"])
            tops = [[one["logprob"] for one in entry["top_logprobs"]] for entry in given["content"]]
        else:
            answer.names.extend(given["tokens"])
            answer.logprobs.extend(given["token_logprobs"])
            tops = [list(one.values()) for one in given["top_logprobs"]]
        answer.gaps.extend(abs(top[0] - top[1]) for top in tops)
    return answer


def compare(alone: Answer, now: Answer, client: int, tally: Tally) -> None:
    for index, (expected, found) in enumerate(zip(alone.names, now.names, strict=False)):
        if expected != found:
            tally.unequal.append((alone.gaps[index], client))
            return
        tally.error = max(tally.error, abs(alone.logprobs[index] - now.logprobs[index]))
    if len(alone.names) != len(now.names):
        tally.errors.append(f"client {client}: {len(now.names)} tokens, alone {len(alone.names)}")


async def one_client(
    http: httpx.AsyncClient, client: int, alone: Answer, options: argparse.Namespace, until: float, tally: Tally
) -> None:
    turn = 0
    while time.perf_counter() < until:
        started = time.perf_counter()
        try:
            answer = await ask(http, client, options, stream=(turn + client // 2) % 2 == 0)
        except (httpx.HTTPError, RuntimeError, KeyError) as error:
            tally.errors.append(f"client {client}: {type(error).__name__} {error}")
        else:
            tally.latencies.append(time.perf_counter() - started)
            tally.answers += 1
            tally.tokens += len(answer.names)
            compare(alone, answer, client, tally)
        turn += 1


async def watch_memory(server: psutil.Process, tally: Tally) -> None:
    while True:
        # What is resident depends on what other programs want; what is the process's own, in memory or swap, does not.
        own = server.memory_full_info()
        tally.memory.append(own.uss + getattr(own, "swap", 0))
        await asyncio.sleep(SAMPLE_SECONDS)


async def measure(base: str, server: psutil.Process, options: argparse.Namespace) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=options.clients)
    async with httpx.AsyncClient(base_url=base, timeout=600, limits=limits, trust_env=False) as http:
        await ask(http, 0, options, stream=False)
        started = time.perf_counter()
        alone = [await ask(http, client, options, stream=False) for client in range(options.clients)]
        alone_rate = sum(len(answer.names) for answer in alone) / (time.perf_counter() - started)
        tally = Tally()
        watching = asyncio.create_task(watch_memory(server, tally))
        started = time.perf_counter()
        until = started + options.seconds
        await asyncio.gather(
            *(one_client(http, client, alone[client], options, until, tally) for client in range(options.clients))
        )
        rate = tally.tokens / (time.perf_counter() - started)
        watching.cancel()
    third = max(1, len(tally.memory) // 3)
    before, after = median(tally.memory[third : 2 * third] or tally.memory), median(tally.memory[-third:])
    wrong = [(gap, client) for gap, client in tally.unequal if gap > GAP_FACTOR * tally.error]
    return {
        "answers": tally.answers,
        "errors": tally.errors[:20],
        "error_count": len(tally.errors),
        "largest_logprob_error": tally.error,
        "unequal_answers": len(tally.unequal),
        "unequal_beyond_the_gap_rule": len(wrong),
        "tokens_per_second_one_client": alone_rate,
        "tokens_per_second_all_clients": rate,
        "median_latency_seconds": median(tally.latencies) if tally.latencies else None,
        "memory_bytes": tally.memory[:: max(1, len(tally.memory) // 20)],
        "memory_middle_third_bytes": before,
        "memory_last_third_bytes": after,
        "passed": not tally.errors and not wrong and tally.answers > 0 and after <= FLAT * before,
    }


def serve(options: argparse.Namespace) -> tuple[subprocess.Popen[str], str]:
    """The server's process and address."""
    command = [sys.executable, "-m", "twingpt", "serve", str(options.run), "--port", "0", "--slots", str(options.slots)]
    command += ["--backend", options.backend, "--queue", str(options.clients)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    assert server.stdout is not None
    for line in server.stdout:
        if match := re.search(r"API\s+(http://\S+)/v1", line):
            return server, match[1]
    raise SystemExit("the server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--backend", default="mlx")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--ask", action="store_true", help="answers from the run's own text")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "serve_load.json")
    options = parser.parse_args()
    server, base = serve(options)
    try:
        result = asyncio.run(measure(base, psutil.Process(server.pid), options))
    finally:
        server.terminate()
        server.wait()
    settings = {name: getattr(options, name) for name in ("backend", "clients", "seconds", "slots", "tokens", "ask")}
    result = {"machine": platform.platform(), "cores": os.cpu_count(), "settings": settings, **result}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2, ensure_ascii=False))
    raise SystemExit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
