"""The checks check: planted bugs are found, shrunk and shown as code; right functions pass."""

from __future__ import annotations

import collections
import functools
import importlib
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors, testing
from kernelforge.backends import registry
from kernelforge.testing.inputs import LAYOUTS, Example, literal, parse_shapes, sized
from kernelforge.testing.oracle import expected

F32 = np.dtype(np.float32)


def planted(right: Any, wrong: Any) -> Any:
    """Make a function that is ``right`` under NumPy and ``wrong`` when compiled."""
    compiled = kf.jit(wrong)

    @functools.wraps(right)
    def fn(*args: Any) -> Any:
        return compiled(*args)

    return fn


class TestCheck:
    def test_a_fused_layer_passes(self) -> None:
        @kf.jit
        def layer(x: Any, w: Any, b: Any) -> Any:
            return np.tanh(x @ w + b)

        testing.check(layer, shapes="(m,k) (k,n) (n,)", devices=["cpu"], max_examples=8)

    def test_shapes_are_found_by_trying(self) -> None:
        testing.check(lambda x, w: np.sin(x) @ w, devices=["cpu"], max_examples=5, order=0)

    def test_examples_name_equal_extents(self) -> None:
        def pick(table: Any, rows: Any, scale: float) -> Any:
            return table[rows] * scale

        examples = np.ones((5, 3)), np.array([0, 4, 2, 1]), 2.0
        testing.check(pick, *examples, devices=["cpu"], max_examples=8, order=1)

    def test_a_planted_bug_is_shrunk_and_shown_as_code(self) -> None:
        fn = planted(lambda x: np.maximum(x, 0.0), lambda x: np.where(x > 0.0, x, 0.0))
        with pytest.raises(errors.CheckFailed) as raised:
            testing.check(fn, shapes="(n,)", devices=["cpu"], max_examples=200, order=0)
        text = str(raised.value)
        assert "on cpu: 1 of 1 elements of the result are wrong; at (0,) found 0.0, expected nan" in text
        assert "x0 = np.array([np.nan], np.float32)\n" in text
        assert "with kf.default_device('cpu'):" in text

    def test_a_bug_of_one_size_is_shrunk_to_it(self) -> None:
        fn = planted(lambda x: x + 1.0, lambda x: x + (1.0 if x.shape[0] < 9 else 2.0))
        with pytest.raises(errors.CheckFailed) as raised:
            testing.check(fn, shapes="(n,)", devices=["cpu"], max_examples=100, order=0)
        assert "9 of 9 elements" in str(raised.value)

    def test_a_wrong_gradient_is_found(self) -> None:
        @kf.custom_vjp
        def square(x: Any) -> Any:
            return x * x

        square.defvjp(lambda x: (x * x, x), lambda x, ct: (ct * x,))
        with pytest.raises(
            errors.CheckFailed, match=r"the gradient along a direction is .*; central differences of NumPy"
        ):
            testing.check(lambda x: square(x) + x, shapes="(3,)", devices=["cpu"], max_examples=5)

    def test_a_wrong_shape_and_dtype_are_found(self) -> None:
        flat = planted(np.sum, lambda x: np.sum(x, keepdims=True))
        with pytest.raises(errors.CheckFailed, match=r"the result has shape \(1,\) where NumPy gives \(\)"):
            testing.check(flat, shapes="(3,)", devices=["cpu"], max_examples=3, order=0)
        wide = planted(np.negative, lambda x: -x.astype(np.float64))
        with pytest.raises(errors.CheckFailed, match="the result has dtype float64 where NumPy gives float32"):
            testing.check(wide, shapes="(3,)", dtypes=["f32"], devices=["cpu"], max_examples=3, order=0)

    def test_an_error_of_the_compiled_function_carries_the_code(self) -> None:
        fn = planted(np.negative, lambda x: x.no_such_method())
        with pytest.raises(AttributeError) as raised:
            testing.check(fn, shapes="(3,)", devices=["cpu"], max_examples=3, order=0)
        assert any("x0 = np.array(" in note for note in raised.value.__notes__)

    @pytest.mark.parametrize(
        ("wrong", "shown"),
        [
            (lambda x: np.where(x > 0, x, 0) + np.where(x < 0, x, 0), "nan"),
            (lambda x: np.where(x == -np.inf, 0, x), "-np.inf"),
            (lambda x: x if x.ndim else x + 1, "np.array(0.5,"),
            (lambda x: x if x.ndim < 3 else x + 1, "np.array([[[0.5]]],"),
            (lambda x: x.sum() if x.size else x.sum() + 1, "np.empty("),
        ],
        ids=["NaN", "-inf", "no axes", "three axes", "empty"],
    )
    def test_what_is_easily_forgotten_is_drawn(self, wrong: Any, shown: str) -> None:
        right = np.sum if shown == "np.empty(" else np.positive

        @kf.jit
        def fn(x: Any) -> Any:
            return right(x) if isinstance(x, np.ndarray | np.generic) else wrong(x)

        with pytest.raises(errors.CheckFailed, match=re.escape(shown)):
            kf.testing.check(fn, devices=["cpu"], order=0)

    def test_nothing_to_guess_from(self) -> None:
        def never(x: Any) -> Any:
            raise ValueError("no")

        with pytest.raises(errors.InvalidParameter, match="expected shapes for the 1 arguments, or examples of them"):
            testing.check(never)


