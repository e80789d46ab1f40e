"""What the peers' own tests claim of trains, claimed of ours and held against the peer.

Each docstring names the peer's test; the claims are taken over in words, the code is not. What came out different is
in the table of ``docs/interchange.md``, and is asserted here too.
"""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import quimb as qu
import quimb.tensor as qtn
import tensorly
import torch
from tensorly.decomposition import tensor_train, tensor_train_matrix
from tensorly.random import random_tt, random_tt_matrix
from tensorly.tt_tensor import pad_tt_rank, validate_tt_rank

from tnmpo import (
    MPO,
    TT,
    MaxRank,
    MPOShape,
    Tolerance,
    bond_spectra,
    canonicalize,
    entanglement_entropy,
    io,
    is_canonical,
    mpo_decompose,
    schmidt_gap,
    truncate,
    tt_decompose,
)

# The import of tltorch sets TensorLy's global backend, and torchTT warns where its compiled part is not built.
BEFORE = tensorly.get_backend()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tltorch
    import torchtt
tensorly.set_backend(BEFORE)

both_fields = pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
torch_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])


def gaussian(*shape, complex_=False, seed=0):
    generator = np.random.default_rng(seed)
    real = generator.normal(size=shape)
    return real + 1j * generator.normal(size=shape) if complex_ else real


def of_torch(*shape, dtype=torch.float64, seed=0):
    return torch.tensor(gaussian(*shape, complex_=dtype.is_complex, seed=seed))


def relative(actual, expected):
    return float(np.linalg.norm(np.asarray(actual) - np.asarray(expected)) / np.linalg.norm(np.asarray(expected)))


def n_entries(arrays):
    return sum(math.prod(array.shape) for array in arrays)


# ---------------------------------------------------------------------------------------------------------------------
# TensorLy
# ---------------------------------------------------------------------------------------------------------------------


def test_a_tt_matrix_has_the_shapes_of_its_tensor_matrix_and_vector():
    """``tensorly/tests/test_tt_matrix.py::test_tt_matrix_manipulation``."""
    theirs = random_tt_matrix((2, 2, 2, 3, 3, 3), rank=2, full=False, random_state=0)
    ours = MPO.from_tensorly(theirs)
    assert ours.matrix_shape == (8, 27)
    assert ours.shape == MPOShape((2, 2, 2), (3, 3, 3))
    assert relative(ours.to_matrix(), theirs.to_matrix()) < 1e-14
    assert relative(ours.to_matrix().reshape(2, 2, 2, 3, 3, 3), theirs.to_tensor()) < 1e-14
    assert relative(ours.to_matrix().reshape(-1), theirs.to_vec()) < 1e-14


def test_a_matrix_within_the_cap_is_rebuilt():
    """``tensorly/decomposition/tests/test_tt_decomposition.py::test_tensor_train_matrix``.

    Same: a cap above the full bond is no error. Both keep full bonds, though the matrix has smaller ones.
    """
    tensor = random_tt((2, 2, 2, 3, 3, 3), rank=2, full=True, random_state=0)
    matrix = tensor.reshape(8, 27)
    ours = mpo_decompose(matrix, ((2, 2, 2), (3, 3, 3)), 10)
    assert relative(ours.to_matrix(), matrix) < 1e-14
    assert ours.ranks == tuple(tensor_train_matrix(tensor, 10).rank) == (1, 6, 6, 1)
    # only a tolerance looks for the smaller ones: a site has a row and a column, which are far apart in the tensor
    found = mpo_decompose(matrix, ((2, 2, 2), (3, 3, 3)), Tolerance(1e-12))
    assert found.ranks == (1, 6, 4, 1)
    assert relative(found.to_matrix(), matrix) < 1e-12


def test_a_matrix_of_one_site_is_its_core():
    """The case ``n_input == 1`` of ``tensor_train_matrix``."""
    matrix = gaussian(4, 6)
    ours, theirs = mpo_decompose(matrix, ((4,), (6,))), tensor_train_matrix(matrix, 3)
    assert ours.cores[0].shape == theirs.factors[0].shape == (1, 4, 6, 1)
    assert np.array_equal(ours.to_matrix(), matrix)


