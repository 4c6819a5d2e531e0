"""`--template plain` is plain: what a file says is trained on as it says it, with one [EOS] a document."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.test_cli import Cli, cli
from twingpt.core.errors import UsageError
from twingpt.data.prepare.pipeline import Prepared, PrepareSettings, prepare
from twingpt.data.tokens.manifest import Manifest
from twingpt.data.tokens.tokenizer import Tokenizer

__all__ = ["cli"]


def made(folder: Path, texts: dict[str, str], **settings: object) -> tuple[Prepared, list[str], str]:
    """(what `prepare` says, the documents to train on, the text held out) of files with these names and texts."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    for name, text in texts.items():
        (raw / name).write_text(text, encoding="utf-8")
    chosen = PrepareSettings(**{"template": "plain", "val_fraction": 0.0, **settings})  # type: ignore[arg-type]
    prepared = prepare([str(raw)], folder / "data", chosen, workers=1)
    tokenizer = Tokenizer.load(folder / "data" / "tokenizer.json")
    train, val = (
        tokenizer.decode(np.fromfile(folder / "data" / f"{name}.bin", dtype=np.uint16)) for name in ("train", "val")
    )
    assert train.count("[BOS]") == train.count("[EOS]")
    return prepared, train.removesuffix("[EOS]").removeprefix("[BOS]").split("[EOS][BOS]"), val


STORY = "“그래.”\n\n비가 왔다.\n\n“그래.”\n\n" + "\n\n".join(f"문단 {n}이다. 전화 112를 눌렀다." for n in range(40))
INTERVIEW = "\n\n".join(
    f"김철수\n질문 {n}에 답하겠습니다. 그 해에는 {n}번 다녀왔습니다.\n다시 말하지만 그렇습니다." for n in range(60)
)
PARAGRAPH = "그는 오래 걸었고 비는 그치지 않았다. " * 160


@pytest.mark.parametrize("text", [STORY, INTERVIEW, PARAGRAPH.strip(), "TEL. 02-8555-0123\n\n" + STORY])
def test_a_file_is_one_document_and_stays_as_it_is(tmp_path: Path, text: str) -> None:
    prepared, documents, _ = made(tmp_path, {"novel.txt": text + "\n"})
    assert documents == [text]
    assert not prepared.report["clean"]["changes"].keys() - {"contacts found"}
    assert prepared.report["clean"]["dropped_shares"] == {}


def test_files_are_documents_in_the_order_of_their_names(tmp_path: Path) -> None:
    files = {"b.txt": "둘째 글.\n\n그 뒤." * 9, "a.txt": "첫째 글." * 9, "c.txt": "셋째 글." * 9}
    prepared, documents, _ = made(tmp_path, files)
    assert documents == [files[name] for name in sorted(files)]
    assert [one["documents"] for one in prepared.report["clean"]["read_as"]] == [1, 1, 1]
    assert prepared.report["clean"]["documents"] == 3


@pytest.mark.parametrize(
    ("separator", "text", "documents"),
    [
        (
            "file",
            "첫 글은 짧다.\n\n***\n\n이어진다.<|endoftext|>\n다음 글.",
            ["첫 글은 짧다.\n\n***\n\n이어진다.", "다음 글."],
        ),
        ("====", "첫 글은 짧다.\n\n끝.\n====\n다음 글.\n====\n", ["첫 글은 짧다.\n\n끝.", "다음 글."]),
        ("blank-line", "첫 글은 짧다.\n둘째 줄.\n\n다음 글.", ["첫 글은 짧다.\n둘째 줄.", "다음 글."]),
        ("line", "첫 글은 짧다.\n다음 글.", ["첫 글은 짧다.", "다음 글."]),
    ],
)
def test_separators_part_documents(tmp_path: Path, separator: str, text: str, documents: list[str]) -> None:
    assert made(tmp_path, {"a.txt": text}, separator=separator)[1] == documents


def test_a_record_is_a_document_with_its_blank_lines(tmp_path: Path) -> None:
    records = [{"text": f"{n}번 후기입니다.\n\n둘째 문단이 있습니다."} for n in range(20)]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    assert made(tmp_path, {"a.jsonl": lines}, dedup=False)[1] == [record["text"] for record in records]


def test_layout_is_kept_on_request(tmp_path: Path) -> None:
    text = "\t들여 쓴  줄\n\u3000문단\n\n    코드 = 1"
    assert made(tmp_path / "kept", {"a.txt": text}, keep_layout=True)[1] == [text]
    assert made(tmp_path / "not", {"a.txt": text})[1] == ["들여 쓴 줄\n문단\n\n코드 = 1"]


