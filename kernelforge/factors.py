"""QR, eigenvalues of symmetric matrices and singular values, by scans of reflections and rotations.

A step reads the whole matrix and a matrix of n columns takes about ten times n steps, so these are for small ones.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from kernelforge.control import scan
from kernelforge.custom import custom_vjp
from kernelforge.errors import InvalidParameter, ShapeMismatch
from kernelforge.jit import jit
from kernelforge.methods import FUNCTIONS
from kernelforge.systems import identity_like, matrices
from kernelforge.transforms import stop_gradient

SWEEPS = {4: 8, 8: 12}
"""Times that each pair of columns is rotated, by bytes of an element: the angles shrink quadratically at the end."""


def _reflected(a: Any, columns: int) -> Any:
    """Return ``r`` by Householder (Golub and Van Loan 2013, algorithm 5.2.1) and the unit vectors of reflections."""
    rows = np.arange(a.shape[-2])

    def step(r: Any, k: Any) -> tuple[Any, Any]:
        x = np.where(rows >= k, np.take(r, k, -1), 0)
        at = rows == k
        rest = np.where(at, 0, x)
        square = (rest * rest).sum(-1, keepdims=True)
        # what is zero below the diagonal stays, as in LAPACK; roots and quotients there are of ones
        done = square == 0
        first = np.where(at, x, 0).sum(-1, keepdims=True)
        size = np.sqrt(np.where(done, 1, first * first + square))
        v = rest + np.where(at, first + np.where(first < 0, -size, size), 0)
        v = np.where(done, 0, v / np.sqrt(np.where(done, 1, (v * v).sum(-1, keepdims=True))))
        r = r - 2 * v[..., None] * (v[..., None, :] @ r)
        return np.where((rows > k)[:, None] & (np.arange(a.shape[-1]) == k), 0, r), v

    return scan(step, a, np.arange(columns))


def _orthogonal(vectors: Any, like: Any) -> Any:
    """Apply reflections to the columns of ``like``, the last one first."""
    return scan(lambda q, v: (q - 2 * v[..., None] * (v[..., None, :] @ q), None), like, vectors, reverse=True)[0]


@functools.cache
def _tuple(name: str) -> Any:
    """Return the named tuple that NumPy's function makes, which NumPy keeps to itself."""
    return type(getattr(np.linalg, name)(np.eye(1)))


@jit(static_argnames="mode")
def qr(a: Any, mode: str = "reduced") -> Any:
    """``numpy.linalg.qr``; derivatives where the columns before the last one are independent."""
    if mode not in ("reduced", "complete", "r"):
        raise InvalidParameter(op="np.linalg.qr", name="mode", found=mode, expected="'reduced', 'complete' or 'r'")
    a = matrices("qr", a, square=False)
    m, n = a.shape[-2:]
    least = min(m, n)
    r, vectors = _reflected(a, least)
    kept = m if mode == "complete" else least
    r = r[..., :kept, :]
    if mode == "r":
        return r
    like = np.broadcast_to(FUNCTIONS["eye"](m, kept, dtype=a.dtype), (*a.shape[:-2], m, kept))
    return _tuple("qr")(_orthogonal(vectors, like), r)


