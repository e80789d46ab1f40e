"""Every bad call is refused in one sentence that names the argument, what came, and what to do."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from refusals import refused

from tnmpo import (
    MPO,
    EntropyFraction,
    MaxRank,
    MPODecomposition,
    MPOShape,
    ParameterBudget,
    Tolerance,
    Weight,
    allot_ranks,
    als_fit,
    bond_spectra,
    canonicalize,
    contraction_plan,
    entanglement_entropy,
    is_canonical,
    mpo_decompose,
    padded_size,
    plan_shape,
    plot,
    search_shape,
    truncate,
    tt_decompose,
)

W = np.random.default_rng(0).normal(size=(12, 18))
SHAPE = ((2, 3, 2), (3, 3, 2))
LOW_RANK = MPOShape.low_rank((12, 18))
MPO_OF_W = mpo_decompose(W, SHAPE)
TT_OF_W = tt_decompose(W)
COVARIANCE = np.cov(np.random.default_rng(1).normal(size=(18, 40)))
ones = np.ones


def with_entry(value):
    spoilt = W.copy()
    spoilt[3, 5] = value
    return spoilt


def decompose(rank):
    return lambda: mpo_decompose(W, SHAPE, rank)


def weigh(weight=None, shape=LOW_RANK, matrix=W, **sides):
    return lambda: mpo_decompose(matrix, shape, 3, weight=Weight(**sides) if weight is None else weight)


BAD_CALLS = [
    # the matrix
    (lambda: mpo_decompose("W"), TypeError, "W: got str, expected a numpy array, a torch tensor"),
    (lambda: mpo_decompose([[1.0, 2.0]]), TypeError, "W: got list, expected a numpy array"),
    (lambda: mpo_decompose(None), TypeError, "W: got NoneType, expected a numpy array"),
    (lambda: mpo_decompose(ones(12)), ValueError, "W: got 1 axes, expected a matrix"),
    (lambda: mpo_decompose(ones((2, 3, 4))), ValueError, "W: got 3 axes, expected a matrix"),
    (lambda: mpo_decompose(np.float64(3.0)), ValueError, "W: got 0 axes, expected a matrix"),
    (lambda: mpo_decompose(ones((0, 4))), ValueError, "W: got shape (0, 4), expected at least one entry"),
    (lambda: mpo_decompose(torch.ones(4, 0)), ValueError, "W: got shape (4, 0), expected at least one entry"),
    (lambda: mpo_decompose(np.eye(4, dtype=int)), TypeError, "W: got dtype int64, expected one of bfloat16"),
    (lambda: mpo_decompose(torch.eye(4, dtype=torch.bool)), TypeError, "W: got dtype bool, expected one of"),
    (lambda: mpo_decompose(np.array([["a"]])), TypeError, "W: got dtype str32, expected one of"),
    (lambda: mpo_decompose(W.astype(np.longdouble)), TypeError, "convert it first, e.g. to float64"),
    (lambda: mpo_decompose(with_entry(np.nan)), ValueError, "W: got NaN or Inf among its entries"),
    (lambda: mpo_decompose(with_entry(np.inf)), ValueError, "W: got NaN or Inf among its entries"),
    (lambda: mpo_decompose(torch.tensor(with_entry(-np.inf))), ValueError, "W: got NaN or Inf among its entries"),
    (lambda: mpo_decompose(1j * with_entry(np.nan)), ValueError, "W: got NaN or Inf among its entries"),
    (lambda: mpo_decompose(np.array([[np.inf, -np.inf]])), ValueError, "W: got NaN or Inf among its entries"),
    (lambda: mpo_decompose(np.full((8, 8), 1e308)), ValueError, "W: got entries up to 1e+308, whose norm overflows"),
    (lambda: mpo_decompose(torch.full((8, 8), 3e38)), ValueError, "overflows float32; scale them down first"),
    (
        lambda: mpo_decompose(np.full((8, 8), 6e4, "float16")),
        ValueError,
        "MPO: got a norm that overflows float16",
    ),
    (lambda: mpo_decompose(np.full((8, 8), 6e4, "float16"), rank=1), ValueError, "convert it to bfloat16"),
    (
        lambda: mpo_decompose(np.ma.masked_array(W, W > 0)),
        TypeError,
        "W: got a MaskedArray, expected a plain dense array",
    ),
    (lambda: mpo_decompose(torch.tensor(W).to_sparse()), TypeError, "W: got a Tensor of layout torch.sparse_coo"),
    (lambda: mpo_decompose(torch.ones(4, 4, device="meta")), ValueError, "W: got a tensor on the meta device"),
    # the shape
    (
        lambda: mpo_decompose(W, ((2, 3), (3, 6))),
        ValueError,
        "shape: rows (2, 3) and cols (3, 6) make a (6, 18) matrix",
    ),
    (lambda: mpo_decompose(W, ((3, 3, 2), (2, 3, 2))), ValueError, "choose factors of its dimensions"),
    (lambda: mpo_decompose(W, ((12,), (18,), (1,))), ValueError, "shape: got 3 parts, expected two"),
    (lambda: mpo_decompose(W, ((2, 6), (18,))), ValueError, "shape: got 2 row and 1 column dimensions"),
    (lambda: mpo_decompose(W, ((-2, -6), (3, 6))), ValueError, "shape: rows: got -2, expected a positive integer"),
    (lambda: mpo_decompose(W, ((2, 6.0), (3, 6))), TypeError, "shape: rows: got 6.0, expected a positive integer"),
    (lambda: mpo_decompose(W, ((12, True), (18, 1))), TypeError, "shape: rows: got True, expected a positive integer"),
    (lambda: mpo_decompose(W, ((), ())), ValueError, "shape: rows: got an empty tuple"),
    (lambda: mpo_decompose(W, "low rank"), TypeError, "shape: got 'low rank', expected (rows, columns)"),
    (lambda: mpo_decompose(W, (12, 18)), TypeError, "shape: rows: got 12, expected a tuple of positive integers"),
    (lambda: mpo_decompose(W, 5), TypeError, "shape: got 5, expected (rows, columns)"),
    (lambda: mpo_decompose(W, np.array(SHAPE)), TypeError, "expected (rows, columns) such as ((4, 4), (2, 8))"),
    (lambda: plan_shape((12, 18), 0), ValueError, "order: got 0, expected a positive integer"),
    (lambda: plan_shape((12, 18), 2.5), TypeError, "order: got 2.5, expected a positive integer"),
    (lambda: plan_shape(12), ValueError, "matrix_shape: got 12, expected a pair (I, J)"),
    (lambda: plan_shape((12, 0)), ValueError, "matrix_shape: got 0, expected a positive integer"),
    (lambda: plan_shape((12, 18, 3)), ValueError, "matrix_shape: got (12, 18, 3), expected a pair (I, J)"),
    (lambda: padded_size(0), ValueError, "size: got 0, expected a positive integer"),
    (lambda: padded_size("30522"), TypeError, "size: got '30522', expected a positive integer"),
    (lambda: MPOShape(*SHAPE).n_parameters((1, 4)), ValueError, "ranks: got (1, 4) for order 3, expected 4 entries"),
    (lambda: MPOShape(*SHAPE).n_parameters(4), TypeError, "ranks: got 4, expected a tuple of 4 positive integers"),
    (lambda: MPOShape(*SHAPE).clip_ranks((1, 4)), ValueError, "ranks: got (1, 4) for order 3, expected 4 entries"),
    # the rank
    (decompose(0), ValueError, "rank: got 0, expected a positive integer"),
    (decompose(-3), ValueError, "rank: got -3, expected a positive integer"),
    (decompose(True), TypeError, "rank: got True, expected an int, a tuple, a float or a policy"),
    (decompose(np.True_), TypeError, "rank: got np.True_, expected an int, a tuple, a float or a policy"),
    (decompose("full"), ValueError, "rank: got 'full', expected 'same' or an int"),
    (decompose(-0.5), ValueError, "rank: got the fraction -0.5, expected one above 0"),
    (decompose(0.0), ValueError, "rank: got the fraction 0.0, expected one above 0"),
    (decompose(float("nan")), ValueError, "rank: got the fraction nan, expected one above 0"),
    (decompose(float("inf")), ValueError, "rank: got the fraction inf, expected one above 0"),
    (decompose(0.05), ValueError, "rank: got the fraction 0.05 of 216 parameters, the rank-one size is 19"),
    (decompose((3,)), ValueError, "rank: got (3,) for 2 inner bonds, expected 2 entries, or 4 with ones at both ends"),
    (decompose((2, 3, 4, 2)), ValueError, "rank: got (2, 3, 4, 2) for 2 inner bonds"),
    (decompose((0, 3)), ValueError, "rank: got 0, expected a positive integer"),
    (decompose((3, 2.0)), TypeError, "rank: got 2.0, expected a positive integer"),
    (decompose((7, 3)), ValueError, "rank: got 7 for bond 1, whose full bond is 6; lower that entry"),
    (decompose({3, 4}), TypeError, "rank: got {3, 4}, expected an int, a tuple, a float or a policy"),
    (decompose(np.array([3, 4])), TypeError, "rank: got array([3, 4]), expected an int, a tuple"),
    (decompose(np.ones((50, 50))), TypeError, "..., expected an int, a tuple, a float or a policy"),
    (decompose(MaxRank), TypeError, "expected an int, a tuple, a float or a policy such as tnmpo.Tolerance(1e-2)"),
    (decompose(3 + 0j), TypeError, "rank: got (3+0j), expected an int, a tuple, a float or a policy"),
    (
        decompose(SimpleNamespace(choose=lambda spectra, sizes: (1, 100, 1, 1))),
        ValueError,
        "rank: got 100 for bond 1, whose full bond is 6",
    ),
    (lambda: truncate(MPO_OF_W, None), TypeError, "rank: got None, expected an int, a tuple, a float or a policy"),
    (lambda: truncate(MPO_OF_W, (9, 9)), ValueError, "rank: got 9 for bond 1, whose full bond is 6"),
    # policies
    (lambda: MaxRank(0), ValueError, "rank: got 0, expected a positive integer"),
    (lambda: MaxRank(2.0), TypeError, "rank: got 2.0, expected a positive integer"),
    (lambda: MaxRank(8, multiple_of=0), ValueError, "multiple_of: got 0, expected a positive integer"),
    (lambda: MaxRank(4, multiple_of=8), ValueError, "multiple_of: got 8 above the rank 4; raise the rank or lower it"),
    (lambda: Tolerance(-1e-3), ValueError, "Tolerance: got -0.001, expected a finite number >= 0"),
    (lambda: Tolerance(float("nan")), ValueError, "Tolerance: got nan, expected a finite number >= 0"),
    (lambda: Tolerance("1%"), TypeError, "Tolerance: got '1%', expected a number >= 0"),
    (lambda: Tolerance(True), TypeError, "Tolerance: got True, expected a number >= 0"),
    (lambda: EntropyFraction(0), ValueError, "EntropyFraction: got 0, expected a number in (0, 1]"),
    (lambda: EntropyFraction(1.01), ValueError, "EntropyFraction: got 1.01, expected a number in (0, 1]"),
    (lambda: EntropyFraction(None), TypeError, "EntropyFraction: got None, expected a number in (0, 1]"),
    (lambda: ParameterBudget(0.5), TypeError, "ParameterBudget: got 0.5, expected a positive integer"),
    (lambda: ParameterBudget(-5), ValueError, "ParameterBudget: got -5, expected a positive integer"),
    (decompose(ParameterBudget(18)), ValueError, "budget: got 18 parameters, the rank-one size is 19; allow at least"),
    # the allotment
    (lambda: allot_ranks([[ones(4)]], [], 9), ValueError, "allot_ranks: got 1 trains of spectra and 0 of sizes"),
    (lambda: allot_ranks([[ones(4)]], [(4, 4, 4)], 99), ValueError, "spectra: got 1 for 3 sites, expected one per"),
    (lambda: allot_ranks([[ones(4)]], [(4, 4)], 7), ValueError, "budget: got 7 parameters, the rank-one size is 8"),
    (lambda: allot_ranks([[ones(4)]], [(4, 4)], 8.5), TypeError, "budget: got 8.5, expected a positive integer"),
    (lambda: allot_ranks([[ones(4)]], [(4, -4)], 9), ValueError, "sizes: got -4, expected a positive integer"),
    (lambda: allot_ranks([[ones(4)]], [4], 9), TypeError, "sizes: got 4, expected a tuple of positive integers"),
    (lambda: allot_ranks([[ones((2, 2))]], [(4, 4)], 9), ValueError, "spectra: got one of shape (2, 2)"),
    (lambda: allot_ranks([[[]]], [(4, 4)], 9), ValueError, "spectra: got one of shape (0,)"),
    (lambda: allot_ranks([[[1.0, 2.0]]], [(4, 4)], 9), ValueError, "not finite, nonnegative and descending"),
    (lambda: allot_ranks([[[1.0, -1.0]]], [(4, 4)], 9), ValueError, "not finite, nonnegative and descending"),
    (lambda: allot_ranks([[[np.nan, 1.0]]], [(4, 4)], 9), ValueError, "pass Schmidt values, sorted"),
    # the gauge
    (lambda: mpo_decompose(W, SHAPE, center=3), ValueError, "center: got 3, expected a site index from 0 to 2"),
    (lambda: mpo_decompose(W, SHAPE, center=-1), ValueError, "center: got -1, expected a site index from 0 to 2"),
    (lambda: mpo_decompose(W, SHAPE, center=1.0), TypeError, "center: got 1.0, expected a site index from 0 to 2"),
    (lambda: canonicalize(MPO_OF_W, True), TypeError, "center: got True, expected a site index from 0 to 2"),
    (lambda: canonicalize(MPO_OF_W, "left"), TypeError, "center: got 'left', expected a site index from 0 to 2"),
    (lambda: is_canonical(MPO_OF_W, np.array([0, 1])), TypeError, "expected a site index from 0 to 2"),
    (lambda: is_canonical(MPO_OF_W, tolerance=-1), ValueError, "tolerance: got -1, expected a number >= 0"),
    (lambda: is_canonical(MPO_OF_W, tolerance="a"), ValueError, "tolerance: got 'a', expected a number >= 0"),
    (lambda: canonicalize(W), TypeError, "train: got ndarray, expected a tnmpo.MPO or a tnmpo.TT; tnmpo.mpo_decompose"),
    (lambda: truncate(W, 3), TypeError, "train: got ndarray, expected a tnmpo.MPO"),
    (lambda: bond_spectra(None), TypeError, "train: got NoneType, expected a tnmpo.MPO"),
    (lambda: bond_spectra(MPO([np.nan * ones((1, 2, 2, 1))])), ValueError, "train: got NaN or Inf in core 0"),
    # the cores
    (lambda: MPO([]), ValueError, "MPO: got no cores, expected at least one"),
    (lambda: MPO(None), TypeError, "MPO: got NoneType for cores, expected a sequence of four-way arrays"),
    (lambda: MPO("abc"), TypeError, "MPO: got str for cores, expected a sequence of four-way arrays"),
    (lambda: MPO(iter([ones((1, 2, 2, 1))])), TypeError, "for cores, expected a sequence of four-way arrays"),
    (lambda: MPO([[[[[1.0]]]]]), TypeError, "MPO: core 0: got list, expected a numpy array"),
    (lambda: MPO([ones((1, 2, 1))]), ValueError, "MPO: core 0 has 3 axes, expected 4 (rank, row, col, rank)"),
    (lambda: MPO([ones((1, 2, 2, 3)), ones((4, 2, 2, 1))]), ValueError, "MPO: core 1 has left bond 4, expected 3"),
    (lambda: MPO([ones((2, 2, 2, 1))]), ValueError, "MPO: core 0 has left bond 2, expected 1 at the boundary"),
    (lambda: MPO([ones((1, 2, 2, 2))]), ValueError, "MPO: core 0 has right bond 2, expected 1 at the boundary"),
    (lambda: MPO([ones((1, 0, 2, 1))]), ValueError, "MPO: core 0 has shape (1, 0, 2, 1), expected no empty axis"),
    (lambda: MPO([ones((1, 2, 2, 1), int)]), TypeError, "MPO: core 0: got dtype int64, expected one of"),
    (
        lambda: MPO([ones((1, 2, 2, 1)), ones((1, 2, 2, 1), "float32")]),
        TypeError,
        "MPO: core 1 is ndarray float32, core 0 is ndarray float64; convert them to one backend and dtype",
    ),
    (
        lambda: MPO([ones((1, 2, 2, 1)), torch.ones(1, 2, 2, 1, dtype=torch.float64)]),
        TypeError,
        "MPO: core 1 is Tensor float64, core 0 is ndarray float64",
    ),
    (
        lambda: MPO([torch.ones(1, 2, 2, 1), torch.ones(1, 2, 2, 1, device="meta")]),
        ValueError,
        "MPO: core 1 is on meta, core 0 on cpu; move them to one device",
    ),
    (lambda: MPO([ones((1, 2, 2, 1))], center=1), ValueError, "center: got 1, expected a site index from 0 to 0"),
    (lambda: MPO.from_tensorly(None), TypeError, "MPO: got NoneType for cores"),
    # weights
    (lambda: Weight(rows=[1.0, 2.0]), TypeError, "Weight: rows: got list, expected a numpy array"),
    (lambda: Weight(cols=ones(18) > 0), TypeError, "Weight: cols: got dtype bool, expected one of"),
    (lambda: Weight(cols=[1, 2]), TypeError, "convert it first, e.g. with numpy.asarray(..., dtype=float)"),
    (lambda: Weight(cols=ones((2, 2, 2))), ValueError, "Weight: cols: got shape (2, 2, 2), expected a vector"),
    (lambda: Weight(cols=ones((2, 3))), ValueError, "Weight: cols: got shape (2, 3), expected a vector"),
    (lambda: Weight(rows=np.array([1.0, -1.0])), ValueError, "Weight: rows: got a negative entry in the diagonal"),
    (lambda: Weight(rows=np.array([1.0, 1j])), TypeError, "Weight: rows: got a complex vector, expected real numbers"),
    (lambda: Weight(rows=np.array([1.0, np.nan])), ValueError, "Weight: rows: got NaN or Inf among its entries"),
    (lambda: Weight(rows=ones(0)), ValueError, "Weight: rows: got shape (0,), expected at least one entry"),
    (lambda: Weight(cols=np.triu(ones((3, 3)))), ValueError, "Weight: cols: got a matrix that is not Hermitian"),
    (lambda: Weight(cols=1j * np.eye(3)), ValueError, "Weight: cols: got a matrix that is not Hermitian"),
    (weigh(cols=-COVARIANCE), ValueError, "Weight: cols: got a matrix with the negative eigenvalue"),
    (weigh(cols=torch.tensor(-COVARIANCE)), ValueError, "expected a positive semidefinite one such as a covariance"),
    (weigh(cols=ones(12)), ValueError, "weight: cols has size 12, the matrix (12, 18) has 18 cols"),
    (weigh(rows=np.eye(18)), ValueError, "weight: rows has size 18, the matrix (12, 18) has 12 rows"),
    (weigh(rows=np.eye(12) + 0j), TypeError, "weight: rows is complex, the matrix float64; convert the matrix"),
    (weigh(cols=(), shape=SHAPE), ValueError, "Weight: cols: got an empty tuple, expected one metric a site"),
    (weigh(cols=(ones(18), [1.0]), shape=SHAPE), TypeError, "Weight: cols: got list, expected a numpy array"),
    (
        weigh(cols=(ones(3), ones(2), ones(3)), shape=SHAPE),
        ValueError,
        "weight: cols has site metrics of sizes (3, 2, 3), the sites have (3, 3, 2); pass one of each size",
    ),
    (weigh(cols=(ones(3), ones(7)), shape=SHAPE), ValueError, "weight: cols has size 3 x 7, the matrix"),
    (weigh(COVARIANCE), TypeError, "weight: got ndarray, expected tnmpo.Weight(rows=..., cols=...)"),
    (
        lambda: mpo_decompose(W, LOW_RANK, weight=Weight(cols=ones(12))),
        ValueError,
        "weight: cols has size 12, the matrix (12, 18) has 18 cols",
    ),
    (lambda: truncate(TT_OF_W, 2, weight=Weight(cols=ones(18))), TypeError, "train: got TT, expected a tnmpo.MPO;"),
    (lambda: als_fit(W, W), TypeError, "initial: got ndarray, expected a tnmpo.MPO or a tnmpo.TT"),
    (lambda: als_fit(W[:, :6], MPO_OF_W), ValueError, "target: got shape (12, 6), expected (12, 18), that of initial"),
    (lambda: als_fit([[1.0]], MPO_OF_W), TypeError, "target: got list, expected a numpy array"),
    (lambda: als_fit(W * 1j, MPO_OF_W), TypeError, "target: got complex128, initial has float64; make initial complex"),
    (lambda: als_fit(torch.ones(12, 18), MPO_OF_W), TypeError, "target: got Tensor, initial has ndarray; convert one"),
    (lambda: als_fit(TT_OF_W, MPO_OF_W), TypeError, "target: got TT, expected a tnmpo.MPO;"),
    (
        lambda: als_fit(mpo_decompose(W, ((3, 4), (9, 2))), MPO_OF_W),
        ValueError,
        "target: got sites ((3, 9), (4, 2)), initial has ((2, 3), (3, 3), (2, 2)); both need the same",
    ),
    (lambda: als_fit(W, MPO_OF_W, sweeps=0), ValueError, "sweeps: got 0, expected a positive integer"),
    (lambda: als_fit(W, MPO_OF_W, tolerance=1.0), ValueError, "tolerance: got 1.0, expected a number from 0 to below"),
    (lambda: als_fit(W, MPO_OF_W, weight=ones(3)), TypeError, "weight: got ndarray, expected tnmpo.Weight(rows=..."),
    (lambda: search_shape(W), ValueError, "search_shape: got neither of ratio and tol, expected one"),
    (lambda: search_shape(W, ratio=0.5, tol=0.1), ValueError, "search_shape: got both of ratio and tol, expected one"),
    (lambda: search_shape(W[0], ratio=0.5), ValueError, "W: got 1 axes, expected a matrix; reshape it to two"),
    (lambda: search_shape(W, ratio=-1), ValueError, "ratio: got -1, expected a number above 0, of the dense"),
    (lambda: search_shape(W, ratio="half"), ValueError, "ratio: got 'half', expected a number above 0, of the dense"),
    (lambda: search_shape(W, tol=-1), ValueError, "Tolerance: got -1, expected a finite number >= 0"),
    (lambda: search_shape(W, ratio=0.01), ValueError, "ratio: got 0.01, 2 parameters; the smallest rank-one MPO"),
    (
        lambda: search_shape(W, ratio=0.5, weight=Weight(cols=ones(7))),
        ValueError,
        "weight: cols has size 7, the matrix (12, 18) has 18 cols; pass a metric of that size",
    ),
    (lambda: MPODecomposition(3).fit_transform(W[0]), ValueError, "W: got 1 axes, expected a matrix"),
    (lambda: MPODecomposition(0).fit(W), ValueError, "rank: got 0, expected a positive integer"),
    (lambda: Weight().norm([1.0]), TypeError, "matrix: got list, expected a numpy array"),
    (lambda: Weight().norm(ones(3)), ValueError, "matrix: got 1 axes, expected two (rows, columns)"),
    # entropies
    (lambda: entanglement_entropy([1.0, 0.5]), TypeError, "spectrum: got list, expected a numpy array"),
    (
        lambda: entanglement_entropy(W),
        ValueError,
        "spectrum: got 2 axes, expected one; for a matrix decompose it first",
    ),
    (
        lambda: entanglement_entropy(np.array([1.0, -0.5])),
        ValueError,
        "spectrum: got a negative entry, expected Schmidt",
    ),
    (lambda: entanglement_entropy(np.array([1.0, 0.5j])), TypeError, "spectrum: got complex numbers, expected Schmidt"),
    (lambda: entanglement_entropy(torch.tensor([1.0, np.nan])), ValueError, "spectrum: got NaN or Inf"),
    (lambda: entanglement_entropy(ones(0)), ValueError, "spectrum: got shape (0,), expected at least one entry"),
    (lambda: entanglement_entropy(ones(3), -1), ValueError, "alpha: got -1, expected a number >= 0"),
    (lambda: entanglement_entropy(ones(3), float("nan")), TypeError, "alpha: got nan, expected a number >= 0"),
    (lambda: entanglement_entropy(MPO_OF_W, "2"), TypeError, "alpha: got '2', expected a number >= 0"),
    # costs and figures
    (lambda: contraction_plan(None, (1, 1)), TypeError, "shape: got None, expected (rows, columns)"),
    (lambda: contraction_plan(SHAPE, (1, 4, 1)), ValueError, "ranks: got (1, 4, 1) for order 3, expected 4 entries"),
    (lambda: contraction_plan(SHAPE, (2, 4, 4, 2)), ValueError, "expected 4 entries with ones at both ends"),
    (lambda: contraction_plan(SHAPE, 4), TypeError, "ranks: got 4, expected a tuple of 4 positive integers"),
    (lambda: contraction_plan(SHAPE, (1, 4, 4, 1), 0), ValueError, "batch: got 0, expected a positive integer"),
    (lambda: contraction_plan(SHAPE, (1, 4.0, 4, 1)), TypeError, "ranks: got 4.0, expected a positive integer"),
    (lambda: plot.bonds({}), ValueError, "before: got no matrices, expected at least one name with its MPO"),
    (lambda: plot.bonds(MPO_OF_W), TypeError, "before: got MPO, expected names with their MPOs"),
    (lambda: plot.bonds({"a": MPO_OF_W}, MPO_OF_W), TypeError, "after: got MPO, expected names with their MPOs"),
    (lambda: plot.bonds({"a": MPO_OF_W}, {"b": MPO_OF_W}), ValueError, "after: got ['b'], which before lacks"),
]


@pytest.mark.parametrize(("call", "error", "fragment"), BAD_CALLS, ids=[fragment for *_, fragment in BAD_CALLS])
def test_a_bad_call_is_refused(call, error, fragment):
    argument, rest = refused(call, error, fragment)
    assert argument.isidentifier() or argument.startswith("MPO")  # who
    assert "got" in rest or " is " in rest or " has " in rest or "make a" in rest  # what came
    assert "expected" in rest or ";" in rest  # what to do


def test_neighbours_limit_a_rank():
    W = np.eye(64)
    with pytest.raises(ValueError, match=r"rank: got 1[56] for bond \d, which the neighbouring ranks .* limit to 4"):
        mpo_decompose(W, ((2, 2, 2, 8), (2, 2, 2, 8)), (4, 16, 1))
    with pytest.raises(ValueError, match=r"lower that entry or raise its neighbours"):
        mpo_decompose(W, ((64, 1, 1), (1, 1, 64)), (3, 4))


def test_boundary_ones_may_be_given():
    assert mpo_decompose(W, SHAPE, (1, 3, 4, 1)).ranks == mpo_decompose(W, SHAPE, (3, 4)).ranks == (1, 3, 4, 1)
    # two inner ranks of one are no boundary
    assert mpo_decompose(W, SHAPE, (1, 1)).ranks == (1, 1, 1, 1)


def test_numpys_matrix_class_is_refused():
    with pytest.warns(PendingDeprecationWarning):  # numpy's own, on making one
        matrix = np.matrix(W)
    with pytest.raises(TypeError, match="W: got a matrix, expected a plain dense array; convert it first"):
        mpo_decompose(matrix)