def test_the_ranks_that_are_asked_for_are_those_of_the_cores():
    """``tensorly/decomposition/tests/test_tt_decomposition.py::test_tensor_train``, its first part."""
    tensor, ranks = gaussian(3, 4, 5, 6, 2, 10), (1, 3, 3, 4, 2, 2, 1)
    ours = tt_decompose(tensor, ranks)
    assert ours.shape == tensor.shape
    assert ours.ranks == tuple(tensor_train(tensor, list(ranks)).rank) == ranks


def test_ranks_above_the_full_bond_are_refused_where_tensorly_clips():
    """``tensorly/decomposition/tests/test_tt_decomposition.py::test_tensor_train``, its second part.

    Different: a list of ranks is a cap at TensorLy, exact here. A single number is a cap in both.
    """
    tensor, ranks = gaussian(3, 4, 5, 6, 2, 10), [1, 5, 4, 3, 8, 10, 1]
    theirs = tensor_train(tensor, list(ranks))
    assert tuple(theirs.rank) == (1, 3, 4, 3, 8, 10, 1)
    with pytest.raises(ValueError, match="rank: got 5 for bond 1, whose full bond is 3; lower that entry"):
        tt_decompose(tensor, tuple(ranks))
    assert tt_decompose(tensor, tuple(theirs.rank)).ranks == tuple(theirs.rank)


@pytest.mark.parametrize("seed", range(5))
@both_fields
def test_at_equal_ranks_the_error_is_that_of_tensorly_and_is_known(seed, complex_):
    """``tensorly/tests/test_tt_tensor.py::test_tt_to_tensor_random``, with the error measured.

    Same size: both are quasi-optimal cuts, that from both ends and that from the left, and neither is always better.
    """
    tensor = gaussian(3, 4, 5, 6, 2, complex_=complex_, seed=seed)
    ours = tt_decompose(tensor, 3)
    theirs = tensor_train(tensor, 3)
    assert ours.ranks == tuple(theirs.rank)
    error, their_error = (np.linalg.norm(dense - tensor) for dense in (ours.to_tensor(), theirs.to_tensor()))
    assert abs(error - ours.truncation.error) < 1e-12 * error
    assert ours.truncation.lower_bound <= their_error
    assert abs(error / their_error - 1) < 0.02


@both_fields
def test_a_tensor_of_known_ranks_is_recovered(complex_):
    """``tensorly/decomposition/tests/test_tt_decomposition.py::test_tensor_train``, its third part."""
    cores = [gaussian(*shape, complex_=complex_, seed=3) for shape in [(1, 3, 2), (2, 3, 3), (3, 3, 1)]]
    tensor = TT(cores).to_tensor()
    for rank in ((1, 2, 3, 1), Tolerance(1e-12)):
        ours = tt_decompose(tensor, rank)
        assert ours.ranks == (1, 2, 3, 1)
        assert relative(ours.to_tensor(), tensor) < 1e-12


def test_the_train_of_a_sum_of_indices_has_bonds_of_two():
    """``tensorly/tests/test_tt_tensor.py::test_tt_to_tensor``, after Rodomanov (2016): ``(i+1) + (j+1) + (k+1)``."""
    i, j, k = np.ogrid[1:4, 1:5, 1:3]
    tensor = (i + j + k).astype(float)
    known = TT(
        [
            np.stack([np.arange(1.0, 4), np.ones(3)], axis=-1)[None],
            np.stack([np.stack([np.ones(4), np.zeros(4)], -1), np.stack([np.arange(1.0, 5), np.ones(4)], -1)]),
            np.stack([np.ones(2), np.arange(1.0, 3)])[:, :, None],
        ]
    )
    assert np.array_equal(known.to_tensor(), tensor)
    assert tt_decompose(tensor, Tolerance(1e-12)).ranks == known.ranks == (1, 2, 2, 1)


