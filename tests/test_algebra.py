"""The laws of the algebra of trains, each against the dense arrays, on every backend that is installed."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BACKENDS,
    DTYPES,
    HALF_SLACK,
    SLACK,
    array_of,
    backend_of,
    backends,
    dense_of,
    dtype_of,
    mpos,
    norm,
    numpy_of,
    rounding,
    tts,
)

import tnmpo
from tnmpo import MPO, TT, MPOShape, Tolerance, canonicalize, is_canonical, mpo_decompose, truncate, tt_decompose

DOUBLE = ("float64", "complex128")
SCALARS = (0, 1, -2, 0.37, 1e-6, 5e5)
FEW = settings(max_examples=25)


@st.composite
def trains(draw, kinds=(MPO, TT), min_order=1, max_order=6, dtypes=DTYPES):
    """Random trains; of jax, which compiles for every new shape, one of three sites."""
    kind, dtype = draw(st.sampled_from(kinds)), draw(st.sampled_from(dtypes))
    if draw(st.integers(0, 19)) == 0:
        dtype = dtype if dtype in DOUBLE else DOUBLE[dtype == "complex64"]
        sites = [((2, 2), (1, 2), (3, 2)), ((2,), (1,), (3,))][kind is TT][:max_order]
        return draw(alike(kind([array_of(np.ones((1, *site, 1)), "jax", dtype) for site in sites])))
    return draw((mpos if kind is MPO else tts)(min_order, max_order, (dtype,), ("numpy", "torch")))


@st.composite
def twins(draw, **options):
    """Two trains of the same sites, backend and dtype, with ranks of their own."""
    one = draw(trains(**options))
    return one, draw(alike(one))


@st.composite
def alike(draw, train, sites=None):
    """Another train of the kind of ``train``, with the same sites or the given ones."""
    sites = train.frame.site_shapes if sites is None else sites
    few = backend_of(train.cores[0]) == "jax"  # which compiles for every new shape
    ranks = [1, *(2 if few else draw(st.integers(1, 3)) for _ in sites[1:]), 1]
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    dtype = dtype_of(train.cores[0])
    cores = [rng.normal(size=(ranks[k], *site, ranks[k + 1])) for k, site in enumerate(sites)]
    if dtype.startswith("complex"):
        cores = [core * np.exp(2j * np.pi * rng.random(core.shape)) for core in cores]
    return type(train)([array_of(core, backend_of(train.cores[0]), dtype) for core in cores])


def assert_close(actual, expected, slack):
    actual, expected = numpy_of(actual), numpy_of(np.asarray(expected) if np.isscalar(expected) else expected)
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected), initial=0.0) <= slack


def assert_train(train, dense, slack, like):
    """The train makes the dense array, of the kind, backend, dtype and device of ``like``."""
    assert type(train) is type(like)
    assert backend_of(train.cores[0]) == backend_of(like.cores[0])
    assert {dtype_of(core) for core in train.cores} == {dtype_of(like.cores[0])}
    assert {core.device for core in train.cores} == {like.cores[0].device}
    assert_close(dense_of(train.cores), dense, slack)
    if train.center is not None:
        assert is_canonical(train)
    assert train.truncation is None


def size(train):
    return rounding(train) / SLACK[dtype_of(train.cores[0])]


# ---------------------------------------------------------------------------------------------------------------------
# The vector space
# ---------------------------------------------------------------------------------------------------------------------


@given(twins())
def test_sums_and_differences(pair):
    A, B = pair
    a, b = dense_of(A.cores), dense_of(B.cores)
    slack = rounding(A) + rounding(B)
    assert_train(A + B, a + b, slack, A)
    assert_train(A - B, a - b, slack, A)
    assert_train(-A, -a, 0, A)
    assert_train(sum([A, B]), a + b, slack, A)
    assert (A + B).ranks == (1, *(r + s for r, s in zip(A.ranks[1:-1], B.ranks[1:-1], strict=True)), 1)


@given(twins(), st.sampled_from(SCALARS), st.sampled_from((float, np.float64, np.float32, "array")))
def test_scalars(pair, value, kind):
    A, _ = pair
    backend, dtype = backend_of(A.cores[0]), dtype_of(A.cores[0])
    scalar = array_of(np.array(value, float), backend, dtype) if kind == "array" else kind(value)
    value = complex(numpy_of(scalar)) if kind == "array" else float(scalar)
    value = value if dtype.startswith("complex") else value.real
    a, slack = dense_of(A.cores), rounding(A) * max(1, abs(value))
    for center in (None, A.order - 1):
        known = A if center is None else canonicalize(A, center)
        for product in (scalar * known, known * scalar):
            assert_train(product, value * a, slack, A)
            assert product.center == center
            assert product.ranks == known.ranks
        if value:
            assert_train(known / scalar, a / value, rounding(A) * max(1, abs(1 / value)), A)


@given(twins(dtypes=("float32", "float64")), st.complex_numbers(max_magnitude=9, min_magnitude=0.1))
def test_a_complex_scalar_makes_a_real_train_complex_and_keeps_its_precision(pair, value):
    A, _ = pair
    partner = {"float32": "complex64", "float64": "complex128"}[dtype_of(A.cores[0])]
    for product in (
        value * A,
        A * np.complex128(value),
        array_of(np.array(value), backend_of(A.cores[0]), partner) * A,
    ):
        assert {dtype_of(core) for core in product.cores} == {partner}
        assert_close(dense_of(product.cores), value * dense_of(A.cores), 10 * rounding(A))


@given(twins())
def test_conjugates_and_transposes(pair):
    A, _ = pair
    for train in (A, canonicalize(A, 0)):
        dense = dense_of(train.cores)
        assert_train(train.conj(), dense.conj(), 0, A)
        assert train.conj().center == train.center
        if isinstance(train, MPO):
            assert_train(train.T, dense.T, 0, A)
            assert_train(train.H, dense.conj().T, 0, A)
            assert train.T.center == train.H.center == train.center
            assert train.T.shape == MPOShape(train.shape.cols, train.shape.rows)


# ---------------------------------------------------------------------------------------------------------------------
# Inner products
# ---------------------------------------------------------------------------------------------------------------------


@given(twins())
def test_inner_and_norm(pair):
    A, B = pair
    a, b = dense_of(A.cores), dense_of(B.cores)
    slack = SLACK[dtype_of(A.cores[0])]
    inner, length = tnmpo.inner(A, B), tnmpo.norm(A)
    assert_close(inner, np.vdot(a, b), slack * size(A) * size(B))
    assert_close(length, norm(a), slack * size(A))
    assert_close(tnmpo.inner(A, A), norm(a) ** 2, slack * size(A) ** 2)
    for scalar in (inner, length):
        assert backend_of(scalar) == backend_of(A.cores[0])
    assert dtype_of(inner) == dtype_of(A.cores[0])
    assert dtype_of(length) == dtype_of(np.zeros(1, dtype_of(A.cores[0])).real)


@given(twins(), st.integers(-150, 150), st.integers(-150, 150))
def test_inner_and_norm_at_any_scale(pair, first, second):
    """Entries as large as 1e150 square to what no double holds, yet norms and products that fit come out."""
    one, other = pair[1], 3 * pair[1].conj()  # entries around 1, which the draw of the first need not have
    A, B = canonicalize(one), canonicalize(other)
    double = dtype_of(A.cores[0]) in DOUBLE
    first, second = (first, second) if double else (first // 10, second // 10)
    a, b = dense_of(A.cores), dense_of(B.cores)
    slack = 10 * SLACK[dtype_of(A.cores[0])]
    A, B = 10.0**first * A, 10.0**second * B
    assert numpy_of(tnmpo.norm(A)) == pytest.approx(10.0**first * norm(a), rel=slack)
    product = numpy_of(tnmpo.inner(A, B)) / 10.0**first / 10.0**second
    assert_close(product, np.vdot(a, b), slack * size(one) * size(other))
    larger, scale = (first, norm(a)) if first >= second else (second, norm(b))
    if abs(first - second) > 40 and scale > 0 and min(norm(a), norm(b)) > 1e-12:
        assert numpy_of(tnmpo.norm(A + B)) == pytest.approx(10.0**larger * scale, rel=slack)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_cores_of_opposite_scales(backend, dtype):
    """The train is of size 1 though a product of two of its cores is beyond the dtype."""
    decades = 200 if dtype == "float64" else 30
    rng = np.random.default_rng(0)
    plain = [rng.normal(size=shape) for shape in [(1, 2, 2, 3), (3, 2, 2, 3), (3, 2, 2, 2), (2, 2, 2, 1)]]
    scales = [decades, -decades, -decades, decades]
    A = MPO([array_of(c * 10.0**e, backend, dtype) for c, e in zip(plain, scales, strict=True)])
    flipped = MPO([array_of(c * 10.0**-e, backend, dtype) for c, e in zip(plain, scales, strict=True)])
    a = dense_of(plain)
    x = rng.normal(size=(16, 3))
    cases = [
        (tnmpo.norm(A), norm(a)),
        (tnmpo.inner(A, A), norm(a) ** 2),
        (tnmpo.inner(A, flipped), norm(a) ** 2),
        (tnmpo.trace(A), np.trace(a)),
        (dense_of((A @ A).cores), a @ a),
        (dense_of(tnmpo.hadamard(A, A).cores), a * a),
        (A @ array_of(x, backend, dtype), a @ x),
        (array_of(x.T, backend, dtype) @ A, x.T @ a),
        (A.to_matrix(), a),
    ]
    for actual, expected in cases:
        assert_close(actual, expected, 100 * SLACK[dtype] * np.max(np.abs(expected)))


def test_matrices_of_trains_whose_values_are_not_at_hand():
    """Where torch maps, differentiates or only follows shapes, products are formed as they are."""
    first, second = torch.rand(3, 1, 2, 2, 2), torch.rand(2, 2, 2, 1)

    def dense(core):
        return MPO([core, second]).to_matrix()

    assert_close(torch.func.vmap(dense)(first), np.stack([dense_of([core, second]) for core in first]), 1e-6)
    assert_close(
        torch.func.grad(lambda core: dense(core).sum())(first[0]),
        np.ones((1, 2, 2, 1)) * numpy_of(second.sum((1, 2, 3))),
        1e-5,
    )
    assert MPO([torch.ones(1, 2, 2, 1, device="meta")] * 2).to_matrix().shape == (4, 4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "large"), [("float64", 1e200), ("float32", 1e28), ("complex128", 1e200)])
@pytest.mark.parametrize("site", [0, 1])
def test_a_scalar_that_one_core_cannot_take_is_shared(backend, dtype, large, site):
    scales = [1 / large, large] if site else [large, 1 / large]
    left, right = np.array([1.0, -3.0]), np.array([0.5, 2.0])
    cores = [(scales[0] * left).reshape(1, 2, 1), (scales[1] * right).reshape(1, 2, 1)]
    A = TT([array_of(core, backend, dtype) for core in cores])
    a, slack, factor = np.outer(left, right), 20 * SLACK[dtype], large**0.75
    for product, expected in ((A * factor, factor), (A / factor, 1 / factor), (A / (1 / factor), factor)):
        assert {dtype_of(core) for core in product.cores} == {dtype}
        assert_close(numpy_of(product.to_tensor()) / expected, a, slack)
    limit = float(np.finfo(dtype).max)
    known = canonicalize(A, site)
    assert (known * 2.0).center == site
    beyond = known * (limit / 64) * 16.0  # a norm that no core can hold
    assert beyond.center is None
    assert all(np.isfinite(numpy_of(core)).all() for core in beyond.cores)
    assert_close((beyond / limit).to_tensor(), a / 4, slack)
    below = known / (limit / 64) / 16.0
    assert_close((below * limit).to_tensor(), a * 4, slack)


def test_a_scalar_in_half_precision_is_shared():
    A = MPO([np.full((1, 2, 2, 1), 60, np.float16)] * 2)
    product = 3000 * A
    assert product.cores[0].dtype == np.float16
    assert np.allclose(dense_of(product.cores), 3000 * 3600, rtol=2e-3)
    with pytest.raises(ValueError, match=r"^MPO: got a norm that overflows float16; scale it down or convert it to bf"):
        product * 60000
    with pytest.raises(ValueError, match=r"^MPO: got a norm that underflows float16; scale it up or convert it to bf"):
        A / 60000 / 60000 / 60000 / 60000


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (1e308, "TT: got a norm that overflows float64; scale it down"),
        (1e-308, "TT: got a norm that underflows float64; scale it up"),
    ],
)
def test_a_scalar_that_no_core_can_take_is_refused(scale, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        TT([np.ones((1, 2, 1))]) * scale * scale**0.1
    with pytest.raises(ValueError, match=f"^{message}$"):
        TT([np.ones((1, 2, 1))] * 2) * scale * scale * scale**0.5
    assert (0 * TT([np.full((1, 2, 1), scale)])).cores[0].max() == 0


def test_sums_and_products_that_overflow_are_refused():
    A, message = TT([np.full((1, 2, 1), 1.7e308)]), r"^TT: got a norm that overflows float64; scale it down$"
    with pytest.raises(ValueError, match=message), np.errstate(all="ignore"):
        A + A
    with pytest.raises(ValueError, match=message), np.errstate(all="ignore"):
        tnmpo.hadamard(A, A)
    B = TT([np.full((1, 2, 1), np.float32(3e38))])
    with pytest.raises(ValueError, match=r"overflows float32; scale it down or convert it to float64$"):
        B * 2


def test_the_norm_of_a_long_train():
    """2,000 sites of norm 100 each: the norm is 10^4000, its 1e-4000th part fits."""
    rng = np.random.default_rng(0)
    cores = [rng.normal(size=(1 if k == 0 else 3, 2, 1 if k == 1999 else 3)) for k in range(2000)]
    lengths = [norm(core) for core in cores]
    A = TT([core / length for core, length in zip(cores, lengths, strict=True)])
    length = float(tnmpo.norm(A))
    assert 0 <= length < 1
    unit = TT([core / np.linalg.norm(core) for core in np.ones((2000, 1, 2, 1))])
    assert float(tnmpo.norm(unit)) == pytest.approx(1, rel=1e-12)
    assert float(tnmpo.inner(unit, unit)) == pytest.approx(1, rel=1e-12)
    assert float(tnmpo.norm(TT([100 * unit.cores[0]] * 100 + [unit.cores[0] / 100] * 100))) == pytest.approx(
        1, rel=1e-12
    )


@given(twins(dtypes=DOUBLE))
def test_the_norm_of_a_difference_keeps_its_digits(pair):
    A, B = pair
    tiny = tnmpo.norm(A - (A + 1e-9 * B))
    assert_close(tiny, 1e-9 * norm(dense_of(B.cores)), 2 * rounding(A) + rounding(B))


@given(st.data())
def test_traces(data):
    A = data.draw(squares())
    a, slack = dense_of(A.cores), SLACK[dtype_of(A.cores[0])] * size(A) * math.sqrt(A.matrix_shape[0])
    assert_close(tnmpo.trace(A), np.trace(a), slack)
    assert backend_of(tnmpo.trace(A)) == backend_of(A.cores[0])


@st.composite
def squares(draw):
    """MPOs of low-rank shape and products A A^H, whose trace is defined."""
    if draw(st.booleans()):
        A = draw(trains((MPO,), max_order=3))
        return A @ A.H
    backend, dtype = draw(backends()), draw(st.sampled_from(DTYPES))
    side = 3 if backend == "jax" else draw(st.integers(1, 7))
    shape = MPOShape.low_rank((side, side), bond_core=draw(st.booleans()))
    W = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(side, side))
    return mpo_decompose(array_of(W, backend, dtype), shape)


# ---------------------------------------------------------------------------------------------------------------------
# Products
# ---------------------------------------------------------------------------------------------------------------------


@st.composite
def chains(draw, max_order=4, dtypes=DTYPES):
    """Two MPOs whose product is defined, and a third for the product with the second."""
    A = draw(trains((MPO,), max_order=max_order, dtypes=dtypes))
    rows = A.shape.cols
    cols = rows[::-1] if backend_of(A.cores[0]) == "jax" else tuple(draw(st.integers(1, 3)) for _ in rows)
    return A, draw(alike(A, tuple(zip(rows, cols, strict=True))))


@given(chains())
def test_products_of_matrices(pair):
    A, B = pair
    a, b = dense_of(A.cores), dense_of(B.cores)
    product = A @ B
    slack = rounding(A) * size(B)
    assert_train(product, a @ b, slack, A)
    assert product.ranks == tuple(r * s for r, s in zip(A.ranks, B.ranks, strict=True))
    assert product.shape == MPOShape(A.shape.rows, B.shape.cols)
    # (A B)^H = B^H A^H
    assert_close(dense_of(product.H.cores), dense_of((B.H @ A.H).cores), 2 * slack)


@given(trains((MPO,)), st.data())
def test_the_trace_of_a_product_is_cyclic(A, data):
    B = data.draw(alike(A.T))
    slack = SLACK[dtype_of(A.cores[0])] * size(A) * size(B)
    exact = np.sum(dense_of(A.cores) * dense_of(B.cores).T)
    assert_close(tnmpo.trace(A @ B), exact, slack)
    assert_close(tnmpo.trace(B @ A), exact, slack)


@given(trains((MPO,)), st.data())
def test_matrix_times_tensor(A, data):
    x = data.draw(alike(TT([core[:, :, 0] for core in A.cores]), tuple((d,) for d in A.shape.cols)))
    y = data.draw(alike(x, tuple((d,) for d in A.shape.rows)))
    a = dense_of(A.cores)
    dense_x, dense_y = dense_of(x.cores).ravel(), dense_of(y.cores).ravel()
    right, left = A @ x, y @ A
    assert_train(right, (a @ dense_x).reshape(A.shape.rows), rounding(A) * size(x), x)
    assert_train(left, (dense_y @ a).reshape(A.shape.cols), rounding(A) * size(y), x)
    # <y, A x> = <A^H y, x>
    slack = SLACK[dtype_of(A.cores[0])] * size(A) * size(x) * size(y)
    assert_close(tnmpo.inner(y, right), tnmpo.inner(A.H @ y, x), 2 * slack)


@given(chains(), st.data())
def test_a_product_is_applied_one_after_the_other(pair, data):
    A, B = pair
    x = data.draw(alike(TT([core[:, :, 0] for core in B.cores]), tuple((d,) for d in B.shape.cols)))
    slack = 4 * rounding(A) * size(B) * size(x)
    assert_close(dense_of(((A @ B) @ x).cores), dense_of((A @ (B @ x)).cores), slack)
    C = data.draw(alike(A))
    twice = (A + C) @ B
    assert_close(
        dense_of((twice @ x).cores),
        dense_of(((A @ B) @ x + (C @ B) @ x).cores),
        4 * (rounding(A) + rounding(C)) * size(B) * size(x),
    )


@given(trains((MPO,)), st.sampled_from([(), (1,), (4,), (0,), (2, 3), (2, 1, 2)]), st.integers(0, 99))
def test_matrix_times_array(A, lead, seed):
    """As ``numpy.matmul`` has it, with the batch on either side."""
    (rows, cols), dtype, backend = A.matrix_shape, dtype_of(A.cores[0]), backend_of(A.cores[0])
    a, rng = dense_of(A.cores), np.random.default_rng(seed)
    for shape, left in (((*lead[:-1], cols, *lead[-1:]), False), ((*lead, rows), True)):
        x = rng.normal(size=shape) + (1j * rng.normal(size=shape) if dtype.startswith("complex") else 0)
        given_x = array_of(x, backend, dtype)
        product = given_x @ A if left else A @ given_x
        expected = x @ a if left else a @ x
        assert backend_of(product) == backend
        assert dtype_of(product) == dtype
        assert_close(product, expected, rounding(A) * max(1, norm(x)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("shape", "rank", "execution"), [(((8, 8), (8, 8)), 1, "factored"), (((4, 4), (4, 4)), 16, "dense")]
)
def test_either_execution(backend, shape, rank, execution):
    W = np.random.default_rng(0).normal(size=(64, 64) if rank == 1 else (16, 16))
    A = mpo_decompose(array_of(W, backend, "float64"), shape, rank)
    x = np.random.default_rng(1).normal(size=(A.matrix_shape[1], 100))
    assert tnmpo.contraction_plan(A.shape, A.ranks, 100).execution == execution
    assert_close(A @ array_of(x, backend, "float64"), dense_of(A.cores) @ x, 1e-11)
    assert_close(array_of(x.T, backend, "float64") @ A, x.T @ dense_of(A.cores), 1e-11)


@given(twins())
def test_hadamard(pair):
    A, B = pair
    a, b = dense_of(A.cores), dense_of(B.cores)
    product = tnmpo.hadamard(A, B)
    assert_train(product, a * b, rounding(A) * size(B), A)
    assert product.ranks == tuple(r * s for r, s in zip(A.ranks, B.ranks, strict=True))
    # <A, B> = sum of conj(A) * B, which the train of ones sees
    ones = type(A)([0 * core[:1, ..., :1] + 1 for core in A.cores])
    slack = 10 * SLACK[dtype_of(A.cores[0])] * size(A) * size(B) * size(ones)
    assert_close(tnmpo.inner(ones, tnmpo.hadamard(A.conj(), B)), tnmpo.inner(A, B), slack)


@FEW
@given(twins(max_order=3), st.data())
def test_kron(pair, data):
    A, B = pair
    product = tnmpo.kron(A, B)
    a, b = dense_of(A.cores), dense_of(B.cores)
    dense = np.kron(a, b) if isinstance(A, MPO) else np.multiply.outer(a, b)
    assert_train(product, dense, rounding(A) * size(B), A)
    assert product.ranks == (*A.ranks, *B.ranks[1:])
    if isinstance(A, MPO):  # (A x B)(C x D) = AC x BD
        C, D = (data.draw(alike(M, tuple((j, 1) for j in M.shape.cols))) for M in (A, B))
        mixed = dense_of((product @ tnmpo.kron(C, D)).cores)
        slack = 4 * rounding(A) * size(B) * size(C) * size(D)
        assert_close(mixed, dense_of(tnmpo.kron(A @ C, B @ D).cores), slack)


# ---------------------------------------------------------------------------------------------------------------------
# Rounding
# ---------------------------------------------------------------------------------------------------------------------


@given(twins(min_order=2, dtypes=DOUBLE))
def test_rounding_takes_off_what_a_sum_has_too_much(pair):
    A, _ = pair
    needed = truncate(A, Tolerance(1e-10))
    if float(numpy_of(tnmpo.norm(needed))) > 1e-6 * size(A):
        twice = truncate(needed + needed, Tolerance(1e-10))
        assert twice.ranks == needed.ranks
        a = dense_of(needed.cores)
        error = norm(dense_of(twice.cores) - 2 * a)
        assert error <= (1e-10 + 100 * SLACK["float64"]) * 2 * norm(a)
        assert abs(error - twice.truncation.error) <= 100 * SLACK["float64"] * norm(2 * a)


@FEW
@given(chains(max_order=3), st.integers(1, 4))
def test_apply_is_the_product_cut(pair, rank):
    A, B = pair
    a = dense_of((A @ B).cores)
    exact, cut = tnmpo.apply(A, B), tnmpo.apply(A, B, rank)
    assert exact.truncation is None
    assert_close(dense_of(exact.cores), a, 0)
    assert max(cut.ranks) <= rank
    assert cut.truncation.error == pytest.approx(norm(a - dense_of(cut.cores)), abs=10 * rounding(A) * size(B))


# ---------------------------------------------------------------------------------------------------------------------
# Half precision, other owners of the operators, derivatives
# ---------------------------------------------------------------------------------------------------------------------

W = np.random.default_rng(0).normal(size=(12, 18))
V = np.random.default_rng(1).normal(size=(12, 18))
SHAPE = ((2, 3, 2), (3, 3, 2))


@pytest.mark.parametrize(("backend", "dtype"), [("numpy", "float16"), ("torch", "bfloat16"), ("jax", "bfloat16")])
def test_half_precision(backend, dtype):
    A, B = (mpo_decompose(array_of(values, backend, dtype), SHAPE, 3) for values in (W, V))
    a, b = dense_of(A.cores), dense_of(B.cores)
    slack = HALF_SLACK[dtype]
    x = array_of(W[:, :5], backend, dtype)
    for train, dense in (
        (A + B, a + b),
        (A - B, a - b),
        (A * 0.3, 0.3 * a),
        (A @ B.T, a @ b.T),
        (tnmpo.hadamard(A, B), a * b),
    ):
        assert {dtype_of(core) for core in train.cores} == {dtype}
        assert norm(dense_of(train.cores) - dense) <= slack * norm(dense)
    product = A.T @ x
    assert dtype_of(product) == dtype
    assert norm(numpy_of(product) - a.T @ numpy_of(x)) <= slack * norm(a) * norm(numpy_of(x))
    for scalar, expected in ((tnmpo.norm(A), norm(a)), (tnmpo.inner(A, B), np.vdot(a, b))):
        assert dtype_of(scalar) == "float32"
        assert abs(float(scalar) - expected) <= 1e-5 * norm(a) * norm(b)
    assert_close(dense_of((A / tnmpo.norm(A)).cores), a / norm(a), slack)


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_arrays_on_the_left_defer(backend):
    A = mpo_decompose(array_of(W, backend, "float64"), SHAPE)
    x = array_of(V[:4].repeat(3, 0)[:12].T, backend, "float64")  # (18, 12)
    assert backend_of(x @ A) == backend
    scalar = array_of(np.array(2.0), backend, "float64")
    for product in (scalar * A, np.float32(2) * A, np.int64(2) * A, 2 * A):
        assert isinstance(product, MPO)
        assert_close(product.to_matrix(), 2 * W, 1e-12)
    for spoilt in (lambda: x * A, lambda: x + A, lambda: x - A, lambda: x / A, lambda: scalar / A, lambda: scalar @ A):
        with pytest.raises((TypeError, ValueError)):
            spoilt()


def loss(A, B, x):
    """Every operation, in one real number."""
    total = tnmpo.inner(A + 2 * B, B) + tnmpo.norm(A - B / 3) ** 2 + tnmpo.trace(A @ B.T) * 0.1
    total = total + tnmpo.norm(tnmpo.hadamard(A, B)) + tnmpo.norm(tnmpo.kron(A, B)) ** 2 * 0.01
    return total + ((A @ x) ** 2).sum() + ((x.T @ A.T) * 0.5).sum()


def dense_loss(a, b, x):
    total = (a * b).sum() + 2 * (b * b).sum() + ((a - b / 3) ** 2).sum() + (a * b).sum() * 0.1
    total = total + ((a * b) ** 2).sum() ** 0.5 + (a**2).sum() * (b**2).sum() * 0.01
    return total + ((a @ x) ** 2).sum() + ((x.T @ a.T) * 0.5).sum()


TRAINS = [mpo_decompose(matrix, SHAPE, 3) for matrix in (W, V)]
X = np.random.default_rng(2).normal(size=(18, 2))


def test_derivatives_of_torch():
    cores = [[torch.tensor(core, requires_grad=True) for core in train.cores] for train in TRAINS]
    x = torch.tensor(X)
    value = loss(MPO(cores[0]), MPO(cores[1]), x)
    gradients = torch.autograd.grad(value, [*cores[0], *cores[1]])
    expected = dense_loss(MPO(cores[0]).to_matrix(), MPO(cores[1]).to_matrix(), x)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    for actual, oracle in zip(gradients, torch.autograd.grad(expected, [*cores[0], *cores[1]]), strict=True):
        assert torch.allclose(actual, oracle, rtol=1e-9, atol=1e-9)


def test_derivatives_of_jax():
    x = jnp.asarray(X)

    def of(function, cores):
        A, B = (MPO(list(part)) for part in cores)
        return function(A, B, x) if function is loss else function(A.to_matrix(), B.to_matrix(), x)

    cores = tuple(tuple(jnp.asarray(core) for core in train.cores) for train in TRAINS)
    actual = jax.grad(lambda cores: of(loss, cores))(cores)
    expected = jax.grad(lambda cores: of(dense_loss, cores))(cores)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.allclose(one, other, rtol=1e-9, atol=1e-9)


def test_a_scale_is_learned():
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    A = mpo_decompose(torch.tensor(W), SHAPE)
    tnmpo.inner(scale * A, scale * A).backward()
    assert float(scale.grad) == pytest.approx(4 * norm(W) ** 2, rel=1e-12)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_norm_of_zero_has_a_finite_derivative(backend):
    if backend == "torch":
        core = torch.zeros(1, 2, 2, 1, requires_grad=True)
        tnmpo.norm(MPO([core])).backward()
        gradient = core.grad
    else:
        gradient = jax.grad(lambda core: tnmpo.norm(MPO([core])))(jnp.zeros((1, 2, 2, 1)))
    assert np.array_equal(numpy_of(gradient), np.zeros((1, 2, 2, 1)))


def test_operators_belong_to_the_values():
    A = mpo_decompose(W, SHAPE)
    x = tt_decompose(W[0].reshape(3, 3, 2))
    assert (A @ x).shape == (2, 3, 2)
    assert isinstance(tnmpo.apply(A, x), TT)
    with pytest.raises(TypeError, match="unsupported operand"):
        2 / A
    with pytest.raises(TypeError, match="unsupported operand"):
        A * None
    with pytest.raises(TypeError, match="unsupported operand"):
        A @ None
    with pytest.raises(TypeError, match="unsupported operand"):
        x @ x
