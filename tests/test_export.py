"""Whole models exported and compiled: the graph has the cores, and what it computes is what torch computes."""

from __future__ import annotations

import copy
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from mpo_layers import FIRST_COMPILATION
from tiny import albert, answer, batch, bert, build
from tnmpo.integrations.transformers import MPOConfig, absorb, compress, freeze_central, merge
from tnmpo.integrations.transformers.export import export_onnx
from tnmpo.integrations.transformers.targets import mpo_layers
from torch.export import Dim


def llama(**settings):
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.3,
        **settings,
    )
    return build("LlamaForCausalLM", config, 0)


MODELS = {
    "albert": lambda: albert(num_hidden_layers=2),
    "bert": lambda: bert("BertForSequenceClassification", num_hidden_layers=1),
    "bert masked": lambda: bert("BertForMaskedLM", num_hidden_layers=1),
    "llama": llama,
}
TARGETS = {"llama": ["embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
STATES = {"at rest": (), "frozen": (freeze_central,), "absorbed": (freeze_central, absorb)}
SIZES = [(1, 12), (6, 4)]  # the example has 4 sequences of 9 tokens


def compressed(kind, shape, state="at rest", **settings):
    model = MODELS[kind]()
    compress(model, MPOConfig(ratio=0.6, shape=shape, target_modules=TARGETS.get(kind), **settings))
    for change in STATES[state]:
        change(model)
    if state == "frozen":  # as after training: M is no identity
        with torch.no_grad():
            for _, layer, _ in mpo_layers(model):
                for site in layer.auxiliary:
                    layer.cores[site].add_(0.01)
    return model


def session_of(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(session, inputs):
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]


def stored(path):
    """The numbers in the weights of a file, those that shapes are computed with left out."""
    return sum(int(np.prod(weight.dims)) for weight in onnx.load(path).graph.initializer if weight.data_type == 1)


def products(path):
    return Counter(node.op_type in ("MatMul", "Gemm") for node in onnx.load(path).graph.node)[True]


# --- ONNX


@pytest.mark.parametrize(
    ("kind", "shape", "state"),
    [
        ("albert", "low_rank", "at rest"),
        ("albert", "interleaved", "frozen"),
        ("bert masked", "interleaved", "at rest"),
        ("llama", "low_rank", "absorbed"),
        ("llama", "interleaved", "frozen"),
    ],
)
def test_onnxruntime_answers_as_torch_does_for_every_batch_and_length(kind, shape, state, tmp_path):
    model = compressed(kind, shape, state)
    difference = export_onnx(model, tmp_path / "model.onnx", batch())
    assert 0 <= difference < 1e-4
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    session = session_of(tmp_path / "model.onnx")
    assert [value.shape for value in session.get_inputs()] == [["batch", "sequence"]] * 2
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    for size, length in SIZES:
        inputs = batch(1, size, length)
        np.testing.assert_allclose(run(session, inputs), answer(model, inputs).numpy(), rtol=1e-4, atol=2e-5)
    # the cores, each once; beside them only a few constants such as the square root of the head's size
    n = sum(parameter.numel() for parameter in model.parameters())
    assert abs(stored(tmp_path / "model.onnx") - n) < 0.05 * n + 40


def test_a_low_rank_layer_is_two_products_and_three_with_its_bond_core(tmp_path):
    config = MPOConfig(rank=4, shape="low_rank", target_modules=["query", "key", "value", "intermediate.dense"])
    counts = {}
    model = MODELS["bert"]()
    for state, change in (
        ("dense", lambda _: None),
        ("compressed", lambda model: compress(model, config)),
        ("frozen", freeze_central),
        ("absorbed", absorb),
    ):
        change(model)
        export_onnx(model, tmp_path / f"{state}.onnx", batch())
        graph = torch.export.export(model, (), batch()).graph
        linear = [node for node in graph.nodes if node.target is torch.ops.aten.linear.default]
        counts[state] = (products(tmp_path / f"{state}.onnx"), len(linear))
    for position in (0, 1):  # of the ONNX file, and of the exported program
        dense = counts["dense"][position]
        assert [counts[state][position] - dense for state in counts] == [0, 4, 8, 4]  # of four layers


def test_the_file_of_a_compressed_model_is_smaller_and_shared_layers_are_written_once(tmp_path):
    sizes = {"embedding_size": 64, "hidden_size": 64, "intermediate_size": 256, "vocab_size": 600}
    for shape in ("dense", "low_rank", "interleaved"):
        model = albert(num_hidden_layers=2, **sizes)
        if shape != "dense":
            compress(model, MPOConfig(ratio=0.3, shape=shape))
        path = tmp_path / f"{shape}.onnx"
        export_onnx(model, path, batch())
        n = sum(parameter.numel() for parameter in model.parameters())
        assert abs(stored(path) - n) < 0.01 * n
    bytes_of = {file.stem: file.stat().st_size for file in tmp_path.iterdir()}
    assert bytes_of["low_rank"] < 0.5 * bytes_of["dense"]
    assert bytes_of["interleaved"] < 0.6 * bytes_of["dense"]  # with the nodes of the contraction


def test_a_merged_copy_exports_as_the_dense_model_does(tmp_path):
    model = compressed("bert", "low_rank")
    dense = merge(copy.deepcopy(model))
    export_onnx(dense, tmp_path / "merged.onnx", batch())
    export_onnx(MODELS["bert"](), tmp_path / "dense.onnx", batch())
    assert products(tmp_path / "merged.onnx") == products(tmp_path / "dense.onnx")
    assert stored(tmp_path / "merged.onnx") == stored(tmp_path / "dense.onnx")
    session = session_of(tmp_path / "merged.onnx")
    np.testing.assert_allclose(run(session, batch()), answer(model).numpy(), rtol=1e-4, atol=1e-5)


def test_exporting_leaves_the_model_as_it_was(tmp_path):
    model = compressed("llama", "low_rank", "frozen")
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    values = copy.deepcopy(model.state_dict())
    trained = [parameter.requires_grad for parameter in model.parameters()]
    export_onnx(model, tmp_path / "new folder" / "model.onnx", batch())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert model.config.use_cache is True


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path):
    path, model = tmp_path / "model.onnx", compressed("bert", "low_rank")
    with pytest.raises(ValueError, match=r"example: got no inputs"):
        export_onnx(model, path, {})
    with pytest.raises(TypeError, match=r"example\['input_ids'\]: got list, .*return_tensors='pt'"):
        export_onnx(model, path, {"input_ids": [[1, 2, 3]]})
    for small in (batch(size=1), {"input_ids": torch.ones(4, 2, dtype=torch.long)}):
        with pytest.raises(ValueError, match=r"example\['input_ids'\]: got shape .*at least 2 sequences"):
            export_onnx(model, path, small)
    with pytest.raises(TypeError, match=r"model: .* is torch\.bfloat16, .*model\.float\(\)"):
        export_onnx(copy.deepcopy(model).bfloat16(), path, batch())
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"export_onnx: .*onnxscript.*pip install onnx onnxscript onnxruntime"):
        export_onnx(compressed("bert", "low_rank"), tmp_path / "model.onnx", batch())
    assert not list(tmp_path.iterdir())


