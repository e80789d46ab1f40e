"""What is read from spectra and blocks, against the dense state, known operators and quimb."""

from __future__ import annotations

import dataclasses
import decimal
import math

import jax
import numpy as np
import pytest
import quimb as qu
import quimb.tensor as qtn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import BACKENDS, array_of, backend_of, dtype_of, mpos, numpy_of, tts, values

import tnmpo
from tnmpo import (
    MPO,
    TT,
    MPOShape,
    Weight,
    bond_spectra,
    canonicalize,
    effective_rank,
    entanglement_entropy,
    entanglement_profile,
    entropy_deficit,
    mpo_decompose,
    mutual_information,
    schmidt_gap,
    truncate,
    tt_decompose,
)

ALPHAS = (0.5, 1, 2, 3.5, math.inf)
ENTROPY_SLACK = {"float32": 1e-4, "complex64": 1e-4, "float64": 1e-10, "complex128": 1e-10}
REAL = {"float32": "float32", "complex64": "float32", "float64": "float64", "complex128": "float64"}


# ---------------------------------------------------------------------------------------------------------------------
# Oracles: the dense state, one axis a site
# ---------------------------------------------------------------------------------------------------------------------


def state_of(train):
    """The dense tensor of a train, in units of its largest entry."""
    total = np.ones((1, 1))
    for core in map(numpy_of, train.cores):
        largest = np.max(np.abs(total), initial=0.0)
        merged = (core / (np.max(np.abs(core)) or 1.0)).reshape(core.shape[0], -1)
        total = (total / (largest or 1.0) @ merged).reshape(-1, core.shape[-1])
    return total.reshape([math.prod(core.shape[1:-1]) for core in train.cores])


def weights_of(state, block):
    """The eigenvalues of the reduced density matrix of a block, descending."""
    block = sorted(block)
    others = [site for site in range(state.ndim) if site not in block]
    matrix = state.transpose(block + others).reshape(math.prod(state.shape[site] for site in block), -1)
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    return squares / (squares.sum() or 1.0)


def entropy_of(weights, alpha):
    weights = weights[weights > 0]
    if not len(weights):
        return 0.0
    if alpha == 1:
        return float(-np.sum(weights * np.log(weights)))
    if alpha == math.inf:
        return float(-np.log(weights.max()))
    return float(np.log(np.sum(weights**alpha)) / (1 - alpha))


def information_of(state, a, b, alpha):
    return sum(sign * entropy_of(weights_of(state, block), alpha) for block, sign in ((a, 1), (b, 1), (a | b, -1)))


def trains(**kwargs):
    return mpos(**kwargs) | tts(**kwargs)


@st.composite
def blocks(draw, order):
    """Two disjoint blocks; the sites of neither make the complement."""
    sides = draw(st.lists(st.sampled_from("ab."), min_size=order, max_size=order))
    first, second = draw(st.permutations(range(order)))[:2]
    sides[first], sides[second] = "a", "b"
    return tuple({site for site, side in enumerate(sides) if side == name} for name in "ab")


def unitary(size, rng, complex_):
    matrix = rng.normal(size=(size, size)) + (1j * rng.normal(size=(size, size)) if complex_ else 0)
    return np.linalg.qr(matrix)[0]


def turned(train, seed):
    """The train with a random unitary on every site."""
    rng = np.random.default_rng(seed)
    cores = []
    for core in train.cores:
        flat = numpy_of(core).reshape(core.shape[0], -1, core.shape[-1])
        flat = np.einsum("ab,xby->xay", unitary(flat.shape[1], rng, np.iscomplexobj(flat)), flat)
        cores.append(array_of(flat.reshape(core.shape), backend_of(core), dtype_of(core)))
    return type(train)(cores)


def slack_of(train):
    return ENTROPY_SLACK[dtype_of(train.cores[0])]


# ---------------------------------------------------------------------------------------------------------------------
# Laws of bonds
# ---------------------------------------------------------------------------------------------------------------------


