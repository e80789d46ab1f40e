"""What ``tnmpo.testing`` gives to other projects: strategies that reach the corners, oracles that are right."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from tnmpo import MPO, TT, MPOShape, Weight, canonicalize, mpo_decompose, testing

FEW = settings(max_examples=2000, database=None)


def gaussian(*size, seed=0):
    return np.random.default_rng(seed).normal(size=size)


# ---------------------------------------------------------------------------------------------------------------------
# Strategies
# ---------------------------------------------------------------------------------------------------------------------


def superfluous(train):
    sizes = [core[0, ..., 0].size for core in train.cores]
    return not testing.feasible(train.ranks, sizes)


CORNERS = {
    "order 1": (testing.mpos(), lambda mpo: mpo.order == 1),
    "six sites": (testing.mpos(), lambda mpo: mpo.order == 6),
    "all bonds 1": (testing.mpos(min_order=3), lambda mpo: set(mpo.ranks) == {1}),
    "superfluous bonds": (testing.mpos(), superfluous),
    "unit dimensions": (testing.shapes(min_order=2), lambda shape: 1 in shape.rows and 1 in shape.cols),
    "prime dimensions": (testing.shapes(), lambda shape: {7, 11} & {*shape.rows, *shape.cols}),
    "low-rank shapes": (testing.shapes(min_order=2), lambda shape: shape.is_low_rank and min(shape.matrix_shape) > 1),
    "complex": (testing.mpos(), lambda mpo: np.iscomplexobj(mpo.cores[0]) and np.abs(mpo.cores[0].imag).max() > 0),
    "single precision": (testing.tts(), lambda tt: testing.dtype_of(tt.cores[0]) == "float32"),
    "large": (testing.mpos(max_order=2), lambda mpo: np.abs(mpo.cores[0]).max() > 1e3),
    "the zero matrix": (testing.arrays((3, 4)), lambda W: not np.any(W)),
    "rank one": (testing.arrays((3, 4), dtypes=["float64"]), lambda W: np.linalg.matrix_rank(W) == 1),
    "the ends of the scale": (testing.arrays((3, 4), dtypes=["float64"]), lambda W: np.abs(W).max() > 1e140),
    "tensors": (testing.arrays((2, 3, 4)), lambda tensor: tensor.shape == (2, 3, 4)),
    "a singular metric": (
        testing.metrics(4),
        lambda metric: metric is not None and metric.ndim == 2 and 0 < np.linalg.matrix_rank(metric) < 4,
    ),
    "no metric": (testing.weights((3, 4)), lambda weight: weight.rows is None and weight.cols is None),
    "both metrics": (testing.weights((3, 4)), lambda weight: weight.rows is not None and weight.cols is not None),
    "a complex metric": (
        testing.weights((3, 4), complex_=True),
        lambda weight: weight.cols is not None and np.iscomplexobj(weight.cols),
    ),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_the_corners_are_drawn(corner):
    strategy, condition = CORNERS[corner]
    find(strategy, condition, settings=FEW)  # raises where there is none


@given(testing.mpos(max_order=4, max_rank=3, dtypes=["float64"]), testing.tts(max_order=4, dtypes=["complex128"]))
def test_trains_are_what_was_asked_for(mpo, tt):
    assert isinstance(mpo, MPO)
    assert isinstance(tt, TT)
    assert mpo.order <= 4 >= tt.order
    assert max(mpo.ranks) <= 3
    assert math.prod(mpo.matrix_shape) <= 600
    assert {testing.dtype_of(core) for core in mpo.cores} == {"float64"}
    assert {testing.dtype_of(core) for core in tt.cores} == {"complex128"}


@settings(max_examples=10)
@pytest.mark.parametrize("backend", testing.BACKENDS)
@given(data=st.data())
def test_every_backend_is_drawn_from(backend, data):
    shapes = st.just(MPOShape((2, 1), (1, 3)))
    mpo = data.draw(testing.mpos(shapes=shapes, max_rank=2, dtypes=["float32"], backends=[backend]))
    tt = data.draw(testing.tts(shapes=st.just((2, 3)), max_rank=2, dtypes=["complex64"], backends=[backend]))
    W = data.draw(testing.arrays((2, 3), dtypes=["float64"], backends=[backend]))
    metric = data.draw(testing.metrics(3, backend))
    arrays = [*mpo.cores, *tt.cores, W, *([] if metric is None else [metric])]
    assert {testing.backend_of(array) for array in arrays} == {backend}
    assert [testing.dtype_of(array) for array in (mpo.cores[0], tt.cores[0], W)] == ["float32", "complex64", "float64"]


@given(st.data())
def test_ranks_are_those_that_a_train_can_have(data):
    shape = data.draw(testing.shapes(min_order=2))
    for of in (shape, shape.site_sizes):
        ranks = data.draw(testing.ranks(of))
        assert len(ranks) == shape.order - 1
        assert testing.feasible((1, *ranks, 1), shape.site_sizes)
    assert mpo_decompose(np.ones(shape.matrix_shape), shape, ranks).ranks == (1, *ranks, 1)


def test_a_wrong_verb_is_found():
    """A gauge move that forgets the scale of one core, as users of the strategies would write it."""

    def careless(mpo):
        moved = canonicalize(mpo, 0)
        return MPO([moved.cores[0] / testing.norm(moved.cores[0]), *moved.cores[1:]]) if mpo.order > 1 else moved

    @settings(max_examples=50, database=None)
    @given(testing.mpos(dtypes=["float64"]))
    def law(verb, mpo):
        kept = testing.dense_of(verb(mpo).cores)
        assert np.allclose(kept, testing.dense_of(mpo.cores), rtol=0, atol=testing.rounding(mpo))

    with pytest.raises(AssertionError):
        law(careless)
    law(lambda mpo: canonicalize(mpo, 0))


# ---------------------------------------------------------------------------------------------------------------------
# Oracles
# ---------------------------------------------------------------------------------------------------------------------


def test_the_dense_array_of_product_trains():
    factors = [gaussian(2, 3, seed=1), gaussian(3, 1, seed=2), gaussian(1, 4, seed=3)]
    product = np.kron(np.kron(factors[0], factors[1]), factors[2])
    assert np.allclose(testing.dense_of([factor[None, :, :, None] for factor in factors]), product)
    a, b = gaussian(3, seed=4), gaussian(5, seed=5)
    assert np.allclose(testing.dense_of([a[None, :, None], b[None, :, None]]), np.outer(a, b))


def test_the_dense_array_is_tensorlys():
    from tensorly import tt_matrix_to_matrix, tt_to_tensor

    mpo = [gaussian(1, 2, 3, 4), gaussian(4, 3, 2, 2), gaussian(2, 2, 2, 1)]
    assert np.allclose(testing.dense_of(mpo), tt_matrix_to_matrix(mpo))
    tt = [gaussian(1, 2, 4), gaussian(4, 3, 2), gaussian(2, 2, 1)]
    assert np.allclose(testing.dense_of(tt), tt_to_tensor(tt))


def test_unfoldings_and_spectra_by_hand():
    shape = MPOShape((2, 2), (2, 2))
    swap = np.eye(4)[[0, 2, 1, 3]]
    assert np.allclose(testing.dense_spectra(swap, shape), [[1, 1, 1, 1]])  # maximally entangled
    a, b = gaussian(2, 2, seed=1), gaussian(2, 2, seed=2)
    assert np.allclose(testing.unfolding(np.kron(a, b), shape, 1), np.outer(a, b))
    tensor = gaussian(2, 3, 4)
    assert np.array_equal(testing.unfolding(tensor, (2, 3, 4), 2), tensor.reshape(6, 4))
    assert [len(spectrum) for spectrum in testing.dense_spectra(tensor, (2, 3, 4))] == [2, 4]


@given(testing.weights((3, 4), complex_=True), st.integers(0, 99))
def test_the_weighted_array_has_the_weighted_norm(weight, seed):
    dense = gaussian(3, 4, seed=seed) + 1j * gaussian(3, 4, seed=seed + 100)
    metrics = [
        np.eye(size) if side is None else np.diag(side) if side.ndim == 1 else side
        for side, size in ((weight.rows, 3), (weight.cols, 4))
    ]
    expected = np.trace(metrics[0] @ dense @ metrics[1] @ dense.conj().T).real
    assert testing.norm(testing.weighted(dense, weight)) ** 2 == pytest.approx(expected, rel=1e-8, abs=1e-18)


def test_the_root_of_a_product_metric():
    parts = (np.array([4.0, 1.0]), np.array([[2.0, 1.0], [1.0, 2.0]]))
    root = testing.dense_root(parts, 4)
    assert np.allclose(root @ root, np.kron(np.diag(parts[0]), parts[1]))
    assert np.allclose(testing.weighted(np.eye(4), Weight(rows=parts)), root)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_the_norm_at_any_scale(scale):
    assert testing.norm(np.array([3.0, 4.0j]) * scale) == pytest.approx(5 * scale)
    assert testing.norm(np.zeros(3)) == 0


def test_feasible_ranks_leave_no_direction_over():
    """Exactly where generic cores have full rank on both sides."""
    sizes = (2, 3, 2)
    for first in range(1, 6):
        for second in range(1, 6):
            ranks = (1, first, second, 1)
            cores = [gaussian(a, d, b, seed=7) for d, (a, b) in zip(sizes, pairwise(ranks), strict=True)]
            spectra = testing.dense_spectra(testing.dense_of(cores), sizes)
            full = all(
                np.sum(spectrum > 1e-10 * spectrum[0]) == rank
                for spectrum, rank in zip(spectra, ranks[1:-1], strict=True)
            )
            assert testing.feasible(ranks, sizes) == full


@pytest.mark.parametrize("backend", testing.BACKENDS)
@pytest.mark.parametrize("dtype", [*testing.DTYPES, "float16"])
def test_arrays_travel_there_and_back(backend, dtype):
    values = np.array([[1.5, -2.0], [0.25, 3.0]]) * (1j if dtype.startswith("complex") else 1)
    array = testing.array_of(values, backend, dtype)
    assert (testing.backend_of(array), testing.dtype_of(array)) == (backend, dtype)
    assert np.array_equal(testing.numpy_of(array), values)


# ---------------------------------------------------------------------------------------------------------------------
# Bad calls
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "fragment"),
    [
        (lambda: testing.backend_of([1.0]), TypeError, "tensor: got list, expected an array of numpy, torch, jax"),
        (
            lambda: testing.array_of(np.ones(2), "matlab", "float64"),
            ValueError,
            "backend: got 'matlab', expected one of cupy, jax, numpy, tensorflow, torch",
        ),
        (
            lambda: testing.array_of(np.ones(2), "numpy", "int64"),
            ValueError,
            "dtype: got 'int64', expected one of bfloat16, complex128",
        ),
        (
            lambda: testing.array_of(np.ones(2), "numpy", "bfloat16"),
            ValueError,
            "dtype: got 'bfloat16' on numpy, which has none; use torch or jax",
        ),
        (lambda: testing.unfolding(np.eye(4), MPOShape((2, 2), (2, 2)), 2), ValueError, "bond: got 2, expected one"),
        (lambda: testing.unfolding(np.eye(4), (4, 4), 0), ValueError, "bond: got 0, expected one from 1 to 1"),
    ],
)
def test_bad_calls_are_refused(call, error, fragment):
    with pytest.raises(error) as caught:
        call()
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_jax_without_its_64_bit_types_says_how_to_switch_them_on():
    if "jax" not in testing.BACKENDS:
        return
    code = """if True:
        import numpy as np
        from tnmpo import testing
        try:
            testing.array_of(np.ones(2), "jax", "float64")
        except ValueError as error:
            print(error)
        print(testing.array_of(np.ones(2), "jax", "float32").dtype)
    """
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"JAX_ENABLE_X64": "0"}
    )
    said, dtype = run.stdout.splitlines()
    assert said.startswith("dtype: got 'float64' on jax with its 64-bit types off, expected one of 32 bits or less")
    assert dtype == "float32"


def test_hypothesis_is_needed_for_this_module_only():
    code = "import sys, tnmpo, tnmpo.random; print('hypothesis' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
