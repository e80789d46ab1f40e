"""Single precision tensors through the Gram matrices of their halves: the train of the sweep, in less memory."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import BACKENDS, array_of, numpy_of
from tensorly.backend import load_backend

from tnmpo import MPOShape, _factor, _gram, is_canonical, mpo_decompose, plan_shape, tt_decompose

WIDER = {"float32": "float64", "complex64": "complex128"}


def draws(dtype, shape, seed, decades=2):
    """A matrix whose singular values fall over some decades."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=shape) for _ in range(2)]
    matrix = parts[0] + 1j * parts[1] if dtype == "complex64" else parts[0]
    matrix = matrix * np.geomspace(1, 10.0**-decades, shape[1])
    return matrix.astype(dtype)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=5),
    dtype=st.sampled_from(["float32", "complex64"]),
    cap=st.integers(1, 20),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_a_cut_is_as_good_as_the_sweep_in_double_precision(sizes, dtype, cap, seed, data):
    shape = MPOShape(*zip(*sizes, strict=True))
    center = data.draw(st.integers(0, len(sizes) - 1))
    W = draws(dtype, shape.matrix_shape, seed)
    norm = float(np.linalg.norm(W))
    cut = mpo_decompose(W, shape, cap, center=center)
    sweep = mpo_decompose(W.astype(WIDER[dtype]), shape, cap, center=center)
    assert (cut.ranks, cut.center) == (sweep.ranks, center)
    assert is_canonical(cut)
    for ours, theirs in zip(cut.truncation.spectra, sweep.truncation.spectra, strict=True):
        assert np.allclose(ours, theirs, atol=1e-6 * norm, rtol=1e-5)
    record = cut.truncation
    assert record.error == pytest.approx(float(np.linalg.norm(W - cut.to_matrix())), abs=3e-6 * norm)
    assert record.error <= record.upper_bound * (1 + 1e-6) + 1e-6 * norm
    if len(sizes) == 2:
        assert record.error == pytest.approx(sweep.truncation.error, abs=1e-6 * norm)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_lost_without_a_cut(backend):
    tensor = draws("float32", (24, 40), 0).reshape(4, 6, 5, 8)
    tt = tt_decompose(array_of(tensor, backend, "float32"))
    assert np.allclose(numpy_of(tt.to_tensor()), tensor, atol=1e-5)
    assert tt.ranks == (1, 4, 24, 8, 1)


@pytest.mark.parametrize(
    ("sizes", "middle"), [((4, 4), 1), ((9, 2), 0), ((2, 9), 1), ((3, 3, 3), 1), ((2, 2, 50, 2), 2), ((1, 1), 1)]
)
def test_neither_half_has_more_entries_than_the_square_root_of_all(sizes, middle):
    entries = np.prod(sizes)
    assert _gram._middle(sizes) == middle
    assert np.prod(sizes[:middle]) ** 2 <= entries
    assert np.prod(sizes[middle + 1 :]) ** 2 <= entries


def test_what_is_differentiated_or_double_is_left_to_the_sweep():
    matrix = torch.zeros(2, 2)
    assert _gram.serves(matrix)
    assert not _gram.serves(matrix.requires_grad_())
    assert not _gram.serves(np.zeros((2, 2)))


def test_the_peak_memory_is_three_times_the_matrix():
    W = np.random.default_rng(0).standard_normal((3072, 768), dtype="float32")
    for order in (3, 5):
        for rank in (None, 100):
            shape = plan_shape(W.shape, order)
            mpo_decompose(W, shape, rank)  # contraction orders and imports are remembered
            tracemalloc.start()
            mpo_decompose(W, shape, rank)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak <= 3 * W.nbytes, (order, rank, peak / W.nbytes)


@pytest.mark.parametrize("kind", ["error", "nan"])
def test_where_an_eigensolver_fails_another_one_takes_over(monkeypatch, kind):
    matrix = np.diag([1.0, 2.0, 3.0])

    def failing(array, *_, **__):
        if kind == "error":
            raise np.linalg.LinAlgError("did not converge")
        return np.full(3, np.nan), np.full((3, 3), np.nan)

    values, vectors = _factor.eigh(SimpleNamespace(eigh=failing), matrix)
    assert np.allclose(values, [1, 2, 3])
    assert np.allclose(abs(vectors), np.eye(3))
    monkeypatch.setattr(scipy.linalg, "eigh", failing)
    with pytest.raises(np.linalg.LinAlgError, match="eigh: a 3 x 3 float64 matrix"):
        _factor.eigh(SimpleNamespace(eigh=failing), matrix)
    monkeypatch.setattr(type(load_backend("numpy")), "eigh", staticmethod(failing))
    with pytest.raises(np.linalg.LinAlgError, match="W: bond 1: eigh: a 4 x 4 float64 matrix"):
        mpo_decompose(np.ones((4, 4), dtype="float32"), ((2, 2), (2, 2)))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("rank", [None, 2])
def test_cores_of_a_torch_matrix_have_memory_of_their_own(order, rank):
    """On the CPU numpy works on torch's memory, and torch takes over numpy's."""
    W = torch.randn(16, 27, generator=torch.Generator().manual_seed(0))
    kept = W.clone()
    mpo = mpo_decompose(W, plan_shape((16, 27), order), rank)
    expected = mpo.to_matrix().clone()
    for core in mpo.cores:
        core.zero_()
    assert torch.equal(W, kept)
    mpo = mpo_decompose(W, plan_shape((16, 27), order), rank)
    W.zero_()
    assert torch.equal(mpo.to_matrix(), expected)