@given(trains(min_order=2, max_order=5), st.sampled_from(ALPHAS))
def test_every_bond_against_the_dense_state(train, alpha):
    state, slack = state_of(train), slack_of(train)
    results = [
        entanglement_entropy(train, alpha),
        effective_rank(train, alpha),
        entropy_deficit(train, alpha),
        schmidt_gap(train),
    ]
    assert {len(result) for result in results} == {train.order - 1}
    for bond, spectrum in enumerate(bond_spectra(train), start=1):
        entropy, effective, deficit, gap = (float(numpy_of(result[bond - 1])) for result in results)
        weights = weights_of(state, range(bond))
        expected = entropy_of(weights, alpha)
        assert abs(entropy - expected) <= slack
        assert abs(effective - math.exp(expected)) <= slack * len(spectrum)
        assert abs(deficit - (math.log(len(spectrum)) - expected)) <= slack
        assert abs(gap - (weights[0] - (weights[1] if len(weights) > 1 else 0))) <= slack
        assert deficit >= 0
        assert 1 <= effective <= len(spectrum) * (1 + slack)
    values = [value for result in results for value in result]
    assert {backend_of(value) for value in values} == {backend_of(train.cores[0])}
    assert {dtype_of(value) for value in values} == {REAL[dtype_of(train.cores[0])]}


@given(st.integers(1, 9), st.sampled_from([0, *ALPHAS]), st.sampled_from(BACKENDS))
def test_flat_spectra_and_products(rank, alpha, backend):
    flat = array_of(np.full(rank, 7e140), backend, "float64")
    product = array_of(np.arange(rank) == rank - 1, backend, "float64")  # not in order, nor the first
    zero = array_of(np.zeros(rank), backend, "float64")
    assert math.isclose(entanglement_entropy(flat, alpha), math.log(rank), abs_tol=1e-12)
    assert math.isclose(effective_rank(flat, alpha), rank, rel_tol=1e-12)
    assert entropy_deficit(flat, alpha) <= 1e-12
    assert schmidt_gap(flat) == (rank == 1)
    assert entanglement_entropy(product, alpha) == 0
    assert effective_rank(product, alpha) == 1
    assert math.isclose(entropy_deficit(product, alpha), math.log(rank), abs_tol=1e-15)
    assert schmidt_gap(product) == 1
    assert entanglement_entropy(zero, alpha) == schmidt_gap(zero) == 0
    assert effective_rank(zero, alpha) == 1


@given(values((6, 1), "float64"), st.permutations(range(6)), st.sampled_from([0, *ALPHAS]))
def test_the_order_and_the_zeros_of_a_spectrum_do_not_matter(numbers, order, alpha):
    spectrum = np.abs(numbers[:, 0])
    padded = np.append(spectrum[list(order)], 0.0)
    assert np.isclose(entanglement_entropy(padded, alpha), entanglement_entropy(spectrum, alpha), atol=1e-12)
    assert np.isclose(schmidt_gap(padded), schmidt_gap(spectrum), atol=1e-12)
    assert np.isclose(
        entropy_deficit(padded, alpha) - entropy_deficit(spectrum, alpha), math.log(7 / 6), rtol=0, atol=1e-12
    )


@given(values((6, 1), "float64", scales=False), st.floats(0, 50), st.floats(0, 50))
def test_renyi_entropies_fall_with_alpha(numbers, one, other):
    low, high = sorted((one, other))
    spectrum = np.abs(numbers[:, 0])
    assert entanglement_entropy(spectrum, high) <= entanglement_entropy(spectrum, low) + 1e-7


@pytest.mark.parametrize("excess", [1e-15, 1e-9, 2e-8, 1e-6, 1e-4, 9.9e-4, 1.1e-3, 1e-2])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_alpha_one_is_a_limit(excess, sign, backend):
    """Against 50 digits, and falling with alpha as it must."""
    spectrum = [3.0, 1.0, 0.5, 1e-9]
    alpha = 1 + sign * excess
    with decimal.localcontext(prec=50):
        weights = [decimal.Decimal(value) ** 2 for value in spectrum]
        powers = [(weight / sum(weights)) ** decimal.Decimal(alpha) for weight in weights]
        expected = float(sum(powers).ln() / (1 - decimal.Decimal(alpha)))
    actual = float(entanglement_entropy(array_of(np.array(spectrum), backend, "float64"), alpha))
    assert math.isclose(actual, expected, rel_tol=1e-12)


