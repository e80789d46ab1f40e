"""The words of other libraries, against definitions written out here and against quimb itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import quimb.tensor as qtn
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import cases, dense_spectra, feasible, norm

from tnmpo import ITensorCutoff, MPOShape, QuimbCutoff, TeNPyCutoff, mpo_decompose, tt_decompose

MODES = ("rsum2", "sum2", "rsum1", "sum1", "rel", "abs")
HALVES = [1.0, 0.5, 0.25, 0.125]  # squares and sums are exact in binary

cutoffs = st.one_of(st.just(0.0), st.floats(-12, 0.5).map(lambda x: 10.0**x))
counts = st.integers(1, 9)
spectra = st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 10)), min_size=1, max_size=8).map(
    lambda values: np.array(sorted(values, reverse=True))
)


def rank_of(policy, spectrum):
    """The rank of the only bond of a train of two sites that are no limit."""
    left, rank, right = policy.choose([np.asarray(spectrum, dtype=float)], (100, 100))
    assert left == right == 1
    return rank


def itensor(spectrum, cutoff, maxdim, mindim):
    """``truncate!`` of NDTensors: from the end of the probabilities, the discarded ones summed as it goes."""
    weights = [float(s) ** 2 for s in spectrum]
    rank, discarded = len(weights), 0.0
    while maxdim is not None and rank > maxdim:
        rank, discarded = rank - 1, discarded + weights[rank - 1]
    scale = math.fsum(weights) or 1.0
    while cutoff is not None and rank > mindim and discarded + weights[rank - 1] <= cutoff * scale:
        rank, discarded = rank - 1, discarded + weights[rank - 1]
    return max(rank, 1)


def tenpy(spectrum, chi_max, svd_min, trunc_cut):
    """``truncate`` of tenpy: the fewest values, counted from the largest, that no constraint forbids."""
    values = np.asarray(spectrum) / np.linalg.norm(spectrum)
    good = set(range(1, len(values) + 1))
    if chi_max is not None:
        good &= set(range(1, chi_max + 1))
    # the rank r discards values[r:]; what is kept must be large enough, and one value less would lose too much
    if svd_min is not None:
        good = {r for r in good if values[r - 1] >= svd_min} or good
    if trunc_cut is not None:
        good = {r for r in good if np.sum(values[r - 1 :][::-1] ** 2) > trunc_cut**2} or good
    return max(good)


def is_clear(spectrum, *thresholds):
    """Whether no partial sum or value is so near to a threshold that rounding decides."""
    sums = [np.cumsum(spectrum[::-1] ** power)[::-1] for power in (1, 2)]
    numbers = [spectrum, spectrum / spectrum[0], *sums, *(tails / tails[0] for tails in sums)]
    numbers.append(spectrum / np.linalg.norm(spectrum))
    return all(abs(x - t) > 1e-9 * t for xs in numbers for x in xs for t in thresholds if t > 0)


@given(spectra, st.none() | cutoffs, st.none() | counts, counts)
def test_itensor(spectrum, cutoff, maxdim, mindim):
    assume(cutoff is None or spectrum[0] == 0 or is_clear(spectrum, cutoff))
    policy = ITensorCutoff(cutoff, maxdim=maxdim, mindim=mindim)
    assert rank_of(policy, spectrum) == itensor(spectrum, cutoff, maxdim, mindim)


@given(spectra, st.none() | counts, st.none() | cutoffs, st.none() | cutoffs)
def test_tenpy(spectrum, chi_max, svd_min, trunc_cut):
    assume(spectrum[0] > 0 and (trunc_cut is None or trunc_cut < 1))
    assume(is_clear(spectrum, *(t for t in (svd_min, trunc_cut, trunc_cut and trunc_cut**2) if t is not None)))
    policy = TeNPyCutoff(chi_max=chi_max, svd_min=svd_min, trunc_cut=trunc_cut)
    assert rank_of(policy, spectrum) == tenpy(spectrum, chi_max, svd_min, trunc_cut)


@given(spectra, st.none() | counts, st.none() | cutoffs, st.sampled_from(MODES))
def test_quimb(spectrum, max_bond, cutoff, mode):
    # the zeros that quimb finds are of the size of rounding, so sums meet no cutoff near it
    spectrum = np.maximum(spectrum, 1e-9)
    assume(cutoff is None or is_clear(spectrum, cutoff))
    _, kept, _ = qtn.decomp.array_split(
        np.diag(spectrum), method="svd", absorb=None, max_bond=max_bond, cutoff=cutoff, cutoff_mode=mode
    )
    policy = QuimbCutoff(max_bond=max_bond, cutoff=cutoff, cutoff_mode=mode)
    assert rank_of(policy, spectrum) == len(kept)


@given(cases(2, 2, dtypes=("float64",), backends=("numpy",), scales=False), cutoffs, st.none() | counts)
def test_quimbs_own_compression_of_one_bond(case, cutoff, max_bond):
    (spectrum,) = dense_spectra(case.dense, case.shape)
    assume(spectrum[0] > 0 and is_clear(spectrum, cutoff) and (cutoff == 0 or cutoff > 1e-9))
    options = {"max_bond": max_bond, "cutoff": cutoff, "cutoff_mode": "rsum2"}
    mpo = mpo_decompose(case.W, case.shape)
    (i, k), (j, m) = case.shape.rows, case.shape.cols
    left, right = mpo.cores[0].reshape(i, j, -1), mpo.cores[1].reshape(-1, k, m)
    theirs = qtn.TensorNetwork([qtn.Tensor(left, ("i", "j", "b")), qtn.Tensor(right, ("b", "k", "m"))])
    qtn.tensor_compress_bond(*theirs, **options)
    assert mpo_decompose(case.W, case.shape, QuimbCutoff(**options)).ranks[1] == theirs.ind_size("b")


@pytest.mark.parametrize(
    ("policy", "spectrum", "rank"),
    [
        # the edge belongs to what is discarded: 0.125^2 of 1.328125, then 0.125^2 + 0.25^2
        (ITensorCutoff(0.015625 / 1.328125), HALVES, 3),
        (ITensorCutoff(0.0156 / 1.328125), HALVES, 4),
        (ITensorCutoff(0.078125 / 1.328125), HALVES, 2),
        (ITensorCutoff(), [1, 0, 0], 3),
        (ITensorCutoff(0), [1, 0, 0], 1),
        (ITensorCutoff(0, mindim=2), [1, 0, 0], 2),
        (ITensorCutoff(0, mindim=9), [1, 0, 0], 3),
        (ITensorCutoff(mindim=3, maxdim=2), HALVES, 2),
        (ITensorCutoff(2.0), HALVES, 1),
        (ITensorCutoff(1e-3), [0, 0], 1),
        (ITensorCutoff(0.01), [3e-300, 3e-302], 1),
        (ITensorCutoff(0.00001), [3e300, 3e298], 2),
        # quimb's cutoff of 0 is none, and its default is not
        (QuimbCutoff(cutoff=0), [1, 0, 0], 3),
        (QuimbCutoff(cutoff=None), [1, 0, 0], 3),
        (QuimbCutoff(), [1, 1e-4, 0.99e-5, 0], 2),
        (QuimbCutoff(cutoff=0.125, cutoff_mode="abs"), HALVES, 3),
        (QuimbCutoff(cutoff=0.25, cutoff_mode="rel"), [4, 2, 1, 0.5], 2),
        (QuimbCutoff(cutoff=0.375, cutoff_mode="sum1"), HALVES, 2),
        (QuimbCutoff(cutoff=0.2, cutoff_mode="rsum1"), HALVES, 2),
        (QuimbCutoff(cutoff=0.078125, cutoff_mode="sum2"), HALVES, 2),
        (QuimbCutoff(cutoff=1.1e300, cutoff_mode="sum2"), [1e200, 1e150], 1),
        (QuimbCutoff(cutoff=0.9e300, cutoff_mode="sum2"), [1e200, 1e150], 2),
        (QuimbCutoff(cutoff=1e-300, cutoff_mode="sum2"), [1e-150, 0.9e-150], 1),
        (QuimbCutoff(cutoff=9.0, cutoff_mode="abs"), HALVES, 1),
        # relative to the norm, not to the largest value; sum s^2 <= trunc_cut^2
        (TeNPyCutoff(svd_min=0.5), [1, 1, 1, 0.9], 3),
        (TeNPyCutoff(svd_min=0.46), [1, 1, 1, 0.9], 4),
        # a value of svd_min stays: 3 = 0.6 * 5
        (TeNPyCutoff(svd_min=0.6), [4, 3], 2),
        # every value is below it: ignored
        (TeNPyCutoff(svd_min=0.52), [1, 1, 1, 0.9], 4),
        (TeNPyCutoff(trunc_cut=0.5), [1, 1, 1, 1], 3),
        (TeNPyCutoff(trunc_cut=0.49), [1, 1, 1, 1], 4),
        (TeNPyCutoff(), [1] * 120, 100),
        (TeNPyCutoff(chi_max=None), [1] * 120, 120),
        (TeNPyCutoff(chi_max=None, svd_min=None, trunc_cut=None), [1, 0], 2),
        (TeNPyCutoff(), [1, 0], 1),
        (TeNPyCutoff(), [0, 0], 1),
    ],
)
def test_by_hand(policy, spectrum, rank):
    assert rank_of(policy, spectrum) == rank


@given(cases(2, 5, dtypes=("float64", "complex128")), cutoffs, counts)
def test_a_whole_train(case, cutoff, cap):
    """Without a cap, the promise of each bond holds for the sum; with one, no bond is above it."""
    total, inner = norm(case.dense), case.shape.order - 1
    promised = total * math.sqrt(inner * cutoff) + case.slack
    for policy in (ITensorCutoff(cutoff), QuimbCutoff(cutoff=cutoff)):
        assert mpo_decompose(case.W, case.shape, policy).truncation.error <= promised
    if cutoff < 1:
        policy = TeNPyCutoff(chi_max=None, svd_min=None, trunc_cut=math.sqrt(cutoff))
        assert mpo_decompose(case.W, case.shape, policy).truncation.error <= promised
    for policy in (ITensorCutoff(cutoff, maxdim=cap, mindim=3), QuimbCutoff(cap, cutoff), TeNPyCutoff(cap)):
        mpo = mpo_decompose(case.W, case.shape, policy)
        assert max(mpo.ranks) <= cap
        assert feasible(mpo.ranks, case.shape.site_sizes)


def test_beside_a_small_bond_the_small_one_is_raised():
    # the second bond needs three and its site has two, so the first must have two, which is no more than the cap
    train = [np.array([1.0, 0.0]), np.ones(4)]
    assert ITensorCutoff(1e-9, maxdim=3).choose(train, (2, 2, 4)) == (1, 2, 3, 1)


def test_they_combine_and_cut_tensors():
    tensor = np.random.default_rng(0).normal(size=(4, 5, 6, 4))
    assert tt_decompose(tensor, QuimbCutoff(cutoff=0) & 3).ranks == (1, 3, 3, 3, 1)
    assert tt_decompose(tensor, 9 & TeNPyCutoff(trunc_cut=1e-3)).ranks == (1, 4, 9, 4, 1)
    both = mpo_decompose(tensor.reshape(20, 24), MPOShape((4, 5), (4, 6)), ITensorCutoff(mindim=5, maxdim=9) & 0.5)
    assert both.ranks == (1, 5, 1)
