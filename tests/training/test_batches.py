import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from twingpt.core.errors import TwinGPTError
from twingpt.data.tokens.batches import Batches
from twingpt.data.tokens.manifest import Manifest, Split


def write(folder: Path, tokens: list[int], *, layout: str = "contiguous", mask: list[int] | None = None) -> Manifest:
    np.array(tokens, dtype=np.uint16).tofile(folder / "train.bin")
    if mask is not None:
        np.array(mask, dtype=np.uint8).tofile(folder / "train.mask")
    split = Split(
        file="train.bin",
        tokens=len(tokens),
        documents=1,
        text_bytes=1,
        sha256=hashlib.sha256((folder / "train.bin").read_bytes()).hexdigest(),
        mask_file=None if mask is None else "train.mask",
    )
    return Manifest(
        layout=layout,  # type: ignore[arg-type]
        dtype="uint16",
        vocab_size=1000,
        block_size=4,
        pad_id=0,
        template="plain",
        text_sha256="",
        tokenizer_sha256="",
        train=split,
        val=split,
    )


def test_contiguous_windows_leave_no_token_out(tmp_path: Path) -> None:
    batches = Batches(tmp_path, write(tmp_path, list(range(1, 12))), "train", 4)
    assert batches.windows == 3
    inputs, targets = batches.gather([0, 1, 2])
    assert inputs.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]]
    assert targets.tolist() == [[2, 3, 4, 5], [6, 7, 8, 9], [10, 11, -1, -1]]
    assert inputs.dtype == targets.dtype == np.int32


def test_rows_do_not_count_their_padding_nor_what_the_mask_leaves_out(tmp_path: Path) -> None:
    rows = [1, 2, 3, 4, 5, 6, 7, 0, 0, 0]
    manifest = write(tmp_path, rows, layout="rows", mask=[0, 0, 1, 1, 1, 0, 1, 1, 1, 1])
    inputs, targets = Batches(tmp_path, manifest, "train", 4).gather([0, 1])
    assert inputs.tolist() == [[1, 2, 3, 4], [6, 7, 0, 0]]
    assert targets.tolist() == [[-1, 3, 4, 5], [7, -1, -1, -1]]


def test_each_window_once_an_epoch_in_an_order_of_seed_and_epoch(tmp_path: Path) -> None:
    manifest = write(tmp_path, list(range(1, 402)))
    batches = Batches(tmp_path, manifest, "train", 4, seed=1)
    epochs = [[int(row[0]) for row in batches.batch(100 * epoch, 100)[0]] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(1, 401, 4))
    assert epochs[0] != epochs[1] != sorted(epochs[1])
    again = Batches(tmp_path, manifest, "train", 4, seed=1)
    assert [int(row[0]) for row in again.batch(100, 100)[0]] == epochs[1]
    other = Batches(tmp_path, manifest, "train", 4, seed=2)
    assert [int(row[0]) for row in other.batch(0, 100)[0]] != epochs[0]


def test_a_batch_is_the_same_however_it_is_cut(tmp_path: Path) -> None:
    batches = Batches(tmp_path, write(tmp_path, list(range(1, 60))), "train", 4)
    whole = batches.batch(7, 12)[0]
    parts = np.concatenate([batches.batch(7 + i, 3)[0] for i in range(0, 12, 3)])
    assert np.array_equal(whole, parts)


def test_windows_of_an_evaluation_are_spread(tmp_path: Path) -> None:
    batches = Batches(tmp_path, write(tmp_path, list(range(1, 402))), "train", 4)
    assert batches.spread(4) == [0, 25, 50, 75]
    assert batches.spread(0) == batches.spread(1000) == list(range(100))


def test_data_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    manifest = write(tmp_path, list(range(1, 12)))
    with pytest.raises(TwinGPTError, match="11 tokens, fewer than one window of block_size 64"):
        Batches(tmp_path, manifest, "train", 64)
    (tmp_path / "train.bin").write_bytes(b"\0\0\0")
    with pytest.raises(TwinGPTError, match=r"has 3 bytes, its manifest says 22"):
        Batches(tmp_path, manifest, "train", 4)
    (tmp_path / "train.bin").unlink()
    with pytest.raises(TwinGPTError, match="missing"):
        Batches(tmp_path, manifest, "train", 4)


def test_rows_of_another_block_size_are_refused(tmp_path: Path) -> None:
    manifest = write(tmp_path, list(range(1, 11)), layout="rows")
    with pytest.raises(TwinGPTError, match="--block-size 8"):
        Batches(tmp_path, manifest, "train", 8)


def test_a_manifest_survives_and_a_damaged_one_does_not(tmp_path: Path) -> None:
    manifest = write(tmp_path, [1, 2, 3])
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    for text, named in (
        ("{", "cannot be read"),
        ('{"format_version": 9}', "version 9"),
        ('{"format_version": 1}', "damaged"),
    ):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(TwinGPTError, match=named):
            Manifest.load(tmp_path)
    dataclasses.replace(manifest, vocab_size=5).save(tmp_path)
    assert Manifest.load(tmp_path).vocab_size == 5


def test_data_without_a_validation_part_says_what_to_do(tmp_path: Path) -> None:
    manifest = write(tmp_path, list(range(1, 60)))
    (tmp_path / "val.bin").touch()
    empty = dataclasses.replace(manifest.val, file="val.bin", tokens=0, sha256=hashlib.sha256().hexdigest())
    with pytest.raises(TwinGPTError, match="larger --val-fraction"):
        Batches(tmp_path, dataclasses.replace(manifest, val=empty), "val", 4)