def test_a_spectrum_may_be_steep():
    """Small values are directions down to what rounding leaves of a zero."""
    spectrum = np.array([1.0, 1e-14])
    assert np.isclose(entanglement_entropy(spectrum, 0), np.log(2))
    assert np.isclose(entanglement_entropy(spectrum, 1e-3), np.log(1 + 10**-0.028) / 0.999)
    assert entanglement_entropy(np.array([1.0, 1e-200]), 0) == 0
    assert np.isclose(entanglement_entropy(np.array([1.0, 1e-200]), 2), 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_rounding_is_no_direction(backend, dtype):
    """A Kronecker product has one Schmidt value, beside what sweeps leave of zeros."""
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 4, 4))
    mpo = mpo_decompose(array_of(np.kron(np.kron(a, b), c), backend, dtype), ((4, 4, 4), (4, 4, 4)))
    assert mpo.ranks == (1, 16, 16, 1)
    assert [float(rank) for rank in effective_rank(mpo, 0)] == [1, 1]
    assert max(float(entropy) for entropy in entanglement_entropy(mpo, 0.1)) == 0
    assert float(mutual_information(mpo, {0}, {2}, 0)) == 0


SWAP = np.eye(4)[[0, 2, 1, 3]]
CNOT = np.eye(4)[[0, 1, 3, 2]]
KNOWN = [
    ("identity", np.eye(4), [1, 0, 0, 0]),
    ("swap", SWAP, [1, 1, 1, 1]),
    ("cnot", CNOT, [1, 1, 0, 0]),
    ("local", np.kron([[0, 1], [1, 0]], [[1, 0], [0, -1]]), [1, 0, 0, 0]),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "operator", "weights"), KNOWN, ids=[name for name, *_ in KNOWN])
def test_operators_whose_entanglement_is_known(name, operator, weights, backend):
    """Zanardi 2001: products have none, CNOT ln 2, the swap all there can be."""
    mpo = mpo_decompose(array_of(operator, backend, "float64"), ((2, 2), (2, 2)))
    expected = entropy_of(np.array(weights) / sum(weights), 1)
    for alpha in ALPHAS:
        assert np.isclose(float(entanglement_entropy(mpo, alpha)[0]), expected, atol=1e-12)
        assert np.isclose(float(mutual_information(mpo, {0}, {1}, alpha)), 2 * expected, atol=1e-12)
    assert np.isclose(float(effective_rank(mpo)[0]), sum(weights))


# ---------------------------------------------------------------------------------------------------------------------
# Laws of blocks
# ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(trains(min_order=2), st.sampled_from(ALPHAS), st.data())
def test_information_is_that_of_the_dense_state(train, alpha, data):
    a, b = data.draw(blocks(train.order))
    information = mutual_information(train, a, b, alpha)
    assert information.shape == ()
    assert backend_of(information) == backend_of(train.cores[0])
    assert dtype_of(information) == REAL[dtype_of(train.cores[0])]
    assert abs(float(information) - information_of(state_of(train), a, b, alpha)) <= 3 * slack_of(train)


@given(trains(min_order=2), st.data())
def test_subadditivity_and_its_bound(train, data):
    a, b = data.draw(blocks(train.order))
    state = state_of(train)
    limit = 2 * min(entropy_of(weights_of(state, block), 1) for block in (a, b))
    assert 0 <= float(mutual_information(train, a, b)) <= limit + 3 * slack_of(train)


@given(trains(min_order=2), st.sampled_from(ALPHAS), st.data())
def test_a_bond_is_the_border_of_two_blocks(train, alpha, data):
    bond = data.draw(st.integers(1, train.order - 1))
    information = mutual_information(train, range(bond), range(bond, train.order), alpha)
    entropy = entanglement_entropy(train, alpha)[bond - 1]
    assert abs(float(information) - 2 * float(entropy)) <= 3 * slack_of(train)


@given(trains(min_order=2), st.data())
def test_more_sites_know_no_less(train, data):
    """Strong subadditivity: discarding sites never raises the information."""
    a, b = data.draw(blocks(train.order))
    fewer = data.draw(st.sets(st.sampled_from(sorted(b)), min_size=1))
    whole, part = (float(mutual_information(train, a, block)) for block in (b, fewer))
    assert part <= whole + 3 * slack_of(train)


@given(trains(min_order=2), st.data())
def test_local_unitaries_gauge_and_scale_change_nothing(train, data):
    a, b = data.draw(blocks(train.order))
    others = [
        turned(train, data.draw(st.integers(0, 10**6))),
        canonicalize(train, data.draw(st.integers(0, train.order - 1))),
        type(train)([1e-9 * train.cores[0], *train.cores[1:-1], 3e4 * train.cores[-1]]),
    ]
    for other in others:
        for measure in (entanglement_entropy, effective_rank, schmidt_gap, lambda t: [mutual_information(t, a, b)]):
            for one, two in zip(measure(train), measure(other), strict=True):
                assert abs(float(one) - float(two)) <= 30 * slack_of(train)