def test_the_number_of_parameters_is_that_of_the_cores():
    """``tensorly/tests/test_tt_tensor.py::test_tt_n_param``."""
    theirs = random_tt((4, 5, 4, 8, 5), rank=(1, 3, 2, 2, 4, 1), random_state=0)
    assert TT.from_tensorly(theirs).n_parameters == n_entries(theirs.factors)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ((4, 4), "TT: core 0 has 2 axes, expected 3"),
        ((1, 3, 2), "TT: core 1 has left bond 3, expected 2, the right bond of core 0"),
        ((3, 3, 3), "TT: core 0 has left bond 3, expected 1 at the boundary"),
    ],
)
def test_cores_that_are_no_train_are_refused(first, message):
    """``tensorly/tests/test_tt_tensor.py::test_validate_tt_tensor``."""
    factors = random_tt((3, 4, 5), rank=(1, 3, 2, 1), random_state=0).factors
    assert (TT(factors).shape, TT(factors).ranks) == ((3, 4, 5), (1, 3, 2, 1))
    with pytest.raises(ValueError, match=message):
        TT([np.ones(first), *factors[1:]])


@pytest.mark.parametrize("shape", [(9, 5, 7, 8), (4, 6, 8, 10), (8, 8, 8, 8), (2, 3, 11, 2)])
@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_a_share_of_the_parameters_is_kept(shape, share):
    """``tensorly/tests/test_tt_tensor.py::test_validate_tt_rank``.

    Different: TensorLy rounds one common rank, to the nearest unless told otherwise, without a look at the tensor. Here
    the share is an upper bound, and the bonds are chosen by their spectra.
    """
    ours = tt_decompose(gaussian(*shape), share)
    assert ours.n_parameters <= share * math.prod(shape)

    def n_of(ranks):
        return sum(left * d * right for d, (left, right) in zip(shape, pairwise(ranks), strict=True))

    assert n_of(validate_tt_rank(shape, share, rounding="floor")) <= share * math.prod(shape)
    assert n_of(validate_tt_rank(shape, share, rounding="ceil")) >= share * math.prod(shape)


def test_the_nearest_rank_of_tensorly_may_exceed_the_share():
    """``tensorly/tests/test_tt_tensor.py::test_validate_tt_rank``, the default ``rounding='round'``."""
    ranks = validate_tt_rank((8, 8, 8, 8), 0.5)
    assert sum(8 * left * right for left, right in pairwise(ranks)) > 0.5 * 8**4
    assert tt_decompose(gaussian(8, 8, 8, 8), 0.5).n_parameters == 0.5 * 8**4


@pytest.mark.parametrize("n_padding", [1, 2])
def test_bonds_that_were_padded_are_found_and_taken_off(n_padding):
    """``tensorly/tests/test_tt_tensor.py::test_pad_tt_rank``, for a train and a matrix.

    Beyond it: the padding is taken off again.
    """
    trains = [
        TT.from_tensorly(random_tt((4, 3, 5, 2), rank=(1, 2, 2, 2, 1), random_state=0)),
        MPO.from_tensorly(random_tt_matrix((2, 3, 3, 4, 2, 2), rank=(1, 2, 3, 1), full=False, random_state=0)),
    ]
    for train in trains:
        padded = type(train)(pad_tt_rank(train.to_tensorly(), n_padding=n_padding, pad_boundaries=False))
        assert padded.ranks == (1, *(rank + n_padding for rank in train.ranks[1:-1]), 1)
        back = truncate(padded, Tolerance(1e-10))
        assert back.ranks == train.ranks
        dense, wanted = (t.to_tensor() if isinstance(t, TT) else t.to_matrix() for t in (back, train))
        assert relative(dense, wanted) < 1e-10


def test_tensorlys_train_is_canonical_around_its_last_site():
    """The sweep of ``tensor_train`` goes from left to right. Different: the default here is the middle site."""
    theirs = TT.from_tensorly(tensor_train(gaussian(3, 4, 5, 6), 3))
    assert [site for site in range(4) if is_canonical(theirs, site)] == [3]
    assert theirs.center is None
    assert tt_decompose(gaussian(3, 4, 5, 6), 3).center == 2


