"""Gradients through every verb, on torch and jax, against dense closed forms and finite differences.

Only results that do not depend on the gauge have derivatives: the dense array, functions of whole spectra, entropies.
The differences are those of the dense oracle where there is one, else of the verb itself, whose values other tests
hold.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from strategies import BACKENDS, array_of, dense_of, dense_spectra, dtype_of, norm, numpy_of, unfolding, weighted

from tnmpo import (
    MPO,
    TT,
    MPOShape,
    Weight,
    als_fit,
    apply,
    bond_spectra,
    canonicalize,
    entanglement_entropy,
    hadamard,
    mpo_decompose,
    mutual_information,
    random,
    trace,
    truncate,
    tt_decompose,
)
from tnmpo import inner as inner_of
from tnmpo import norm as norm_of

DIFFERENTIABLE = [name for name in ("torch", "jax") if name in BACKENDS]
DOUBLES = ["float64", "complex128"]
# jax compiles for each dtype
KINDS = [(name, dtype) for name in DIFFERENTIABLE for dtype in (DOUBLES if name == "torch" else ["complex128"])]
INCOMPLETE = r"gradient: got a bond of dimension \d+ with \d+ nonzero Schmidt values, expected no superfluous direction"


def gradients_of(function, inputs, backend, dtype):
    """The g with ``d function = Re <g, d input>`` for each of the inputs, from and to numpy arrays."""
    arrays = [array_of(values, backend, dtype) for values in inputs]
    if backend == "torch":
        leaves = [array.requires_grad_() for array in arrays]
        return [numpy_of(gradient) for gradient in torch.autograd.grad(function(*leaves), leaves)]
    import jax

    gradients = jax.grad(function, argnums=tuple(range(len(arrays))))(*arrays)
    for gradient, array in zip(gradients, arrays, strict=True):
        assert (gradient.dtype, gradient.device) == (array.dtype, array.device)
    return [numpy_of(gradient).conj() for gradient in gradients]  # jax's are the conjugates


def differences_of(function, inputs, step=1e-6):
    """The same by central differences."""
    found = []
    for place, values in enumerate(inputs):
        gradient = np.zeros_like(values)
        for index in np.ndindex(values.shape):
            for unit in (1, 1j) if np.iscomplexobj(values) else (1,):
                moved = []
                for sign in (1, -1):
                    arrays = [array.copy() for array in inputs]
                    arrays[place][index] += sign * step * unit
                    moved.append(float(function(*arrays)))
                gradient[index] += unit * (moved[0] - moved[1]) / (2 * step)
        found.append(gradient)
    return found


def inner(tensor, weights):
    """``Re <weights, tensor>`` on the backend of ``tensor``."""
    if isinstance(tensor, np.ndarray | np.generic):
        return np.sum(weights.conj() * tensor).real
    backend = "torch" if isinstance(tensor, torch.Tensor) else "jax"
    return (array_of(weights.conj(), backend, dtype_of(tensor)) * tensor).sum().real


def gaussian(*size, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    real = rng.normal(size=size)
    return real + 1j * rng.normal(size=size) if dtype.startswith("complex") else real


def assert_close(actual, expected, tolerance):
    assert np.isfinite(actual).all()
    assert np.max(np.abs(actual - expected)) <= tolerance * max(1.0, np.max(np.abs(expected)))


# ---------------------------------------------------------------------------------------------------------------------
# Without a cut
# ---------------------------------------------------------------------------------------------------------------------

SHAPE = MPOShape((2, 3, 2), (2, 3, 2))
WEIGHTS = gaussian(12, 12, dtype="complex128", seed=9)


def kronecker(dtype):
    """Of MPO rank one: every bond has one value and otherwise zeros."""
    a, b, c = (gaussian(d, d, dtype=dtype, seed=d) for d in (2, 3, 2))
    return np.kron(np.kron(a, b), c)


MATRICES = {
    "gaussian": lambda dtype: gaussian(12, 12, dtype=dtype),
    "identity": lambda dtype: np.eye(12),
    "orthogonal": lambda dtype: np.linalg.qr(gaussian(12, 12, dtype=dtype))[0],
    "kronecker": kronecker,
    "zero": lambda dtype: np.zeros((12, 12)),
    "steep": lambda dtype: gaussian(12, 12, dtype=dtype) * np.logspace(0, -12, 12),
    "huge": lambda dtype: gaussian(12, 12, dtype=dtype) * (1e150 if dtype in DOUBLES else 1e15),
    "tiny": lambda dtype: gaussian(12, 12, dtype=dtype) * (1e-150 if dtype in DOUBLES else 1e-15),
}


def weights_of(dtype):
    return WEIGHTS if dtype.startswith("complex") else WEIGHTS.real


def through_matrix(center, dtype):
    return lambda W: inner(mpo_decompose(W, SHAPE, center=center).to_matrix(), weights_of(dtype))


@pytest.mark.parametrize(
    ("backend", "dtype"), [*KINDS, ("torch", "float32"), ("torch", "complex64"), ("jax", "float32")]
)
@pytest.mark.parametrize("matrix", MATRICES)
def test_the_matrix_of_a_decomposition_moves_with_the_matrix(backend, dtype, matrix):
    """All unfoldings on the way to this center are wide: no degenerate and no zero value matters."""
    if backend not in DIFFERENTIABLE:
        return
    (gradient,) = gradients_of(through_matrix(1, dtype), [MATRICES[matrix](dtype)], backend, dtype)
    assert_close(gradient, weights_of(dtype), 1e-12 if dtype in DOUBLES else 1e-5)


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
@pytest.mark.parametrize("center", [0, 2])
@pytest.mark.parametrize("matrix", ["orthogonal", "huge", "tiny"])
def test_through_tall_unfoldings_of_full_rank(backend, center, matrix):
    (gradient,) = gradients_of(through_matrix(center, "float64"), [MATRICES[matrix]("float64")], backend, "float64")
    assert_close(gradient, weights_of("float64"), 1e-12)


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
@pytest.mark.parametrize("matrix", ["identity", "kronecker", "zero"])
@pytest.mark.parametrize("center", [0, 2])
def test_through_tall_unfoldings_of_lower_rank_it_is_incomplete_and_says_so(backend, matrix, center):
    """An isometry that leads nowhere in particular does not turn with what newly enters the bond: part is missing.

    What is there is right: the true gradient without the part from the superfluous directions to outside the isometry.
    """
    values = MATRICES[matrix]("float64")
    with pytest.warns(RuntimeWarning, match=INCOMPLETE):
        (gradient,) = gradients_of(through_matrix(center, "float64"), [values], backend, "float64")
    missing = weights_of("float64") - gradient
    assert 0.1 < norm(missing) < norm(weights_of("float64"))
    assert abs(np.sum(missing * gradient)) < 1e-12  # a projection
    assert abs(np.sum(missing * values)) < 1e-12
    # the advice: a center with wide unfoldings, or a little noise
    (moved,) = gradients_of(through_matrix(1, "float64"), [values], backend, "float64")
    assert_close(moved, weights_of("float64"), 1e-12)
    noisy = values + 1e-8 * (norm(values) or 1.0) * gaussian(12, 12, seed=4)
    (shaken,) = gradients_of(through_matrix(center, "float64"), [noisy], backend, "float64")
    assert_close(shaken, weights_of("float64"), 1e-6)


def folded(gradient, shape, bond):
    """The gradient for an unfolding, a permutation of the entries, as one for the matrix."""
    index = unfolding(np.arange(gradient.size).reshape(shape.matrix_shape), shape, bond)
    flat = np.empty(gradient.size, dtype=gradient.dtype)
    flat[index.reshape(-1).astype(int)] = gradient.reshape(-1)
    return flat.reshape(shape.matrix_shape)


def spectral(dense, shape, slope):
    """The gradient of ``sum_bonds h(spectrum)`` for the gradient ``slope`` of h: ``u slope(s) v^H`` at each bond."""
    total = np.zeros_like(dense)
    for bond in range(1, shape.order):
        u, s, vh = np.linalg.svd(unfolding(dense, shape, bond), full_matrices=False)
        total = total + folded((u * slope(s)) @ vh, shape, bond)
    return total


def entropy_slope(s):
    p = s**2 / np.sum(s**2)
    logs = np.log(np.where(p > 0, p, 1))
    return -2 * s / np.sum(s**2) * (logs - np.sum(p * logs))


def renyi_slope(s):
    return 4 * s / np.sum(s**2) - 4 * s**3 / np.sum(s**4)


FUNCTIONS = {
    "fourth powers": (lambda mpo: sum((s**4).sum() for s in bond_spectra(mpo)), lambda s: 4 * s**3),
    "entropy": (lambda mpo: sum(entanglement_entropy(mpo)), entropy_slope),
    "Renyi entropy": (lambda mpo: sum(entanglement_entropy(mpo, 2)), renyi_slope),
}


@pytest.mark.parametrize(("backend", "dtype"), KINDS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("matrix", ["gaussian", "identity", "orthogonal", "kronecker"])
@pytest.mark.parametrize("center", [1, 2])
def test_functions_of_whole_spectra(backend, dtype, function, matrix, center):
    """Degenerate and zero values do not matter to them, nor superfluous bonds: no warning comes."""
    values = MATRICES[matrix](dtype) + 0 * gaussian(1, dtype=dtype)
    of_mpo, slope = FUNCTIONS[function]
    (gradient,) = gradients_of(lambda W: of_mpo(mpo_decompose(W, SHAPE, center=center)), [values], backend, dtype)
    assert_close(gradient, spectral(values, SHAPE, slope), 1e-10)


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
def test_the_zero_matrix_has_gradients_too(backend):
    zero = np.zeros((12, 12))
    for of_mpo, _ in FUNCTIONS.values():
        (gradient,) = gradients_of(lambda W, of_mpo=of_mpo: of_mpo(mpo_decompose(W, SHAPE)), [zero], backend, "float64")
        assert np.array_equal(gradient, zero)


# ---------------------------------------------------------------------------------------------------------------------
# Cuts
# ---------------------------------------------------------------------------------------------------------------------

SPECTRA = {
    "distinct": [5.0, 4, 3, 2, 1, 0.5],
    "degenerate among the kept": [3.0, 3, 3, 1, 0.8, 0.5],
    "degenerate among the dropped": [5.0, 4, 3, 1, 1, 1],
    "zeros among the dropped": [5.0, 4, 4, 0, 0, 0],
    "close to the cut": [5.0, 4, 3, 2.99, 1, 0.5],
}


def with_spectrum(spectrum, rows, cols, dtype):
    u, _ = np.linalg.qr(gaussian(rows, 6, dtype=dtype, seed=1))
    v, _ = np.linalg.qr(gaussian(cols, 6, dtype=dtype, seed=2))
    return (u * spectrum) @ v.conj().T


def best(dense, rank):
    u, s, vh = np.linalg.svd(dense, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


@pytest.mark.parametrize(("backend", "dtype"), KINDS)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("size", [(6, 6), (16, 6), (6, 16), (8, 6)])
@pytest.mark.parametrize("center", [0, 1])
def test_the_best_approximation_of_a_rank(backend, dtype, spectrum, size, center):
    if backend == "jax" and size not in ((6, 6), (16, 6)):
        size = (6, 6)
    dense, weights = with_spectrum(SPECTRA[spectrum], *size, dtype), gaussian(*size, dtype=dtype, seed=7)
    low_rank = MPOShape.low_rank(size)
    (gradient,) = gradients_of(
        lambda W: inner(mpo_decompose(W, low_rank, 3, center=center).to_matrix(), weights), [dense], backend, dtype
    )
    (expected,) = differences_of(lambda W: inner(best(W, 3), weights), [dense])
    assert_close(gradient, expected, 1e-5 if spectrum == "close to the cut" else 1e-7)


@pytest.mark.parametrize(("backend", "dtype"), [("torch", "float32"), ("torch", "complex64"), ("jax", "float32")])
def test_a_cut_in_single_precision(backend, dtype):
    if backend not in DIFFERENTIABLE:
        return
    dense, weights = with_spectrum([5.0, 4, 4, 1, 1, 0], 6, 8, dtype), gaussian(6, 8, dtype=dtype, seed=7)

    def function(W):
        return inner(mpo_decompose(W, MPOShape.low_rank((6, 8)), 3).to_matrix(), weights)

    (gradient,) = gradients_of(function, [dense], backend, dtype)
    (expected,) = differences_of(lambda W: inner(best(W, 3), weights), [dense])
    assert_close(gradient, expected, 1e-5)


VERBS = {
    "mpo_decompose with ranks": lambda W, G: inner(mpo_decompose(W, SHAPE, (2, 3)).to_matrix(), G),
    "truncate": lambda W, G: inner(truncate(mpo_decompose(W, SHAPE, center=2), (3, 2)).to_matrix(), G),
    "canonicalize": lambda W, G: inner(canonicalize(mpo_decompose(W, SHAPE, (2, 3)), 0).to_matrix(), G),
    "tt_decompose": lambda W, G: inner(tt_decompose(W.reshape((4, 6, 6)), (3, 2)).to_tensor().reshape((12, 12)), G),
    "bond_spectra of a cut": lambda W, G: sum((s**3).sum() for s in bond_spectra(mpo_decompose(W, SHAPE, (2, 3)))),
    "entropy of a cut": lambda W, G: sum(entanglement_entropy(mpo_decompose(W, SHAPE, (3, 3)), 0.5)),
    "weighted columns": lambda W, G: inner(
        mpo_decompose(W, MPOShape.low_rank((12, 12)), 4, weight=Weight(cols=METRIC)).to_matrix(), G
    ),
    "weighted rows and columns": lambda W, G: inner(
        mpo_decompose(W, MPOShape.low_rank((12, 12)), 4, weight=Weight(rows=COUNTS, cols=METRIC)).to_matrix(), G
    ),
    "truncate in a weighted norm": lambda W, G: inner(
        truncate(mpo_decompose(W, MPOShape.low_rank((12, 12))), 4, weight=Weight(rows=COUNTS)).to_matrix(), G
    ),
    "a metric of directions without weight": lambda W, G: inner(
        mpo_decompose(W, MPOShape.low_rank((12, 12)), 4, weight=Weight(rows=HALF, cols=HALF)).to_matrix(), G
    ),
    "a product of site metrics": lambda W, G: inner(
        mpo_decompose(W, SHAPE, (2, 3), weight=Weight(cols=PRODUCT)).to_matrix(), G
    ),
    "norm": lambda W, G: norm_of(mpo_decompose(W, SHAPE, (2, 3))),
    "trace": lambda W, G: inner(trace(mpo_decompose(W, SHAPE, 2)), np.ones(())),
    "inner product": lambda W, G: inner(inner_of(mpo_decompose(W, SHAPE, 2), mpo_decompose(W, SHAPE, 1)), np.ones(())),
}
# made of the steps above; jax compiles each of them for every new shape, so there one dtype is enough
COMPOSED = {
    "als_fit": lambda W, G: inner(als_fit(W, mpo_decompose(W, SHAPE, (2, 3)), sweeps=2).train.to_matrix(), G),
    "algebra": lambda W, G: inner((2 * mpo_decompose(W, SHAPE, 2) - mpo_decompose(W, SHAPE, 1).H).to_matrix(), G),
    "hadamard": lambda W, G: inner(hadamard(mpo_decompose(W, SHAPE, 2), mpo_decompose(W, SHAPE, 1)).to_matrix(), G),
    "a product, cut": lambda W, G: inner(apply(mpo_decompose(W, SHAPE), mpo_decompose(W, SHAPE), 2).to_matrix(), G),
    "mutual information": lambda W, G: mutual_information(mpo_decompose(W, SHAPE, (3, 3)), [0], [2]),
    "any metric": lambda W, G: inner(
        mpo_decompose(W, SHAPE, (2, 3), weight=Weight(rows=COUNTS, cols=METRIC)).to_matrix(), G
    ),
    "a flat metric, all values degenerate": lambda W, G: inner(
        mpo_decompose(W, SHAPE, (2, 3), weight=Weight(cols=np.eye(12))).to_matrix(), G
    ),
    "als_fit in a metric": lambda W, G: inner(
        als_fit(W, mpo_decompose(W, SHAPE, (2, 3)), weight=Weight(cols=METRIC), sweeps=2).train.to_matrix(), G
    ),
}
PRODUCT = (np.array([1.0, 3.0]), np.array([1.0, 0.0, 2.0]), np.array([[2.0, 1.0], [1.0, 2.0]]))
HALF = np.diag([1.0, 0.0] * 6)
METRIC = np.cov(gaussian(12, 40, seed=5))
COUNTS = np.arange(1.0, 13)


@pytest.mark.parametrize(
    ("backend", "dtype", "verb"),
    [(*kind, verb) for kind in KINDS for verb in VERBS]
    + [("torch", dtype, verb) for dtype in DOUBLES for verb in COMPOSED]
    + [("jax", "float64", verb) for verb in COMPOSED],
)
def test_verbs_on_a_matrix(backend, dtype, verb):
    dense, weights = gaussian(12, 12, dtype=dtype, seed=3), weights_of(dtype)
    function = {**VERBS, **COMPOSED}[verb]
    (gradient,) = gradients_of(lambda W: function(W, weights), [dense], backend, dtype)
    (expected,) = differences_of(lambda W: function(W, weights), [dense])
    assert_close(gradient, expected, 1e-6)


def test_a_weighted_cut_is_the_dense_one():
    """Against the oracle, not the library's own differences: the weighted optimum for columns of full weight."""
    dense, weights = gaussian(6, 5, seed=3), gaussian(6, 5, seed=7)
    weight = Weight(cols=np.cov(gaussian(5, 40, seed=5)))

    def optimum(W):
        u, _, _ = np.linalg.svd(weighted(W, weight))
        return u[:, :2] @ u[:, :2].T @ W

    (expected,) = differences_of(lambda W: inner(optimum(W), weights), [dense])
    for backend in DIFFERENTIABLE:
        (gradient,) = gradients_of(
            lambda W: inner(mpo_decompose(W, MPOShape.low_rank((6, 5)), 2, weight=weight).to_matrix(), weights),
            [dense],
            backend,
            "float64",
        )
        assert_close(gradient, expected, 1e-6)


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
@pytest.mark.parametrize("spectrum", [[2.0, 2, 2, 2, 2, 2], [3.0, 2, 2, 2, 1, 0], [3.0, 2, 0, 0, 0, 0], [0.0] * 6])
@pytest.mark.parametrize("size", [(6, 6), (16, 6)])
def test_degenerate_across_the_cut_there_is_no_derivative_and_finite_numbers_come(backend, spectrum, size):
    """Which of the equal directions is kept is arbitrary: the result jumps, or has a corner.

    Zeros among the kept make the bond superfluous, of which a warning tells.
    """
    dense, weights = with_spectrum(spectrum, *size, "float64"), gaussian(*size, seed=7)

    def function(W):
        return inner(mpo_decompose(W, MPOShape.low_rank(size), 3).to_matrix(), weights)

    with pytest.warns(RuntimeWarning, match=INCOMPLETE) if spectrum[2] == 0 else contextlib.nullcontext():
        (gradient,) = gradients_of(function, [dense], backend, "float64")
    assert np.isfinite(gradient).all()
    assert norm(gradient) <= 10 * norm(weights)