@given(st.integers(2, 5), st.sampled_from(BACKENDS), st.data())
def test_products_know_nothing_and_zeros_neither(order, backend, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    scale = 10.0 ** data.draw(st.sampled_from([0, -140, 140]))
    cores = [rng.normal(size=(1, 2, 2, 1)) for _ in range(order)]
    product = MPO([array_of(core * (scale if k == 0 else 1), backend, "float64") for k, core in enumerate(cores)])
    zero = MPO([array_of(0 * core, backend, "float64") for core in cores])
    a, b = data.draw(blocks(order))
    assert float(mutual_information(product, a, b)) <= 1e-12
    assert float(mutual_information(zero, a, b)) == 0
    assert all(float(entropy) == 0 for entropy in entanglement_entropy(zero))


@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1e20, 1e150])
def test_information_at_any_scale(scale):
    rng = np.random.default_rng(0)
    cores = [rng.normal(size=size) for size in ((1, 3, 4), (4, 2, 5), (5, 3, 3), (3, 2, 1))]
    one = mutual_information(TT(cores), {0, 2}, {3})
    other = mutual_information(TT([cores[0], cores[1], scale * cores[2], cores[3]]), {0, 2}, {3})
    assert np.isclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "scales", [(1e-150,) * 4, (1e150,) * 4, (1e200, 1e200, 1e-200, 1e-200), (1e-200, 1e-200, 1e200, 1e200)]
)
def test_entanglement_of_cores_of_any_scale(backend, scales):
    """A train of norm 1e-600 or 1e600 is a state like any other."""
    rng = np.random.default_rng(0)
    cores = [rng.normal(size=size) for size in ((1, 3, 4), (4, 2, 5), (5, 3, 3), (3, 2, 1))]
    plain = TT([array_of(core, backend, "float64") for core in cores])
    train = TT([array_of(scale * core, backend, "float64") for scale, core in zip(scales, cores, strict=True)])
    for measure in (
        entanglement_entropy,
        effective_rank,
        entropy_deficit,
        schmidt_gap,
        lambda t: [mutual_information(t, {0, 2}, {3})],
        lambda t: entanglement_profile(t).entropies,
    ):
        expected = [float(value) for value in measure(plain)]
        assert max(expected) > 0.01
        assert np.allclose([float(value) for value in measure(train)], expected, rtol=1e-11, atol=0)


def test_entanglement_of_a_long_train_in_single_precision():
    """40 sites of entries around 0.01: a norm of 1e-56, which float32 ends before."""
    rng = np.random.default_rng(0)
    ranks = [1, *[8] * 39, 1]
    cores = [0.01 * rng.normal(size=(ranks[k], 2, ranks[k + 1])) for k in range(40)]
    train = TT([core.astype(np.float32) for core in cores])
    assert np.allclose(entanglement_entropy(train), entanglement_entropy(TT([100 * core for core in cores])), atol=1e-4)


def test_long_sites_and_many_sites_are_never_made_dense():
    rng = np.random.default_rng(0)
    ranks = [1, *[3] * 39, 1]
    mpo = MPO([rng.normal(size=(ranks[k], 16, 16, ranks[k + 1])) for k in range(40)])  # 256^40 entries
    assert 0 < float(mutual_information(mpo, range(10, 20), range(20, 30))) < 2 * 2 * np.log(3) + 1e-9
    # far apart, with the transfer's gap in between
    assert float(mutual_information(mpo, {0}, {39})) < 1e-6


def test_ghz_and_bell_pairs():
    ghz = np.zeros((2,) * 5)
    ghz[(0,) * 5] = ghz[(1,) * 5] = 1
    train = tt_decompose(ghz)
    assert np.isclose(mutual_information(train, {0, 3}, {1}), np.log(2))
    assert np.isclose(mutual_information(train, {4, 0}, {1, 2, 3}), 2 * np.log(2))
    pairs = np.einsum("ac,bd->abcd", np.eye(3), np.eye(2))  # 0 with 2, 1 with 3
    train = tt_decompose(pairs)
    assert np.isclose(mutual_information(train, {0}, {2}), 2 * np.log(3))
    assert np.isclose(mutual_information(train, {0, 1}, {2, 3}), 2 * np.log(6))
    assert np.isclose(mutual_information(train, {0}, {1}), 0)
    assert np.isclose(mutual_information(train, {0, 2}, {1, 3}), 0)


