"""MPODecomposition, the decomposition as scikit-learn and TensorLy write it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorly.decomposition
from sklearn.base import clone

from tnmpo import MPODecomposition, Tolerance, Weight, mpo_decompose

W = np.random.default_rng(0).normal(size=(16, 36))
SHAPE = ((4, 4), (6, 6))


def test_it_is_mpo_decompose():
    options = {"rank": 5, "shape": SHAPE, "weight": Weight(cols=np.arange(1.0, 37)), "center": 0}
    decomposition = MPODecomposition(**options)
    mpo = decomposition.fit_transform(W)
    expected = mpo_decompose(W, **options)
    for ours, theirs in zip(mpo.cores, expected.cores, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert decomposition.decomposition_ is mpo
    assert decomposition.fit(W) is decomposition
    assert decomposition.decomposition_ is not mpo


def test_it_answers_as_tensorlys_class_does():
    mpo = MPODecomposition(4, SHAPE).fit_transform(W)
    theirs = tensorly.decomposition.TensorTrainMatrix(rank=4).fit_transform(W.reshape(4, 4, 6, 6))
    assert tuple(mpo.ranks) == tuple(theirs.rank)
    np.testing.assert_allclose(mpo.to_tensorly().to_matrix(), theirs.to_matrix(), atol=1e-12)


def test_it_can_be_cloned_and_set():
    first = MPODecomposition(Tolerance(0.1), SHAPE)
    first.fit(W)
    second = clone(first)
    assert second.get_params() == first.get_params()
    assert not hasattr(second, "decomposition_")
    assert second.set_params(rank=2).fit_transform(W).ranks == (1, 2, 1)
    assert repr(second) == "MPODecomposition(rank=2, shape=((4, 4), (6, 6)))"
    with pytest.raises(ValueError, match="set_params: got 'ranks', expected one of rank, shape, weight, center"):
        second.set_params(ranks=2)