# ---------------------------------------------------------------------------------------------------------------------
# Trains
# ---------------------------------------------------------------------------------------------------------------------

ON_CORES = {
    "to_matrix": lambda mpo, G: inner(mpo.to_matrix(), G),
    "canonicalize": lambda mpo, G: inner(canonicalize(mpo, 0).to_matrix(), G),
    "truncate": lambda mpo, G: inner(truncate(mpo, (3, 2)).to_matrix(), G),
    "bond_spectra": lambda mpo, G: sum((s**4).sum() for s in bond_spectra(mpo)),
    "entanglement_entropy": lambda mpo, G: sum(entanglement_entropy(mpo)),
}


@pytest.mark.parametrize(("backend", "dtype"), KINDS)
@pytest.mark.parametrize("verb", ON_CORES)
def test_verbs_on_cores(backend, dtype, verb):
    cores = random.mpo(SHAPE, (4, 3), norm=3.0, seed=2, dtype=dtype).cores
    weights = weights_of(dtype)
    gradients = gradients_of(lambda *cores: ON_CORES[verb](MPO(cores), weights), cores, backend, dtype)
    expected = differences_of(lambda *cores: ON_CORES[verb](MPO(cores), weights), list(cores))
    for actual, wanted in zip(gradients, expected, strict=True):
        assert_close(actual, wanted, 1e-6)


