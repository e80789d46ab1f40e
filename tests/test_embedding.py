"""The lookup of MPOEmbedding: every way to cut the train, what is kept, what is counted, and the compilers."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import onnxruntime
import pytest
import tnmpo.integrations.torch.embedding as embedding_module
import tnmpo.integrations.torch.lookup as lookup_module
import torch
from mpo_layers import FIRST_COMPILATION
from tnmpo.integrations.torch import MPOEmbedding
from tnmpo.integrations.torch.contraction import shapes_of
from tnmpo.integrations.torch.lookup import LIMIT, contract_tables, look_up, look_up_at_once
from tnmpo.integrations.torch.lookup_plan import (
    Cost,
    Cuts,
    cheapest_cuts,
    dense_cost,
    kept_cuts,
    lookup_cost,
    rows_cost,
    table_entries,
    table_is_cheaper,
    tables_cost,
)
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import tnmpo

# rows, columns, bonds
TRAINS = {
    "one site": ((5,), (3,), (1, 1)),
    "two sites": ((3, 4), (2, 2), (1, 3, 1)),
    "three sites": ((2, 3, 2), (2, 1, 3), (1, 3, 2, 1)),
    "four sites": ((2, 3, 2, 2), (1, 2, 2, 2), (1, 2, 3, 2, 1)),
    "five sites": ((2, 2, 3, 2, 2), (2, 1, 2, 1, 2), (1, 2, 3, 3, 2, 1)),
    "low rank": ((7, 1), (1, 5), (1, 3, 1)),
    "bond core": ((7, 1, 1), (1, 1, 5), (1, 3, 3, 1)),
    "units": ((1, 6, 1, 2), (2, 1, 3, 1), (1, 2, 2, 2, 1)),
    "low rank, turned": ((1, 7), (5, 1), (1, 3, 1)),
}


def train_of(case, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    rows, cols, bonds = TRAINS[case]
    sites = zip(bonds[:-1], rows, cols, bonds[1:], strict=True)
    return [torch.randn(site, generator=generator, dtype=dtype) for site in sites]


def matrix_of(cores):
    """By numpy, core after core."""
    matrix = np.ones((1, 1, 1))
    for core in cores:
        grown = np.einsum("IJr,rijs->IiJjs", matrix, core.detach().numpy())
        matrix = grown.reshape(matrix.shape[0] * core.shape[1], matrix.shape[1] * core.shape[2], core.shape[3])
    return torch.from_numpy(matrix[:, :, 0])


def all_cuts(cores):
    last = max(1, len(cores) - 1)
    return [Cuts(left, right) for left in range(1, last + 1) for right in range(left, last + 1)]


def looked_up(cores, cuts, ids):
    return look_up(contract_tables(cores, cuts), cores[cuts.left : cuts.right], ids)


def random_layer(shape, ranks, vocabulary=None, width=None, dtype=torch.float32, **options):
    generator = torch.Generator().manual_seed(0)
    sites = zip(ranks[:-1], shape.rows, shape.cols, ranks[1:], strict=True)
    cores = [torch.randn(site, generator=generator, dtype=dtype) / site[0] ** 0.5 for site in sites]
    return MPOEmbedding(tnmpo.MPO(cores), num_embeddings=vocabulary, embedding_dim=width, **options)


def middling(dtype=torch.float64, **options):
    """A table so much larger than its cores that it is looked up in, not built, whatever the way; 4000 of 4096 rows."""
    return random_layer(tnmpo.MPOShape((16, 16, 16), (4, 2, 4)), (1, 4, 4, 1), 4000, 30, dtype, **options)


def some_ids(vocabulary, *size, dtype=torch.int64, seed=1):
    return torch.randint(0, vocabulary, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- every cut


@pytest.mark.parametrize("case", TRAINS)
def test_every_cut_gives_the_rows_of_the_matrix(case):
    cores = train_of(case)
    matrix = matrix_of(cores)
    for ids in (torch.arange(len(matrix)), some_ids(len(matrix), 9, dtype=torch.int32), torch.tensor([0])):
        for cuts in all_cuts(cores):
            torch.testing.assert_close(looked_up(cores, cuts, ids), matrix[ids.long()], rtol=1e-12, atol=1e-12)
            if cuts.left == cuts.right:
                rows = look_up_at_once(contract_tables(cores, cuts), ids)
                torch.testing.assert_close(rows, matrix[ids.long()], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [1, 200, 2**21])  # ids one after another, a few at once, all
@pytest.mark.parametrize("case", TRAINS)
def test_derivatives_at_every_cut(case, block, monkeypatch):
    monkeypatch.setattr(lookup_module, "_BLOCK", block)
    cores = [core.requires_grad_() for core in train_of(case)]
    ids = torch.tensor([1, 3, 1, 4])
    for cuts in all_cuts(cores):
        assert gradcheck(lambda *cores, cuts=cuts: looked_up(cores, cuts, ids), cores)
        if block == 200 and len(cores) < 5:
            assert gradgradcheck(lambda *cores, cuts=cuts: looked_up(cores, cuts, ids), cores)


@pytest.mark.parametrize("case", ["three sites", "five sites", "low rank"])
def test_a_frozen_core_gets_no_gradient_and_the_others_theirs(case):
    for frozen in range(len(TRAINS[case][0])):
        for cuts in all_cuts(train_of(case)):
            cores = [core.requires_grad_(site != frozen) for site, core in enumerate(train_of(case))]
            twins = [core.detach().requires_grad_() for core in cores]
            for some in (cores, twins):
                looked_up(some, cuts, torch.tensor([1, 3, 1])).square().sum().backward()
            assert cores[frozen].grad is None
            for site in set(range(len(cores))) - {frozen}:
                assert torch.equal(cores[site].grad, twins[site].grad)


def test_no_product_is_spent_on_a_table_that_is_frozen():
    products = {}
    for frozen in ((), (0,), (2,)):
        cores = [core.requires_grad_(site not in frozen) for site, core in enumerate(train_of("three sites"))]
        rows = looked_up(cores, Cuts(1, 2), torch.tensor([1, 3]))
        with FlopCounterMode(display=False) as counted:
            rows.sum().backward()
        products[frozen] = counted.get_total_flops() // 2
    # the blocks of T1 for two ids; the blocks of T3
    assert products[()] - products[0,] == 2 * 2 * 3 * 2
    assert products[()] - products[2,] == 2 * 2 * 2 * 3


# --- the counts


@pytest.mark.parametrize("case", TRAINS)
def test_products_and_tables_are_what_is_counted(case):
    cores = train_of(case)
    shapes, ids = shapes_of(cores), torch.arange(len(matrix_of(cores)))
    for cuts in all_cuts(cores):
        with FlopCounterMode(display=False) as counted:
            tables = contract_tables(cores, cuts)
        assert counted.get_total_flops() == 2 * tables_cost(shapes, cuts).products
        with FlopCounterMode(display=False) as counted:
            look_up(tables, cores[cuts.left : cuts.right], ids)
        assert counted.get_total_flops() == 2 * rows_cost(shapes, cuts, len(ids)).products
        own = [table.numel() for table in tables if not any(table.data_ptr() == core.data_ptr() for core in cores)]
        if len(cores) > 1 and (cuts.right < len(cores) - 1 or shapes[-1][1] == 1):
            assert sum(own) == table_entries(shapes, cuts)


def test_moves_and_calls_by_hand():
    shapes = ((1, 3, 2, 4), (4, 5, 2, 6), (6, 7, 3, 1))
    assert tables_cost(shapes, Cuts(1, 2)) == Cost(0, 0)
    assert tables_cost(shapes, Cuts(2, 2)) == Cost(15 * 4 * 4 * 6, 2 * 15 * 4 * 6)
    assert tables_cost(shapes, Cuts(1, 1)) == Cost(35 * 6 * 6 * 4, 2 * 35 * 6 * 4)
    assert rows_cost(shapes, Cuts(2, 2), 10) == Cost(10 * 4 * 6 * 3, 10 * (4 * 6 + 6 * 3))
    assert rows_cost(shapes, Cuts(1, 2), 10) == Cost(10 * (2 * 4 * 2 * 6 + 4 * 6 * 3), 10 * (8 + 48 + 18), 5)
    assert rows_cost(shapes, Cuts(1, 2), 3).calls == 3
    assert table_entries(shapes, Cuts(1, 1)) == 35 * 6 * 4
    assert table_entries(shapes, Cuts(2, 2)) == 15 * 4 * 6 + 7 * 3 * 6
    assert table_entries(((1, 9, 1, 4), (4, 1, 5, 1)), Cuts(1, 1)) == 0  # U and V as they are
    assert dense_cost(((1, 9, 1, 4), (4, 1, 5, 1)), 2) == Cost(9 * 4 * 5, (2 * 9 + 2) * 5)
    assert dense_cost(((1, 9, 5, 1),), 2) == Cost(0, 2 * 5)


GROWTH = {3: (2, 4, 2), 5: (2, 2, 1, 2, 2)}


def vocabularies(size, order, cap):
    """The shapes of the cores for a table, and for 16 times as many rows at the same bond dimensions."""
    shape = tnmpo.plan_shape((tnmpo.padded_size(size[0], order), size[1]), order)
    ranks = [min(cap, full) for full in shape.full_ranks]
    rows = (shape.rows, [i * factor for i, factor in zip(shape.rows, GROWTH[order], strict=True)])
    return [tuple(zip(ranks[:-1], some, shape.cols, ranks[1:], strict=True)) for some in rows]


@pytest.mark.parametrize("cap", [16, 64, 128, 256])
@pytest.mark.parametrize("order", [3, 5])
@pytest.mark.parametrize("size", [(30000, 128), (30522, 384)])
def test_the_cost_of_a_lookup_hardly_depends_on_the_vocabulary(size, order, cap):
    once, larger = vocabularies(size, order, cap)
    free, cut, kept = [], [], []  # costs
    for shapes in (once, larger):
        free.append(lookup_cost(shapes, cheapest_cuts(shapes, 1024, True), 1024))
        cut.append(lookup_cost(shapes, cheapest_cuts(shapes, 1024, False), 1024))
        kept.append(rows_cost(shapes, kept_cuts(shapes, 2**40), 1024))
    # sites left out of the tables: each id has the same work whatever the rows, done where tables would cost more
    assert free[1].products <= 2 * free[0].products
    assert free[1].moves <= 2 * free[0].moves
    # but more slices are met by groups of their own, which is felt where the work itself is small
    assert free[1].total <= (5 if (order, cap) == (3, 16) else 2) * free[0].total
    # one cut, as compiled: the root of 16 where the sites can be halved, two of the three factors 2, 4, 2 where not
    assert cut[1].total <= {5: 4, 3: 8}[order] * cut[0].total
    # tables kept: the very same work
    assert kept[1] == kept[0]


def test_what_is_kept_is_at_most_half_of_the_dense_table():
    (once, larger), full = vocabularies((30522, 384), 5, 64), vocabularies((30522, 384), 5, 448)[0]
    for shapes in (once, larger):
        cuts = kept_cuts(shapes, math.prod(shape[1] * shape[2] for shape in shapes) // 2)
        assert cuts in (Cuts(2, 2), Cuts(3, 3))
    assert kept_cuts(full, 30522 * 384 // 2) is None
    assert kept_cuts(((1, 30522, 1, 96), (96, 1, 384, 1)), 0) == Cuts(1, 1)


def test_few_ids_are_met_one_by_one_and_many_by_tables():
    shapes = vocabularies((30522, 384), 5, 64)[0]
    assert cheapest_cuts(shapes, 4, True) == Cuts(2, 3)
    assert cheapest_cuts(shapes, 4096, True) == Cuts(3, 3)
    assert [table_is_cheaper(shapes, n, True) for n in (1, 1024, 2**17)] == [False, False, True]


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that an operation returns in memory of its own."""

    def __init__(self):
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("cap", [64, 200, 10**6])
@pytest.mark.parametrize("order", [2, 3, 5])
def test_no_tensor_takes_more_than_64_megabytes(order, cap):
    size = (30522, 384)
    padded = tnmpo.padded_size(size[0], order), size[1]
    shape = tnmpo.MPOShape.low_rank(size) if order == 2 else tnmpo.plan_shape(padded, order)
    layer = random_layer(shape, [min(cap, full) for full in shape.full_ranks], size[0])
    ids = some_ids(size[0], 16, 64)
    with Largest() as training:
        rows = layer(ids)
        rows.backward(torch.ones_like(rows))
    with torch.no_grad(), Largest() as evaluation:
        layer.eval()(ids)
        layer(ids)
    assert 2**20 < training.nbytes <= LIMIT
    assert 2**20 < evaluation.nbytes <= LIMIT
    assert layer.resident_bytes["cache"] <= LIMIT