# ---------------------------------------------------------------------------------------------------------------------
# TensorLy-Torch
# ---------------------------------------------------------------------------------------------------------------------


def test_a_block_tt_gives_the_entries_rows_and_columns_of_the_matrix():
    """``tltorch/factorized_tensors/tests/test_factorizations.py::test_TensorizedMatrix``, for BlockTT."""
    mpo = mpo_decompose(of_torch(24, 30), ((2, 3, 4), (5, 3, 2)), 6)
    matrix = mpo.to_matrix()
    with tensorly.backend_context("pytorch", local_threadsafe=True), torch.no_grad():
        theirs = io.to_tensorly_torch(mpo)
        assert tuple(theirs.shape) == mpo.matrix_shape
        assert theirs.ndim == 2
        assert relative(theirs.to_matrix(), matrix) < 1e-14
        assert relative(theirs[:, 2], matrix[:, 2]) < 1e-14
        assert relative(theirs[1, :], matrix[1, :]) < 1e-14
        assert abs(theirs[2, 3] - matrix[2, 3]) < 1e-12


def test_a_block_tt_of_a_matrix_is_that_of_tensorly_and_ours_has_the_same_bonds():
    """``tltorch``'s ``init_from_matrix``, which is ``tensor_train_matrix`` at the given rank."""
    matrix = of_torch(24, 30)
    with tensorly.backend_context("pytorch", local_threadsafe=True), torch.no_grad():
        theirs = tltorch.BlockTT.new(((2, 3, 4), (5, 3, 2)), rank=6)
        theirs.init_from_matrix(matrix)
        their_error = torch.linalg.norm(theirs.to_matrix() - matrix)
    ours = mpo_decompose(matrix, ((2, 3, 4), (5, 3, 2)), 6)
    assert tuple(theirs.rank) == ours.ranks == io.from_tensorly_torch(theirs).ranks
    assert abs(ours.truncation.error / their_error - 1) < 0.02


# ---------------------------------------------------------------------------------------------------------------------
# quimb
# ---------------------------------------------------------------------------------------------------------------------


def test_a_random_state_has_full_bonds():
    """``tests/test_tensor/test_tn1d/test_core.py::TestMatrixProductState::test_from_dense``."""
    state = np.asarray(qu.rand_ket(2**8, seed=0))
    theirs, ours = qtn.MatrixProductState.from_dense(state), tt_decompose(state.reshape([2] * 8))
    assert ours.ranks == (1, *theirs.bond_sizes(), 1) == (1, 2, 4, 8, 16, 8, 4, 2, 1)
    assert abs(np.vdot(ours.to_tensor().reshape(-1), state)) == pytest.approx(1)
    assert io.to_quimb(ours).overlap(theirs) == pytest.approx(1)


def test_a_ghz_state_has_bonds_of_two():
    """``tests/test_tensor/test_tn1d/test_core.py::TestMatrixProductState::test_from_dense_low_rank``.

    Different: quimb cuts at 1e-10 unless told otherwise. Without a rank nothing is cut here.
    """
    state = np.asarray(qu.ghz_state(6)).reshape([2] * 6)
    theirs = qtn.MatrixProductState.from_dense(state.reshape(-1, 1), dims=[2] * 6)
    assert tt_decompose(state, Tolerance(1e-10)).ranks == (1, *theirs.bond_sizes(), 1) == (1, 2, 2, 2, 2, 2, 1)
    assert tt_decompose(state).ranks == (1, 2, 4, 8, 4, 2, 1)


