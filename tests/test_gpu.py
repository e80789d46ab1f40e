"""On a CUDA device: the core against numpy's answers, the layers against the dense ones, and whole models.

What the core does is the same code on every backend, and its laws are tested on the CPU; here it is seen that nothing
leaves the device, loses precision there, or is read before it is written.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch
from mpo_layers import CASES, EXECUTIONS, FIRST_COMPILATION, build, vectors
from tnmpo.integrations.torch import MPOEmbedding, MPOLinear
from tnmpo.integrations.transformers import MPOConfig, calibrate, compress, freeze_central
from torch import nn

import tnmpo

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda"
SHAPE = tnmpo.MPOShape((4, 6, 2), (3, 4, 5))
# of the entries, and of the norm: one rounding of a core in 16 bits is 2^-9
PRECISION = {torch.float64: 1e-12, torch.float32: 1e-5, torch.complex64: 1e-5, torch.bfloat16: 2e-2}


def matrix(dtype=torch.float64, size=(48, 60), seed=0):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(size, dtype=wide, generator=generator).to(dtype)


def close(here, there, dtype=torch.float64):
    """A tensor on the device against one on the CPU, both of that precision, up to rounding of the largest entry."""
    assert here.device.type == DEVICE
    wide = torch.complex128 if dtype.is_complex else torch.float64
    here, there = (torch.as_tensor(tensor).detach().cpu().to(wide) for tensor in (here, there))
    torch.testing.assert_close(here, there, rtol=0, atol=PRECISION[dtype] * float(there.abs().max()))


# --- the core


@pytest.mark.parametrize("rank", [None, 5, tnmpo.Tolerance(0.3)])
@pytest.mark.parametrize("dtype", list(PRECISION))
def test_a_decomposition_is_that_of_the_cpu(dtype, rank):
    W = matrix(dtype)
    here, there = (tnmpo.mpo_decompose(W.to(place), SHAPE, rank) for place in (DEVICE, "cpu"))
    assert {(core.device.type, core.dtype) for core in here.cores} == {(DEVICE, dtype)}
    assert here.ranks == there.ranks
    close(here.to_matrix(), there.to_matrix(), dtype)
    if rank is not None:
        for one, other in zip(here.truncation.spectra, there.truncation.spectra, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=PRECISION[dtype] * other[0])
        assert here.truncation.error == pytest.approx(there.truncation.error, rel=PRECISION[dtype])
        difference = torch.linalg.norm(W.to(here.to_matrix()) - here.to_matrix()).item()
        assert here.truncation.error == pytest.approx(difference, rel=10 * PRECISION[dtype])


def test_a_matrix_beyond_one_block_of_doubles():
    """The Gram matrices are summed up in blocks, which are larger on a device than on the CPU."""
    W = matrix(torch.float32, (384, 6000))
    shape = tnmpo.plan_shape(W.shape, 3)
    here, there = (tnmpo.mpo_decompose(W.to(place), shape, 20) for place in (DEVICE, "cpu"))
    close(here.to_matrix(), there.to_matrix(), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_far_apart_are_told_as_on_the_cpu(dtype):
    left, right = (torch.linalg.qr(matrix(size=(60, 60), seed=seed)).Q for seed in (1, 2))
    values = torch.logspace(0, -6, 60, dtype=torch.float64)
    W = (left * values @ right).to(dtype)
    shape = tnmpo.MPOShape.low_rank(W.shape)
    (here,) = tnmpo.bond_spectra(tnmpo.mpo_decompose(W.to(DEVICE), shape))
    assert here.device.type == DEVICE
    np.testing.assert_allclose(here.cpu().double(), values, rtol=1e-2 if dtype is torch.float32 else 1e-8)


def test_trains_on_the_device():
    W = matrix()
    mpos = [tnmpo.mpo_decompose(W.to(place), SHAPE, 6) for place in (DEVICE, "cpu")]
    for call in (
        lambda mpo: tnmpo.canonicalize(mpo, 0).to_matrix(),
        lambda mpo: tnmpo.truncate(mpo, 3).to_matrix(),
        lambda mpo: (mpo + mpo.T.T).to_matrix(),
        lambda mpo: tnmpo.hadamard(mpo, mpo).to_matrix(),
        lambda mpo: mpo @ torch.ones(60, 2, dtype=torch.float64).to(mpo.cores[0]),
        lambda mpo: torch.as_tensor(tnmpo.norm(mpo)).to(mpo.cores[0].device),
    ):
        close(call(mpos[0]), call(mpos[1]))
    entropies = [tnmpo.entanglement_entropy(mpo) for mpo in mpos]
    np.testing.assert_allclose(*[[float(value) for value in each] for each in entropies], rtol=1e-9)


def test_a_cut_in_a_weighted_norm():
    W, inputs = matrix(), matrix(size=(200, 60), seed=3)
    weight = tnmpo.Weight(cols=(inputs.T @ inputs).numpy())
    here, there = (tnmpo.mpo_decompose(W.to(place), SHAPE, 4, weight=weight) for place in (DEVICE, "cpu"))
    close(here.to_matrix(), there.to_matrix())
    assert here.truncation.error == pytest.approx(there.truncation.error, rel=1e-8)


def test_sketches_and_derivatives():
    W = matrix()
    low = W[:, :4] @ W[:4]
    here = tnmpo.randomized_decompose(low.to(DEVICE), SHAPE, 4)
    close(tnmpo.randomized_decompose(low.to(DEVICE), tnmpo.MPOShape.low_rank(W.shape), 4).to_matrix(), low)
    assert {core.device.type for core in here.cores} == {DEVICE}
    there = tnmpo.randomized_decompose(low, SHAPE, 4)
    assert here.truncation.error == pytest.approx(there.truncation.error, rel=1e-6)
    gradients = []
    for place in (DEVICE, "cpu"):
        leaf = W.to(place).requires_grad_()
        tnmpo.mpo_decompose(leaf, SHAPE, 5).to_matrix().square().sum().backward()
        gradients.append(leaf.grad)
    close(*gradients)


def test_cupy_is_a_backend():
    cupy = pytest.importorskip("cupy")
    W = matrix().numpy()
    for rank in (None, 5):
        here, there = (tnmpo.mpo_decompose(array, SHAPE, rank) for array in (cupy.asarray(W), W))
        assert all(isinstance(core, cupy.ndarray) for core in here.cores)
        np.testing.assert_allclose(cupy.asnumpy(here.to_matrix()), there.to_matrix(), atol=1e-12)
    single = tnmpo.mpo_decompose(cupy.asarray(W.astype("float32")), SHAPE, 5)
    assert single.truncation.error == pytest.approx(there.truncation.error, rel=1e-5)


# --- layers


def both(layer):
    """The layer on the device and its dense twin there."""
    layer = layer.to(DEVICE)
    return layer, layer.to_linear()


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_a_layer_is_the_dense_layer(case, dtype, execution):
    layer = build(case, execution=execution)
    x = vectors(layer, 64)
    y = layer(x)
    y.backward(y.detach())
    here = copy.deepcopy(layer).to(DEVICE, dtype)
    given = x.to(DEVICE, dtype)
    for _ in range(2):  # contracted, then cached
        here.zero_grad()
        answer = here(given)
        assert answer.dtype == dtype
        answer.backward(answer.detach())
        close(answer, y, dtype)
        for one, other in zip(here.parameters(), layer.parameters(), strict=True):
            close(one.grad, other.grad, dtype)
    with torch.no_grad():
        close(here(given), y, dtype)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("execution", ["dense", "factored"])
def test_autocast(execution, half):
    layer, dense = both(build(execution=execution, dtype=torch.float32))
    x = vectors(layer, 64).to(DEVICE)
    with torch.autocast(DEVICE, dtype=half):
        y, expected = layer(x), dense(x)
    assert y.dtype == half
    y.float().square().sum().backward()
    expected.float().square().sum().backward()
    assert {parameter.grad.dtype for parameter in layer.parameters()} == {torch.float32}
    if execution == "dense":
        assert torch.equal(y, expected)
        assert torch.equal(layer.bias.grad, dense.bias.grad)
    else:
        torch.testing.assert_close(y, expected, rtol=0, atol=0.02 * expected.abs().max().item())


def test_gradients_are_scaled_and_steps_seen():
    """A scaler of float16 gradients, and an optimiser that is fused: it writes without a trace."""
    layer, _ = both(build(execution="dense", dtype=torch.float32))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05, fused=True)
    scaler = torch.amp.GradScaler(DEVICE)
    x = vectors(layer, 64).to(DEVICE)
    for _ in range(3):
        with torch.autocast(DEVICE, dtype=torch.float16):
            loss = layer(x).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        with torch.no_grad():
            torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert layer.reconstructions > 3


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_what_one_stream_has_written_another_waits_for(kind):
    if kind == "linear":
        layer = build(execution="dense", dtype=torch.float32).to(DEVICE).eval()
        x = vectors(layer, 64).to(DEVICE)
    else:
        layer = MPOEmbedding.from_embedding(nn.Embedding(48, 60), SHAPE, 3).to(DEVICE).eval()
        x = torch.arange(48, device=DEVICE)
    with torch.no_grad():
        expected = layer.cpu()(x.cpu())
        layer.to(DEVICE)
        one, other = torch.cuda.Stream(), torch.cuda.Stream()
        for stream in (one, other):  # what a first call loads and allocates would wait for the device
            with torch.cuda.stream(stream):
                layer.refresh()
                layer(x)
        layer.refresh()
        torch.cuda.synchronize()
        with torch.cuda.stream(one):
            torch.cuda._sleep(200_000_000)  # clock cycles: the weight is there a tenth of a second later
            layer(x)
        with torch.cuda.stream(other):
            answer = layer(x)
        assert not one.query()  # still asleep when the other asked
        other.synchronize()
    close(answer, expected, torch.float32)


def test_a_replayed_cuda_graph_reads_the_cores_of_its_time():
    layer, _ = both(build(execution="dense", dtype=torch.float32))
    x = vectors(layer).to(DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            layer(x)  # warmed up, and cached
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            y = layer(x)
        layer.cores[1].mul_(2)
        graph.replay()
    torch.testing.assert_close(y, nn.functional.linear(x, layer.weight, layer.bias))


@FIRST_COMPILATION
@pytest.mark.parametrize("execution", ["dense", "factored"])
def test_a_compiled_layer(execution):
    layer, _ = both(build(execution=execution, dtype=torch.float32))
    x = vectors(layer, 64).to(DEVICE)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True)
    for one in (layer, compiled):
        one(x).square().sum().backward()
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-4)
    for one, other in zip(compiled.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [SHAPE, tnmpo.MPOShape.low_rank((48, 60))])
def test_a_lookup_is_that_of_the_cpu(shape, training):
    torch.manual_seed(0)
    layer = MPOEmbedding.from_embedding(nn.Embedding(48, 60), shape, 3).train(training)
    here = copy.deepcopy(layer).to(DEVICE)
    ids = torch.randint(0, 48, (7, 11))
    for one in (layer, here):
        one(ids.to(one.cores[0].device)).square().sum().backward()
    close(here(ids.to(DEVICE)), layer(ids).detach(), torch.float32)
    for one, other in zip(here.parameters(), layer.parameters(), strict=True):
        close(one.grad, other.grad, torch.float32)
    with torch.no_grad():
        close(here(ids.to(DEVICE)), layer(ids), torch.float32)


def test_the_memory_that_is_kept_is_the_memory_that_is_told():
    linear = nn.Linear(1024, 1024, device=DEVICE)
    layer = MPOLinear.from_linear(linear, rank=16, execution="dense").eval()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        layer(torch.ones(2, 1024, device=DEVICE))
    held = torch.cuda.memory_allocated() - before
    assert abs(held - layer.resident_bytes["cache"]) < 64 * 2**10
    layer.refresh()
    assert torch.cuda.memory_allocated() - before < 64 * 2**10


# --- models


def on_device(inputs):
    return {name: value.to(DEVICE) for name, value in inputs.items()}


def test_a_model_is_calibrated_and_compressed_where_it_lies():
    reports, answers = [], []
    for place in (DEVICE, "cpu"):
        model = tiny.bert().to(place)
        calibration = calibrate(model, [tiny.batch(seed=seed) for seed in range(3)])
        reports.append(compress(model, MPOConfig(ratio=0.5, shape="low_rank"), calibration))
        assert {parameter.device.type for parameter in model.parameters()} == {place}
        with torch.no_grad():
            answers.append(model(**{name: value.to(place) for name, value in tiny.batch().items()})[0])
    assert reports[0].ratio == reports[1].ratio
    for one, other in zip(reports[0].modules, reports[1].modules, strict=True):
        assert one.relative_error == pytest.approx(other.relative_error, rel=1e-3, abs=1e-6)
    torch.testing.assert_close(answers[0].cpu(), answers[1], rtol=1e-3, atol=1e-3)


def test_the_report_says_what_small_products_cost_here():
    report = compress(tiny.bert().to(DEVICE), MPOConfig(rank=2, shape="low_rank", target_modules=["query", "key"]))
    assert "fewer FLOPs than dense: 4 of 4 linear layers" in str(report)
    assert "slower than dense all the same: 4 of them" in str(report)
    assert len(report.slower) == 4


def test_small_layers_are_not_contracted_core_after_core():
    """Few FLOPs in many products take longer than many in one; where the weight is the saving, it is not kept."""
    layer = MPOLinear.from_linear(nn.Linear(256, 256, device=DEVICE), ((8, 8, 4), (8, 8, 4)), 2).eval()
    low_rank = MPOLinear.from_linear(nn.Linear(256, 256, device=DEVICE), ((256, 1), (1, 256)), 4).eval()
    assert tnmpo.contraction_plan(layer.shape, layer.ranks, 512).faster(rebuild=False) == "factored"  # by FLOPs
    x = torch.ones(512, 256, device=DEVICE)
    for _ in range(2):
        layer(x)
        low_rank(x)
    assert (layer.reconstructions, low_rank.reconstructions) == (1, 0)


def test_training_moves_the_auxiliary_tensors_alone():
    model = tiny.albert("AlbertForSequenceClassification").to(DEVICE)
    compress(model, MPOConfig())
    freeze_central(model)
    model.train()
    central = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=True)
    inputs, labels = on_device(tiny.batch()), torch.tensor([0, 1, 1, 0], device=DEVICE)
    losses = []
    for _ in range(20):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert central
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in central.items())


def test_a_saved_model_is_loaded_onto_the_device(tmp_path):
    model = tiny.albert("AlbertForSequenceClassification").to(DEVICE)
    compress(model, MPOConfig(ratio=0.7))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, device_map=DEVICE)
    assert {parameter.device.type for parameter in again.parameters()} == {DEVICE}
    with torch.no_grad():
        assert torch.equal(again(**on_device(tiny.batch())).logits, model(**on_device(tiny.batch())).logits)