def test_of_many_ids_few_blocks_are_gathered_at_once():
    shapes = vocabularies((30522, 384), 5, 64)[1]
    shape = tnmpo.MPOShape([shape[1] for shape in shapes], [shape[2] for shape in shapes])
    layer = random_layer(shape, (1, *(shape[3] for shape in shapes))).eval()
    ids = torch.arange(0, layer.num_embeddings, 29)  # 16,839 of them: 140 MB of blocks, 26 MB of rows
    with torch.no_grad():
        layer(ids[:2])
        with Largest() as largest:
            rows = layer(ids)
    assert largest.nbytes == rows.numel() * rows.element_size()


def test_the_same_id_is_looked_up_once():
    layer = middling()
    flops = []
    for ids in (torch.tensor([77, 3999]), torch.tensor([77, 3999]).repeat(500)):
        with FlopCounterMode(display=False) as counted:
            rows = layer(ids)
        flops.append(counted.get_total_flops())
        torch.testing.assert_close(rows, layer.weight[ids], rtol=1e-12, atol=1e-12)
    assert flops[0] == flops[1] > 0


# --- the layer


WAYS = ["kept", "kept dense", "tables", "dense"]


def by(way, monkeypatch, layer):
    """Make a call of the layer go one way."""
    layer.train(way in ("tables", "dense"))
    monkeypatch.setattr(MPOEmbedding, "_table_is_cheaper", lambda *_, **__: way == "dense")
    if way == "kept dense":
        monkeypatch.setattr(embedding_module, "kept_cuts", lambda *_: None)
    return layer