@pytest.mark.parametrize("center", [0, 4, 8, 9])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_quimb_finds_the_center_where_it_was_put(center, dtype):
    """``tests/test_tensor/test_tn1d/test_core.py``: ``test_rand_mps_mixed_canonize``, ``.._left_..``, ``.._right_..``
    and ``test_canonize_and_calc_current_orthog_center``, there and back."""
    state = qtn.MPS_rand_state(10, 10, dtype=dtype, seed=0, normalize=False)
    ours = io.to_quimb(canonicalize(io.from_quimb(state), center))
    assert ours.count_canonized() == (center, 9 - center)
    # quimb's own distance goes by overlaps, so it resolves no less than the root of the rounding
    assert relative(ours.to_dense(), state.to_dense()) < (1e-5 if dtype in ("float32", "complex64") else 1e-13)
    state.canonicalize_(center)
    assert is_canonical(io.from_quimb(state), center)


@pytest.mark.parametrize("chi", [3, 7])
def test_the_doubled_bonds_of_a_sum_are_taken_off(chi):
    """``tests/test_tensor/test_tn1d/test_core.py``: ``test_compress_mps``, ``test_add_and_compress_mps``."""
    state = qtn.MPS_rand_state(10, chi, seed=0)
    twice = state + state
    assert max(twice.bond_sizes()) == 2 * chi
    ours = truncate(io.from_quimb(twice), Tolerance(1e-6))
    assert max(ours.ranks) == chi
    assert io.to_quimb(ours).overlap(state) == pytest.approx(2)


@pytest.mark.parametrize("seed", range(3))
def test_a_cap_on_the_bonds_costs_no_more_than_at_quimb(seed):
    """``tests/test_tensor/test_tn1d/test_core.py::TestMatrixProductState::test_compress_trim_max_bond``.

    Different: quimb restores the norm only where told to (``renorm``), here it is never restored: the error is the
    distance. quimb leaves the center at the first site.
    """
    state = qtn.MPS_rand_state(16, 12, seed=seed)
    ours = truncate(io.from_quimb(state), MaxRank(6))
    theirs = state.copy()
    theirs.compress(max_bond=6)
    assert theirs.calc_current_orthog_center() == (0, 0)
    assert max(ours.ranks) == theirs.max_bond() == 6
    assert io.to_quimb(ours).distance(state) == pytest.approx(ours.truncation.error, rel=1e-10)
    assert ours.truncation.error < 1.02 * theirs.distance(state)


def test_entropies_and_gaps_are_those_of_quimb_in_other_units():
    """``tests/test_tensor/test_tn1d/test_core.py::TestMatrixProductState::test_schmidt_values_entropy_gap_simple``.

    Different: quimb's entropy is in bits, ours in nats.
    """
    state = qtn.MPS_rand_state(8, 6, seed=0)
    ours, dense = io.from_quimb(state), np.asarray(state.to_dense())
    for bond in range(1, 8):
        entropy = entanglement_entropy(ours)[bond - 1]
        assert entropy / math.log(2) == pytest.approx(state.entropy(bond))
        assert entropy / math.log(2) == pytest.approx(qu.entropy_subsys(dense, [2] * 8, range(bond)))
        assert schmidt_gap(ours)[bond - 1] == pytest.approx(state.schmidt_gap(bond))
        assert np.allclose(bond_spectra(ours)[bond - 1], np.sqrt(state.schmidt_values(bond)))


def test_bonds_of_an_operator_that_were_expanded_are_taken_off():
    """``tests/test_tensor/test_tn1d/test_core.py::TestMatrixProductOperator::test_compress_mpo``, open boundaries."""
    operator = qtn.MPO_rand(8, 5, seed=0)
    operator.expand_bond_dimension(10)
    ours = truncate(io.from_quimb(operator), Tolerance(1e-10))
    operator.compress()
    assert ours.ranks == (1, *operator.bond_sizes(), 1) == (1, 4, 5, 5, 5, 5, 5, 4, 1)


