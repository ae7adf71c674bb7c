"""Check and time kernelforge on a machine with an NVIDIA GPU: ``python tests/gpu_check.py [report.json]``.

Stands alone and ends within ten minutes. Each part runs in a child process, so one that is missing, breaks or hangs is
reported, with what it had found by then, and the others still run: what a launch costs, the lifetime of what queued
kernels use, products in every layout and dtype and attention with its gradients against float64, timings beside
PyTorch's (and so cuBLAS's) where it is installed, the tests of the CUDA backend, compute-sanitizer's view of a few
kernels where that is installed, what the tuner finds, and the conformance checks on every CUDA and OpenCL device.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUDGET_S = 570
STARTED = time.monotonic()
PACKAGES = (
    "numpy", "numba", "llvmlite", "numba-cuda", "cuda-core", "cuda-bindings", "nvidia-nvvm", "nvidia-nvjitlink",
    "nvidia-cuda-runtime", "pyopencl", "torch",
)  # fmt: skip
ROUND_S = 0.1
"""How long one round of a timing lasts, about; the best of three counts."""

BENCHED = (
    "^(sgemm_.*|gemm_bf16.*|attention.*)$",
    "^(tanh_exp|gelu.bwd|rowsum|softmax_.*|layernorm.*|mlp_step)$",
)
"""The workloads of kernelforge bench that are timed, by runs: what one has found stays if the next takes too long."""


def command(arguments: list[str], most_s: float) -> dict[str, Any]:
    """Run a child process within what is left of the time; the last line it prints as JSON is its result."""
    if shutil.which(arguments[0]) is None:
        return {"missing": arguments[0]}
    begun = time.monotonic()
    limit = max(1.0, min(most_s, BUDGET_S - (begun - STARTED)))
    child = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        errors="replace",
    )  # fmt: skip
    try:
        text, _ = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # with its own children, which hold the pipe open
        text, _ = child.communicate()
    out: dict[str, Any] = {"code": child.returncode, "seconds": round(time.monotonic() - begun, 1)}
    for line in reversed(text.splitlines()):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                out["result"] = found
                break
    if "result" not in out or child.returncode:
        out["output"] = text[-4000:]
    return out


def own(part: str, *arguments: str, most_s: float) -> dict[str, Any]:
    return command([sys.executable, __file__, f"--{part}", *arguments], most_s)


def environment() -> dict[str, Any]:
    versions = {d.name: d.version for d in importlib.metadata.distributions() if d.name in PACKAGES}
    query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm"
    gpu = command(["nvidia-smi", query, "--format=csv,noheader"], 20)
    return {"python": platform.python_version(), "packages": versions, "gpu": gpu, "devices": own("devices", most_s=60)}


# what runs in child processes: each prints what it has found so far, a line of JSON at a time

Found = dict[str, Any]


def gpus() -> Found:
    """The GPUs by name, CUDA's and OpenCL's."""
    from kernelforge.backends import registry

    found = {n: d for n, d in registry.available().items() if n.startswith(("cuda", "opencl"))}
    return {n: d for n, d in found.items() if not isinstance(d, str) and d.limits.form == "group"}


def devices() -> Iterator[Found]:
    """What is there, and why something is not."""
    from kernelforge.backends import registry

    found = registry.available()
    yield {n: d if isinstance(d, str) else str(d.limits) for n, d in found.items() if n.startswith(("cuda", "opencl"))}


def conformance() -> Iterator[Found]:
    from kernelforge.errors import KernelforgeError
    from kernelforge.testing.conformance import check_backend

    out: Found = {}
    for name, device in gpus().items():
        try:
            out[name] = f"{check_backend(device)} checks passed"
        except KernelforgeError as error:
            out[name] = f"FAILED {error}"[:4000]
        yield out


def seconds(run: Callable[[], object], wait: Callable[[], object]) -> float:
    """The time of one call of many that are queued back to back."""

    def several(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            run()
        wait()
        return (time.perf_counter() - begun) / count

    several(1)
    count = max(1, int(ROUND_S / several(2)))
    return min(several(count) for _ in range(3))


def most(error: Any) -> float:
    """The largest of an array, or infinity where it has a NaN."""
    import numpy as np

    worst = float(np.max(error, initial=0.0))
    return worst if worst == worst else float("inf")


def products() -> Iterator[Found]:
    """Products against float64 NumPy: every layout, edges, split sums, f32 and what tensor cores multiply."""
    import numpy as np

    import kernelforge as kf
    from kernelforge.dtypes import DTYPES

    rng = np.random.default_rng(0)
    out: Found = {}
    shapes = [(256, 256, 256), (257, 131, 333), (64, 64, 8192), (4096, 96, 512), (17, 40, 72)]
    layouts = ((0, 0), (0, 1), (1, 0), (1, 1))
    cases = [(s, *across) for s in shapes for across in layouts]
    for name in gpus():
        for form in ("f32", "tf32", "bf16", "f16"):
            worst, failed = 0.0, list[str]()
            dtype = "f32" if form == "tf32" else form
            for (m, n, k), a_across, b_across in cases:
                a = rng.standard_normal((k, m) if a_across else (m, k)).astype(DTYPES[dtype])
                b = rng.standard_normal((n, k) if b_across else (k, n)).astype(DTYPES[dtype])
                x, y = (a.T if a_across else a), (b.T if b_across else b)
                exact = x.astype(np.float64) @ y.astype(np.float64)
                try:
                    with kf.default_device(name), kf.config(precision="high" if form == "tf32" else "highest"):
                        made = kf.jit(lambda a, b, s=a_across, t=b_across: (a.T if s else a) @ (b.T if t else b))
                        found = np.asarray(made(a, b)).astype(np.float64)
                except Exception as error:  # noqa: BLE001 - the others still run
                    failed.append(f"{m} {n} {k} {a_across} {b_across}: {error}"[:400])
                    continue
                # of sums in f32, rounded once: relative to what cancels in them; a factor of tf32 is off by 2**-11
                size = np.abs(x.astype(np.float64)) @ np.abs(y.astype(np.float64))
                step = {"f32": 2.0**-24, "bf16": 2.0**-8, "f16": 2.0**-11}[dtype]
                each = 2.0**-24 * k**0.5 + (2.0**-12 if form == "tf32" else 0)
                worst = max(worst, most(np.abs(found - exact) / (step * np.abs(exact) + each * size)))
                right = worst <= 4 and not failed
                out[f"{name} {form}"] = {"worst": round(worst, 3), "failed": failed, "right": right}
                yield out


def softmax(s: Any) -> Any:
    import numpy as np

    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def looked_up(q: Any, k: Any, v: Any, causal: bool) -> Any:
    """Attention in NumPy's terms."""
    import numpy as np

    s = q @ np.swapaxes(k, -1, -2) * q.shape[-1] ** -0.5
    if causal:
        s = np.where(np.arange(s.shape[-2])[:, None] >= np.arange(s.shape[-1]), s, -np.inf)
    return softmax(s) @ v


