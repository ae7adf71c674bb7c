"""Functions of NumPy's that compiled functions do not have, and why."""

from __future__ import annotations

import numpy as np

from kernelforge.methods import REFUSED

WHY = {
    "the shape of its result depends on values; use np.where(mask, x, y), or pass the indices as an argument": (
        "intersect1d setdiff1d setxor1d trim_zeros"
    ),
    "its results may be complex": "roots sort_complex",
    "its results may be complex; linalg.eigh is for symmetric matrices": "linalg.eig linalg.eigvals",
    "its results are complex": " ".join(f"fft.{n}" for n in np.fft.__all__ if not n.endswith(("shift", "freq"))),
    "its results may be complex; the function of that name in numpy itself has real ones": (
        " ".join(f"scimath.{n}" for n in np.emath.__all__)
    ),
    "it makes text of values; print what the compiled function returns": "array2string array_repr array_str",
    "it writes a file; write what the compiled function returns": "save savetxt savez savez_compressed",
    "it looks at values to raise; call it on what the compiled function returns": "asarray_chkfinite",
    "a traced array has no memory": "isfortran may_share_memory shares_memory frombuffer from_dlpack",
    "there are no dates": "isnat busday_count busday_offset is_busday datetime_as_string",
    "it makes a matrix, not an array": "asmatrix bmat",
    "it calls Python for each element; write the function on arrays, or use kernelforge.vmap": "fromiter",
    "it walks through elements by Python; compute on whole arrays": "nested_iters",
}
"""Reasons, and the functions that they are of."""

REFUSED |= {name: reason for reason, names in WHY.items() for name in names.split()}
