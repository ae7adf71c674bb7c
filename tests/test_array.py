"""Arrays on devices, the choice of a device, random numbers, and what importing costs."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import kernelforge as kf
import kernelforge.numpy as knp
from kernelforge import errors
from kernelforge.backends import registry

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(params=["reference", "cpu"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    found = registry.available().get(request.param)
    if found is None or isinstance(found, str):
        pytest.skip(f"no {request.param} here: {found}")
    with kf.default_device(request.param):
        yield request.param


class TestArray:
    def test_attributes(self, device: str) -> None:
        a = kf.asarray(X)
        assert (a.shape, a.dtype, a.ndim, a.size, a.itemsize, a.nbytes) == ((2, 3), np.float32, 2, 6, 4, 24)
        assert a.strides == (12, 4)
        assert a.device == device
        assert len(a) == 2
        np.testing.assert_array_equal(a.T, X.T)
        np.testing.assert_array_equal(a.mT, X.T)

    def test_to_numpy(self, device: str) -> None:
        a = kf.jit(lambda x: x * 2)(X)
        host = np.asarray(a)
        assert not host.flags.writeable
        np.testing.assert_array_equal(host, X * 2)
        if device == "cpu":
            assert np.shares_memory(host, np.asarray(a))
        assert np.asarray(a, np.float64).dtype == np.float64
        assert np.array(a).flags.writeable
        del a
        np.testing.assert_array_equal(host, X * 2)
        with pytest.raises(ValueError, match="without a copy"):
            kf.asarray(X).__array__(np.int8, copy=False)

    def test_asarray(self, device: str) -> None:
        for x in (
            X,
            X[:, ::-1],
            X[:0],
            X.T,
            [[1, 2], [3, 4]],
            3.5,
            True,
            np.float16(2),
            X.astype(">f4"),
            X.astype(ml_dtypes.bfloat16),
        ):
            np.testing.assert_array_equal(kf.asarray(x), np.asarray(x))
            assert kf.asarray(x).dtype == np.asarray(x).dtype.newbyteorder("=")
        assert kf.asarray(X, np.float64).dtype == np.float64
        a = kf.asarray(X)
        assert kf.asarray(a) is a
        assert kf.asarray(a, np.int8).dtype == np.int8
        with pytest.raises(errors.UnsupportedDtype):
            kf.asarray(X.astype(complex))
        with pytest.raises(errors.UnsupportedDtype):
            kf.asarray(["text"])

    def test_shares_host_memory(self) -> None:
        mine = X.copy()
        a = kf.asarray(mine, device="cpu")
        mine[0, 0] = 42
        assert float(a[0, 0]) == 42
        assert np.shares_memory(np.asarray(a), mine)

    def test_conversions(self, device: str) -> None:
        one = kf.asarray(np.array(2.5))
        assert (float(one), int(one), bool(one), complex(one), one.item(), f"{one:.2f}") == (
            2.5,
            2,
            True,
            2.5 + 0j,
            2.5,
            "2.50",
        )
        assert [10, 20, 30][kf.asarray(1)] == 20
        assert kf.asarray(X).tolist() == X.tolist()
        with pytest.raises(ValueError, match="ambiguous"):
            bool(kf.asarray(X))
        with pytest.raises(TypeError, match="len"):
            len(one)
        with pytest.raises(TypeError, match="iteration"):
            iter(one)

    def test_operators(self, device: str) -> None:
        a = kf.asarray(X)
        for found, expected in (
            (a + 1, X + 1),
            (2 - a, 2 - X),
            (a * X, X * X),
            (X / (a + 1), X / (X + 1)),
            (a @ a.T, X @ X.T),
            (-a, -X),
            (a**2, X**2),
            (a // 2, X // 2),
            (a % 2, X % 2),
            (a > 2, X > 2),
            (a == 3, X == 3),
            (abs(-a), X),
            (np.float32(2) * a, 2 * X),
            (np.exp(a), np.exp(X)),
            (a.sum(0), X.sum(0)),
            (np.sum(a, 1), X.sum(1)),
            (a.reshape(3, 2), X.reshape(3, 2)),
            (a.astype(int), X.astype(int)),
            (divmod(a, 2)[1], X % 2),
            (round(a), X),
        ):
            assert isinstance(found, kf.Array)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            assert found.dtype == expected.dtype
        a += 1
        np.testing.assert_array_equal(a, X + 1)

    def test_immutable(self, device: str) -> None:
        a = kf.asarray(X)
        with pytest.raises(errors.ImmutableArray, match=r"x = x.at\[index\].set\(value\)"):
            a[0] = 1
        with pytest.raises(errors.ImmutableArray):
            np.add(a, 1, out=a)
        with pytest.raises(TypeError, match="unhashable"):
            hash(a)
        np.testing.assert_array_equal(a.at[0].set(7), [[7, 7, 7], [3, 4, 5]])

    def test_numpy_arrays_take_them(self, device: str) -> None:
        x = kf.asarray(np.array([6.0, 2.0, 4.0]))
        a, b, c = np.ones(3), np.ones(3, np.float32), np.zeros((2, 3))
        a -= 0.5 * x
        b *= x[0]
        np.sum(np.stack([x, x]), axis=0, out=c[0])
        np.cumsum(x, out=c[1])
        np.add.at(a, np.array([0, 0, 1]), x)
        np.subtract.at(b, [2], x[:1])
        np.log(x, out=c[0], where=x > 3)
        np.testing.assert_array_equal(a, [6, 4, -1])
        np.testing.assert_array_equal(b, [6, 6, 0])
        np.testing.assert_allclose(c, [[np.log(6), 4, np.log(4)], [6, 8, 12]])
        np.copyto(a, x)
        np.put(b, [1], x)
        np.putmask(c, c == 4, x)
        assert a.tolist() == [6, 2, 4]
        assert b.tolist() == [6, 6, 0]
        assert c[0, 1] == 2
        whole = np.zeros(3, int)
        with pytest.raises(TypeError, match="same_kind"):
            whole += x
        np.add.at(whole, [0, 0], x[:1] + 0.75)  # in float64, and cast each time
        assert whole.tolist() == [12, 0, 0]
        with pytest.raises(errors.ShapeMismatch, match=r"np\.sum: shapes \(2, 3\) do not fit; expected out of shape"):
            np.sum(x, out=c)

    def test_functions_that_compute_nothing(self, device: str, tmp_path: Path) -> None:
        x = kf.asarray(X)
        np.savez(tmp_path / "x.npz", x=x)
        np.save(tmp_path / "x.npy", x)
        np.savetxt(tmp_path / "x.txt", x)
        np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["x"], X)
        np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), X)
        np.testing.assert_array_equal(np.loadtxt(tmp_path / "x.txt"), X)
        assert np.array2string(x[0]) == "[0. 1. 2.]"
        assert np.random.default_rng(0).permutation(x).shape == X.shape
        with pytest.raises(errors.NotForArrays, match=r"np\.fft\.fft is not there for .* pass np\.asarray\(x\)"):
            np.fft.fft(x)
        with pytest.raises(errors.UnsupportedAttribute, match=r"no tobytes.*: np\.asarray\(x\)\.tobytes is NumPy's"):
            x.tobytes()

    def test_index_and_iterate(self, device: str) -> None:
        a = kf.asarray(X)
        np.testing.assert_array_equal(a[1, ::-1], X[1, ::-1])
        np.testing.assert_array_equal(a[a > 2], X[X > 2])
        np.testing.assert_array_equal([np.asarray(row) for row in a], X)

    def test_repr(self, device: str) -> None:
        assert repr(kf.asarray(X)) == f"Array([[0., 1., 2.],\n       [3., 4., 5.]], dtype=float32, device={device!r})"
        assert str(kf.asarray(X)) == str(X)

    def test_pickle_and_copy(self, device: str) -> None:
        a = kf.asarray(X)
        for b in (pickle.loads(pickle.dumps(a)), copy.deepcopy(a), copy.copy(a)):
            np.testing.assert_array_equal(b, X)
            assert b.dtype == a.dtype

    def test_protocols(self, device: str) -> None:
        a = kf.asarray(X)
        np.testing.assert_array_equal(np.from_dlpack(a), X)
        assert a.__dlpack_device__()[0] == 1
        assert a.__array_namespace__() is kf.numpy
        assert a.block_until_ready() is a

    def test_empty(self, device: str) -> None:
        a = kf.asarray(np.zeros((0, 3)))
        assert a.sum(0).tolist() == [0, 0, 0]
        assert (a + 1).shape == (0, 3)
        assert np.asarray(a).shape == (0, 3)


class TestDevices:
    def test_names(self) -> None:
        assert "reference" in kf.devices()

    def test_default(self) -> None:
        with kf.default_device("reference") as name:
            assert name == "reference"
            assert kf.asarray(X).device == "reference"
            assert kf.jit(lambda x: x + 1)(X).device == "reference"
        with pytest.raises(errors.UnknownDevice), kf.default_device("abacus"):
            pass

    def test_follows_the_arguments(self) -> None:
        a = kf.asarray(X, device="reference")
        assert kf.jit(lambda x, y: x + y)(a, X).device == "reference"
        assert (a * 2).device == "reference"
        moved = a.to_device("cpu")
        assert moved.device == "cpu"
        assert moved.to_device("cpu") is moved
        np.testing.assert_array_equal(moved, X)
        with pytest.raises(errors.MixedDevices, match=r"arrays of reference and of cpu meet in one call.*\.to_device"):
            a + moved

    def test_name_of_the_default(self) -> None:
        assert kf.default_device() == "cpu"
        with kf.default_device("reference") as name:
            assert kf.default_device() == name == "reference"

    @pytest.mark.parametrize(("given", "device"), [("reference", "reference"), ("", "cpu")])
    def test_environment(self, given: str, device: str) -> None:
        code = "import kernelforge as kf; print(kf.asarray(1.0).device)"
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=_environment(KERNELFORGE_DEVICE=given),
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout == f"{device}\n"


def _environment(**more: str) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **more}


class TestRandom:
    def test_keys(self, device: str) -> None:
        key = kf.random.key(5)
        first, second = kf.random.split(key)
        third = kf.random.fold_in(key, 3)
        draws = [kf.random.bits(k, (4,)).tolist() for k in (key, first, second, third, kf.random.fold_in(key, 4))]
        assert len({tuple(d) for d in draws}) == 5
        assert kf.random.bits(key, (4,)).tolist() == draws[0]
        assert kf.jit(kf.random.fold_in)(key, 3).tolist() == third.tolist()
        with pytest.raises(errors.InvalidParameter, match=r"random\.key"):
            kf.random.key(-1)

    def test_same_on_every_device(self) -> None:
        def draws() -> list[Any]:
            key = kf.random.key(1)
            return [
                kf.random.bits(key, (3, 5)),
                kf.random.uniform(key, (7,)),
                kf.random.randint(key, (9,), -4, 5),
                kf.random.bits(key, (3,), np.uint64),
            ]

        with kf.default_device("reference"):
            first = draws()
        for a, b in zip(first, draws(), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_distributions(self) -> None:
        key, n = kf.random.key(2), 20000
        u = np.asarray(kf.random.uniform(key, (n,), np.float64, -1, 3))
        assert -1 <= u.min() < -0.99
        assert 2.99 < u.max() < 3
        assert abs(u.mean() - 1) < 0.05
        g = np.asarray(kf.random.normal(key, (n,)))
        assert g.dtype == np.float32
        assert abs(g.mean()) < 0.03
        assert abs(g.std() - 1) < 0.03
        assert np.isfinite(g).all()
        assert abs(np.asarray(kf.random.bernoulli(key, 0.3, (n,))).mean() - 0.3) < 0.02
        assert kf.random.bernoulli(key, np.full((2, 3), 0.5)).shape == (2, 3)
        for p in (0.3, 0.1, 1e-9, 1 - 1e-9, 0, 1, 1.5, -1, np.nan, np.inf):
            each = kf.random.bernoulli(key, np.full(n, p, np.float32))
            np.testing.assert_array_equal(kf.random.bernoulli(key, p, (n,)), each)
        k = np.asarray(kf.random.randint(key, (n,), -2, 3))
        assert set(k.tolist()) == {-2, -1, 0, 1, 2}
        for dtype in (np.float16, ml_dtypes.bfloat16):
            h = np.asarray(kf.random.uniform(key, (n,), dtype), np.float32)
            assert h.min() >= 0
            assert h.max() < 1


def test_import_is_light() -> None:
    heavy = ("numba", "pyopencl", "llvmlite", "rich", "hypothesis", "scipy")
    code = f"import sys, kernelforge; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], env=_environment(), capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_devices_of_new_arrays() -> None:
    """The one that is asked for, else that of the array they are like; not silently the default one."""
    x = kf.asarray(np.ones((2, 3), np.float32), device="reference")
    asked = [knp.zeros(3, device="reference"), knp.full(3, [1, 2, 3], device="reference")]
    asked.append(knp.asarray([1, 2], device="reference"))
    alike = [knp.zeros_like(x), knp.full_like(x, 2), knp.full_like(x, np.ones(3)), knp.asarray(x, dtype="f8")]
    assert {a.device for a in (*asked, *alike, knp.array(x))} == {"reference"}
    assert knp.asarray(x, device="cpu").device == knp.ones_like(x, device="cpu").device == "cpu"
    with pytest.raises(errors.UnknownDevice):
        knp.zeros(3, device="nowhere")


def test_the_path_of_einsum() -> None:
    x, y = kf.asarray(np.ones((2, 3))), kf.asarray(np.ones((3, 4)))
    assert np.einsum_path("ij,jk", x, y)[0] == np.einsum_path(x, [0, 1], y, [1, 2])[0] == ["einsum_path", (0, 1)]
