"""How fast is `twingpt prepare`, against the three scripts that its user had and against `tokenizers` alone?

    python benchmarks/prepare_speed.py RAW.txt [--megabytes 30] [--vocab-size 24000] [--json FILE]
    python benchmarks/prepare_speed.py RAW.txt --before FOLDER [--megabytes 20] [--json FILE]

With --before, the whole of `twingpt prepare` (template qa) of this tree against that of another checkout, in turn: wall
and CPU seconds, and memory. Where other programs run too, CPU seconds tell more than wall seconds.

Otherwise three comparisons, each of processes of their own, run in turn on the same text in one go:
  prepare   the user's 01_prepare_samples.py, 02_train_tokenizer.py and 03_build_bin_dataset.py, as they were, against
            `twingpt prepare --template plain` with the same vocabulary size, on the first megabytes of RAW.txt
  train     learning the vocabulary of all of RAW.txt: `tokenizers` against what twingpt uses
  encode    all of RAW.txt: `tokenizers` against what twingpt uses, every id compared
Memory is the sum over the processes of a side (resident), sampled 20 times a second. Needs psutil.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

# The user's own code: their calls, their patterns, their whole-file reads. Only the paths, the vocabulary size and the
# name of the text come from outside.
OLD_SCRIPTS = {
    "01_prepare_samples.py": '''
import random, re
RAW_PATH, OUT_PATH = "raw.txt", "samples.txt"
random.seed(42)

def normalize_text(s):
    s = re.sub(r"[\\x00-\\x08\\x0B\\x0C\\x0E-\\x1F]", " ", s)
    s = re.sub(r"[ \\t]+", " ", s)
    s = re.sub(r"\\n{3,}", "\\n\\n", s)
    s = re.sub(r"(☎|전화|TEL|Tel|tel)\\s*[:：]?\\s*", "TEL: ", s)
    s = re.sub(r"(주소|ADDR|Addr|addr)\\s*[:：]?\\s*", "ADDR: ", s)
    s = re.sub(r"(홈페이지|웹사이트|사이트|WEB|Web|web)\\s*[:：]?\\s*", "WEB: ", s)
    return s.strip()

def split_into_chunks(text, min_len=600, max_len=1800):
    parts = [p.strip() for p in re.split(r"\\n\\s*\\n", text) if p.strip()]
    chunks, buf = [], ""
    for p in parts:
        if len(buf) < min_len:
            buf = (buf + "\\n\\n" + p).strip() if buf else p
        else:
            chunks.append(buf)
            buf = p
    if buf:
        chunks.append(buf)
    final = []
    for c in chunks:
        if len(c) <= max_len:
            final.append(c)
        else:
            for i in range(0, len(c), max_len):
                final.append(c[i:i + max_len].strip())
    return [c for c in final if len(c) >= min_len]

QUESTION_BANK = [
    "이 내용을 이민자가 이해하기 쉽게 요약해줘.",
    "필리핀에서 한국인 입장에서 핵심만 정리해줘.",
    "체크리스트와 주의사항 중심으로 정리해줘.",
    "연락처가 있다면 함께 정리해줘.",
    "초보 이민자를 위한 안내문처럼 자세히 설명해줘.",
]

def build_training_sample(doc):
    tels = re.findall(r"TEL:\\s*([0-9+\\-\\s()]{6,})", doc)
    webs = re.findall(r"WEB:\\s*(\\S+)", doc)
    q = random.choice(QUESTION_BANK)
    hint = doc[:200].replace("\\n", " ").strip()
    contacts = ""
    if tels or webs:
        contacts += "연락처(공공정보):\\n"
        for t in list(dict.fromkeys(tels))[:3]:
            contacts += f"- TEL: {t.strip()}\\n"
        for w in list(dict.fromkeys(webs))[:2]:
            contacts += f"- WEB: {w.strip()}\\n"
    else:
        contacts = "연락처(공공정보):\\n- (문서에 명시된 연락처가 없거나 확인 필요)\\n"
    return f"""[QUESTION]
{q}
[/QUESTION]

[DOC]
{doc}
[/DOC]

[ANSWER]
요약:
- {hint} ...

체크리스트:
- 해야 할 일:
  - (1) 핵심 행동 1
  - (2) 핵심 행동 2
- 준비물:
  - (1) 필요한 서류/정보
- 주의사항:
  - (1) 실수하기 쉬운 점