def sums(kind):
    """Cores of a sum of two trains of rank 2 that share a core, so that the true rank is 2 and the bond 4."""
    a, b = gaussian(1, 6, 2, seed=0), gaussian(2, 6, 1, seed=1)
    other_a, other_b = gaussian(1, 6, 2, seed=2), gaussian(2, 6, 1, seed=3)
    left = np.concatenate([a, other_a if kind == "the right core" else a], axis=2)
    right = np.concatenate([b, other_b if kind == "the left core" else b], axis=0)
    return [left, right]


ON_SUMS = {
    "canonicalize left": lambda tt, G: inner(canonicalize(tt, 0).to_tensor(), G),
    "canonicalize right": lambda tt, G: inner(canonicalize(tt, 1).to_tensor(), G),
    "truncate to the true rank": lambda tt, G: inner(truncate(tt, 2).to_tensor(), G),
    "truncate below": lambda tt, G: inner(truncate(tt, 1).to_tensor(), G),
    "norm": lambda tt, G: (canonicalize(tt, 0).to_tensor() ** 2).sum(),
    "spectra": lambda tt, G: (bond_spectra(tt)[0] ** 4).sum() / 100,
    "entropy": lambda tt, G: entanglement_entropy(tt)[0],
}
# The side whose core has dependent columns is orthogonalised first; what a change adds to it is not followed.
LOSING = {
    ("the left core", "canonicalize right"),
    ("the right core", "canonicalize left"),
    ("the right core", "truncate to the true rank"),
    ("the right core", "truncate below"),
}


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
@pytest.mark.parametrize("kind", ["both cores", "the left core", "the right core"])
@pytest.mark.parametrize("verb", ON_SUMS)
def test_superfluous_bonds(backend, kind, verb):
    """The gradient is right, or incomplete with a warning; never wrong in silence."""
    cores, weights = sums(kind), gaussian(6, 6, seed=7)

    def function(*cores):
        return ON_SUMS[verb](TT(cores), weights)

    loses = (kind, verb) in LOSING
    with pytest.warns(RuntimeWarning, match=INCOMPLETE) if loses else contextlib.nullcontext():
        gradients = gradients_of(function, cores, backend, "float64")
    errors = [
        np.max(np.abs(actual - expected))
        for actual, expected in zip(gradients, differences_of(function, cores), strict=True)
    ]
    assert np.isfinite(errors).all()
    assert (max(errors) > 0.1) == loses
    if not loses:
        assert max(errors) < 1e-5


