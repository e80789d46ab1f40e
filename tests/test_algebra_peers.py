"""The same numbers as quimb, where both know the operation."""

from __future__ import annotations

import numpy as np
import pytest
import quimb.tensor as qtn

import tnmpo
from tnmpo import MPO, TT

RNG = np.random.default_rng(0)
RANKS = (1, 3, 4, 1)


def operator():
    return MPO([RNG.normal(size=(RANKS[k], 2, 2, RANKS[k + 1])) for k in range(3)])


def state():
    return TT([RNG.normal(size=(RANKS[k], 2, RANKS[k + 1])) for k in range(3)])


def quimbs(train):
    """The train as quimb's: left bond, right bond, then the site axes, and no bond at the ends."""
    cores = [np.moveaxis(core, -1, 1) for core in train.cores]
    cores = [cores[0][0], *cores[1:-1], cores[-1][:, 0]]
    return qtn.MatrixProductOperator(cores, shape="lrud") if isinstance(train, MPO) else qtn.MatrixProductState(cores)


def dense(train):
    return (train.to_matrix() if isinstance(train, MPO) else train.to_tensor()).ravel()


def test_operations_agree_with_quimb():
    A, B, x, y = operator(), operator(), state(), state()
    a, b, u, v = map(quimbs, (A, B, x, y))
    assert np.allclose(dense(A @ B), a.apply(b).to_dense().ravel())
    assert np.allclose(dense(A @ x), a.apply(u).to_dense().ravel())
    assert np.allclose(dense(A + B), (a + b).to_dense().ravel())
    assert np.allclose(dense(x - y), (u - v).to_dense().ravel())
    assert float(tnmpo.inner(x, y)) == pytest.approx(u.H @ v, rel=1e-12)
    assert float(tnmpo.norm(x)) == pytest.approx(u.norm(), rel=1e-12)
    assert float(tnmpo.trace(A)) == pytest.approx(a.trace(), rel=1e-12)
