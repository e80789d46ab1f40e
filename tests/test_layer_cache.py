"""The contracted weight of a layer: one contraction for many uses, right gradients, and never a stale value."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from mpo_layers import CASES, EXECUTIONS, FIRST_COMPILATION, assert_fresh, assert_is_oracle, build, oracle, vectors
from tnmpo.integrations.torch import MPOLinear
from tnmpo.integrations.torch.contraction import contract
from tnmpo.integrations.transformers import MPOConfig, compress, freeze_central
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

import tnmpo

# --- gradients


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("frozen", ["none", "central", "auxiliary", "first"])
@pytest.mark.parametrize("case", CASES)
def test_first_and_second_derivatives(case, frozen, execution, cache):
    layer = build(case, rank=2, execution=execution, cache=cache)
    sites = {"none": (), "central": layer.central, "auxiliary": layer.auxiliary, "first": (0,)}[frozen]
    for site in sites:
        layer.cores[site].requires_grad_(False)
    x = vectors(layer, 2).requires_grad_()

    def twice(x, *_):
        layer.refresh()  # gradcheck writes through .data
        return layer(x) * layer(torch.sin(x))

    inputs = (x, *[core for core in layer.cores if core.requires_grad])
    assert gradcheck(twice, inputs)
    assert gradgradcheck(twice, inputs)


@pytest.mark.parametrize("case", CASES)
def test_the_contraction_costs_what_the_plan_says(case):
    layer = build(case)
    with FlopCounterMode(display=False) as counted:
        layer.weight.detach()
    assert counted.get_total_flops() == tnmpo.contraction_plan(layer.shape, layer.ranks).rebuild_flops


def test_no_product_is_spent_on_a_frozen_core():
    layer = MPOLinear.from_linear(nn.Linear(36, 48), ((4, 3, 4), (3, 4, 3)), execution="dense")
    flops = {}
    for central_is_frozen in (False, True):
        layer.cores[1].requires_grad_(not central_is_frozen)
        weight = layer._weight_cache.weight(list(layer.cores), layer.weight_shape, keep=False)
        with FlopCounterMode(display=False) as counted:
            weight.backward(torch.ones_like(weight))
        flops[central_is_frozen] = counted.get_total_flops()
    (_, rows, cols, _), (left, _, _, right) = layer.cores[0].shape, layer.cores[1].shape
    assert flops[False] - flops[True] == 2 * rows * cols * left * (layer.cores[1].numel() // (left * right)) * right


@pytest.mark.parametrize("cache", [True, False])
def test_twelve_uses_are_one_contraction(cache):
    layer = MPOLinear.from_linear(
        nn.Linear(8, 8, dtype=torch.float64), ((2, 2, 2), (2, 2, 2)), 3, execution="dense", cache=cache
    )
    y = x = torch.randn(4, 8, dtype=torch.float64)
    for _ in range(12):
        y = torch.tanh(layer(y))
    y.square().sum().backward()
    assert layer.reconstructions == (1 if cache else 12)

    weight = contract(list(layer.cores), layer.weight_shape)
    for _ in range(12):
        x = torch.tanh(nn.functional.linear(x, weight, layer.bias))
    expected = torch.autograd.grad(x.square().sum(), list(layer.cores))
    for core, gradient in zip(layer.cores, expected, strict=True):
        torch.testing.assert_close(core.grad, gradient, rtol=1e-10, atol=1e-12)


def test_the_shared_layer_of_albert_is_contracted_once_a_step():
    model = tiny.albert("AlbertForSequenceClassification", num_hidden_layers=12).train()
    compress(model, MPOConfig(exclude_modules=["word_embeddings"]))
    freeze_central(model)
    layers = [module for module in model.modules() if isinstance(module, MPOLinear)]
    assert len(layers) == 7  # query, key, value, attention output, two of the FFN, the pooler
    for layer in layers:
        layer.execution = "dense"
    uncached = copy.deepcopy(model)
    for layer in uncached.modules():
        if isinstance(layer, MPOLinear):
            layer.cache = False
    inputs = {**tiny.batch(), "labels": torch.tensor([0, 1, 1, 0])}
    for one in (model, uncached):
        for module in one.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        optimizer = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=1e-3)
        for step in range(1, 3):
            one(**inputs).loss.backward()
            if one is model:
                assert [layer.reconstructions for layer in layers] == [step] * 7
            optimizer.step()
            optimizer.zero_grad()
    counts = [layer.reconstructions for layer in uncached.modules() if isinstance(layer, MPOLinear)]
    assert sorted(counts) == [2, *[24] * 6]
    for (name, mine), other in zip(model.named_parameters(), uncached.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("case", CASES)
def test_two_small_batches_are_one_large_one(case, execution):
    layer = build(case, execution=execution)
    x = vectors(layer, 6)
    layer(x).square().sum().backward()
    expected = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad(set_to_none=True)
    for part in x.split(3):
        layer(part).square().sum().backward()
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)
    assert layer.reconstructions <= 1


def test_two_losses_share_a_weight():
    layer = build(execution="dense")
    x = vectors(layer)
    first, second = layer(x).square().sum(), torch.sin(layer(x)).sum()
    expected = torch.autograd.grad(first + second, list(layer.cores), retain_graph=True)
    first.backward()
    second.backward()
    assert layer.reconstructions == 1
    for core, gradient in zip(layer.cores, expected, strict=True):
        torch.testing.assert_close(core.grad, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("write", ["in place", "new data"])
def test_a_gradient_at_values_that_are_gone_is_refused(write):
    layer = build(execution="dense")
    loss = layer(vectors(layer)).sum()
    with torch.no_grad():
        if write == "in place":
            layer.cores[1].mul_(2)
        else:
            layer.cores[1].data = torch.zeros_like(layer.cores[1])
    message = r"backward: core 1 of shape \(3, 2, 2, 3\), .* modified by an inplace operation: .*; call backward before"
    with pytest.raises(RuntimeError, match=message):
        loss.backward()


def test_a_core_whose_value_no_gradient_needs_may_change():
    layer = build(execution="dense")
    for core in (layer.cores[0], layer.cores[2]):
        core.requires_grad_(False)
    loss = layer(vectors(layer)).sum()
    (expected,) = torch.autograd.grad(loss, [layer.cores[1]], retain_graph=True)
    with torch.no_grad():
        layer.cores[1].zero_()
    loss.backward()
    assert torch.equal(layer.cores[1].grad, expected)


def test_frozen_cores_are_seen_to_be_frozen():
    layer = build(execution="dense")
    x = vectors(layer)
    for trained in ([True, False, True], [True, True, True], [False, False, False], [False, True, False]):
        for core, flag in zip(layer.cores, trained, strict=True):
            core.requires_grad_(flag)
        layer.zero_grad(set_to_none=True)
        layer(x).square().sum().backward()
        assert [core.grad is not None for core in layer.cores] == trained
    assert layer.reconstructions == 1


# --- how often


@pytest.mark.parametrize("before", [torch.no_grad, torch.inference_mode])
def test_the_weight_of_an_evaluation_serves_a_training_step(before):
    layer = build(execution="dense")
    x = vectors(layer)
    with before():
        expected = layer(x).clone()
    y = layer(x)
    assert torch.equal(y, expected)
    y.sum().backward()
    with before():
        assert torch.equal(layer(x), expected)
    assert layer.reconstructions == 1
    fresh = copy.deepcopy(layer)
    fresh.zero_grad(set_to_none=True)
    fresh(x).sum().backward()
    for core, other in zip(layer.cores, fresh.cores, strict=True):
        assert torch.equal(core.grad, other.grad)


@pytest.mark.parametrize("before", [torch.no_grad, torch.inference_mode])
def test_a_cast_weight_of_an_evaluation_serves_a_backward_to_the_input(before):
    layer = build(execution="dense", dtype=torch.float32)
    layer.requires_grad_(False)
    x = vectors(layer).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with before():
            layer(x)
        layer(x).sum().backward()
    expected = layer.to_linear().weight.detach().bfloat16().float().sum(0)
    torch.testing.assert_close(x.grad, expected.expand(5, -1), rtol=0.02, atol=0.02)


def test_without_a_cache_nothing_is_kept():
    layer = build(execution="dense", cache=False)
    with torch.no_grad():
        for calls in range(1, 4):
            layer(vectors(layer))
            assert layer.reconstructions == calls
    assert layer.resident_bytes["cache"] == 0
    layer.cache = True
    layer(vectors(layer))
    assert layer.resident_bytes["cache"] > 0
    layer.cache = False  # also later
    layer(vectors(layer))
    assert layer.resident_bytes["cache"] == 0


def test_auto_counts_the_contraction_unless_it_serves_many_calls():
    """A batch for which one dense product is cheaper than core after core, but not with a contraction for it alone."""
    layer = MPOLinear.from_linear(nn.Linear(256, 256), ((8, 8, 4), (8, 8, 4)), 16)
    plan = tnmpo.contraction_plan(layer.shape, layer.ranks, 4)
    assert (plan.faster(rebuild=True), plan.faster(rebuild=False)) == ("factored", "dense")
    x = torch.randn(2, 2, 256)
    expected = {"training": 0, "evaluation": 1, "evaluation without a cache": 0}
    counts = {}
    for mode in expected:
        one = copy.deepcopy(layer).train(mode == "training")
        one.cache = "without" not in mode
        one(x)
        counts[mode] = one.reconstructions
    assert counts == expected
    with torch.no_grad():  # a weight that is there already changes no choice: checkpoints run the forward twice
        layer.execution = "dense"
        layer(x)
        layer.execution = "auto"
        assert layer._execution_for(list(layer.cores), 4, cached=True) == "factored"


def test_resident_bytes():
    layer = build("padded", dtype=torch.float32, execution="dense")
    x = vectors(layer)
    cores = 4 * sum(core.numel() for core in layer.cores)
    assert layer.resident_bytes == {"cores": cores, "cache": 0}
    layer(x)
    assert layer.resident_bytes == {"cores": cores, "cache": 4 * 7 * 11}
    for mode in (torch.no_grad, torch.enable_grad, torch.no_grad):
        with torch.autocast("cpu", dtype=torch.bfloat16), mode():
            layer(x)
        assert layer.resident_bytes["cache"] == (4 + 2) * 7 * 11
    layer.refresh()
    assert layer.resident_bytes == {"cores": cores, "cache": 0}
    layer(x)
    layer.to(torch.float64)
    assert layer.resident_bytes == {"cores": 2 * cores, "cache": 0}


# --- never stale


def step_of(kind, **options):
    def act(layer):
        optimizer = kind(layer.parameters(), lr=0.1, **options)
        layer(vectors(layer, seed=2)).square().sum().backward()
        optimizer.step()

    return act


def write_in_place(layer):
    with torch.no_grad():
        layer.cores[1].mul_(1.5)


def write_through_data(layer):
    layer.cores[1].data.copy_(2 * layer.cores[1].data)
    layer.refresh()


def write_averages(layer):
    """As moving averages of weights are tried out, without a refresh."""
    layer.cores[1].data.copy_(2 * layer.cores[1].data)
    layer.eval()


def put_new_data(layer):
    layer.cores[1].data = 2 * layer.cores[1].data


def put_new_data_where_the_old_was(layer):
    """Wherever the allocator gives that memory out again, once the parameter has left it."""
    core, values, address = layer.cores[1], 2 * layer.cores[1].detach(), layer.cores[1].data_ptr()
    core.data = torch.empty(0, dtype=core.dtype)
    candidates = [values.clone() for _ in range(1000)]
    core.data = next((one for one in candidates if one.data_ptr() == address), candidates[0])


def load(layer):
    other = copy.deepcopy(layer)
    write_in_place(other)
    layer.load_state_dict(other.state_dict())


def load_by_assignment(layer):
    other = copy.deepcopy(layer)
    write_in_place(other)
    layer.load_state_dict(other.state_dict(), assign=True)


def swap_a_parameter(layer):
    layer.cores[1] = nn.Parameter(2 * layer.cores[1].detach())


def compiled_step(layer):
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    step = torch.compile(lambda: optimizer.step(), backend="aot_eager")
    for _ in range(3):
        optimizer.zero_grad()
        layer(vectors(layer, seed=2)).square().sum().backward()
        step()


CHANGES = {
    "SGD": step_of(torch.optim.SGD),
    "SGD, fused": step_of(torch.optim.SGD, fused=True),
    "AdamW": step_of(torch.optim.AdamW, foreach=False),
    "AdamW, foreach": step_of(torch.optim.AdamW, foreach=True),
    "AdamW, fused": step_of(torch.optim.AdamW, fused=True),
    "AdamW, compiled": compiled_step,
    "in place": write_in_place,
    "through data": write_through_data,
    "moving averages": write_averages,
    "new data": put_new_data,
    "new data where the old was": put_new_data_where_the_old_was,
    "load_state_dict": load,
    "load_state_dict, assign": load_by_assignment,
    "another parameter": swap_a_parameter,
    "set_cores_": lambda layer: layer.set_cores_([1.2 * core.detach() for core in layer.cores]),
    "truncate_": lambda layer: layer.truncate_(2),
}


@FIRST_COMPILATION
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cache", [True, False])
def test_no_change_of_the_cores_is_missed(change, cache):
    layer = build(execution="dense", cache=cache)
    x = vectors(layer)
    assert_fresh(layer)
    before = layer(x).detach()
    CHANGES[change](layer)
    assert_fresh(layer)
    assert (layer(x).detach() - before).abs().max() > 1e-3


def test_bond_cores_come_and_go():
    layer = build("low-rank", execution="dense")
    assert_fresh(layer)
    layer.insert_bond_core_()
    assert_fresh(layer)
    with torch.no_grad():
        layer.cores[1].mul_(3)
    assert_fresh(layer)
    layer.absorb_bond_core_()
    assert_fresh(layer)


@pytest.mark.parametrize("swap", [True, False])
def test_another_dtype_is_another_weight(swap):
    layer = build(execution="dense")
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float64):
            layer.to(dtype)
            x = vectors(layer)
            assert layer(x).dtype == dtype
            if dtype != torch.bfloat16:
                assert_fresh(layer, x)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_a_new_parameter_on_the_same_memory_gets_the_gradient():
    layer = build(execution="dense")
    layer(vectors(layer))
    old, layer.cores[1] = layer.cores[1], nn.Parameter(layer.cores[1].detach())
    layer(vectors(layer)).sum().backward()
    assert old.grad is None
    assert layer.cores[1].grad.abs().max() > 1e-3


@FIRST_COMPILATION
def test_tied_layers_follow_each_other():
    layer, twin = build(execution="dense"), build(execution="dense")
    twin.cores = layer.cores
    for change in CHANGES.values():
        assert_fresh(layer)
        assert_fresh(twin)
        change(layer)
        twin.cores = layer.cores  # as integrations.transformers does where cores are replaced
        assert_fresh(twin)


def test_parametrised_cores_are_computed_on_every_call():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, core):
            return self.factor * core

    layer = build(execution="dense")
    x = vectors(layer)
    plain = layer(x).detach() - layer.bias.detach()
    doubled = Doubled()
    torch.nn.utils.parametrize.register_parametrization(layer.cores, "1", doubled)
    torch.testing.assert_close(layer(x) - layer.bias, 2 * plain)
    layer(x).sum().backward()
    assert doubled.factor.grad.abs() > 1e-3
    with torch.no_grad():
        doubled.factor.fill_(-3)
    torch.testing.assert_close(layer(x) - layer.bias, -3 * plain)
    torch.nn.utils.parametrize.remove_parametrizations(layer.cores, "1")
    assert list(layer.cores._parameters) == ["0", "2", "1"]  # which must not become the order of the train
    torch.testing.assert_close(layer(x) - layer.bias, -3 * plain)


def test_a_layer_made_in_inference_mode():
    """Its parameters have no versions: nothing is kept."""
    with torch.inference_mode():
        layer = build(execution="dense")
        assert layer.cores[0].is_inference()
        expected = oracle(layer, vectors(layer))
        for _ in range(2):
            np.testing.assert_allclose(layer(vectors(layer)).numpy(), expected, rtol=1e-10)
    assert layer.resident_bytes["cache"] == 0


class Life(RuleBasedStateMachine):
    """Whatever happens to a layer and to one tied to it, every forward is that of the cores as they are."""

    @initialize(case=st.sampled_from(sorted(CASES)), cache=st.booleans(), execution=st.sampled_from(EXECUTIONS))
    def begin(self, case, cache, execution):
        self.layer = build(case, cache=cache, execution=execution)
        self.twin = build(case, cache=True, execution="dense")
        self.twin.cores = self.layer.cores
        self.layer.cores[0].requires_grad_(False)
        self.saved = copy.deepcopy(self.layer.state_dict())

    def optimizer(self, kind, **options):
        return kind([p for p in self.layer.parameters() if p.requires_grad], lr=0.05, **options)

    @rule(seed=st.integers(0, 3))
    def forward_and_backward(self, seed):
        x = vectors(self.layer, seed=seed)
        assert_fresh(self.layer, x)
        assert_fresh(self.twin, x)
        self.layer.zero_grad()
        (torch.tanh(self.layer(x)) * torch.sin(self.twin(x))).sum().backward()
        gradients = [core.grad for core in self.layer.cores]
        fresh = copy.deepcopy(self.layer)
        weight = contract(list(fresh.cores), fresh.weight_shape)
        product = nn.functional.linear(x, weight)
        loss = (torch.tanh(product + fresh.bias) * torch.sin(product + self.twin.bias.detach())).sum()
        trained = [site for site, core in enumerate(fresh.cores) if core.requires_grad]
        expected = torch.autograd.grad(loss, [fresh.cores[site] for site in trained]) if trained else ()
        assert gradients[0] is None
        tolerance = 1e-9 if x.dtype == torch.float64 else 1e-3
        for site, gradient in zip(trained, expected, strict=True):
            atol = tolerance * max(1, gradient.abs().max().item())
            torch.testing.assert_close(gradients[site], gradient, rtol=0, atol=atol)

    @rule(kind=st.sampled_from([torch.optim.SGD, torch.optim.AdamW]), fused=st.booleans())
    def step(self, kind, fused):
        optimizer = self.optimizer(kind, fused=fused)
        self.layer.zero_grad()
        self.layer(vectors(self.layer)).square().sum().backward()
        nn.utils.clip_grad_norm_(self.layer.parameters(), 1.0)  # a loss that diverges would leave nothing but rounding
        optimizer.step()

    @rule(inference=st.booleans())
    def evaluate(self, inference):
        self.layer.eval()
        x = vectors(self.layer)
        with torch.inference_mode(inference), torch.no_grad():
            answer = self.layer(x)
        assert_is_oracle(answer, self.layer, x)

    @rule()
    def train(self):
        self.layer.train()

    @rule(cached=st.booleans())
    def half(self, cached):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(cached):
            x = vectors(self.layer)
            assert_is_oracle(self.layer(x), self.layer, x, tolerance=0.1)

    @rule()
    def save(self):
        self.saved = copy.deepcopy(self.layer.state_dict())

    @rule()
    def load(self):
        self.layer.load_state_dict(self.saved)

    @rule(dtype=st.sampled_from([torch.float64, torch.float32]))
    def convert(self, dtype):
        self.layer.to(dtype)
        self.twin.to(dtype)

    @rule()
    def write(self):
        self.layer.cores[-1].data.mul_(-1)
        self.layer.refresh()

    @precondition(lambda self: self.layer.cores[-1].abs().max() < 3)
    @rule()
    def scale(self):
        with torch.no_grad():
            self.layer.cores[-1].mul_(1.25)

    @rule()
    def copy(self):
        self.layer = copy.deepcopy(self.layer)
        self.twin.cores = self.layer.cores

    @rule()
    def replace(self):
        flags = [core.requires_grad for core in self.layer.cores]
        self.layer.set_cores_([core.detach().flip(1) for core in self.layer.cores], flags)
        self.twin.cores = self.layer.cores


TestLife = Life.TestCase
