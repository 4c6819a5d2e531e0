"""The products of the MLX engine on Linux, against float64."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from twingpt.backends.mlx.linux_cpu import PLAIN, blas

pytestmark = [
    pytest.mark.usefixtures("mlx_on_the_cpu"),
    pytest.mark.skipif(blas.load() is None, reason="OpenBLAS is used on Linux alone"),
]

SHAPES = [(16_000, 128), (1153, 384), (1, 384), (384, 1), (5, 3), (2, 60_000), (1, 300_000)]


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0.0, 1.0, shape).astype(np.float32)


def check(found: mx.array, wanted: NDArray[np.float64], n_in: int) -> None:
    np.testing.assert_allclose(np.array(found), wanted, rtol=1e-5, atol=3e-5 * n_in**0.5)


@pytest.mark.parametrize("rows", [1, 2, 8, 9])
@pytest.mark.parametrize(("n_out", "n_in"), SHAPES)
def test_few_rows(rows: int, n_out: int, n_in: int) -> None:
    x, weight, bias = normal(rows, n_in), normal(n_out, n_in, seed=1), normal(n_out, seed=2)
    wanted = x.astype(np.float64) @ weight.T.astype(np.float64)
    check(mx.array(x) @ mx.array(weight).T, wanted, n_in)
    check(mx.array(x) @ mx.array(np.ascontiguousarray(weight.T)), wanted, n_in)
    check(mx.addmm(mx.array(bias), mx.array(x), mx.array(weight).T), wanted + bias, n_in)
    # Both factors turned, and one column in place of one row.
    check(mx.array(weight) @ mx.array(x).T, wanted.T, n_in)
    check(mx.array(np.ascontiguousarray(x.T)).T @ mx.array(weight).T, wanted, n_in)
    check(mx.array(np.ascontiguousarray(weight.T)).T @ mx.array(x).T, wanted.T, n_in)


def test_parts_of_larger_arrays_and_batches() -> None:
    x, matrices = normal(3, 1, 40), normal(3, 90, 60, seed=1)
    wanted = x.astype(np.float64) @ matrices[:, 5:75, 10:50].astype(np.float64).transpose(0, 2, 1)
    check(mx.array(x) @ mx.array(matrices)[:, 5:75, 10:50].swapaxes(1, 2), wanted, 40)


def test_what_lay_in_the_result_before_does_not_count() -> None:
    function = ctypes.CDLL(str(blas.vector_products())).cblas_sgemm
    x, weight, result = normal(2, 384), normal(400, 384, seed=1), np.full((2, 400), np.nan, dtype=np.float32)

    def pointer(array: NDArray[np.float32]) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    one, none = ctypes.c_float(1.0), ctypes.c_float(0.0)
    for rows in (1, 2):
        result[:] = np.nan
        function(101, 111, 112, rows, 400, 384, one, pointer(x), 384, pointer(weight), 384, none, pointer(result), 400)
        np.testing.assert_allclose(result[:rows], x[:rows] @ weight.T, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="what is preloaded comes before everything")
def test_mlx_finds_these_products_first() -> None:
    def address(library: str | None) -> int | None:
        return ctypes.cast(ctypes.CDLL(library).cblas_sgemm, ctypes.c_void_p).value

    assert address(None) == address(str(blas.vector_products())) != address(blas.NAME)


def test_the_library_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = blas.vector_products()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it was made again"))
    assert blas.vector_products() == made
    assert list((tmp_path / "twingpt").iterdir()) == [made]


def test_without_a_compiler_openblas_does_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(OSError, match=r"g\+\+"):
        blas.vector_products()
    assert blas.load() is not None


def test_the_variable_leaves_mlx_its_own_blas() -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom twingpt.backends.mlx.linux_cpu import blas\nlibrary = blas.load()\n"
        "sys.exit(('libopenblas' in Path('/proc/self/maps').read_text()) + (library is not None))"
    )
    for value, found in (("1", 0), ("0", 2)):
        result = subprocess.run([sys.executable, "-c", code], env={**os.environ, PLAIN: value}, check=False)
        assert result.returncode == found, value