@pytest.mark.parametrize("seed", range(3))
def test_quimb_says_the_same(seed):
    rng = np.random.default_rng(seed)
    dims = (2, 2, 2, 2, 2)
    state = rng.normal(size=dims) + 1j * rng.normal(size=dims)
    state /= np.linalg.norm(state)
    train = tt_decompose(state)
    peer = qtn.MatrixProductState.from_dense(state.reshape(-1), dims=dims)
    for bond in range(1, 5):
        assert np.isclose(peer.schmidt_gap(bond), schmidt_gap(train)[bond - 1])
        assert np.isclose(peer.entropy(bond) * np.log(2), entanglement_entropy(train)[bond - 1])  # theirs is in bits
    ket = qu.qu(state.reshape(-1, 1))
    for a, b in (((0, 3), (1,)), ((0, 2), (3, 4)), ((4,), (2,))):
        theirs = qu.mutinf_subsys(ket, dims, a, b) * np.log(2)
        assert np.isclose(theirs, mutual_information(train, a, b))


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives
# ---------------------------------------------------------------------------------------------------------------------


def operator(schmidt, complex_=True):
    """A 2-site operator of 4 x 4 entries with these Schmidt values."""
    rng = np.random.default_rng(3)
    u, v = unitary(4, rng, complex_), unitary(4, rng, complex_)
    return ((u * np.array(schmidt)) @ v).reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)


def of_bond(measure):
    return lambda W: measure(mpo_decompose(W, ((2, 2), (2, 2))))[0]


def block_information(W):
    return mutual_information(tt_decompose(W.reshape(2, 2, 2, 2)), {0, 2}, {3})


MEASURES = {
    "von Neumann": of_bond(entanglement_entropy),
    "Renyi 2": of_bond(lambda train: entanglement_entropy(train, 2)),
    "min-entropy": of_bond(lambda train: entanglement_entropy(train, math.inf)),
    "effective rank": of_bond(effective_rank),
    "deficit": of_bond(entropy_deficit),
    "gap": of_bond(schmidt_gap),
    "information": block_information,
}
SPECTRA = {
    "generic": (4, 2, 1, 0.3),
    "degenerate": (4, 1.5, 1.5, 1.5),
    "zeros": (4, 2, 0, 0),
    "degenerate and zero": (3, 1, 1, 0),
}


# the gap has a kink where the second and third value meet: the test after
SMOOTH = [(name, kind) for name in MEASURES for kind in SPECTRA if name != "gap" or "degenerate" not in kind]


def jax_gradient(measure, W):
    return np.conj(np.asarray(jax.grad(measure)(jax.numpy.asarray(W))))  # jax's is the conjugate of torch's


def torch_gradient(measure, W):
    leaf = torch.tensor(W, requires_grad=True)
    measure(leaf).backward()
    return leaf.grad.numpy()


@pytest.mark.parametrize("gradient", [torch_gradient, jax_gradient])
@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize(("name", "spectrum"), SMOOTH)
def test_derivatives_are_those_of_finite_differences(name, spectrum, complex_, gradient):
    measure, W = MEASURES[name], operator(SPECTRA[spectrum], complex_)
    found = gradient(measure, W)
    assert np.all(np.isfinite(found))
    rng = np.random.default_rng(5)
    for _ in range(4):
        direction = rng.normal(size=(4, 4)) + (1j * rng.normal(size=(4, 4)) if complex_ else 0)
        step = 1e-6 * direction
        expected = (float(measure(W + step)) - float(measure(W - step))) / 2e-6
        assert np.isclose(np.sum((found.conj() * direction).real), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("gradient", [torch_gradient, jax_gradient])
@pytest.mark.parametrize("spectrum", [(4, 1.5, 1.5, 1.5), (3, 1, 1, 0), (2, 2, 1, 1)])
def test_the_gap_has_a_one_sided_derivative_where_its_values_meet(spectrum, gradient):
    measure, W = MEASURES["gap"], operator(spectrum)
    found = gradient(measure, W)
    rng = np.random.default_rng(5)
    for _ in range(4):
        direction = rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4))
        here, ahead, behind = (float(measure(W + step * direction)) for step in (0, 1e-6, -1e-6))
        sides = sorted([(ahead - here) / 1e-6, (here - behind) / 1e-6])
        assert sides[0] - 1e-5 <= np.sum((found.conj() * direction).real) <= sides[1] + 1e-5