def test_the_heisenberg_hamiltonian_is_read_and_its_ends_need_less():
    """``tests/test_tensor/test_tn1d/test_core.py::TestMatrixProductOperator::test_adding_mpo``."""
    hamiltonian = qtn.MPO_ham_heis(6)
    ours, dense = io.from_quimb(hamiltonian), hamiltonian.to_dense()
    assert ours.ranks == (1, 5, 5, 5, 5, 5, 1)
    assert np.allclose(ours.to_matrix(), dense, atol=1e-14)
    least = truncate(ours, Tolerance(1e-12))
    assert least.ranks == (1, 4, 5, 5, 5, 4, 1)
    # every operator with nearest neighbours only has the bond 5 there: identity, three operators, and what is done
    twice = truncate(io.from_quimb(hamiltonian + hamiltonian), Tolerance(1e-12))
    assert twice.ranks == least.ranks
    assert np.allclose(twice.to_matrix(), 2 * dense, atol=1e-12)


def test_an_operator_from_a_dense_matrix_has_full_bonds():
    """``quimb``'s ``MatrixProductOperator.from_dense``: rows and columns of one site lie together, as here."""
    matrix = gaussian(16, 16)
    theirs, ours = qtn.MatrixProductOperator.from_dense(matrix, dims=2), mpo_decompose(matrix, ((2,) * 4, (2,) * 4))
    assert ours.ranks == (1, *theirs.bond_sizes(), 1) == (1, 4, 16, 4, 1)
    assert relative(io.from_quimb(theirs).to_matrix(), matrix) < 1e-13
    assert relative(io.to_quimb(ours).to_dense(), matrix) < 1e-13


@pytest.mark.parametrize("layout", ["prl", "lrp", "plr"])
def test_the_order_of_indices_in_quimbs_arrays_does_not_matter(layout):
    """``tests/test_tensor/test_tn1d/test_core.py::TestMatrixProductState::test_permute_arrays``.

    Different: quimb's default is (left, right, site) without boundary bonds, here (left, site, right) with them.
    """
    state = qtn.MPS_rand_state(7, 5, seed=0)
    tensor = io.from_quimb(state).to_tensor()
    state.canonicalize_(3)
    state.permute_arrays(layout)
    assert relative(io.from_quimb(state).to_tensor(), tensor) < 1e-13


def test_a_single_site_is_a_train_and_a_ring_is_none():
    """``tests/test_tensor/test_tn1d/test_core.py``: ``test_single_site_constructor``, ``test_add_mpo_length_1``, and
    the ``cyclic`` cases of many others.

    Different: there are no periodic boundaries here.
    """
    vector, matrix = gaussian(2), gaussian(3, 3)
    assert io.from_quimb(qtn.MatrixProductState([vector])).ranks == (1, 1)
    assert np.array_equal(io.from_quimb(qtn.MatrixProductOperator([matrix])).to_matrix(), matrix)
    with pytest.raises(ValueError, match="network: got periodic boundaries, expected open ones; cut it open first"):
        io.from_quimb(qtn.MPS_rand_state(5, 3, cyclic=True))


# ---------------------------------------------------------------------------------------------------------------------
# torchTT
# ---------------------------------------------------------------------------------------------------------------------


@torch_dtypes
def test_the_tensor_of_given_cores_is_their_contraction(dtype):
    """``tests/test_decomposition.py::test_init``."""
    cores = [of_torch(*shape, dtype=dtype) for shape in [(1, 20, 3), (3, 10, 4), (4, 5, 1)]]
    dense = TT(cores).to_tensor()
    assert relative(dense, torch.einsum("aib,bjc,ckd->ijk", *cores)) < 1e-14
    assert relative(dense, torchtt.TT(cores).full()) < 1e-14


@torch_dtypes
def test_a_tensor_without_structure_is_rebuilt(dtype):
    """``tests/test_decomposition.py::test_decomposition_random``, where ``eps=1e-19`` means no cut.

    Same: a tolerance below rounding keeps every bond full. Different: the center is the last site at torchTT.
    """
    tensor = of_torch(5, 6, 7, 5, dtype=dtype)
    theirs = torchtt.TT(tensor, eps=1e-19, rmax=1000)
    for rank in (None, Tolerance(1e-19)):
        ours = tt_decompose(tensor, rank)
        assert ours.ranks == tuple(theirs.R)
        assert relative(ours.to_tensor(), tensor) < 1e-14
        assert ours.center == 2
    assert [site for site in range(4) if is_canonical(io.from_torchtt(theirs), site)] == [3]


