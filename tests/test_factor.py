"""The two factorisations do not fail: every rung of their ladders is climbed, and hard matrices are split."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from strategies import BACKENDS, DTYPES, array_of, backend_of, dense_of, dtype_of, norm, numpy_of
from tensorly.backend import load_backend
from tnmpo.integrations.transformers import planning

from tnmpo import MPOShape, _factor, bond_spectra, canonicalize, mpo_decompose, truncate, tt_decompose

NAMES = {"torch": "pytorch"}
EPS = {"float32": 1.2e-7, "complex64": 1.2e-7, "float64": 2.3e-16, "complex128": 2.3e-16}
MATRIX = np.random.default_rng(0).normal(size=(6, 5))


def backend_object(name):
    return load_backend(NAMES.get(name, name))


def failing(kind, what):
    """A driver that does not converge, in the way of each library."""

    def driver(matrix, *_, **__):
        is_torch = backend_of(matrix) == "torch"
        if kind == "error":
            raise (torch.linalg.LinAlgError if is_torch else np.linalg.LinAlgError)("did not converge")
        rows, columns = matrix.shape
        k = min(rows, columns)
        shapes = [(rows, k), (k,), (k, columns)] if what == "svd" else [(rows, k), (k, columns)]
        return tuple(torch.full(shape, torch.nan) if is_torch else np.full(shape, np.nan) for shape in shapes)

    return driver


class Ladder:
    """The drivers below the backend's own, counted, the first of them broken."""

    def __init__(self, monkeypatch, kind, broken):
        self.calls = []
        gesvd, geqrf = scipy.linalg.svd, scipy.linalg.qr
        bad_svd, bad_qr = failing(kind, "svd"), failing(kind, "qr")

        def svd(matrix, **options):
            assert options["lapack_driver"] == "gesvd"
            triangular = bool(np.allclose(matrix, np.triu(matrix)))
            self.calls.append(("gesvd of R" if triangular else "gesvd", str(matrix.dtype)))
            return (bad_svd if len(self.svds) <= broken else gesvd)(matrix, **options)

        def qr(matrix, **options):
            self.calls.append(("geqrf", str(matrix.dtype)))
            return (bad_qr if broken < 0 and len(self.calls) < -broken else geqrf)(matrix, **options)

        monkeypatch.setattr(scipy.linalg, "svd", svd)
        monkeypatch.setattr(scipy.linalg, "qr", qr)

    @property
    def svds(self):
        return [call for call in self.calls if call[0] != "geqrf"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["error", "nan"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_rung_of_the_svd_is_climbed_when_the_one_before_fails(monkeypatch, backend, kind, dtype):
    wide = {"float32": "float64", "complex64": "complex128"}.get(dtype, dtype)
    rungs = [("gesvd", dtype), ("gesvd of R", dtype), ("gesvd of R", wide)]
    own = SimpleNamespace(svd=failing(kind, "svd"), qr=backend_object(backend).qr)
    matrix = array_of(MATRIX + (1j * MATRIX[::-1] if dtype.startswith("complex") else 0), backend, dtype)
    for broken in range(3):
        with monkeypatch.context() as patch:
            ladder = Ladder(patch, kind, broken)
            u, s, vh = _factor.svd(own, matrix)
        assert ladder.svds == rungs[: broken + 1]
        for part, name in ((u, dtype), (s, str(np.zeros(0, dtype).real.dtype)), (vh, dtype)):
            assert (backend_of(part), dtype_of(part)) == (backend, name)
            assert part.device == matrix.device
        assert np.allclose((numpy_of(u) * numpy_of(s)) @ numpy_of(vh), numpy_of(matrix), atol=100 * EPS[dtype])
    Ladder(monkeypatch, kind, 3)
    with pytest.raises(np.linalg.LinAlgError) as caught:
        _factor.svd(own, matrix)
    assert f"svd: a 6 x 5 {dtype} matrix with entries up to" in str(caught.value)
    assert str(caught.value).endswith("gesvd after QR, gesvd in double precision); add a little noise to it")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["error", "nan"])
def test_each_rung_of_the_qr_is_climbed(monkeypatch, backend, kind):
    own = SimpleNamespace(qr=failing(kind, "qr"))
    matrix = array_of(MATRIX, backend, "float32")
    for broken, rungs in ((0, ["float32"]), (-2, ["float32", "float64"])):
        with monkeypatch.context() as patch:
            ladder = Ladder(patch, kind, broken)
            q, r = _factor.qr(own, matrix)
        assert ladder.calls == [("geqrf", dtype) for dtype in rungs]
        assert np.allclose(numpy_of(q) @ numpy_of(r), MATRIX, atol=1e-5)
        assert {(backend_of(part), dtype_of(part)) for part in (q, r)} == {(backend, "float32")}
    Ladder(monkeypatch, kind, -9)
    with pytest.raises(np.linalg.LinAlgError, match="qr: a 6 x 5 float32 matrix"):
        _factor.qr(own, matrix)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_an_eigensolver_a_wide_matrix_is_split_by_qr(monkeypatch, backend):
    """On jax's CPU numpy's factorisations are used, so it is theirs that fail."""
    wide = np.random.default_rng(0).normal(size=(4, 20))
    host = backend_object("numpy" if backend == "jax" else backend)
    monkeypatch.setattr(type(host), "eigh", staticmethod(failing("error", "eigh")))
    basis, spectrum, rest = _factor.thin_svd(array_of(wide, backend, "float32"))
    assert np.allclose(numpy_of(basis) @ numpy_of(rest), wide, atol=1e-5)
    assert np.allclose(numpy_of(spectrum), np.linalg.svd(wide, compute_uv=False), rtol=1e-5)


@pytest.mark.parametrize(
    "error", [MemoryError("out of memory"), torch.OutOfMemoryError("CUDA out of memory"), KeyError(3)]
)
@pytest.mark.parametrize("what", ["svd", "qr"])
def test_other_errors_are_not_swallowed(monkeypatch, error, what):
    def driver(*_, **__):
        raise error

    monkeypatch.setattr(scipy.linalg, what, None)  # no other driver is tried
    with pytest.raises(type(error)) as caught:
        getattr(_factor, what)(SimpleNamespace(svd=driver, qr=driver), MATRIX)
    assert caught.value is error


# ---------------------------------------------------------------------------------------------------------------------
# Whose matrix it was
# ---------------------------------------------------------------------------------------------------------------------


def no_driver_converges(monkeypatch, after=0):
    """From the SVD number ``after`` on every driver fails."""
    whole, calls = _factor._split, []

    def split(matrix):
        calls.append(matrix)
        if len(calls) > after:
            raise np.linalg.LinAlgError(f"svd: a {matrix.shape[0]} x {matrix.shape[1]} matrix")
        return whole(matrix)

    monkeypatch.setattr(_factor, "_split", split)


SHAPE = MPOShape((2, 2, 2), (2, 2, 2))
W = np.random.default_rng(1).normal(size=(8, 8))


@pytest.mark.parametrize(
    ("call", "after", "fragment"),
    [
        (lambda: mpo_decompose(W, SHAPE, 2), 0, "W: bond 1: svd: a 4 x 16 matrix"),
        (lambda: mpo_decompose(W, SHAPE, 2), 1, "W: bond 2: svd: a 4 x 16 matrix"),
        (lambda: mpo_decompose(W, SHAPE, 2, center=0), 0, "W: bond 2: svd: a 4 x 16 matrix"),
        (lambda: mpo_decompose(W, SHAPE, 2), 2, "W: bond 1: svd"),  # the cut
        (lambda: mpo_decompose(W, SHAPE, 2), 3, "W: bond 2: svd"),
        (lambda: mpo_decompose(W, SHAPE, 2), 4, "W: bond 2: svd"),  # and back
        (lambda: mpo_decompose(W, SHAPE, 2), 5, "W: bond 1: svd"),
        (lambda: tt_decompose(W.reshape(4, 4, 4)), 1, "tensor: bond 2: svd: a 4 x 16 matrix"),
        (lambda: truncate(TRAIN, 2), 0, "train: bond 1: svd: a 4 x 4 matrix"),
        (lambda: bond_spectra(TRAIN), 1, "train: bond 2: svd"),
    ],
)
def test_the_error_names_the_argument_and_the_bond(monkeypatch, call, after, fragment):
    no_driver_converges(monkeypatch, after)
    with pytest.raises(np.linalg.LinAlgError) as caught:
        call()
    assert str(caught.value).startswith(fragment)


TRAIN = mpo_decompose(W, SHAPE)


def test_in_a_model_the_error_names_the_module(monkeypatch):
    target = SimpleNamespace(name="encoder.layer.3.output", weight=torch.tensor(W))
    no_driver_converges(monkeypatch)
    with pytest.raises(np.linalg.LinAlgError, match=r"^encoder\.layer\.3\.output: W: bond 1: svd: a 4 x 16 matrix"):
        planning.decompose(planning.Plan(target, SHAPE, 2, None))


# ---------------------------------------------------------------------------------------------------------------------
# Hard matrices
# ---------------------------------------------------------------------------------------------------------------------


def hilbert(rows, cols):
    return 1.0 / (1 + np.arange(rows)[:, None] + np.arange(cols))


def dependent(rows, cols):
    """Columns that differ in the last places only: the singular values span the whole range."""
    rng = np.random.default_rng(3)
    return rng.normal(size=(rows, 1)) @ np.ones((1, cols)) * (1 + 1e-15 * rng.integers(0, 3, size=(rows, cols)))


def graded(rows, cols):
    rng = np.random.default_rng(4)
    return np.logspace(0, -280, rows)[:, None] * rng.normal(size=(rows, cols)) * np.logspace(0, -20, cols)


def staircase(rows, cols):
    """Kahan's triangular matrix, nearly singular though no diagonal entry is small."""
    n = min(rows, cols)
    kahan = np.diag(np.sin(1.2) ** np.arange(n)) @ (np.eye(n) - np.cos(1.2) * np.triu(np.ones((n, n)), 1))
    return np.pad(kahan, ((0, rows - n), (0, cols - n)))


def spike(rows, cols):
    """One entry towers 200 orders of magnitude over the others."""
    matrix = np.random.default_rng(5).normal(size=(rows, cols)) * 1e-100
    matrix[rows // 2, cols // 3] = 1e100
    return matrix


def denormal(rows, cols):
    return np.random.default_rng(6).normal(size=(rows, cols)) * 1e-310


def clusters(rows, cols):
    """Orthogonal up to 1e-14: hundreds of values that gesdd's divide and conquer has to deflate."""
    rng = np.random.default_rng(7)
    q, _ = np.linalg.qr(rng.normal(size=(max(rows, cols), max(rows, cols))))
    return q[:rows, :cols] + 1e-14 * rng.normal(size=(rows, cols))


def ones(rows, cols):
    return np.ones((rows, cols))


HARD = [hilbert, dependent, graded, staircase, spike, denormal, clusters, ones]
SIZES = [(24, 24), (60, 12), (12, 60), (30, 20)]  # each of the ways that a matrix is split


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("matrix", HARD)
def test_hard_matrices_are_split(backend, matrix):
    for dtype in DTYPES:
        for size in SIZES[: 1 if backend == "jax" else None]:
            check_split(matrix(*size), backend, dtype)


def check_split(values, backend, dtype):
    phases = np.exp(1j * np.arange(values.shape[1])) if dtype.startswith("complex") else 1
    with np.errstate(over="ignore", under="ignore"):
        given = np.asarray(values * phases).astype(dtype)
    if not np.isfinite(given).all():  # 1e100 in single precision
        given = np.asarray(values * 1e-80 * phases).astype(dtype)
    dense = given.astype(complex if np.iscomplexobj(given) else float)
    total, eps = norm(dense), EPS[dtype]
    basis, spectrum, rest = map(numpy_of, _factor.thin_svd(array_of(given, backend, dtype)))
    floor = 5e-324 if dtype in ("float64", "complex128") else 1.5e-45  # the smallest denormal number
    slack = 40 * eps * total + 40 * floor
    assert np.max(np.abs(basis @ rest - dense)) <= slack
    assert np.max(np.abs(basis.conj().T @ basis - np.eye(basis.shape[1]))) <= 40 * eps
    unit = 1e300 if total < 1e-300 else 1.0  # numpy's own SVD is no oracle among denormal numbers
    assert np.max(np.abs(spectrum * unit - np.linalg.svd(dense * unit, compute_uv=False))) <= slack * unit
    assert np.all(np.diff(spectrum) <= 0)
    q, r = map(numpy_of, _factor.thin_qr(array_of(given, backend, dtype)))
    assert np.max(np.abs(q @ r - dense)) <= slack
    assert np.max(np.abs(q.conj().T @ q - np.eye(q.shape[1]))) <= 40 * eps


@pytest.mark.parametrize("matrix", HARD)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "jax"])
def test_hard_matrices_are_decomposed_and_cut(backend, matrix):
    shape = MPOShape((2, 3, 4), (4, 3, 2))
    given = array_of(matrix(24, 24), backend, "float64")
    dense = numpy_of(given)
    slack = 1e-13 * norm(dense) + 1e-321
    mpo = mpo_decompose(given, shape)
    assert np.max(np.abs(dense_of(mpo.cores) - dense)) <= slack
    assert np.max(np.abs(dense_of(canonicalize(mpo, 0).cores) - dense)) <= slack
    cut = truncate(mpo, 3)
    assert abs(cut.truncation.error - norm(dense - dense_of(cut.cores))) <= slack


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decades", [0, 2, 3.9, 4.1, 7])
def test_a_tall_matrix_in_single_precision_has_orthonormal_directions(backend, decades):
    """Through the Gram matrix up to four decades of singular values, by QR beyond."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(rows, 12)))[0] for rows in (200, 12))
    spectrum = np.geomspace(1, 10.0**-decades, 12)
    matrix = array_of((u * spectrum) @ v.T, backend, "float32")
    basis, values, rest = _factor.thin_svd(matrix)
    q, r = _factor.thin_qr(matrix)
    for columns, remainder in (map(numpy_of, (basis, rest)), map(numpy_of, (q, r))):
        assert np.max(np.abs(columns.T @ columns - np.eye(12))) < 2e-6
        assert np.max(np.abs(columns @ remainder - numpy_of(matrix))) < 1e-6
    assert np.max(np.abs(numpy_of(values) - spectrum)) < 1e-6