{contacts}
상세 설명:
이 문서는 필리핀 이민/생활 정보 관점에서 중요한 내용을 담고 있습니다.
위 요약과 체크리스트를 기준으로 실제 상황에 맞게 단계별로 진행하세요.
문서에 포함된 규정/비용/업무시간/관할지역 정보가 있다면 반드시 최신 정보를 재확인하는 것이 좋습니다.
[/ANSWER]

"""

with open(RAW_PATH, "r", encoding="utf-8") as f:
    raw = f.read()
chunks = split_into_chunks(normalize_text(raw))
if len(chunks) > 30000:
    chunks = chunks[:30000]
with open(OUT_PATH, "w", encoding="utf-8") as f:
    for c in chunks:
        f.write(build_training_sample(c))
''',
    "02_train_tokenizer.py": """
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
tokenizer = Tokenizer(BPE(unk_token="[UNK]"))
tokenizer.pre_tokenizer = Whitespace()
trainer = BpeTrainer(
    vocab_size=VOCAB_SIZE, special_tokens=["[PAD]", "[UNK]", "[BOS]", "[EOS]"], show_progress=True
)
tokenizer.train(["samples.txt"], trainer=trainer)
tokenizer.save("tokenizer.json")
""",
    "03_build_bin_dataset.py": """
import numpy as np
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file("tokenizer.json")
with open("samples.txt", "r", encoding="utf-8") as f:
    text = f.read()