def exactly(causal: bool, q: Any, k: Any, v: Any, g: Any) -> tuple[Any, ...]:
    """Attention and its gradients in NumPy."""
    import numpy as np

    s = q @ np.swapaxes(k, -1, -2) * q.shape[-1] ** -0.5
    p = softmax(np.where(np.tri(*s.shape[-2:]) > 0, s, -np.inf) if causal else s)
    dp = g @ np.swapaxes(v, -1, -2)
    ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) * q.shape[-1] ** -0.5
    return p @ v, ds @ k, np.swapaxes(ds, -1, -2) @ q, np.swapaxes(p, -1, -2) @ g


def attention() -> Iterator[Found]:
    """Values and gradients against float64 NumPy's, at odd lengths, of one key, causal, with each dtype; then times."""
    import numpy as np

    import kernelforge as kf
    from kernelforge.dtypes import DTYPES

    rng = np.random.default_rng(0)
    out: Found = {}
    cases = [(3, 77, 131, 40, False), (1, 513, 513, 128, True), (2, 50, 1, 16, False), (4, 64, 64, 64, True)]
    for name in gpus():
        for dtype, tolerance in (("f32", 2e-5), ("bf16", 3e-2), ("f16", 4e-3), ("f64", 1e-12)):
            worst, failed = 0.0, list[str]()
            for heads, queries, keys, width, causal in cases if dtype in ("f32", "bf16") else cases[:2]:
                shapes = [(heads, queries, width), (heads, keys, width), (heads, keys, width), (heads, queries, width)]
                q, k, v, g = (rng.standard_normal(s).astype(DTYPES[dtype]) for s in shapes)
                exact = exactly(causal, *(a.astype(np.float64) for a in (q, k, v, g)))

                def loss(q: Any, k: Any, v: Any, g: Any, causal: bool = causal) -> Any:
                    return (looked_up(q, k, v, causal) * g).sum()

                try:
                    with kf.default_device(name):
                        results = [kf.jit(lambda q, k, v, c=causal: looked_up(q, k, v, c))(q, k, v)]
                        if dtype in ("f32", "bf16"):
                            results += kf.jit(kf.grad(loss, argnums=(0, 1, 2)))(q, k, v, g)
                        found = [np.asarray(f).astype(np.float64) for f in results]
                except Exception as error:  # noqa: BLE001 - the others still run
                    failed.append(f"{heads} {queries} {keys} {width} {causal}: {error}"[:400])
                    continue
                pairs = zip(found, exact[: len(found)], strict=True)
                worst = max(worst, *(most(np.abs(f - e)) / max(1.0, float(np.max(np.abs(e)))) for f, e in pairs))
                right = worst <= tolerance and not failed
                out[f"{name} {dtype}"] = {"worst": float(f"{worst:.2g}"), "failed": failed, "right": right}
                yield out
        for form, causal in (("bf16", False), ("bf16", True), ("f32", False), ("tf32", False)):
            shape = (4, 16, 4096, 64)
            dtype = "f32" if form == "tf32" else form
            q = rng.standard_normal(shape, np.float32).astype(DTYPES[dtype])
            with kf.default_device(name), kf.config(precision="high" if form == "tf32" else "highest"):
                here = kf.asarray(q)
                made = kf.jit(lambda q, c=causal: looked_up(q, q, q, c))
                made(here)
                wait = kf.asarray(np.zeros(1)).block_until_ready
                took = seconds(lambda m=made, h=here: m(h), wait)  # type: ignore[misc]
            row = out.setdefault(f"{name} time {form} {'causal ' if causal else ''}{shape}", {})
            row |= {"ms": round(took * 1e3, 3), "TFLOP/s": round(4 * 64 * 64 * 4096**2 / took / 1e12, 1)}
            yield out
            with contextlib.suppress(ImportError, RuntimeError):
                import torch

                t = torch.randn(shape, device="cuda", dtype={"bf16": torch.bfloat16, "f32": torch.float32}[dtype])
                theirs = torch.nn.functional.scaled_dot_product_attention
                took = seconds(lambda f=theirs, t=t, c=causal: f(t, t, t, is_causal=c), torch.cuda.synchronize)  # type: ignore[misc]
                row["torch ms"] = round(took * 1e3, 3)
                yield out


