"""MPOLinear and MPOEmbedding against the dense layers they stand for."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from tnmpo.integrations.torch import MPOEmbedding, MPOLayer, MPOLinear
from torch import nn

import tnmpo

# (out, in), shape: interleaved, low-rank with two and three sites, one site, padded rows and columns, primes, units
LINEAR = {
    "interleaved": ((12, 20), ((2, 3, 2), (2, 2, 5))),
    "planned": ((12, 20), None),
    "low-rank": ((12, 20), ((12, 1), (1, 20))),
    "low-rank tall": ((20, 12), ((20, 1), (1, 12))),
    "bond core": ((12, 20), ((12, 1, 1), (1, 1, 20))),
    "one site": ((12, 20), ((12,), (20,))),
    "padded": ((11, 19), ((2, 3, 2), (5, 2, 2))),
    "padded low-rank": ((11, 19), ((12, 1), (1, 20))),
    "prime, units": ((11, 7), None),
    "a single output": ((1, 20), ((1, 1), (4, 5))),
    "a single input": ((12, 1), ((3, 4), (1, 1))),
}
TABLE = {
    "interleaved": ((24, 8), ((2, 3, 4), (2, 2, 2))),
    "large digits": ((1000, 4), ((10, 10, 10), (1, 2, 2))),
    "padded rows": ((61, 8), ((4, 4, 4), (2, 2, 2))),
    "padded both": ((61, 7), ((4, 4, 4), (2, 2, 2))),
    "planned": ((61, 8), None),
    "low-rank": ((61, 8), ((61, 1), (1, 8))),
    "bond core": ((61, 8), ((61, 1, 1), (1, 1, 8))),
    "one site": ((24, 8), ((24,), (8,))),
    "units": ((24, 8), ((1, 24, 1), (2, 1, 4))),
}


def linear(case, *, bias=True, dtype=torch.float64, rank=None, **options):
    (rows, cols), shape = LINEAR[case]
    torch.manual_seed(0)
    dense = nn.Linear(cols, rows, bias=bias, dtype=dtype)
    return dense, MPOLinear.from_linear(dense, shape, rank, **options)


def table(case, *, dtype=torch.float64, rank=None, **options):
    (rows, cols), shape = TABLE[case]
    torch.manual_seed(0)
    dense = nn.Embedding(rows, cols, dtype=dtype, **options)
    return dense, MPOEmbedding.from_embedding(dense, shape, rank)


# --- linear


@pytest.mark.parametrize("execution", ["auto", "dense", "factored"])
@pytest.mark.parametrize("case", LINEAR)
def test_linear_is_the_dense_layer(case, execution):
    dense, layer = linear(case, execution=execution)
    for batch in [(), (1,), (5,), (3, 4), (2, 3, 4), (0,), (3, 0)]:
        x = torch.randn(*batch, dense.in_features, dtype=torch.float64)
        y = layer(x)
        assert y.shape == (*batch, dense.out_features)
        torch.testing.assert_close(y, dense(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.weight, dense.weight, rtol=1e-10, atol=1e-12)
    assert (layer.in_features, layer.out_features) == (dense.in_features, dense.out_features)


@pytest.mark.parametrize("case", LINEAR)
def test_linear_without_bias(case):
    dense, layer = linear(case, bias=False)
    assert layer.bias is None
    assert "bias" not in layer.state_dict()
    x = torch.randn(3, dense.in_features, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-10, atol=1e-12)
    assert layer.to_linear().bias is None


@pytest.mark.parametrize("case", LINEAR)
def test_executions_agree_after_a_cut(case):
    _, layer = linear(case, rank=2)
    x = torch.randn(6, layer.in_features, dtype=torch.float64)
    expected = x @ layer.weight.T + layer.bias
    for execution in ("auto", "dense", "factored"):
        layer.execution = execution
        torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("execution", ["auto", "dense", "factored"])
@pytest.mark.parametrize("case", LINEAR)
def test_gradients_of_the_cores_are_the_dense_ones_contracted(case, execution):
    _, layer = linear(case, execution=execution, rank=3)
    x = torch.randn(6, layer.in_features, dtype=torch.float64, requires_grad=True)
    loss = torch.tanh(layer(x)).square().sum()
    loss.backward()

    weight = layer.weight.detach().requires_grad_()
    x_dense = x.detach().clone().requires_grad_()
    torch.tanh(nn.functional.linear(x_dense, weight, layer.bias.detach())).square().sum().backward()
    contracted = torch.autograd.grad(layer.weight, list(layer.cores), grad_outputs=weight.grad)
    assert weight.grad.abs().max() > 1e-3
    torch.testing.assert_close(x.grad, x_dense.grad, rtol=1e-9, atol=1e-11)
    for core, expected in zip(layer.cores, contracted, strict=True):
        torch.testing.assert_close(core.grad, expected, rtol=1e-9, atol=1e-11)
    assert layer.bias.grad.abs().max() > 0


def test_auto_takes_the_cheaper_execution():
    dense = nn.Linear(64, 64)
    low_rank = MPOLinear.from_linear(dense, tnmpo.MPOShape.low_rank((64, 64)), 4)
    interleaved = MPOLinear.from_linear(dense, ((4, 4, 4), (4, 4, 4)))
    for layer, expected in ((low_rank, "factored"), (interleaved, "dense")):
        assert tnmpo.contraction_plan(layer.shape, layer.ranks, 32).execution == expected
        assert layer._execution_for(list(layer.cores), 32, cached=False) == expected


def test_to_linear_is_dense_and_independent():
    _, layer = linear("padded", rank=3)
    dense = layer.to_linear()
    assert type(dense) is nn.Linear
    assert (dense.in_features, dense.out_features) == (19, 11)
    assert torch.equal(dense.weight, layer.weight)
    assert torch.equal(dense.bias, layer.bias)
    with torch.no_grad():
        dense.bias.zero_()
    assert layer.bias.abs().max() > 0


# --- embedding


def id_sets(rows):
    generator = torch.Generator().manual_seed(1)
    return {
        "one": torch.tensor([rows - 1]),
        "a scalar": torch.tensor(rows // 2),
        "all": torch.arange(rows),
        "all, shuffled": torch.randperm(rows, generator=generator),
        "duplicates": torch.randint(0, rows, (3, 40), generator=generator),
        "the same": torch.full((2, 5), rows - 1),
        "a block": torch.zeros(2, 2, 2, dtype=torch.int64),
        "int32": torch.arange(rows, dtype=torch.int32).flip(0),
        "none": torch.zeros(0, dtype=torch.int64),
        "an empty batch": torch.zeros(2, 0, dtype=torch.int64),
    }


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("case", TABLE)
def test_both_ways_to_look_up_give_the_rows_of_the_weight(case, rank, monkeypatch):
    dense, layer = table(case, rank=rank)
    if rank is None:
        torch.testing.assert_close(layer.weight, dense.weight, rtol=1e-10, atol=1e-12)
    for name, ids in id_sets(dense.num_embeddings).items():
        expected = layer.weight[ids.long()]
        for cheaper in (True, False):
            with monkeypatch.context() as patch:
                patch.setattr(MPOEmbedding, "_table_is_cheaper", lambda *_, cheaper=cheaper: cheaper)
                rows = layer(ids)
            assert rows.shape == (*ids.shape, dense.embedding_dim), (name, cheaper)
            torch.testing.assert_close(rows, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layer(ids), expected, rtol=1e-10, atol=1e-12)


def test_few_ids_are_looked_up_and_many_build_the_table():
    _, layer = table("large digits")
    assert not layer._table_is_cheaper(1)
    assert not layer._table_is_cheaper(100)
    assert layer._table_is_cheaper(1000)


@pytest.mark.parametrize("cheaper", [True, False])
@pytest.mark.parametrize("wrong", [-1, 61, 63])  # 63 is a row of the padding
def test_an_id_outside_the_vocabulary_is_refused(wrong, cheaper, monkeypatch):
    _, layer = table("padded rows")
    monkeypatch.setattr(MPOEmbedding, "_table_is_cheaper", lambda *_: cheaper)
    with pytest.raises(IndexError):
        layer(torch.tensor([3, wrong, 5]))


def test_the_vocabulary_is_named_where_an_id_is_outside():
    _, layer = table("large digits")
    with pytest.raises(IndexError, match=r"ids: got one outside 0 \.\. 999, the vocabulary; check the tokenizer"):
        layer(torch.tensor([1000]))


@pytest.mark.parametrize("cheaper", [True, False])
@pytest.mark.parametrize("case", TABLE)
def test_gradients_of_a_lookup(case, cheaper, monkeypatch):
    _, layer = table(case, rank=3)
    monkeypatch.setattr(MPOEmbedding, "_table_is_cheaper", lambda *_: cheaper)
    ids = id_sets(layer.num_embeddings)["duplicates"]
    layer(ids).square().sum().backward()
    weight = layer.weight
    expected = torch.autograd.grad(weight[ids].square().sum(), list(layer.cores))
    for core, gradient in zip(layer.cores, expected, strict=True):
        torch.testing.assert_close(core.grad, gradient, rtol=1e-9, atol=1e-11)


def test_no_ids_at_all_still_have_a_gradient():
    _, layer = table("padded rows")
    layer(torch.zeros(2, 0, dtype=torch.int64)).sum().backward()
    assert all(torch.equal(core.grad, torch.zeros_like(core)) for core in layer.cores)


def test_to_embedding_keeps_the_padding_row_and_its_index():
    dense, layer = table("padded rows", padding_idx=3)
    assert layer.padding_idx == 3
    back = layer.to_embedding()
    assert type(back) is nn.Embedding
    assert (back.num_embeddings, back.embedding_dim, back.padding_idx) == (61, 8, 3)
    torch.testing.assert_close(back.weight, dense.weight, rtol=1e-10, atol=1e-12)


def test_a_prime_vocabulary_is_padded_inside_only():
    dense, layer = table("planned")
    assert layer.shape.matrix_shape[0] == tnmpo.padded_size(61) > 61
    assert layer.weight.shape == dense.weight.shape


# --- what both share


def test_central_and_auxiliary_tensors():
    expected = {
        "interleaved": ((1,), (0, 2)),
        "planned": ((2,), (0, 1, 3, 4)),
        "low-rank": ((0, 1), ()),
        "bond core": ((0, 2), (1,)),
        "one site": ((0,), ()),
    }
    for case, (central, auxiliary) in expected.items():
        _, layer = linear(case)
        assert (layer.central, layer.auxiliary) == (central, auxiliary), case
        assert layer.is_low_rank == (case in {"low-rank", "bond core"})


@pytest.mark.parametrize("case", ["interleaved", "padded", "low-rank", "low-rank tall"])
def test_the_orthogonality_center_is_at_the_central_tensor(case):
    _, layer = linear(case, rank=4)
    assert tnmpo.is_canonical(tnmpo.MPO([core.detach() for core in layer.cores]), len(layer.cores) // 2)
    assert len(layer.cores) // 2 in layer.central


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("case", ["low-rank", "low-rank tall", "padded low-rank"])
def test_a_bond_core_changes_nothing_until_it_is_trained(case, rank):
    _, layer = linear(case, rank=rank)
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    before, ranks, shape = layer(x), layer.ranks, layer.shape
    layer.cores[0].requires_grad_(False)
    layer.insert_bond_core_()
    assert len(layer.cores) == 3
    assert torch.equal(layer.cores[1][:, 0, 0, :], torch.eye(ranks[1], dtype=torch.float64))
    assert [core.requires_grad for core in layer.cores] == [False, True, True]
    assert (layer.shape_at_rest, layer.ranks_at_rest) == (shape, ranks)
    torch.testing.assert_close(layer(x), before, rtol=1e-12, atol=1e-12)
    layer.insert_bond_core_()  # there already
    assert len(layer.cores) == 3

    with torch.no_grad():
        layer.cores[1].add_(torch.randn_like(layer.cores[1]))
    trained = layer(x)
    assert (trained - before).abs().max() > 1e-2
    layer.absorb_bond_core_()
    assert len(layer.cores) == 2
    assert [core.requires_grad for core in layer.cores] == [False, True]
    assert layer.ranks == ranks
    torch.testing.assert_close(layer(x), trained, rtol=1e-10, atol=1e-10)
    layer.absorb_bond_core_()  # gone already
    torch.testing.assert_close(layer(x), trained, rtol=1e-10, atol=1e-10)


def test_an_embedding_takes_a_bond_core_too():
    _, layer = table("low-rank", rank=3)
    ids = torch.tensor([[0, 60], [60, 7]])
    before = layer(ids)
    layer.insert_bond_core_()
    with torch.no_grad():
        layer.cores[1].mul_(2)
    layer.absorb_bond_core_()
    torch.testing.assert_close(layer(ids), 2 * before, rtol=1e-10, atol=1e-12)


def test_only_a_low_rank_layer_takes_a_bond_core():
    _, layer = linear("interleaved")
    with pytest.raises(ValueError, match=r"insert_bond_core_: got a layer of .*, expected a low-rank one"):
        layer.insert_bond_core_()
    layer.absorb_bond_core_()  # nothing to absorb
    assert len(layer.cores) == 3


def scramble_(layer):
    """Trained cores have no gauge."""
    torch.manual_seed(3)
    with torch.no_grad():
        for core in layer.cores:
            core.add_(0.5 * torch.randn_like(core))


@pytest.mark.parametrize("case", ["interleaved", "planned", "low-rank", "bond core", "one site"])
def test_truncate_re_gauges_and_reports_the_exact_error(case):
    _, layer = linear(case)
    if case == "bond core":
        layer = linear("low-rank")[1]
        layer.insert_bond_core_()
    scramble_(layer)
    flags = [bool(k % 2) for k in range(len(layer.cores))]
    for core, flag in zip(layer.cores, flags, strict=True):
        core.requires_grad_(flag)
    before, order = layer.weight.detach(), len(layer.cores)
    record = layer.truncate_(3)
    error = torch.linalg.norm(before - layer.weight.detach())
    assert record.error == pytest.approx(float(error), rel=1e-9, abs=1e-11)
    assert record.relative_error == pytest.approx(float(error / torch.linalg.norm(before)), rel=1e-9, abs=1e-11)
    assert (error > 0.1) == (case != "one site")
    assert len(layer.cores) == order
    assert all(rank <= 3 for rank in layer.ranks)
    assert [core.requires_grad for core in layer.cores] == flags
    if case in {"low-rank", "bond core"}:  # the optimum is known
        tail = torch.linalg.svdvals(before)[3:]
        assert record.error == pytest.approx(float(tail.norm()), rel=1e-9)
    if case == "bond core":
        assert torch.equal(layer.cores[1][:, 0, 0, :], torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("flag", [True, False])
def test_a_frozen_bond_core_stays_frozen_when_it_restarts(flag):
    _, layer = linear("low-rank")
    layer.insert_bond_core_()
    layer.cores[1].requires_grad_(flag)
    layer.truncate_(2)
    assert layer.cores[1].requires_grad is flag
    layer.insert_bond_core_()
    assert layer.cores[1].requires_grad is flag


def test_truncate_in_a_weighted_norm():
    dense, layer = linear("low-rank")
    metric = torch.diag(torch.logspace(-3, 0, 20, dtype=torch.float64))
    layer.insert_bond_core_()
    record = layer.truncate_(4, weight=tnmpo.Weight(cols=metric))
    weight = dense.weight.detach()
    residual = (weight - layer.weight.detach()) @ metric.sqrt()
    assert record.error == pytest.approx(float(residual.norm()), rel=1e-8)
    best = torch.linalg.svdvals(weight @ metric.sqrt())[4:].norm()
    assert record.error == pytest.approx(float(best), rel=1e-8)


@pytest.mark.parametrize("case", ["padded", "padded low-rank", "interleaved"])
def test_a_weight_is_that_of_the_matrix_without_its_padding(case):
    metric = np.geomspace(1e-3, 1, LINEAR[case][0][1])
    dense, layer = linear(case, rank=3, weight=tnmpo.Weight(cols=metric))
    _, plain = linear(case, rank=3)
    errors = [tnmpo.Weight(cols=metric).norm(dense.weight.detach() - cut.weight.detach()) for cut in (layer, plain)]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("case", ["interleaved", "planned", "low-rank", "padded", "one site"])
def test_spectra_are_those_of_the_weight(case):
    _, layer = linear(case)
    before = [core.detach().clone() for core in layer.cores]
    spectra = layer.bond_spectra()
    assert len(spectra) == len(layer.cores) - 1
    for spectrum in spectra:
        assert isinstance(spectrum, np.ndarray)
        assert np.sqrt((spectrum**2).sum()) == pytest.approx(float(layer.weight.detach().norm()), rel=1e-10)
    assert all(torch.equal(core, old) for core, old in zip(layer.cores, before, strict=True))
    if layer.is_low_rank:
        np.testing.assert_allclose(spectra[0], torch.linalg.svdvals(layer.weight).detach().numpy(), rtol=1e-9)
        layer.insert_bond_core_()
        assert len(layer.bond_spectra()) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["interleaved", "low-rank", "padded"])
def test_the_dtype_is_kept(case, dtype):
    dense, layer = linear(case, dtype=dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    if layer.is_low_rank:
        layer.insert_bond_core_()
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    x = torch.randn(4, layer.in_features, dtype=dtype)
    for execution in ("dense", "factored"):
        layer.execution = execution
        y = layer(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y, dense(x), rtol=tolerance, atol=tolerance)
    layer.truncate_(2)
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    assert layer.to_linear().weight.dtype == dtype
    assert layer.to_linear().weight.device == dense.weight.device


def test_an_embedding_keeps_its_dtype():
    dense, layer = table("padded rows", dtype=torch.bfloat16)
    rows = layer(torch.arange(5))
    assert rows.dtype == torch.bfloat16
    torch.testing.assert_close(rows, dense(torch.arange(5)), rtol=0.03, atol=0.03)


def test_the_device_is_kept():
    _, layer = linear("low-rank")
    layer = layer.to("meta")
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
    assert layer(torch.empty(3, 20, dtype=torch.float64, device="meta")).shape == (3, 12)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("case", ["interleaved", "low-rank", "padded"])
def test_a_copy_is_equal_and_independent(case, copied):
    _, layer = linear(case, rank=3)
    x = torch.randn(3, layer.in_features, dtype=torch.float64)
    twin = copied(layer)
    assert torch.equal(twin(x), layer(x))
    scramble_(twin)
    assert not torch.allclose(twin(x), layer(x))


@pytest.mark.parametrize("case", ["interleaved", "low-rank", "padded"])
def test_a_state_dict_goes_round(case):
    _, layer = linear(case, rank=3)
    _, other = linear(case, rank=3)
    scramble_(other)
    assert list(layer.state_dict()) == [*("bias",), *(f"cores.{k}" for k in range(len(layer.cores)))]
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, layer.in_features, dtype=torch.float64)
    assert torch.equal(other(x), layer(x))
    _, narrow = linear(case, rank=2)
    with pytest.raises(RuntimeError, match=r"size mismatch"):
        narrow.load_state_dict(layer.state_dict())


def test_set_cores_copies():
    _, layer = linear("interleaved")
    cores = [core.detach() for core in layer.cores]
    _, other = linear("interleaved")
    other.set_cores_(cores, [False, True, False])
    assert [core.requires_grad for core in other.cores] == [False, True, False]
    scramble_(other)
    assert torch.equal(layer.cores[0], cores[0])
    with pytest.raises(ValueError):
        other.set_cores_(cores, [True])


def test_the_text_of_a_layer():
    _, layer = linear("padded", rank=3)
    assert repr(layer).startswith("MPOLinear(\n  11 x 19, bonds 1-3-3-1, central (1,)")


# --- wrong arguments


def test_what_is_no_linear_layer_is_refused():
    for other in (nn.Embedding(3, 4), nn.Conv1d(3, 4, 1), torch.ones(3, 4)):
        with pytest.raises(TypeError, match=r"from_linear: got .*, expected a torch.nn.Linear"):
            MPOLinear.from_linear(other)
    with pytest.raises(TypeError, match=r"from_embedding: got Linear, expected a torch.nn.Embedding"):
        MPOEmbedding.from_embedding(nn.Linear(3, 4))


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"sparse": True}, {"scale_grad_by_freq": True}])
def test_an_embedding_that_acts_on_single_rows_is_refused(option):
    with pytest.raises(ValueError, match=r"from_embedding: got max_norm, sparse or scale_grad_by_freq"):
        MPOEmbedding.from_embedding(nn.Embedding(12, 4, **option))


def test_a_shape_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match=r"shape: rows .* make a .* matrix"):
        MPOLinear.from_linear(nn.Linear(12, 8), ((2, 2), (3, 4)))
    with pytest.raises(ValueError, match=r"shape: rows .* make a .* matrix"):
        MPOEmbedding.from_embedding(nn.Embedding(30, 8), ((5, 5), (2, 4)))
    mpo = tnmpo.mpo_decompose(torch.randn(8, 12), ((2, 4), (3, 4)))
    with pytest.raises(ValueError, match=r"MPOLinear: the cores make a \(8, 12\) matrix, the weight is \(9, 12\)"):
        MPOLinear(mpo, out_features=9)
    with pytest.raises(ValueError, match=r"MPOEmbedding: the cores make a \(8, 12\) matrix"):
        MPOEmbedding(mpo, embedding_dim=13)


@pytest.mark.parametrize("shape", ["low_rank", 5, ((2, 4),), ((2, 4), (3, 4), (1, 1)), ((2, 4), (12,))])
def test_what_is_no_shape_is_refused(shape):
    with pytest.raises((TypeError, ValueError), match=r"shape"):
        MPOLinear.from_linear(nn.Linear(12, 8), shape)


def test_an_execution_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"execution: got 'fast', expected one of auto, dense, factored"):
        MPOLinear.from_linear(nn.Linear(12, 8), execution="fast")


def test_a_bias_of_another_size_is_refused():
    mpo = tnmpo.mpo_decompose(torch.randn(8, 12), ((2, 4), (3, 4)))
    with pytest.raises(ValueError, match=r"bias: got shape \(12,\), expected \(8,\)"):
        MPOLinear(mpo, torch.zeros(12))


def test_a_layer_wants_an_mpo_of_torch_tensors():
    with pytest.raises(TypeError, match=r"MPOLinear: got .*, expected a tnmpo.MPO of torch tensors"):
        MPOLinear(tnmpo.mpo_decompose(np.ones((4, 4)), ((2, 2), (2, 2))))
    with pytest.raises(TypeError, match=r"MPOEmbedding: got Tensor, expected a tnmpo.MPO of torch tensors"):
        MPOEmbedding(torch.ones(3, 4))
    with pytest.raises(TypeError, match=r"MPOLayer: got list"):
        MPOLayer([torch.ones(1, 3, 4, 1)], (3, 4))


@pytest.mark.parametrize("rank", [0, -1, -0.5, (99, 99), "all", True])
def test_a_wrong_rank_is_refused_and_changes_nothing(rank):
    _, layer = linear("interleaved", rank=3)
    before = layer.weight.detach()
    with pytest.raises((TypeError, ValueError), match=r"rank"):
        layer.truncate_(rank)
    assert torch.equal(layer.weight, before)
