"""MPOLinear under the tools of torch: autocast, checkpoints, compilation, export, ONNX, function transforms, DDP."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import onnxruntime
import pytest
import torch
import torch._dynamo.testing
from mpo_layers import CASES, EXECUTIONS, FIRST_COMPILATION, assert_fresh, build, oracle, replica, vectors
from torch import multiprocessing, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

# --- copies


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "shallow"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_copy_begins_with_an_empty_cache(way, dtype):
    layer = build(execution="dense", dtype=dtype)
    layer(vectors(layer)).sum().backward()  # the cache holds a node of a graph, which cannot be copied
    if way == "deepcopy":
        twin = copy.deepcopy(layer)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    elif way == "torch.save":
        file = io.BytesIO()
        torch.save(layer, file)
        assert len(file.getvalue()) < 8000
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = copy.copy(layer)  # shares the cores, and so may share the cache
    if way != "shallow":
        assert (twin.reconstructions, twin.resident_bytes["cache"]) == (0, 0)
    assert_fresh(twin)
    with torch.no_grad():
        twin.cores[0].add_(1)
    assert_fresh(twin)
    assert_fresh(layer)


# --- autocast


@pytest.mark.parametrize("execution", ["dense", "factored"])
@pytest.mark.parametrize("case", ["interleaved", "low-rank", "bond core", "padded"])
def test_autocast_is_that_of_the_dense_layer(case, execution):
    layer = build(case, dtype=torch.float32, execution=execution)
    dense = layer.to_linear()
    x, y = vectors(layer, 64), {}
    for name, one in (("mpo", layer), ("dense", dense)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y[name] = one(x)
        assert y[name].dtype == torch.bfloat16
        y[name].float().square().sum().backward()
    assert {parameter.grad.dtype for parameter in layer.parameters()} == {torch.float32}
    contracted = torch.autograd.grad(layer.weight, list(layer.cores), grad_outputs=dense.weight.grad)
    if execution == "dense":  # one rounding of the same weight: the same numbers
        assert torch.equal(y["mpo"], y["dense"])
        assert torch.equal(layer.bias.grad, dense.bias.grad)
        for core, gradient in zip(layer.cores, contracted, strict=True):
            torch.testing.assert_close(core.grad, gradient, rtol=1e-5, atol=1e-5)
    else:  # rounded after every core
        scale = y["dense"].abs().max().item()
        torch.testing.assert_close(y["mpo"], y["dense"], rtol=0, atol=0.02 * scale)
        for core, gradient in zip(layer.cores, contracted, strict=True):
            torch.testing.assert_close(core.grad, gradient, rtol=0, atol=0.03 * gradient.abs().max().item())


@pytest.mark.parametrize("grad", [True, False])
def test_autocast_rounds_a_weight_once(grad):
    layer = build(dtype=torch.float32, execution="dense")
    x = vectors(layer)
    with torch.set_grad_enabled(grad):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(x)
            weight = layer._weight_cache.weight(list(layer.cores), layer.weight_shape, keep=True)
            assert weight.dtype == torch.bfloat16
            assert layer._weight_cache.weight(list(layer.cores), layer.weight_shape, keep=True) is weight
        full = layer(x)
    assert layer.reconstructions == 1
    np.testing.assert_allclose(full.detach().numpy(), oracle(layer, x), rtol=1e-5, atol=1e-5)


def test_autocast_leaves_double_precision_alone():
    layer = build(execution="dense")
    weight = layer._weight_cache.weight(list(layer.cores), layer.weight_shape, keep=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer._weight_cache.weight(list(layer.cores), layer.weight_shape, keep=True) is weight


# --- checkpoints


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_checkpoints(execution, use_reentrant, cache):
    torch.manual_seed(0)
    layers = [build("padded", execution=execution, cache=cache), nn.Linear(7, 11, dtype=torch.float64)]
    block = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh())
    gradients, x = {}, vectors(layers[0])
    for checkpointed in (False, True):
        block.zero_grad(set_to_none=True)
        y = x.clone().requires_grad_()
        first = y
        for _ in range(3):  # one block, three times: the cache is full in the second run of the forward
            y = checkpoint(block, y, use_reentrant=use_reentrant) if checkpointed else block(y)
        y.square().sum().backward()
        gradients[checkpointed] = [first.grad, *[parameter.grad for parameter in block.parameters()]]
        layers[0].refresh()
    for plain, other in zip(gradients[False], gradients[True], strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cleared", [True, False])
def test_a_checkpoint_saves_the_same_tensors_cached_or_not(cleared):
    layer = build(execution="dense")
    x = vectors(layer)

    def run(x):
        return torch.tanh(layer(x))

    y = checkpoint(run, x, use_reentrant=False)
    if cleared:
        layer.refresh()
    y.sum().backward()
    assert all(core.grad is not None for core in layer.cores)


# --- compiled, exported


@FIRST_COMPILATION
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("case", ["interleaved", "bond core", "padded"])
def test_one_compiled_graph_serves_every_batch(case, execution):
    layer = build(case, execution=execution, dtype=torch.float32)
    torch._dynamo.reset()
    counted = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(layer, fullgraph=True, backend=counted, dynamic=True)
    for count in (4, 7, 33):
        gradients = []
        for one in (compiled, layer):
            layer.zero_grad(set_to_none=True)
            x = vectors(layer, count).requires_grad_()
            y = one(x)
            np.testing.assert_allclose(y.detach().numpy(), oracle(layer, x), rtol=1e-4, atol=1e-4)
            torch.sin(y).sum().backward()
            gradients.append([x.grad, *[parameter.grad for parameter in layer.parameters()]])
        for mine, other in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            layer.cores[0].mul_(1.1)  # compiled code reads the cores
    assert counted.frame_count == 1


@FIRST_COMPILATION
def test_compiled_under_autocast():
    layer = build(execution="dense", dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = vectors(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = compiled(x), layer.to_linear()(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("case", CASES)
def test_export(case, execution, strict):
    layer = build(case, execution=execution)
    layer(vectors(layer))  # what is cached must not become a constant
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, (vectors(layer, 4),), dynamic_shapes=({0: batch},), strict=strict)
    exported = program.module()
    assert len(list(exported.parameters())) == len(list(layer.parameters()))
    for count in (2, 9):
        x = vectors(layer, count)
        np.testing.assert_allclose(exported(x).detach().numpy(), oracle(layer, x), rtol=1e-10, atol=1e-12)


# what torch.onnx itself runs into
@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning")
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("case", ["interleaved", "low-rank", "bond core", "padded"])
def test_onnx_runs_the_same(case, execution):
    layer = build(case, dtype=torch.float32, execution=execution).eval()
    layer(vectors(layer))
    program = torch.onnx.export(
        layer, (vectors(layer, 4),), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
    )
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for count in (1, 9):
        x = vectors(layer, count)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(y, oracle(layer, x), rtol=1e-4, atol=1e-4)
    products = [node for node in program.model.graph if node.op_type in ("Gemm", "MatMul")]
    if execution == "dense":
        assert len(products) == 1  # with the weight contracted beforehand
    elif execution == "factored" and case in ("low-rank", "bond core"):
        assert len(products) == len(layer.cores)
        sizes = sum(int(np.prod(value.shape.numpy())) for value in program.model.graph.initializers.values())
        assert sizes == sum(parameter.numel() for parameter in layer.parameters())


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python integer:torch.jit.TracerWarning")
def test_a_traced_layer_reads_its_cores():
    layer = build(execution="dense")
    x = vectors(layer)
    layer(x)
    traced = torch.jit.trace(layer, (x,))
    with torch.no_grad():
        layer.cores[1].mul_(2)
    np.testing.assert_allclose(traced(x).detach().numpy(), oracle(layer, x), rtol=1e-10, atol=1e-12)


def test_tensors_without_values_are_not_kept():
    layer = build(execution="dense")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(mode.from_tensor(vectors(layer))).shape == (5, 8)
    assert_fresh(layer)
    layer.to("meta")
    assert layer(vectors(layer).to("meta")).shape == (5, 8)


# --- function transforms


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("case", CASES)
def test_gradients_per_sample(case, execution):
    layer = build(case, execution=execution)
    x = vectors(layer, 3)
    layer(x)
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for sample in range(3):
        layer.zero_grad(set_to_none=True)
        layer(x[sample]).square().sum().backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(per_sample[name][sample], parameter.grad, rtol=1e-9, atol=1e-11)


def test_other_parameters_for_one_call():
    layer, other = build(execution="dense"), build(execution="dense")
    with torch.no_grad():
        for core in other.cores:
            core.mul_(1.3)
    x = vectors(layer)
    for borrowed in (dict(other.named_parameters()), {name: p * 1 for name, p in other.named_parameters()}):
        assert_fresh(layer)
        layer.refresh()
        y = torch.func.functional_call(layer, borrowed, (x,))
        are_parameters = all(type(tensor) is nn.Parameter for tensor in borrowed.values())
        assert (layer.resident_bytes["cache"] > 0) == are_parameters  # what is computed belongs to a graph of its own
        np.testing.assert_allclose(y.detach().numpy(), oracle(other, x), rtol=1e-10, atol=1e-12)
        other.zero_grad()
        y.sum().backward()
        assert all(core.grad.abs().max() > 1e-3 for core in other.cores)
        assert all(core.grad is None for core in layer.cores)
    assert_fresh(layer)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_jacobians_with_respect_to_the_input():
    layer = build(execution="dense")
    x = vectors(layer, 1)[0]
    weight = layer.weight.detach()
    assert_fresh(layer)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        layer.refresh()  # the first contraction is then inside the transform, which must leave none behind
        torch.testing.assert_close(transform(layer)(x), weight)
    tangent = torch.ones_like(x)
    _, pushed = torch.func.jvp(layer, (x,), (tangent,))
    torch.testing.assert_close(pushed, weight @ tangent)
    layer.refresh()
    batched = torch.func.vmap(layer)(vectors(layer, 4))
    np.testing.assert_allclose(batched.detach().numpy(), oracle(layer, vectors(layer, 4)), rtol=1e-10)
    assert_fresh(layer)


# --- two processes


def test_two_replicas_train_as_one(tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    multiprocessing.spawn(replica, args=(f"file://{tmp_path}/meeting", answers), nprocs=2)
    states = dict(answers.get() for _ in range(2))

    layer = build(execution="dense")
    for site in layer.central:
        layer.cores[site].requires_grad_(False)
    begin = copy.deepcopy(layer.state_dict())
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=0.05)
    for step in range(3):
        x = vectors(layer, 8, seed=step)
        loss = sum(layer(part).square().mean() for part in x.split(2)) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(states[0][name], states[1][name])
        np.testing.assert_allclose(states[0][name], value.numpy(), rtol=1e-9, atol=1e-11)
    for site, core in enumerate(layer.cores):
        unchanged = np.array_equal(states[0][f"cores.{site}"], begin[f"cores.{site}"].numpy())
        assert unchanged == (site in layer.central), core.shape