def test_a_graph_that_computes_something_else_is_not_kept(tmp_path):
    class Drawn(torch.nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    with pytest.raises(RuntimeError, match=r"outputs differ from torch's by .*nothing was written to"):
        export_onnx(Drawn(), tmp_path / "model.onnx", {"x": torch.zeros(3, 4)})
    assert not list(tmp_path.iterdir())


# --- torch.export


@pytest.mark.parametrize(
    ("kind", "shape", "state"),
    [
        ("albert", "low_rank", "frozen"),
        ("albert", "interleaved", "at rest"),
        ("bert", "low_rank", "absorbed"),
        ("bert", "interleaved", "frozen"),
        ("llama", "low_rank", "at rest"),
        ("llama", "interleaved", "absorbed"),
    ],
)
def test_an_exported_program_serves_every_batch_and_length(kind, shape, state):
    model = compressed(kind, shape, state)
    model.config.use_cache = False
    answer(model)  # dense weights are now cached, and must not become constants
    axes = {0: Dim("batch"), 1: Dim("sequence", max=32)}
    program = torch.export.export(model, (), batch(), dynamic_shapes=dict.fromkeys(batch(), axes))
    exported = program.module()
    # buffers of positions, and the frequencies of rotary ones: no weight
    assert all(value.numel() <= 8 for value in program.constants.values() if value.is_floating_point())
    assert sum(p.numel() for p in exported.parameters()) == sum(p.numel() for p in model.parameters())
    for size, length in SIZES:
        inputs = batch(1, size, length)
        torch.testing.assert_close(exported(**inputs)[0], answer(model, inputs), rtol=1e-4, atol=1e-5)


# --- compiled


@FIRST_COMPILATION
@pytest.mark.parametrize(("kind", "shape"), [("albert", "interleaved"), ("llama", "low_rank")])
def test_a_compiled_model_answers_and_trains_as_the_plain_one(kind, shape):
    model = compressed(kind, shape, "frozen")
    model.config.use_cache = False
    torch._dynamo.reset()
    whole = torch.compile(model, backend="aot_eager", dynamic=True, fullgraph=True)
    for size, length in ((6, 4), (3, 12)):
        inputs = batch(1, size, length)
        gradients = []
        for one in (whole, model):
            model.zero_grad(set_to_none=True)
            y = one(**inputs)[0]
            y.square().mean().backward()
            # of outputs that do not count, the compiler gives zeros where autograd gives nothing
            gradients.append([0 * p if p.grad is None else p.grad for p in model.parameters()])
            torch.testing.assert_close(y, answer(model, inputs), rtol=1e-4, atol=1e-5)
        for mine, other in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@FIRST_COMPILATION
def test_a_trainer_that_compiles_takes_the_same_steps(tmp_path):
    models = [MODELS["bert"]()]
    compress(models[0], MPOConfig(ratio=0.6, shape="low_rank"))
    freeze_central(models[0])
    for module in models[0].modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    models.append(copy.deepcopy(models[0]))
    begin = copy.deepcopy(models[0].state_dict())
    whole = batch(size=12)
    examples = [{name: value[i] for name, value in whole.items()} | {"labels": i % 2} for i in range(12)]
    losses = []
    for model, compiles in zip(models, (True, False), strict=True):
        torch._dynamo.reset()
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=0.05,
            optim="sgd",  # Adam makes steps of the rounding where a gradient is zero
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            torch_compile=compiles,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=examples)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        if "cores" in name:
            assert torch.equal(one, begin[name]) != one.requires_grad, name
