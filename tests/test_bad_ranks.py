"""Bad calls of what combines policies, and of other libraries' words, in the manner of ``test_bad_input.py``."""

from __future__ import annotations

import numpy as np
import pytest
from refusals import refused

from tnmpo import ITensorCutoff, MaxRank, ParameterBudget, QuimbCutoff, TeNPyCutoff, Tolerance, mpo_decompose

W = np.random.default_rng(0).normal(size=(12, 18))
SHAPE = ((2, 3, 2), (3, 3, 2))


def decompose(rank):
    return lambda: mpo_decompose(W, SHAPE, rank)


BAD_CALLS = [
    # both of two: what stands for no policy is refused at once, what this train cannot have on use
    (lambda: Tolerance(0.1) & None, TypeError, "rank: got None, expected an int, a tuple, a float or a policy"),
    (lambda: None & Tolerance(0.1), TypeError, "rank: got None, expected an int, a tuple, a float or a policy"),
    (lambda: Tolerance(0.1) & True, TypeError, "rank: got True, expected an int, a tuple, a float or a policy"),
    (lambda: Tolerance(0.1) & MaxRank, TypeError, "expected an int, a tuple, a float or a policy such as tnmpo.Tol"),
    (lambda: Tolerance(0.1) & "full", ValueError, "rank: got 'full', expected 'same' or an int"),
    (lambda: Tolerance(0.1) & 0, ValueError, "rank: got 0, expected a positive integer"),
    (lambda: Tolerance(0.1) & -0.5, ValueError, "rank: got the fraction -0.5, expected one above 0"),
    (lambda: (3, 2.5) & MaxRank(4), TypeError, "rank: got 2.5, expected a positive integer"),
    (decompose(Tolerance(0.1) & (3,)), ValueError, "rank: got (3,) for 2 inner bonds, expected 2 entries"),
    (decompose(Tolerance(0.1) & (7, 3)), ValueError, "rank: got 7 for bond 1, whose full bond is 6"),
    (decompose(4 & ParameterBudget(18)), ValueError, "budget: got 18 parameters, the rank-one size is 19"),
    (decompose(Tolerance(0.1) & 0.05), ValueError, "rank: got the fraction 0.05 of 216 parameters"),
    (decompose(1e-2), ValueError, "allow at least 0.088; for a relative error use tnmpo.Tolerance(0.01)"),
    # ITensor
    (lambda: ITensorCutoff(-1e-9), ValueError, "cutoff: got -1e-09, expected a finite number >= 0"),
    (lambda: ITensorCutoff(float("nan")), ValueError, "cutoff: got nan, expected a finite number >= 0"),
    (lambda: ITensorCutoff("1e-8"), TypeError, "cutoff: got '1e-8', expected a number >= 0 or None"),
    (lambda: ITensorCutoff(True), TypeError, "cutoff: got True, expected a number >= 0 or None"),
    (lambda: ITensorCutoff(maxdim=0), ValueError, "maxdim: got 0, expected a positive integer"),
    (lambda: ITensorCutoff(maxdim=2.0), TypeError, "maxdim: got 2.0, expected a positive integer"),
    (lambda: ITensorCutoff(mindim=0), ValueError, "mindim: got 0, expected a positive integer"),
    (lambda: ITensorCutoff(mindim=None), TypeError, "mindim: got None, expected a positive integer"),
    # quimb
    (lambda: QuimbCutoff(cutoff=-0.1), ValueError, "cutoff: got -0.1, expected a finite number >= 0"),
    (lambda: QuimbCutoff(cutoff="all"), TypeError, "cutoff: got 'all', expected a number >= 0 or None"),
    (lambda: QuimbCutoff(cutoff=float("inf")), ValueError, "cutoff: got inf, expected a finite number >= 0"),
    (lambda: QuimbCutoff(cutoff_mode="l2"), ValueError, "cutoff_mode: got 'l2', expected one of rsum2, sum2, rsum1"),
    (lambda: QuimbCutoff(cutoff_mode=4), ValueError, "cutoff_mode: got 4, expected one of rsum2, sum2, rsum1, sum1"),
    (lambda: QuimbCutoff(cutoff_mode=["abs"]), ValueError, "cutoff_mode: got ['abs'], expected one of rsum2"),
    (lambda: QuimbCutoff(-1), ValueError, "max_bond: got -1, expected a positive integer"),
    (lambda: QuimbCutoff(0.5), TypeError, "max_bond: got 0.5, expected a positive integer"),
    # TeNPy
    (lambda: TeNPyCutoff(chi_max=0), ValueError, "chi_max: got 0, expected a positive integer"),
    (lambda: TeNPyCutoff(svd_min=-1), ValueError, "svd_min: got -1, expected a finite number >= 0"),
    (lambda: TeNPyCutoff(svd_min="a"), TypeError, "svd_min: got 'a', expected a number >= 0 or None"),
    (lambda: TeNPyCutoff(trunc_cut=-1), ValueError, "trunc_cut: got -1, expected a finite number >= 0"),
    (lambda: TeNPyCutoff(trunc_cut=1.0), ValueError, "trunc_cut: got 1.0, expected a number below 1, a relative error"),
]


@pytest.mark.parametrize(("call", "error", "fragment"), BAD_CALLS, ids=[fragment for *_, fragment in BAD_CALLS])
def test_a_bad_call_is_refused(call, error, fragment):
    who, rest = refused(call, error, fragment)
    assert who.isidentifier()
    assert "got" in rest  # what came
    assert "expected" in rest or ";" in rest  # what to do