class TestGrads:
    def test_right_ones_pass(self) -> None:
        testing.check_grads(lambda x, n: np.sin(x) * n, (np.linspace(0.1, 1.0, 5), 3), devices=["cpu"])

    def test_a_kink_is_left_alone(self) -> None:
        testing.check_grads(lambda x: np.maximum(x, 2.0 * x), (np.zeros(3),), devices=["cpu"])

    def test_a_wrong_second_derivative_is_found(self) -> None:
        @kf.custom_vjp
        def cube(x: Any) -> Any:
            return x * x * x

        cube.defvjp(lambda x: (x * x * x, x), lambda x, ct: (ct * 3.0 * x * kf.stop_gradient(x),))
        x = np.linspace(0.5, 1.5, 4)
        testing.check_grads(cube, (x,), order=1, devices=["cpu"])
        with pytest.raises(errors.CheckFailed, match="the second derivative along a direction is"):
            testing.check_grads(cube, (x,), devices=["cpu"])


class TestInputs:
    def test_shapes_text(self) -> None:
        assert parse_shapes("(m,k) (k, 3) (n,) ()") == [("m", "k"), ("k", 3), ("n",), ()]
        assert sized(("m", 3), {"m": 2}) == (2, 3)

    @pytest.mark.parametrize("text", ["", "m,k", "(m,k", "(m+1,)", "(m) x (k)"])
    def test_other_text_is_refused(self, text: str) -> None:
        with pytest.raises(errors.InvalidParameter, match=r"check: shapes=.* is not valid; expected for example"):
            parse_shapes(text)

    @pytest.mark.parametrize("layout", list(LAYOUTS))
    @pytest.mark.parametrize("shape", [(3, 5), (4,), (0, 3), (3, 0), (1, 1)])
    def test_the_code_makes_the_array(self, layout: str, shape: tuple[int, ...]) -> None:
        size = int(np.prod(shape))
        example = Example(shape, F32, 3, 1.0, ((0, float("nan")),) if size else (), layout)
        array = example.array()
        made = eval(example.code(), {"np": np})
        np.testing.assert_array_equal(made, array)
        assert made.dtype == array.dtype
        assert made.strides == array.strides or not size

    def test_special_values_in_code(self) -> None:
        array = np.array([np.nan, np.inf, -np.inf, -0.0, np.finfo(np.float32).max], np.float32)
        made = eval(literal(array), {"np": np})
        assert made.tobytes() == array.tobytes()


class TestBounds:
    def test_a_result_in_its_own_dtype_is_within_them(self) -> None:
        x = np.random.default_rng(0).normal(size=(33, 40)).astype(np.float32)

        def softmax(x: Any) -> Any:
            e = np.exp(x - np.max(x, axis=1, keepdims=True))
            return e / np.sum(e, axis=1, keepdims=True)

        found = softmax(x)
        (entry,) = expected(softmax, [x], [found])
        assert not entry.wrong(found).any()
        assert entry.wrong(found * np.float32(1.001)).mean() > 0.9

    def test_cancellation_widens_them(self) -> None:
        x = np.array([1e6, 1e6 + 1.0], np.float32)
        (entry,) = expected(lambda x: x[1] - x[0], [x], [np.array(1.0, np.float32)])
        assert entry.allowed >= 0.05

    def test_overflow_of_the_dtype_is_expected(self) -> None:
        x = np.array([3e38, 1.0], np.float32)
        found = np.array([np.inf, 2.0], np.float32)
        (entry,) = expected(lambda x: x * x.dtype.type(2.0), [x], [found])
        assert not entry.wrong(found).any()

    def test_nan_has_to_be_nan(self) -> None:
        x = np.array([np.nan], np.float32)
        (entry,) = expected(np.negative, [x], [x])
        assert entry.wrong(np.array([0.0], np.float32)).all()


class TestBackend:
    def test_the_reference_conforms(self) -> None:
        assert testing.check_backend("reference") > 100

    def test_a_broken_device_is_told_all_its_faults(self) -> None:
        class Broken:
            """The reference device, but its downloads ignore the offset."""

            def __init__(self) -> None:
                self.inner = registry.backend("reference")
                self.name = "broken"

            def __getattr__(self, name: str) -> Any:
                return getattr(self.inner, name)

            def download(self, handle: Any, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
                return self.inner.download(handle, 0, shape, dtype)

        with pytest.raises(
            errors.BackendFailed, match=r"device broken failed 1 of \d+ checks:\n  download from an offset: 3 of 3"
        ):
            testing.check_backend(Broken())


def test_without_hypothesis_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['hypothesis'] = None; sys.path_importer_cache.clear()\nimport kernelforge.testing"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        "MissingExtra: kernelforge.testing needs hypothesis, which is not installed; pip install 'kernelforge[testing]'"
        in run.stderr
    )


def test_other_devices_get_fewer_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All inputs go to the current device, or to those that are named."""
    ran: list[str] = []
    module = importlib.import_module("kernelforge.testing.check")
    monkeypatch.setattr(module, "_try", lambda compiled, python, drawn, device, order: ran.append(device))
    with kf.default_device("reference"):
        testing.check(lambda x: x + 1, shapes="(n,)", max_examples=16)
    assert ran[:16] == ["reference"] * 16
    assert collections.Counter(ran[16:]) == {d: 2 for d in kf.devices() if d != "reference"}
    ran.clear()
    testing.check(lambda x: x + 1, shapes="(n,)", max_examples=16, devices=["reference"])
    assert ran == ["reference"] * 16