ids = tokenizer.encode(text).ids
arr = np.array(ids, dtype=np.uint16)
n = len(arr)
n_val = int(n * 0.01)
arr[:-n_val].tofile("train.bin")
arr[-n_val:].tofile("val.bin")
""",
}


def measure(command: list[str], folder: Path) -> dict[str, float]:
    """Wall seconds and peak memory in MiB of a command and the processes it starts. Ends this script if it fails."""
    started = time.perf_counter()
    with (folder / "log").open("w") as log:
        process = psutil.Popen(command, cwd=folder, stdout=log, stderr=log)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _resident(process))
            time.sleep(0.05)
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{(folder / 'log').read_text()[-2000:]}")
    return {"seconds": seconds, "mib": peak / 2**20}


def _resident(process: psutil.Process) -> int:
    total = 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.Error:
            continue
    return total


def compare_prepare(text: Path, size: int, vocab_size: int, folder: Path) -> dict[str, Any]:
    raw = folder / "raw.txt"
    with text.open("rb") as file:
        data = file.read(size)
    raw.write_bytes(data[: data.rfind(b"\n") + 1])
    old: dict[str, dict[str, float]] = {}
    for name, code in OLD_SCRIPTS.items():
        (folder / name).write_text(code.replace("VOCAB_SIZE", str(vocab_size)), encoding="utf-8")
        old[name] = measure([sys.executable, name], folder)
    options = ["--out", "data", "--template", "plain", "--vocab-size", str(vocab_size), "--json"]
    new = measure([sys.executable, "-m", "twingpt", "prepare", "raw.txt", *options], folder)
    return {
        "megabytes": raw.stat().st_size / 1e6,
        "old": {
            "seconds": sum(part["seconds"] for part in old.values()),
            "mib": max(part["mib"] for part in old.values()),
            "scripts": old,
        },
        "new": new,
    }


def compare_trees(text: Path, size: int, before: Path, folder: Path) -> dict[str, Any]:
    """`twingpt prepare` of another checkout and of this one, both with the packages of this Python."""
    raw = folder / "raw.txt"
    with text.open("rb") as file:
        data = file.read(size)
    raw.write_bytes(data[: data.rfind(b"\n") + 1])
    found: dict[str, Any] = {"megabytes": raw.stat().st_size / 1e6}
    for name, tree in (("old", before.resolve()), ("new", Path(__file__).resolve().parents[1])):
        command = [sys.executable, "-m", "twingpt", "prepare", "raw.txt", "--out", f"data {name}", "--json"]
        os.environ["PYTHONPATH"] = str(tree)
        started = resource.getrusage(resource.RUSAGE_CHILDREN)
        found[name] = measure(command, folder)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        found[name]["cpu_seconds"] = ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime
    return found


def compare_part(part: str, engines: tuple[str, str], text: Path, vocab_size: int, folder: Path) -> dict[str, Any]:
    """One part done by two engines, each in a process of its own that writes what it took to a file."""
    results: dict[str, Any] = {"megabytes": text.stat().st_size / 1e6}
    for name, engine in zip(("old", "new"), engines, strict=True):
        command = [sys.executable, str(Path(__file__).resolve()), "--part", part, engine, str(text), str(vocab_size)]
        peak = measure(command, folder)["mib"]
        results[name] = {"engine": engine, "mib": peak, **json.loads((folder / f"{engine}.json").read_text())}
    return results


def documents(text: Path) -> Iterator[str]:
    with text.open(encoding="utf-8", newline="\n") as file:
        lines: list[str] = []
        for line in file:
            if line == "\n" and lines:
                yield "".join(lines)
                lines = []
            lines.append(line)
        yield "".join(lines)


def part_train(engine: Any, text: Path, vocab_size: int) -> dict[str, Any]:
    from twingpt.data.tokens.tokenizer import train_tokenizer

    started = time.perf_counter()
    tokenizer = train_tokenizer(documents(text), vocab_size, engine=engine)
    seconds = time.perf_counter() - started
    tokenizer.save("trained.json")
    return {"seconds": seconds, "vocab_size": tokenizer.vocab_size}


def part_encode(engine: str, text: Path, vocab_size: int) -> dict[str, Any]:
    import hashlib

    from twingpt.data.tokens.tokenizer import Tokenizer

    tokenizer = Tokenizer.load("trained.json", fast=engine != "tokenizers")
    if tokenizer.engine != engine:
        sys.exit(f"{engine} is not installed: pip install {engine}")
    digest = hashlib.sha256()
    tokens = 0
    batch: list[str] = []
    size = 0
    started = time.perf_counter()
    for document in documents(text):
        batch.append(document)
        size += len(document)
        if size > 1 << 20:
            ids, _ = tokenizer.encode_flat(batch)
            digest.update(ids.astype("<u4").tobytes())
            tokens += len(ids)
            batch, size = [], 0
    ids, _ = tokenizer.encode_flat(batch)
    digest.update(ids.astype("<u4").tobytes())
    tokens += len(ids)
    return {"seconds": time.perf_counter() - started, "tokens": tokens, "ids_sha256": digest.hexdigest()}


def show(results: dict[str, Any]) -> None:
    print(f"{'':<10}{'MB':>7}{'before s':>10}{'now s':>9}{'faster':>8}{'before MiB':>12}{'now MiB':>9}{'memory':>8}")
    for name in ("prepare", "train", "encode"):
        row = results[name]
        old, new = row["old"], row["new"]
        print(
            f"{name:<10}{row['megabytes']:>7.1f}{old['seconds']:>10.1f}{new['seconds']:>9.1f}"
            f"{old['seconds'] / new['seconds']:>7.2f}x{old['mib']:>12.0f}{new['mib']:>9.0f}"
            f"{new['mib'] / old['mib']:>7.2f}x"
        )
    encode = results["encode"]
    same = encode["old"]["ids_sha256"] == encode["new"]["ids_sha256"]
    print(
        f"encoding: {encode['megabytes'] / encode['new']['seconds']:.1f} MB/s, "
        f"{encode['new']['tokens']:,} ids {'equal' if same else 'NOT EQUAL'} to those of tokenizers"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {
        "machine": f"{platform.machine()} {platform.system()}, {psutil.cpu_count()} cores",
        "python": platform.python_version(),
        "vocab_size": arguments.vocab_size,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        text = arguments.text.resolve()
        results["prepare"] = compare_prepare(text, int(arguments.megabytes * 1e6), arguments.vocab_size, folder)
        for part, engines in (("train", ("tokenizers", "rustbpe")), ("encode", ("tokenizers", "gigatoken"))):
            results[part] = compare_part(part, engines, text, arguments.vocab_size, folder)
    return results


def main() -> None:
    if sys.argv[1:2] == ["--part"]:
        part, engine, text, vocab_size = sys.argv[2:6]
        work: Callable[[str, Path, int], dict[str, Any]] = part_train if part == "train" else part_encode
        Path(f"{engine}.json").write_text(json.dumps(work(engine, Path(text), int(vocab_size))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--megabytes", type=float, default=30, help="of the text for the prepare comparison")
    parser.add_argument("--vocab-size", type=int, default=24_000, help="the user's own scripts had 24000")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit, to compare with")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if arguments.before is not None:
        with tempfile.TemporaryDirectory() as temporary:
            size = int(arguments.megabytes * 1e6)
            results = compare_trees(arguments.text.resolve(), size, arguments.before, Path(temporary))
        for name in ("old", "new"):
            print(name, ", ".join(f"{key} {value:.1f}" for key, value in results[name].items()))
    else:
        results = run(arguments)
        print(results["machine"])
        show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