@pytest.mark.parametrize("way", WAYS)
def test_ids_of_every_shape_and_both_dtypes(way, monkeypatch):
    layer = by(way, monkeypatch, middling())
    weight = layer.weight.detach()
    with torch.no_grad():
        for size in [(), (1,), (7,), (3, 4), (2, 3, 2), (0,), (2, 0)]:
            for dtype in (torch.int32, torch.int64):
                ids = some_ids(4000, *size, dtype=dtype)
                rows = layer(ids)
                assert rows.shape == (*size, 30)
                torch.testing.assert_close(rows, weight[ids.long()], rtol=1e-12, atol=1e-12)
        ids = some_ids(4000, 6, 8).T[::2]  # not contiguous
        torch.testing.assert_close(layer(ids), weight[ids], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", [-1, 4000, 4095, 4096, 2**40])
def test_an_id_outside_the_vocabulary_is_refused_by_every_way(way, wrong, monkeypatch):
    layer = by(way, monkeypatch, middling())
    message = r"ids: got one outside 0 \.\. 3999, the vocabulary; check the tokenizer"
    with torch.no_grad():
        layer(torch.tensor([0, 3999]))
        for ids in ([wrong], [3, wrong, 5], [[3, wrong], [wrong, 0]]):
            with pytest.raises(IndexError, match=message):
                layer(torch.tensor(ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8, torch.int16])
def test_ids_of_another_dtype_are_refused(dtype):
    with pytest.raises(TypeError, match=rf"ids: got {dtype}, expected torch.int32 or torch.int64; convert them first"):
        middling()(torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("mode", ["training", "evaluation"])
@pytest.mark.parametrize("cache", [True, False])
def test_gradients_of_every_core(cache, mode):
    layer = middling(cache=cache).train(mode == "training")
    ids = some_ids(4000, 5, 9)
    torch.tanh(layer(ids)).square().sum().backward()
    expected = torch.autograd.grad(torch.tanh(layer.weight[ids]).square().sum(), list(layer.cores))
    for core, gradient in zip(layer.cores, expected, strict=True):
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(core.grad, gradient, rtol=1e-9, atol=1e-12)


def test_gradients_through_a_checkpoint():
    layer, ids = middling(), some_ids(4000, 6)
    layer(ids).square().sum().backward()
    expected = [core.grad.clone() for core in layer.cores]
    layer.zero_grad()
    torch.utils.checkpoint.checkpoint(layer, ids, use_reentrant=False).square().sum().backward()
    assert all(torch.equal(core.grad, gradient) for core, gradient in zip(layer.cores, expected, strict=True))


def test_a_call_under_autocast_is_that_of_a_dense_embedding():
    ids = some_ids(4000, 5)
    for training in (True, False):
        layer = middling(torch.float32).train(training)
        expected = layer(ids)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rows = layer(ids)
            assert layer.to_embedding()(ids).dtype == rows.dtype == torch.float32
        assert torch.equal(rows, expected)


def test_sixteen_bits():
    layer = middling(torch.float32)
    half = copy.deepcopy(layer).bfloat16()
    ids = some_ids(4000, 40)
    for training in (True, False):
        rows = half.train(training)(ids)
        assert rows.dtype == torch.bfloat16
        torch.testing.assert_close(rows.float(), layer(ids), rtol=0.05, atol=0.05)
    rows.square().sum().backward()
    assert {core.grad.dtype for core in half.cores} == {torch.bfloat16}


def test_on_an_accelerator_no_value_is_looked_at():
    """The meta device stands for it: there are no values at all."""
    ids = torch.zeros(4, 300, dtype=torch.int64, device="meta")
    for cache in (True, False):
        layer = middling(cache=cache).to("meta")
        layer(ids).sum().backward()
        with torch.no_grad():
            assert layer.eval()(ids).shape == (4, 300, 30)


# --- what is kept


def counted_tables(monkeypatch):
    calls = []

    def contract(cores, cuts):
        calls.append(cuts)
        return contract_tables(cores, cuts)

    monkeypatch.setattr(lookup_module, "contract_tables", contract)
    monkeypatch.setattr(embedding_module, "contract_tables", contract)
    return calls


def test_in_evaluation_tables_are_contracted_once(monkeypatch):
    layer, calls, ids = middling(), counted_tables(monkeypatch), some_ids(4000, 50)
    with torch.no_grad():
        layer(ids), layer(ids)
        assert len(calls) == 2
        layer.eval()
        for _ in range(3):
            layer(ids)
    assert len(calls) == 3
    assert calls[-1] == kept_cuts(shapes_of(layer.cores), 2**30)
    layer(ids)  # with gradients they are of no use
    assert len(calls) == 4
    for core in layer.cores:
        core.requires_grad_(False)
    layer(ids)  # and without a trainable core of use again
    assert len(calls) == 4


def test_the_memory_that_is_kept():
    layer, ids = middling(torch.float32).eval(), some_ids(4000, 50)
    entries = table_entries(shapes_of(layer.cores), kept_cuts(shapes_of(layer.cores), 2**30))
    cores = 4 * sum(core.numel() for core in layer.cores)
    with torch.no_grad():
        assert layer.resident_bytes == {"cores": cores, "cache": 0}
        layer(ids)
        assert layer.resident_bytes == {"cores": cores, "cache": 4 * entries}
        assert layer.reconstructions == 0
        assert 2 * entries <= 4000 * 30
        layer.train()
        assert layer.resident_bytes["cache"] == 0
        without = middling(torch.float32, cache=False).eval()
        assert torch.equal(without(ids), layer.eval()(ids)) or torch.allclose(without(ids), layer(ids), atol=1e-5)
        assert without.resident_bytes["cache"] == 0
        low_rank = random_layer(tnmpo.MPOShape.low_rank((500, 20)), (1, 4, 1)).eval()
        low_rank(some_ids(500, 9))
        assert low_rank.resident_bytes["cache"] == 0  # the tables are the cores


def test_the_dense_table_is_kept_where_tables_would_be_as_large(monkeypatch):
    shape = tnmpo.plan_shape((4096, 32), 3)
    layer = random_layer(shape, shape.full_ranks).eval()
    ids, calls = some_ids(4096, 5), counted_tables(monkeypatch)
    with torch.no_grad():
        expected = layer.weight[ids]
        for _ in range(3):
            assert torch.equal(layer(ids), expected)
        assert (layer.reconstructions, calls) == (1, [])
        assert layer.resident_bytes["cache"] == 4 * 4096 * 32
        monkeypatch.setattr(embedding_module, "LIMIT", 4 * 4096 * 32 - 4)
        layer.refresh()
        torch.testing.assert_close(layer(ids), expected, rtol=1e-4, atol=1e-4)
        assert len(calls) == 1  # neither fits: the few ids are looked up, and nothing stays
        layer(torch.arange(4096))
        assert layer.reconstructions == 2  # many build the table, and nothing stays
        assert layer.resident_bytes["cache"] == 0


def fused_step(layer):
    layer(torch.arange(40)).square().sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()


def written_in_place(layer):
    with torch.no_grad():
        layer.cores[1].mul_(2)


def loaded(layer):
    layer.load_state_dict({name: 3 * value for name, value in layer.state_dict().items()})


def written_through_data(layer):
    layer.cores[0].data.mul_(2)
    layer.refresh()


def averaged_in_training(layer):
    layer.train()
    layer.cores[0].data.mul_(2)
    layer.eval()


CHANGES = {
    "a fused step": fused_step,
    "in place": written_in_place,
    "a state dict": loaded,
    "data": written_through_data,
    "data, in training": averaged_in_training,
    "a cut": lambda layer: layer.truncate_(2),
    "other cores": lambda layer: layer.set_cores_([2 * core.detach() for core in layer.cores]),
    "one other core": lambda layer: layer.cores.__setitem__(0, nn.Parameter(2 * layer.cores[0].detach())),
}


@pytest.mark.parametrize("change", CHANGES)
def test_tables_are_never_stale(change):
    layer, ids = middling().eval(), some_ids(4000, 30)
    with torch.no_grad():
        before = layer(ids)
        assert layer.resident_bytes["cache"] > 0
    CHANGES[change](layer)
    with torch.no_grad():
        after = layer(ids)
        assert (after - before).abs().max() > 1e-3
        torch.testing.assert_close(after, layer.weight[ids], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_keeps_tables_of_its_own(copied):
    layer, ids = middling().eval(), some_ids(4000, 30)
    with torch.no_grad():
        before = layer(ids)
        twin = copied(layer)
        assert twin.resident_bytes["cache"] == 0
        twin.cores[0].mul_(2)
        torch.testing.assert_close(twin(ids), 2 * before, rtol=1e-12, atol=1e-12)
        assert torch.equal(layer(ids), before)


def test_tables_made_in_inference_mode_serve_later():
    layer, ids = middling().eval(), some_ids(4000, 30)
    for core in layer.cores:
        core.requires_grad_(False)
    with torch.inference_mode():
        expected = layer(ids).clone()
    scale = torch.ones(30, dtype=torch.float64, requires_grad=True)
    (layer(ids) * scale).sum().backward()
    torch.testing.assert_close(scale.grad, expected.sum(0), rtol=1e-12, atol=1e-12)


# --- compilers


COMPILED = {
    "tables": middling,
    "low rank": lambda: random_layer(tnmpo.MPOShape.low_rank((500, 20)), (1, 4, 1), 490, 20, torch.float64),
    "dense": lambda: random_layer(tnmpo.plan_shape((64, 8), 3), (1, 4, 4, 1), 61, 7, torch.float64),
}


def test_both_ways_are_compiled_below():
    cheaper = {case: make()._table_is_cheaper(1024, apart=False) for case, make in COMPILED.items()}
    assert cheaper == {"tables": False, "low rank": False, "dense": True}


@FIRST_COMPILATION
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", COMPILED)
def test_a_compiled_layer_is_one_graph_for_every_batch(case, training):
    layer = COMPILED[case]().train(training)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for size in [(3, 5), (2, 9), (11, 4)]:
        ids = some_ids(layer.num_embeddings, *size)
        rows = compiled(ids)
        torch.testing.assert_close(rows, layer.weight[ids], rtol=1e-10, atol=1e-12)
        gradients = torch.autograd.grad(rows.square().sum(), list(layer.cores))
        expected = torch.autograd.grad(layer.weight[ids].square().sum(), list(layer.cores))
        for gradient, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-11)
    assert len(graphs) == 1


@FIRST_COMPILATION
def test_a_layer_that_was_compiled_after_its_tables_were_kept():
    layer, ids = middling().eval(), some_ids(4000, 30)
    with torch.no_grad():
        layer(ids)
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        compiled(ids)
        layer.cores[0].data.mul_(2)
        torch.testing.assert_close(compiled(ids), layer.weight[ids], rtol=1e-10, atol=1e-12)


@FIRST_COMPILATION
@pytest.mark.parametrize("case", COMPILED)
def test_an_exported_layer_takes_any_batch(case):
    layer = COMPILED[case]().eval()
    ids = some_ids(layer.num_embeddings, 3, 5)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("tokens", min=1, max=512)},)
    exported = torch.export.export(layer, (ids,), dynamic_shapes=dynamic).module()
    for size in [(3, 5), (1, 1), (40, 30)]:
        ids = some_ids(layer.num_embeddings, *size)
        torch.testing.assert_close(exported(ids), layer.weight[ids], rtol=1e-10, atol=1e-12)


