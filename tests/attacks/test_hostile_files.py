"""Damaged files of every format that is read: refused in one line or read, never a traceback or a crash."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.attacks.mutations import FORMATS, bombarded, read_manifest, write_all
from twingpt.core.errors import TwinGPTError


def assert_nothing_broke(folder: Path, numbers: range) -> None:
    told = list(bombarded(folder, numbers, seed=0))
    assert [number for number, _, _ in told] == list(numbers)
    assert [(number, what, broken) for number, what, broken in told if broken] == []


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    assert_nothing_broke(tmp_path, range(120))


@pytest.mark.slow
def test_many_more_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    assert_nothing_broke(tmp_path, range(120, 2120))


@pytest.mark.parametrize("content", ["[]", "7", "null", "[" * 100_000])
def test_json_that_is_no_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(TwinGPTError, match=r"manifest\.json"):
        read_manifest(tmp_path)


@seed(0)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(what=st.sampled_from([name for name in FORMATS if not name.startswith("checkpoint")]), content=st.binary())
def test_any_bytes_in_place_of_a_file(tmp_path: Path, what: str, content: bytes) -> None:
    name, read, _ = FORMATS[what]
    folder = tmp_path / what
    if not folder.exists():
        folder.mkdir()
        write_all(folder)
    (folder / name).write_bytes(content)
    try:
        read(folder)
    except TwinGPTError as error:
        assert "\n" not in str(error)