@torch_dtypes
def test_a_tensor_of_low_rank_is_found_to_be_one(dtype):
    """``tests/test_decomposition.py::test_decomposition_lowrank``."""
    tensor = TT([of_torch(*shape, dtype=dtype) for shape in [(1, 40, 6), (6, 20, 4), (4, 10, 1)]]).to_tensor()
    ours = tt_decompose(tensor, Tolerance(1e-12))
    assert ours.ranks == tuple(torchtt.TT(tensor, eps=1e-12).R) == (1, 6, 4, 1)
    assert relative(ours.to_tensor(), tensor) < 1e-12


@torch_dtypes
def test_a_tensor_of_many_small_dimensions(dtype):
    """``tests/test_decomposition.py::test_decomposition_highd``, with fourteen sites for twenty."""
    cores = [of_torch(1, 2, 4, dtype=dtype), *(of_torch(4, 2, 4, dtype=dtype, seed=k) for k in range(12))]
    tensor = TT([*cores, of_torch(4, 2, 1, dtype=dtype)]).to_tensor()
    ours = tt_decompose(tensor, Tolerance(1e-12))
    assert ours.ranks == tuple(torchtt.TT(tensor, eps=1e-12).R)
    assert max(ours.ranks) == 4
    assert relative(ours.to_tensor(), tensor) < 1e-12


@torch_dtypes
def test_an_operator_without_structure_is_rebuilt(dtype):
    """``tests/test_decomposition.py::test_decomposition_ttm``, on smaller dimensions."""
    tensor = of_torch(3, 4, 5, 4, 2, 6, dtype=dtype)
    theirs = torchtt.TT(tensor, shape=[(3, 4), (4, 2), (5, 6)], eps=1e-19, rmax=1000)
    ours = mpo_decompose(tensor.reshape(60, 48), ((3, 4, 5), (4, 2, 6)))
    assert ours.ranks == tuple(theirs.R) == (1, 12, 30, 1)
    assert relative(ours.to_matrix().reshape(tensor.shape), tensor) < 1e-14
    assert relative(io.from_torchtt(theirs).to_matrix(), ours.to_matrix()) < 1e-13


@torch_dtypes
@pytest.mark.parametrize("operator", [False, True])
def test_cores_on_either_side_of_the_center_are_isometries(dtype, operator):
    """``tests/test_decomposition.py``: ``test_decomposition_orthogonal`` and ``.._ttm``, in both directions."""
    sites = [(3, 4), (5, 6), (7, 8), (9, 4)] if operator else [(3,), (3,), (4,), (3,)]
    bonds = pairwise((1, 2, 3, 4, 1))
    theirs = torchtt.TT(
        [of_torch(left, *site, right, dtype=dtype) for site, (left, right) in zip(sites, bonds, strict=True)]
    )
    given, dense = io.from_torchtt(theirs), theirs.full()
    for center in (3, 0):
        ours = canonicalize(given, center)
        assert relative(io.to_torchtt(ours).full(), dense) < 1e-12
        for site, core in enumerate(ours.cores):
            if site != center:
                matrix = core.reshape(-1, core.shape[-1]) if site < center else core.reshape(core.shape[0], -1).mT
                assert relative(matrix.mH @ matrix, torch.eye(matrix.shape[1])) < 1e-12


