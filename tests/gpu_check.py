"""Check and time kernelforge on a machine with an NVIDIA GPU: ``python tests/gpu_check.py [report.json]``.

Stands alone and ends within ten minutes. Each part runs in a child process, so one that is missing, breaks or hangs is
reported and the others still run: the tests of the CUDA backend, products in every layout and dtype against float64,
timings of a few kernels beside PyTorch's (and so cuBLAS's) where it is installed, what the tuner finds, and the
conformance checks on every CUDA and OpenCL device.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUDGET_S = 570
STARTED = time.monotonic()
PACKAGES = ("numpy", "numba", "numba-cuda", "cuda-core", "nvidia-nvvm", "nvidia-nvjitlink", "pyopencl", "torch")
ROUND_S = 0.1
"""How long one round of a timing lasts, about; the best of three counts."""

BENCHED = "^(tanh_exp|gelu.bwd|rowsum|softmax_.*|layernorm.*|sgemm_.*|gemm_bf16.*|attention.*|mlp_step)$"
"""The workloads of kernelforge bench that are timed."""


def command(arguments: list[str], most_s: float) -> dict[str, Any]:
    """Run a child process within what is left of the time; the last line it prints as JSON is its result."""
    if shutil.which(arguments[0]) is None:
        return {"missing": arguments[0]}
    begun = time.monotonic()
    limit = max(1.0, min(most_s, BUDGET_S - (begun - STARTED)))
    child = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        text, _ = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        child.kill()
        text, _ = child.communicate()
    out: dict[str, Any] = {"code": child.returncode, "seconds": round(time.monotonic() - begun, 1)}
    results = [line for line in text.splitlines() if line.startswith("{")]
    if results:
        out["result"] = json.loads(results[-1])
    if not results or child.returncode:
        out["output"] = text[-4000:]
    return out


def own(part: str, *arguments: str, most_s: float) -> dict[str, Any]:
    return command([sys.executable, __file__, f"--{part}", *arguments], most_s)


def environment() -> dict[str, Any]:
    versions = {d.name: d.version for d in importlib.metadata.distributions() if d.name in PACKAGES}
    query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm"
    gpu = command(["nvidia-smi", query, "--format=csv,noheader"], 20)
    return {"python": platform.python_version(), "packages": versions, "gpu": gpu}


# what runs in child processes


def devices() -> dict[str, Any]:
    """The GPUs by name, CUDA's and OpenCL's."""
    from kernelforge.backends import registry

    found = {n: d for n, d in registry.available().items() if n.startswith(("cuda", "opencl"))}
    return {n: d for n, d in found.items() if not isinstance(d, str) and d.limits.form == "group"}


def conformance() -> dict[str, Any]:
    from kernelforge.errors import KernelforgeError
    from kernelforge.testing.conformance import check_backend

    out: dict[str, Any] = {}
    for name, device in devices().items():
        try:
            out[name] = f"{check_backend(device)} checks passed"
        except KernelforgeError as error:
            out[name] = f"FAILED {error}"[:4000]
    return out


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


def products() -> dict[str, Any]:
    """Products against float64 NumPy: every layout, edges, split sums, f32 and what tensor cores multiply."""
    import numpy as np

    import kernelforge as kf
    from kernelforge.dtypes import DTYPES

    rng = np.random.default_rng(0)
    out: dict[str, Any] = {}
    shapes = [(256, 256, 256), (257, 131, 333), (64, 64, 8192), (4096, 96, 512), (1000, 1000, 1000), (17, 40, 72)]
    for name in devices():
        for dtype in ("f32", "bf16", "f16"):
            worst, failed = 0.0, []
            for m, n, k in shapes:
                for a_across, b_across in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    a = rng.standard_normal((k, m) if a_across else (m, k)).astype(DTYPES[dtype])
                    b = rng.standard_normal((n, k) if b_across else (k, n)).astype(DTYPES[dtype])
                    x, y = (a.T if a_across else a), (b.T if b_across else b)
                    exact = x.astype(np.float64) @ y.astype(np.float64)
                    try:
                        with kf.default_device(name):
                            made = kf.jit(lambda a, b, s=a_across, t=b_across: (a.T if s else a) @ (b.T if t else b))
                            found = np.asarray(made(a, b)).astype(np.float64)
                    except Exception as error:  # noqa: BLE001 - the others still run
                        failed.append(f"{m} {n} {k} {a_across} {b_across}: {error}"[:400])
                        continue
                    # of sums in f32, rounded once: relative to what cancels in them
                    size = np.abs(x.astype(np.float64)) @ np.abs(y.astype(np.float64))
                    step = {"f32": 2.0**-24, "bf16": 2.0**-8, "f16": 2.0**-11}[dtype]
                    error = np.abs(found - exact) / (step * np.abs(exact) + 2.0**-24 * k**0.5 * size)
                    worst = max(worst, float(error.max()))
            out[f"{name} {dtype}"] = {"worst": round(worst, 3), "failed": failed, "right": worst <= 4 and not failed}
    return out


def tuning() -> dict[str, Any]:
    """What the tuner finds for products that the formulae size otherwise."""
    import numpy as np

    import kernelforge as kf
    from kernelforge.dtypes import DTYPES

    out: dict[str, Any] = {}
    for name in devices():
        for n, dtype in ((1024, "f32"), (4096, "f32"), (4096, "bf16")):
            a = np.ones((n, n), DTYPES[dtype])
            with kf.default_device(name):
                (found,) = kf.tune(kf.jit(lambda a, b: a @ b), a, a, seconds=8).kernels
            out[f"{name} {n} {dtype}"] = str(found)
    return out


def launch() -> dict[str, Any]:
    """What a launch of a tiny kernel costs."""
    from kernelforge.ir.kernel import Arg, For, Kernel, Load, Store, Var, i64

    t = Var("t", "i64", 32)
    body = For(t, i64(32), "group", (Store("y", (t,), Load("x", (t,), "f32") + 1.0),))
    kernel = Kernel("tiny", (Arg("x", "f32", i64(32), "in"), Arg("y", "f32", i64(32), "out")), (), (body,))
    out = {}
    for name, device in devices().items():
        made = device.compile(kernel)
        memory = [(device.allocate(128), 0), (device.allocate(128), 0)]
        once = seconds(lambda d=device, e=made, m=memory: d.launch(e, m, ()), device.synchronize)  # type: ignore[misc]
        out[name] = {"us": round(once * 1e6, 2)}
    return out


def bench() -> dict[str, Any]:
    """Workloads beside PyTorch's, cuBLAS in it, and the limit of a copy: microseconds, or why there are none."""
    from kernelforge.bench.command import Bench, Options

    options = Options(BENCHED, tuple(devices()), ("torch",), measures=("time",), quick=True, seconds=60, patience=60)
    run = Bench(options).run()
    out: dict[str, Any] = {"limits": {what: stats.median for what, stats in run.limits.items()}}
    for row in run.rows:
        cell = out.setdefault(row.workload, {}).setdefault(row.device, {})
        cell |= {s.candidate: round(s.stats.median * 1e6, 2) if s.stats else s.reason for s in row.samples}
        if row.limit:
            cell["limit"] = round(row.limit.median * 1e6, 2)
    return out


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "conformance": conformance, "launch": launch, "products": products, "bench": bench, "tuning": tuning,
}  # fmt: skip


def main() -> None:
    sys.path.insert(0, str(ROOT))
    if len(sys.argv) > 1 and sys.argv[1].startswith("--"):
        print(json.dumps(PARTS[sys.argv[1][2:]](*sys.argv[2:])), flush=True)
        return
    files = [f"tests/backends/test_cuda{part}.py" for part in ("", "_ptx", "_mma")]
    pytest = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *files]
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "environment": environment,
        "tests": lambda: command(pytest, 170),
        "launch": lambda: own("launch", most_s=40),
        "products": lambda: own("products", most_s=90),
        "bench": lambda: own("bench", most_s=200),
        "tuning": lambda: own("tuning", most_s=60),
        "conformance": lambda: own("conformance", most_s=150),
    }
    target = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "gpu_check.json").resolve()
    report: dict[str, Any] = {}
    for name, step in steps.items():
        report[name] = step()
        target.write_text(json.dumps(report, indent=1))
        print(json.dumps({name: report[name]}, indent=1), flush=True)


if __name__ == "__main__":
    main()