def lifetimes() -> Iterator[Found]:
    """Code and memory that Python drops while kernels that use them are queued, and PyTorch's memory as arguments."""
    import numpy as np

    import kernelforge as kf
    from kernelforge.compile import forget

    out: Found = {}
    for name in [n for n in gpus() if n.startswith("cuda")]:
        with kf.default_device(name):
            x = kf.asarray(np.ones(1 << 26, np.float32))
            for step in range(8):  # each is compiled, queued and dropped
                x = kf.jit(lambda x, s=step: x * 0.5 + 0.5 + 0.0 * s)(x)
                forget()
                gc.collect()
            out[f"{name} dropped code"] = bool((np.asarray(x) == 1).all())
            yield out
            parts = [kf.jit(lambda x, s=s: x + float(s))(x) for s in range(12)]
            out[f"{name} recycled memory"] = [float(np.asarray(p)[-1]) for p in parts] == [1.0 + s for s in range(12)]
            yield out
            try:
                import torch
            except ImportError:
                continue
            twice = kf.jit(lambda x: x * 2)
            for what, stream in (("default", torch.cuda.default_stream()), ("own", torch.cuda.Stream())):
                right = True
                with torch.cuda.stream(stream):
                    for step in range(50):
                        made = torch.full((1 << 22,), float(step), device="cuda")
                        stream.synchronize()  # PyTorch names no stream in its interface
                        found = twice(made)
                        del made
                        torch.full((1 << 22,), -1.0, device="cuda")  # where the other one was, if that went too soon
                        right &= bool((np.asarray(found) == 2 * step).all())
                out[f"{name} PyTorch's memory, {what} stream"] = right
                yield out
            for step in range(20):
                shared = torch.as_tensor(twice(torch.full((1 << 20,), float(step), device="cuda")), device="cuda")
                gc.collect()
                twice(torch.full((1 << 20,), -1.0, device="cuda"))
                out[f"{name} lent to PyTorch"] = bool((shared == 2 * step).all())
            yield out
            for made in (torch.arange(12.0, device="cuda").reshape(3, 4).T, torch.arange(5, device="cuda") > 2):
                right = bool((np.asarray(kf.asarray(made)) == made.cpu().numpy()).all())
                out[f"{name} PyTorch's {tuple(made.shape)}"] = right
            yield out


