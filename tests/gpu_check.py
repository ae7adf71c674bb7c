"""Check and time kernelforge on a machine with an NVIDIA GPU: ``python tests/gpu_check.py [report.json]``.

Stands alone and ends within ten minutes. Each part runs in a child process, so one that is missing, breaks or hangs is
reported and the others still run: the tests of the CUDA backend, the conformance checks on every CUDA and OpenCL
device, and timings of a few kernels beside PyTorch's where it is installed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUDGET_S = 570
STARTED = time.monotonic()
PACKAGES = ("numpy", "numba", "numba-cuda", "cuda-core", "nvidia-nvvm", "nvidia-nvjitlink", "pyopencl", "torch")
ROUND_S = 0.1
"""How long one round of a timing lasts, about; the best of three counts."""
CHECKED_ROWS = 64


class Workload(NamedTuple):
    """A function of arrays, the inputs' shapes and dtype, and the bytes and flops it needs."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    nbytes: float
    flops: float


CELLS = 16384 * 4096
WORKLOADS = {
    "map 2^26 f32": Workload("map", ((1 << 26,),), "f32", 8.0 * (1 << 26), 0.0),
    "row sum 16384x4096 f32": Workload("sum", ((16384, 4096),), "f32", 4.0 * CELLS, 0.0),
    "softmax 16384x4096 f32": Workload("softmax", ((16384, 4096),), "f32", 8.0 * CELLS, 0.0),
    "gemm 1024 f32": Workload("gemm", ((1024, 1024),) * 2, "f32", 12.0 * 1024**2, 2.0 * 1024**3),
    "gemm 4096 f32": Workload("gemm", ((4096, 4096),) * 2, "f32", 12.0 * 4096**2, 2.0 * 4096**3),
    "gemm 4096 bf16": Workload("gemm", ((4096, 4096),) * 2, "bf16", 6.0 * 4096**2, 2.0 * 4096**3),
}


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


def graph(kind: str) -> Callable[..., Any]:
    from kernelforge.ir.build import apply, full

    def over_rows(x: Any, like: Any) -> Any:
        return apply("broadcast", apply("reshape", x, shape=(like.shape[0], 1)), shape=like.shape)

    def streaming(x: Any) -> Any:
        bell = apply("exp", apply("negative", apply("multiply", x, x)))
        return [apply("add", apply("tanh", apply("multiply", x, full(0.5, x))), bell)]

    def softmax(x: Any) -> Any:
        e = apply("exp", apply("subtract", x, over_rows(apply("max", x, axes=(1,)), x)))
        return [apply("divide", e, over_rows(e.sum((1,)), x))]

    def gemm(x: Any, y: Any) -> Any:
        return [apply("contract", x, y, x_axes=(0, 1), y_axes=(1, 2), out_axes=(0, 2))]

    return {"map": streaming, "sum": lambda x: [x.sum((1,))], "softmax": softmax, "gemm": gemm}[kind]


def reference(kind: str, x: Any, *others: Any) -> Any:
    import numpy as np

    if kind == "map":
        return np.tanh(x * 0.5) + np.exp(-x * x)
    if kind == "softmax":
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)
    return x.sum(1) if kind == "sum" else x @ others[0]


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


def figures(once: float, work: Workload) -> dict[str, float]:
    out = {"us": round(once * 1e6, 2), "GB/s": round(work.nbytes / once / 1e9, 1)}
    return out | ({"TFLOP/s": round(work.flops / once / 1e12, 3)} if work.flops else {})


def timing(label: str) -> dict[str, Any]:
    """One workload on every device."""
    import numpy as np

    from kernelforge.compile import compile_graph
    from kernelforge.config import Config
    from kernelforge.dtypes import DTYPES
    from kernelforge.ir.build import build
    from kernelforge.ir.types import Type

    work = WORKLOADS[label]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype(np.float32).astype(DTYPES[work.dtype]) for s in work.shapes]
    x, *others = (a.astype(np.float64) for a in arrays)
    want = reference(work.kind, x[:CHECKED_ROWS], *others)
    out: dict[str, Any] = {}
    for name, device in devices().items():
        begun = time.perf_counter()
        plan = compile_graph(build(graph(work.kind), [Type(a.shape, a.dtype) for a in arrays]), device, Config())
        compiled = time.perf_counter() - begun
        inputs = [(device.upload(a), 0) for a in arrays]
        outputs = [(device.allocate(v.type.nbytes), 0) for v in plan.graph.outputs]
        plan.execute(inputs, outputs)
        got = device.download(outputs[0][0], 0, want.shape, plan.graph.outputs[0].type.dtype)
        once = seconds(lambda p=plan, i=inputs, o=outputs: p.execute(i, o), device.synchronize)  # type: ignore[misc]
        out[name] = figures(once, work) | {
            "compile_s": round(compiled, 2),
            "kernels": len(plan.kernels),
            "error": float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max()),
        }
        print(json.dumps(out), flush=True)
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


def torch_timings() -> dict[str, Any]:
    """The same in PyTorch, eager: cuBLAS for the products, and a copy for the memory's limit."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    functions: dict[str, Callable[..., Any]] = {
        "map": lambda x: torch.tanh(x * 0.5) + torch.exp(-x * x),
        "sum": lambda x: x.sum(1),
        "softmax": lambda x: torch.softmax(x, 1),
        "gemm": lambda x, y: x @ y,
        "copy": lambda x: x.clone(),
    }
    works = WORKLOADS | {"copy 2^26 f32": WORKLOADS["map 2^26 f32"]._replace(kind="copy")}
    out: dict[str, Any] = {}
    for label, work in works.items():
        kind = torch.bfloat16 if work.dtype == "bf16" else torch.float32
        tensors = [torch.randn(*shape, device="cuda").to(kind) for shape in work.shapes]
        once = seconds(lambda f=functions[work.kind], t=tensors: f(*t), torch.cuda.synchronize)  # type: ignore[misc]
        out[label] = figures(once, work)
        print(json.dumps(out), flush=True)
    return out


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "conformance": conformance, "timing": timing, "launch": launch, "torch": torch_timings,
}  # fmt: skip


def main() -> None:
    sys.path.insert(0, str(ROOT))
    if len(sys.argv) > 1 and sys.argv[1].startswith("--"):
        print(json.dumps(PARTS[sys.argv[1][2:]](*sys.argv[2:])), flush=True)
        return
    files = [f"tests/backends/test_cuda{part}.py" for part in ("", "_ptx")]
    pytest = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *files]
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "environment": environment,
        "tests": lambda: command(pytest, 200),
        "launch": lambda: own("launch", most_s=40),
        **{label: (lambda w=label: own("timing", w, most_s=60)) for label in WORKLOADS},
        "torch": lambda: own("torch", most_s=60),
        "conformance": lambda: own("conformance", most_s=150),
    }
    if importlib.util.find_spec("torch") is None:
        del steps["torch"]
    target = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "gpu_check.json").resolve()
    report: dict[str, Any] = {}
    for name, step in steps.items():
        report[name] = step()
        target.write_text(json.dumps(report, indent=1))
        print(json.dumps({name: report[name]}, indent=1), flush=True)


if __name__ == "__main__":
    main()
