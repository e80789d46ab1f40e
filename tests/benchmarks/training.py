"""A training step of ALBERT-base (real shapes, random weights, 12 layers that share theirs) on 16 x 64 tokens: forward,
backward, AdamW. *dense* trains all parameters. *LFA* trains the auxiliary tensors of every MPO, lossless interleaved or
low rank at half the parameters, and what is no MPO: norms, biases, head. *LoRA* is PEFT's, on the same linear layers.
Peak memory is that of a fresh process: the parameters, and what two steps add to them. On a GPU, which 16 x 64 tokens
do not fill, also on 128 x 128.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from albert import DENSE, FULL, LORA, LOW, albert, batch, mpo_layers, prepared, state_bytes, step
from machine import fresh, growth_of
from records import Row, verdict
from side_by_side import timings
from tnmpo.integrations.transformers import MPOConfig, compress
from torch import nn

SUITE = "training"
BATCHES = {"cpu": [(16, 64)], "cuda": [(16, 64), (128, 128)]}  # texts and tokens
GOALS = {FULL: 1.10, LOW: 0.75}


def rows(quick: bool, *, device: str = "cpu") -> Iterator[Row]:
    assert_lossless(quick)
    for size in BATCHES[device]:
        yield from compare(size, quick=quick, device=device)


def compare(size: tuple[int, int], *, quick: bool, device: str) -> Iterator[Row]:
    """Steps of all ways on batches of that size."""
    case = f"ALBERT-base, {size[0]} x {size[1]} tokens"
    inputs = batch(quick, device, *size)
    models = {way: prepared(way, quick).to(device) for way in (DENSE, FULL, LOW, LORA)}
    steps = {way: step(model, inputs) for way, model in models.items()}
    timed = timings({way: call for way, (call, _) in steps.items()}, 1 if quick else 5, device=device)
    dense = timed[DENSE].seconds
    states = {way: state_bytes(optimizer) for way, (_, optimizer) in steps.items()}
    peaks = {way: peak(way, size, quick, device) for way in models}
    for way, timing in timed.items():
        note = f"{sum(p.numel() for p in models[way].parameters() if p.requires_grad):,} trained parameters"
        yield Row(SUITE, case, way, timing.seconds, timing.rounds, timing.seconds / dense, DENSE, note=note)
    for way, goal in GOALS.items():
        yield verdict(SUITE, case, f"{way}: step / dense", timed[way].seconds / dense, at_most=goal)
        yield verdict(SUITE, case, f"{way}: optimiser state", 100 * states[way] / states[DENSE], at_most=10, unit="%")
        yield verdict(SUITE, case, f"{way}: peak memory / dense", peaks[way] / peaks[DENSE], at_most=0.75)
    yield Row(SUITE, case, f"{LORA}: optimiser state", measured=100 * states[LORA] / states[DENSE], unit="%")
    yield Row(SUITE, case, f"{LORA}: peak memory / dense", measured=peaks[LORA] / peaks[DENSE], unit="x")
    yield Row(SUITE, case, "dense: peak memory", measured=peaks[DENSE] / 2**20, unit="MiB")
    most = reconstructions(models[FULL], steps[FULL][0])
    yield verdict(SUITE, case, f"{FULL}: reconstructions of a layer in a step", most, at_most=1, unit="times")


def assert_lossless(quick: bool) -> None:
    """Compressed at full rank, the model answers as the dense one does."""
    model, inputs = albert(quick, dropout=False).eval(), batch(quick, "cpu")
    with torch.no_grad():
        expected = model(**inputs).logits
        compress(model, MPOConfig())
        torch.testing.assert_close(model.eval()(**inputs).logits, expected, rtol=1e-3, atol=1e-4)


def reconstructions(model: nn.Module, call: Callable[[], None]) -> int:
    """How often the most contracted of the layers that are shared twelvefold is contracted in one step."""
    layers = mpo_layers(model)
    before = [layer.reconstructions for layer in layers]
    call()
    return max(layer.reconstructions - count for layer, count in zip(layers, before, strict=True))


def peak(way: str, size: tuple[int, int], quick: bool, device: str) -> int:
    """Bytes of model, gradients, optimiser and activations at their most."""
    if device == "cpu":
        return fresh("training", "resident", way, size, quick, here=quick)
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    call, _ = step(prepared(way, quick).to(device), batch(quick, device, *size))
    torch.cuda.reset_peak_memory_stats()
    call()
    call()
    return torch.cuda.max_memory_allocated() - held


def resident(way: str, size: tuple[int, int], quick: bool) -> int:
    """Growth of this process by two steps. The model is built before: making it (a decomposition) is no step.

    What libraries load at a first step is loaded by a tiny one before.
    """
    step(prepared(way, True), batch(True, "cpu"))[0]()
    model, inputs = prepared(way, quick), batch(quick, "cpu", *size)
    held = sum(p.nbytes for p in model.parameters())
    call, _ = step(model, inputs)

    def twice() -> None:
        call()
        call()

    return held + growth_of(twice)