def test_files_that_are_the_same_are_dropped_and_told(tmp_path: Path) -> None:
    files = {
        "a.txt": STORY,
        "b.txt": INTERVIEW,
        "c.txt": STORY.replace("문단 39이다. 전화 112를 눌렀다", "눈이 왔고 잠들었다"),
    }
    prepared, documents, _ = made(tmp_path, files)
    assert documents == [STORY, INTERVIEW]
    ((kind, share),) = prepared.report["clean"]["dropped_shares"].items()
    whole = sum(len(text.encode()) for text in files.values())
    assert kind == "near duplicates dropped" and share == pytest.approx(len(files["c.txt"].encode()) / whole, rel=0.06)
    assert made(tmp_path / "kept", files, dedup=False)[1] == list(files.values())


def test_chunks_of_a_document_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twingpt.data.text.clean.CHUNK", 300)
    prepared, documents, _ = made(tmp_path, {"a.txt": STORY, "b.txt": INTERVIEW, "c.txt": STORY})
    assert documents == [STORY, INTERVIEW]
    assert prepared.report["clean"]["exact_duplicates"] == 1


def test_masked_contacts_are_the_one_thing_that_changes(tmp_path: Path) -> None:
    _, (document,), _ = made(tmp_path, {"a.txt": "사무실\n전화: 02-8555-0123\n\n그래."}, contacts="mask")
    assert "8555" not in document and "[TEL_1]" in document


@pytest.mark.parametrize("lines", [30, 6])
@pytest.mark.parametrize("between", ["\n", "\n\n", " "])
def test_some_lines_are_trained_on_and_evaluated(cli: Cli, tmp_path: Path, lines: int, between: str) -> None:
    text = between.join(f"{n}번째 줄에는 이런 말이 있다." for n in range(lines))
    (tmp_path / "few.txt").write_text(text, encoding="utf-8")
    data, run = tmp_path / "data", tmp_path / "run"
    assert cli("prepare", tmp_path / "few.txt", "--template", "plain", "--out", data)[0] == 0
    manifest, tokenizer = Manifest.load(data), Tokenizer.load(data / "tokenizer.json")
    assert 0 < manifest.val.tokens < manifest.train.tokens
    train, val = (tokenizer.decode(np.fromfile(data / f"{n}.bin", dtype=np.uint16)) for n in ("train", "val"))
    held = val.removeprefix("[BOS]").removesuffix("[EOS]")
    assert held.strip() in text and held.strip() not in train
    assert len(train) + len(val) == len(text) + len("[BOS][EOS]")
    code, out, err = cli("train", "--data", data, "--out", run, "--preset", "tiny", "--steps", 2, "--device", "cpu")
    assert code == 0, err
    code, out, err = cli("eval", run, "--data", data, "--device", "cpu", "--json")
    assert code == 0 and json.loads(out)["loss"] > 0, err


def test_a_single_document_of_questions_is_evaluated_and_told(cli: Cli, tmp_path: Path) -> None:
    text = "\n".join(f"{n}번 창구에서 서류 {n + 2}장을 내고 사흘을 기다립니다." for n in range(12))
    (tmp_path / "few.txt").write_text(text, encoding="utf-8")
    data, run = tmp_path / "data", tmp_path / "run"
    assert cli("prepare", tmp_path / "few.txt", "--out", data)[0] == 0
    code, _, err = cli("train", "--data", data, "--out", run, "--preset", "tiny", "--steps", 1, "--device", "cpu")
    assert code == 0, err
    code, _, err = cli("eval", run, "--data", data, "--device", "cpu", "--json")
    assert code == 0 and "no text held out" in err


def test_what_was_dropped_is_printed_and_warned_of(cli: Cli, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in "abc":
        (raw / f"{name}.txt").write_text(STORY if name != "b" else INTERVIEW, encoding="utf-8")
    _, out, _ = cli("prepare", raw, "--template", "plain", "--out", tmp_path / "data")
    assert "exact duplicates dropped (" in out
    assert "warning: exact duplicates dropped: " in out and "--no-dedup keeps them" in out
    _, out, _ = cli("prepare", raw, "--template", "plain", "--out", tmp_path / "data", "--no-dedup")
    assert "warning" not in out


@pytest.mark.parametrize(
    "settings", [{"separator": "line"}, {"keep_layout": True}, {"separator": "", "template": "plain"}]
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"--separator|--keep-layout"):
        PrepareSettings(**settings)  # type: ignore[arg-type]