@torch_dtypes
@pytest.mark.parametrize(("eps", "ranks"), [(1e-9, (1, 3, 3, 1)), (1e-6, (1, 2, 2, 1)), (1e-3, (1, 1, 1, 1))])
def test_a_tolerance_takes_the_small_terms_off(dtype, eps, ranks):
    """``tests/test_decomposition.py::test_decomposition_rounding``: four terms of rank one, of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    tensor = torch.zeros(20, 30, 32, dtype=dtype)
    for weight in (1, 1e-4, 1e-7, 1e-10):
        i, j, k = (torch.rand(size, dtype=dtype, generator=generator) for size in tensor.shape)
        term = torch.einsum("i,j,k->ijk", i, j, k)
        tensor += weight * term / torch.linalg.norm(term)
    for ours in (tt_decompose(tensor, Tolerance(eps)), truncate(io.from_torchtt(torchtt.TT(tensor)), Tolerance(eps))):
        assert ours.ranks == tuple(torchtt.TT(tensor).round(eps).R) == ranks
        assert relative(ours.to_tensor(), tensor) < eps


@pytest.mark.parametrize("eps", [0.05, 0.2, 0.3, 0.5])
def test_a_tolerance_is_used_up_where_torchtt_is_careful(eps):
    """``torchtt.TT(tensor, eps=..)`` on a tensor without structure.

    Different: torchTT allows every bond ``eps / sqrt(n - 1)``. Here the sum over the bonds is what is kept below
    ``eps``, with the cheapest bonds, so that fewer parameters do.
    """
    tensor = torch.rand(6, 7, 8, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs, ours = torchtt.TT(tensor, eps=eps), tt_decompose(tensor, Tolerance(eps))
    assert relative(theirs.full(), tensor) <= eps
    assert relative(ours.to_tensor(), tensor) <= eps
    assert ours.n_parameters < n_entries(theirs.cores)


def test_consecutive_numbers_have_bonds_of_two():
    """``examples/basic_tutorial.py``: the tensor of ``arange``.

    Different: torchTT cuts at 1e-10 unless told otherwise.
    """
    tensor = torch.arange(8 * 6 * 4 * 5, dtype=torch.float64).reshape(8, 6, 4, 5)
    assert tt_decompose(tensor, Tolerance(1e-10)).ranks == tuple(torchtt.TT(tensor).R) == (1, 2, 2, 2, 1)
    assert tt_decompose(tensor).ranks == (1, 8, 20, 5, 1)


def test_a_sum_of_three_trains_is_rounded_to_what_the_tolerance_leaves():
    """``examples/basic_tutorial.py``: rounding, by a tolerance, by a cap, by caps for every bond.

    Different: a tuple is exact here, a cap at torchTT.
    """
    shapes = [(1, 5, 2), (2, 6, 2), (2, 7, 2), (2, 8, 1)]
    terms = [torchtt.TT([of_torch(*shape, seed=10 * k + site) for site, shape in enumerate(shapes)]) for k in range(3)]
    first, second, third = (term / term.norm() for term in terms)
    total = first + 1e-3 * second + 1e-6 * third
    assert total.R == [1, 6, 6, 6, 1]
    ours = io.from_torchtt(total)
    for eps, ranks in ((1e-5, (1, 4, 4, 4, 1)), (1e-2, (1, 2, 2, 2, 1))):
        rounded = truncate(ours, Tolerance(eps))
        assert rounded.ranks == tuple(total.round(eps).R) == ranks
        assert relative(rounded.to_tensor(), total.full()) < eps
    assert truncate(ours, 2).ranks == tuple(total.round(1e-12, 2).R) == (1, 2, 2, 2, 1)
    assert truncate(ours, (1, 2, 3, 2, 1)).ranks == tuple(total.round(1e-12, [1, 2, 3, 2, 1]).R) == (1, 2, 3, 2, 1)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 3)], "TT: core 0 has 2 axes"),
        ([(2, 3, 1)], "TT: core 0 has left bond 2, expected 1 at the boundary"),
        ([(1, 3, 2), (3, 2, 1)], "TT: core 1 has left bond 3, expected 2"),
        ([(1, 3, 2), (2, 2, 4, 1)], "TT: core 1 has 4 axes, expected 3"),
    ],
)
def test_shapes_that_are_no_train_are_refused(shapes, message):
    """``tests/test_decomposition.py::test_init_invalid_cores``."""
    cores = [torch.ones(shape) for shape in shapes]
    with pytest.raises(torchtt.errors.InvalidArguments if "bond 3" not in message else torchtt.errors.RankMismatch):
        torchtt.TT(cores)
    with pytest.raises(ValueError, match=message):
        TT(cores)