@pytest.mark.parametrize("measure", [entanglement_entropy, effective_rank, entropy_deficit, schmidt_gap])
@pytest.mark.parametrize("spectrum", [[2.0, 1.0, 1.0, 0.0], [1.0, 0.5, 0.25, 0.125], [0.0, 0.0, 0.0, 0.0]])
def test_derivatives_in_a_spectrum(measure, spectrum):
    leaf = torch.tensor(spectrum, dtype=torch.float64, requires_grad=True)
    measure(leaf).backward()
    of_jax = jax.grad(measure)(jax.numpy.asarray(spectrum))
    assert torch.isfinite(leaf.grad).all()
    assert np.allclose(leaf.grad.numpy(), np.asarray(of_jax), atol=1e-12)
    # the scale of a spectrum does not matter: the derivative is orthogonal to it
    assert abs(float(leaf.grad @ leaf.detach())) < 1e-12


def test_small_alpha_takes_zeros_as_constant():
    leaf = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    short = torch.tensor([2.0, 1.0], dtype=torch.float64, requires_grad=True)
    entanglement_entropy(leaf, 0.3).backward()
    entanglement_entropy(short, 0.3).backward()
    assert leaf.grad[2] == 0
    assert torch.allclose(leaf.grad[:2], short.grad)


# ---------------------------------------------------------------------------------------------------------------------
# The profile
# ---------------------------------------------------------------------------------------------------------------------


@given(trains(max_order=4))
def test_the_profile_is_what_the_functions_say(train):
    profile = entanglement_profile(train)
    slack = slack_of(train)
    assert profile.ranks == tuple(len(spectrum) for spectrum in bond_spectra(train))
    assert np.allclose(profile.entropies, [float(x) for x in entanglement_entropy(train)], atol=slack)
    assert np.allclose(profile.effective_ranks, [float(x) for x in effective_rank(train)], rtol=slack)
    assert np.allclose(profile.deficits, [float(x) for x in entropy_deficit(train)], atol=slack)
    assert np.allclose(profile.gaps, [float(x) for x in schmidt_gap(train)], atol=slack)
    assert np.allclose(profile.ceilings, np.log(profile.ranks))
    lines = str(profile).splitlines()
    assert len(lines) == train.order
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[:2] for line in lines[1:]] == [[str(k), str(r)] for k, r in enumerate(profile.ranks, 1)]
    assert profile == entanglement_profile([numpy_of(spectrum) for spectrum in bond_spectra(train)])


def test_the_profile_is_frozen_and_has_no_derivative():
    W = torch.eye(4, dtype=torch.float64).requires_grad_()
    profile = entanglement_profile(mpo_decompose(W, ((2, 2), (2, 2))))
    assert type(profile.entropies[0]) is type(profile.gaps[0]) is float
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.ranks = (1,)


def test_recorded_spectra_are_those_of_the_norm_that_was_cut_in():
    rng = np.random.default_rng(0)
    W, metric = rng.normal(size=(8, 6)), np.logspace(0, -4, 6)
    mpo = mpo_decompose(W, MPOShape.low_rank(W.shape), rank=3, weight=Weight(cols=metric))
    (recorded,) = mpo.truncation.spectra
    squares = np.linalg.svd(W * np.sqrt(metric), compute_uv=False) ** 2
    expected = entropy_of(squares / squares.sum(), 1)
    assert np.isclose(entanglement_entropy(recorded), expected)
    assert np.isclose(entanglement_profile(mpo.truncation.spectra).entropies[0], expected)
    plain = np.linalg.svd(numpy_of(mpo.to_matrix()), compute_uv=False)[:3] ** 2
    assert np.isclose(entanglement_profile(mpo).entropies[0], entropy_of(plain / plain.sum(), 1))


def test_cutting_lowers_the_effective_rank_to_the_rank():
    W = np.random.default_rng(0).normal(size=(16, 16))
    mpo = mpo_decompose(W, ((4, 4), (4, 4)))
    for rank in (1, 2, 5):
        assert float(effective_rank(truncate(mpo, rank))[0]) <= rank * (1 + 1e-12)
    assert tnmpo.EntropyFraction(1.0).choose(bond_spectra(mpo), (16, 16)) == mpo.ranks