def small() -> Iterator[Found]:
    """A few kernels with barriers, for compute-sanitizer."""
    import numpy as np

    import kernelforge as kf
    from kernelforge.dtypes import DTYPES

    rng = np.random.default_rng(0)
    for name in [n for n in gpus() if n.startswith("cuda")]:
        with kf.default_device(name):
            x = rng.standard_normal((37, 300), np.float32)
            np.asarray(kf.jit(softmax)(x))
            np.asarray(kf.jit(lambda x: x.sum(0))(x))
            for dtype in ("f32", "bf16"):
                a = rng.standard_normal((70, 72), np.float32).astype(DTYPES[dtype])
                np.asarray(kf.jit(lambda a: a @ a.T)(a))
                np.asarray(kf.jit(lambda a: looked_up(a, a, a, True))(a))
        yield {name: "ran"}


def tuning() -> Iterator[Found]:
    """What the tuner finds for products that the formulae size otherwise."""
    import numpy as np

    import kernelforge as kf
    from kernelforge.dtypes import DTYPES

    out: Found = {}
    for name in gpus():
        for n, dtype in ((1024, "f32"), (4096, "f32"), (4096, "bf16")):
            a = np.ones((n, n), DTYPES[dtype])
            with kf.default_device(name):
                (found,) = kf.tune(kf.jit(lambda a, b: a @ b), a, a, seconds=8).kernels
            out[f"{name} {n} {dtype}"] = str(found)
            yield out


def launch() -> Iterator[Found]:
    """What a launch of a tiny kernel costs."""
    from kernelforge.ir.kernel import Arg, For, Kernel, Load, Store, Var, i64

    t = Var("t", "i64", 32)
    body = For(t, i64(32), "group", (Store("y", (t,), Load("x", (t,), "f32") + 1.0),))
    kernel = Kernel("tiny", (Arg("x", "f32", i64(32), "in"), Arg("y", "f32", i64(32), "out")), (), (body,))
    out: Found = {}
    for name, device in gpus().items():
        made = device.compile(kernel)
        memory = [(device.allocate(128), 0), (device.allocate(128), 0)]
        once = seconds(lambda d=device, e=made, m=memory: d.launch(e, m, ()), device.synchronize)  # type: ignore[misc]
        out[name] = {"us": round(once * 1e6, 2)}
        yield out


def bench() -> Iterator[Found]:
    """Workloads beside PyTorch's, cuBLAS in it, and the limit of a copy: microseconds, or why there are none."""
    from kernelforge.bench.command import Bench, Options

    out: Found = {"limits": {}}
    for names in BENCHED:
        options = Options(names, tuple(gpus()), ("torch",), measures=("time",), quick=True, seconds=30, patience=40)
        run = Bench(options).run()
        out["limits"] |= {what: stats.median for what, stats in run.limits.items()}
        for row in run.rows:
            cell = out.setdefault(row.workload, {}).setdefault(row.device, {})
            cell |= {s.candidate: round(s.stats.median * 1e6, 2) if s.stats else s.reason for s in row.samples}
            if row.limit:
                cell["limit"] = round(row.limit.median * 1e6, 2)
        yield out


PARTS: dict[str, Callable[[], Iterator[Found]]] = {
    part.__name__: part for part in (devices, launch, lifetimes, products, attention, bench, small, tuning, conformance)
}


def main() -> None:
    sys.path.insert(0, str(ROOT))
    if len(sys.argv) > 1 and sys.argv[1].startswith("--"):
        for found in PARTS[sys.argv[1][2:]]():
            print(json.dumps(found), flush=True)
        return
    files = [f"tests/backends/test_cuda{part}.py" for part in ("", "_ptx", "_mma")]
    pytest = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *files]
    sanitizer = [
        "compute-sanitizer",
        "--tool",
        "racecheck",
        "--error-exitcode",
        "9",
        sys.executable,
        __file__,
        "--small",
    ]
    steps: dict[str, Callable[[], Found]] = {
        "environment": environment,
        "launch": lambda: own("launch", most_s=40),
        "lifetimes": lambda: own("lifetimes", most_s=40),
        "attention": lambda: own("attention", most_s=110),
        "products": lambda: own("products", most_s=110),
        "bench": lambda: own("bench", most_s=130),
        "tests": lambda: command(pytest, 120),
        "racecheck": lambda: command(sanitizer, 60),
        "tuning": lambda: own("tuning", most_s=60),
        "conformance": lambda: own("conformance", most_s=150),
    }
    target = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "gpu_check.json").resolve()
    report: Found = {}
    for name, step in steps.items():
        if time.monotonic() - STARTED > BUDGET_S:
            report[name] = {"skipped": "no time was left"}
            continue
        try:
            report[name] = step()
        except Exception as error:  # noqa: BLE001 - the others still run
            report[name] = {"error": repr(error)}
        target.write_text(json.dumps(report, indent=1))
        print(json.dumps({name: report[name]}, indent=1), flush=True)
    target.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