@FIRST_COMPILATION
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("case", COMPILED)
def test_onnx(case, tmp_path):
    layer = COMPILED[case]().float().eval()
    ids = some_ids(layer.num_embeddings, 3, 5)
    path = tmp_path / "embedding.onnx"
    torch.onnx.export(
        layer, (ids,), path, dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch", max=4096)},)
    )
    session = onnxruntime.InferenceSession(path)
    for batch in (3, 40):
        ids = some_ids(layer.num_embeddings, batch, 5)
        (rows,) = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
        np.testing.assert_allclose(rows, layer.weight[ids].detach().numpy(), rtol=1e-4, atol=1e-4)


def test_function_transforms():
    layer, ids = middling(), some_ids(4000, 3, 5)
    torch.testing.assert_close(torch.vmap(layer)(ids), layer(ids), rtol=1e-10, atol=1e-12)
    parameters = dict(layer.named_parameters())
    gradients = torch.func.grad(lambda p: torch.func.functional_call(layer, p, (ids,)).square().sum())(parameters)
    layer(ids).square().sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_a_layer_knows_its_memory_and_answers_before_its_mode_was_ever_set():
    layer = MPOEmbedding.from_embedding(nn.Embedding(12, 6), shape=((3, 4), (2, 3)))
    assert layer.resident_bytes["cache"] == 0
    layer.training = False  # not by eval()
    with torch.no_grad():
        assert torch.equal(layer(torch.arange(12)), layer.eval()(torch.arange(12)))