@pytest.mark.parametrize("dtype", ["complex64", "float32"])
def test_superfluous_bonds_in_single_precision(dtype):
    """What is zero in single precision is not divided by, though some of it is computed in double precision."""
    cores, weights = sums("both cores"), gaussian(6, 6, seed=7)
    single, double = (
        gradients_of(lambda *cores: ON_SUMS["canonicalize right"](TT(cores), weights), cores, "torch", kind)
        for kind in (dtype, "complex128" if dtype == "complex64" else "float64")
    )
    for actual, expected in zip(single, double, strict=True):
        assert_close(actual, expected, 1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# What there is none of
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [mpo_decompose, lambda W: canonicalize(MPO([W.reshape((1, 2, 6, 1))]))])
def test_second_derivatives_raise(verb):
    """Of what is not factorised there are some: the second verb has no bond to factorise at."""
    values = gaussian(3, 4)

    def function(W):
        return (verb(W).to_matrix() ** 3).sum()

    factorises = verb is mpo_decompose
    W = torch.tensor(values, requires_grad=True)
    (first,) = torch.autograd.grad(function(W), W, create_graph=True)
    message = "gradient: got a second derivative of a decomposition, expected a first one; no others exist"
    with pytest.raises(NotImplementedError, match=message) if factorises else contextlib.nullcontext():
        torch.autograd.grad(first.sum(), W)
    if "jax" in DIFFERENTIABLE:
        import jax

        given = jax.numpy.asarray(values)
        with pytest.raises(NotImplementedError, match=message) if factorises else contextlib.nullcontext():
            jax.grad(lambda W: jax.grad(function)(W).sum())(given)


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
def test_the_record_of_a_cut_has_no_derivative(backend):
    """It is made of floats: what is to be differentiated is the matrix itself."""
    errors = []

    def function(W):
        cut = mpo_decompose(W, SHAPE, 2)
        errors.append(cut.truncation.error)
        return (abs(W - cut.to_matrix()) ** 2).sum()

    values = gaussian(12, 12)
    (gradient,) = gradients_of(function, [values], backend, "float64")
    assert isinstance(errors[0], float)
    (expected,) = differences_of(function, [values])
    assert_close(gradient, expected, 1e-6)


def test_what_moves_no_values_moves_no_gradient():
    """Values come out the same with and without a gradient asked for."""
    values = gaussian(12, 12)
    plain = mpo_decompose(torch.tensor(values), SHAPE, 3)
    traced = mpo_decompose(torch.tensor(values, requires_grad=True), SHAPE, 3)
    assert all(torch.equal(a, b) for a, b in zip(plain.cores, traced.cores, strict=True))
    assert np.allclose(dense_of(plain.cores), dense_of(traced.cores))
    assert all(np.allclose(a, b) for a, b in zip(plain.truncation.spectra, dense_spectra(values, SHAPE), strict=True))