def _rounds(n: int) -> np.ndarray[Any, Any]:
    """Return partners of all columns in each round of a tournament (Brent and Luk 1985), ``n`` even."""
    circle = list(range(1, n))
    found = []
    for _ in circle:
        order = [0, *circle]
        partner = np.empty(n, np.int64)
        for i, j in zip(order[: n // 2], reversed(order), strict=False):
            partner[i], partner[j] = j, i
        found.append(partner)
        circle = [circle[-1], *circle[:-1]]
    return np.array(found).reshape(-1, n)


def _jacobi(a: Any) -> tuple[Any, Any]:
    """Rotate the columns of ``a`` until they are orthogonal (Hestenes 1958); return them and the product of rotations.

    The columns of a round's pairs are rotated at once. The angle is Rutishauser's (1966).
    """
    n = a.shape[-1]
    even = n + n % 2
    # a column of zeros sits out
    whole = np.concatenate([a, np.zeros((*a.shape[:-1], even - n), a.dtype)], -1)
    turns = identity_like(np.broadcast_to(np.zeros((), a.dtype), (*a.shape[:-2], even, even)))
    columns = np.arange(even)

    def step(carry: tuple[Any, Any], partner: Any) -> tuple[Any, None]:
        x, v = carry
        y = np.take(x, partner, -1)
        mine, theirs, both = (x * x).sum(-2), (y * y).sum(-2), (x * y).sum(-2)
        first = columns < partner
        p, q = np.where(first, mine, theirs), np.where(first, theirs, mine)
        # relative to the columns, or nothing would be small enough
        still = np.abs(both) <= np.finfo(a.dtype).eps * 0.25 * np.sqrt(mine) * np.sqrt(theirs)
        both = np.where(still, 1, both)
        angle = (q - p) / (2 * both)
        t = np.where(angle < 0, -1.0, 1.0) / (np.abs(angle) + np.hypot(angle, 1.0))
        c = 1 / np.hypot(t, 1.0)
        s = np.where(still, 0, np.where(first, -t, t) * c).astype(a.dtype)[..., None, :]
        c = np.where(still, 1, c).astype(a.dtype)[..., None, :]
        return (x * c + y * s, v * c + np.take(v, partner, -1) * s), None

    rounds = np.tile(_rounds(even), (SWEEPS[a.dtype.itemsize], 1))
    (x, v), _ = scan(step, (whole, turns), rounds)
    return x[..., :n], v[..., :n, :n]


def _svd_of(a: Any) -> tuple[Any, Any, Any]:
    """Return ``u, s, vh`` of no fewer rows than columns; ``u`` is orthonormal where singular values are zero, too."""
    x, v = _jacobi(a)
    size = np.sqrt((x * x).sum(-2))
    order = np.argsort(-size, -1)
    s = np.take_along_axis(size, order, -1)
    x, v = (np.take_along_axis(w, order[..., None, :], -1) for w in (x, v))
    # the factor of QR completes what has no direction
    r, vectors = _reflected(x / np.where(s > 0, s, 1)[..., None, :], a.shape[-1])
    like = np.broadcast_to(FUNCTIONS["eye"](*a.shape[-2:], dtype=a.dtype), a.shape)
    sign = np.where(np.diagonal(r, axis1=-2, axis2=-1) < 0, -1, 1).astype(a.dtype)
    return _orthogonal(vectors, like) * sign[..., None, :], s, v.mT


def _apart(w: Any) -> Any:
    """Return 1 / (w[j] - w[i]), and 0 for equal ones: what depends on no choice of vectors needs nothing of these."""
    apart = w[..., None, :] - w[..., :, None]
    return np.where(apart == 0, 0, 1 / np.where(apart == 0, 1, apart))


@custom_vjp
def _svd(a: Any) -> tuple[Any, Any, Any]:
    return _svd_of(a)


def _svd_fwd(a: Any) -> tuple[Any, Any]:
    made = _svd_of(a)
    return made, made


def _svd_bwd(kept: tuple[Any, Any, Any], cts: tuple[Any, Any, Any]) -> tuple[Any]:
    """Townsend 2016, Differentiating the singular value decomposition."""
    u, s, vh = kept
    ct_u, ct_s, ct_vh = cts
    v, ct_v = vh.mT, ct_vh.mT
    squares = _apart(s * s)
    inverse = np.where(s > 0, 1 / np.where(s > 0, s, 1), 0)
    of_u, of_v = u.mT @ ct_u, v.mT @ ct_v
    core = squares * (of_u - of_u.mT) * s[..., None, :] + s[..., :, None] * squares * (of_v - of_v.mT)
    core = core + identity_like(core) * ct_s[..., None, :]
    made = u @ core @ vh
    made = made + (ct_u - u @ of_u) * inverse[..., None, :] @ vh
    return (made + u * inverse[..., None, :] @ (ct_v - v @ of_v).mT,)


_svd.defvjp(_svd_fwd, _svd_bwd)


@custom_vjp
def _eigh(a: Any) -> tuple[Any, Any]:
    """Shift by a norm, which makes ``a`` positive: then singular vectors are eigenvectors."""
    shift = np.abs(a).sum(-1).max(-1)[..., None]
    moved = a + identity_like(a) * shift[..., None]
    _, v = _jacobi(moved)
    w = (v * (a @ v)).sum(-2)
    order = np.argsort(w, -1)
    return np.take_along_axis(w, order, -1), np.take_along_axis(v, order[..., None, :], -1)


def _eigh_fwd(a: Any) -> tuple[Any, Any]:
    made = _eigh(a)
    return made, made


def _eigh_bwd(kept: tuple[Any, Any], cts: tuple[Any, Any]) -> tuple[Any]:
    """Giles 2008, An extended collection of matrix derivative results, section 3.1; symmetric."""
    w, v = kept
    ct_w, ct_v = cts
    made = v @ (identity_like(v) * ct_w[..., None, :] + _apart(w) * (v.mT @ ct_v)) @ v.mT
    return (0.5 * (made + made.mT),)


_eigh.defvjp(_eigh_fwd, _eigh_bwd)


def _symmetric(op: str, a: Any, UPLO: str) -> Any:
    if UPLO not in ("L", "U"):
        raise InvalidParameter(op=f"np.linalg.{op}", name="UPLO", found=UPLO, expected="'L' or 'U'")
    a = matrices(op, a)
    half = np.tril(a) if UPLO == "L" else np.triu(a)
    return half + half.mT - identity_like(a) * a


@jit(static_argnames="UPLO")
def eigh(a: Any, UPLO: str = "L") -> Any:
    """``numpy.linalg.eigh``, by Jacobi's rotations; the signs of vectors may differ from LAPACK's."""
    a = _symmetric("eigh", a, UPLO)
    return _tuple("eigh")(*(_eigh(a) if a.size else (a.sum(-1), a)))


@jit(static_argnames="UPLO")
def eigvalsh(a: Any, UPLO: str = "L") -> Any:
    """``numpy.linalg.eigvalsh``."""
    return eigh(a, UPLO)[0]


def _tall(a: Any) -> tuple[Any, Any, Any]:
    if a.shape[-2] < a.shape[-1]:
        u, s, vh = _svd(a.mT)
        return vh.mT, s, u.mT
    return _svd(a)  # type: ignore[no-any-return]


@jit(static_argnames=("full_matrices", "compute_uv", "hermitian"))
def svd(a: Any, full_matrices: bool = True, compute_uv: bool = True, hermitian: bool = False) -> Any:
    """``numpy.linalg.svd``, by Jacobi's rotations; the signs of vectors may differ from LAPACK's.

    Derivatives are of the reduced form; of the columns that ``full_matrices`` adds there are none.
    """
    a = _symmetric("svd", a, "L") if hermitian else matrices("svd", a, square=False)
    if not a.size:
        raise ShapeMismatch(op="np.linalg.svd", found=a.shape, expected="at least one element")
    u, s, vh = _tall(a)
    if not compute_uv:
        return s
    if full_matrices and a.shape[-1] != a.shape[-2]:
        u, vh = _completed(u), _completed(vh.mT).mT
    return _tuple("svd")(u, s, vh)


def _completed(q: Any) -> Any:
    """Add orthonormal columns until the matrix is square."""
    m, n = q.shape[-2:]
    if m == n:
        return q
    _, vectors = _reflected(stop_gradient(q), n)
    like = np.broadcast_to(FUNCTIONS["eye"](m, dtype=q.dtype), (*q.shape[:-2], m, m))
    return np.concatenate([q, _orthogonal(vectors, like)[..., n:]], -1)


@jit
def svdvals(x: Any) -> Any:
    """``numpy.linalg.svdvals``."""
    return svd(x, compute_uv=False)


def _cut(s: Any, share: Any, shape: tuple[int, ...]) -> Any:
    """Return which singular values are to be taken for more than zero."""
    least = max(shape[-2:]) * np.finfo(s.dtype).eps if share is None else share
    return s > (s.max(-1) * least)[..., None]


@jit(static_argnames="hermitian")
def pinv(a: Any, rcond: Any = None, hermitian: bool = False, *, rtol: Any = None) -> Any:
    """``numpy.linalg.pinv``."""
    a = _symmetric("pinv", a, "L") if hermitian else matrices("pinv", a, square=False)
    if not a.size:
        return a.mT
    u, s, vh = _tall(a)
    share = rcond if rcond is not None else 1e-15 if rtol is None else rtol
    kept = _cut(s, share, a.shape)
    inverse = np.where(kept, 1 / np.where(kept, s, 1), 0)
    return vh.mT * inverse[..., None, :] @ u.mT


@jit(static_argnames="hermitian")
def matrix_rank(A: Any, tol: Any = None, hermitian: bool = False, *, rtol: Any = None) -> Any:
    """``numpy.linalg.matrix_rank``."""
    a = FUNCTIONS["asarray"](A)
    if a.ndim < 2:
        return (a != 0).any().astype(np.int64)
    s = svd(a, compute_uv=False, hermitian=hermitian)
    return (s > FUNCTIONS["asarray"](tol)[..., None] if tol is not None else _cut(s, rtol, a.shape)).sum(-1)


@jit(static_argnames="p")
def cond(x: Any, p: Any = None) -> Any:
    """``numpy.linalg.cond``."""
    if p in (None, 2, -2):
        s = svdvals(x)
        return s[..., -1] / s[..., 0] if p == -2 else s[..., 0] / s[..., -1]
    norm = FUNCTIONS["linalg.norm"]
    return norm(x, p, (-2, -1)) * norm(FUNCTIONS["linalg.inv"](x), p, (-2, -1))


@jit
def lstsq(a: Any, b: Any, rcond: Any = None) -> Any:
    """``numpy.linalg.lstsq``, but that residuals are there whatever the rank is found to be."""
    a, b = matrices("lstsq", a, square=False), FUNCTIONS["asarray"](b)
    if a.ndim != 2 or b.ndim not in (1, 2) or a.shape[0] != b.shape[0] or not a.size:
        expected = "a matrix, and as many rows in b"
        raise ShapeMismatch(op="np.linalg.lstsq", found=f"{a.shape} and {b.shape}", expected=expected)
    kind = np.result_type(a.dtype, b.dtype if b.dtype.kind == "f" else "f8")
    a, b = a.astype(kind), b.astype(kind)
    u, s, vh = _tall(a)
    kept = _cut(s, rcond, a.shape)
    inverse = np.where(kept, 1 / np.where(kept, s, 1), 0)
    columns = b if b.ndim == 2 else b[:, None]
    x = vh.mT @ (inverse[:, None] * (u.mT @ columns))
    apart = columns - a @ x
    residuals = (apart * apart).sum(0) if a.shape[0] > a.shape[1] else np.zeros(0, kind)
    return x if b.ndim == 2 else x[:, 0], residuals, kept.sum(dtype=np.int32), s


for _fn in (qr, eigh, eigvalsh, svd, svdvals, pinv, matrix_rank, cond, lstsq):
    FUNCTIONS[f"linalg.{_fn.__name__}"] = _fn
