"""ALBERT-base in its real shapes with random weights, and the ways to fine-tune it that are compared."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import transformers
from tnmpo.integrations.torch import MPOLayer
from tnmpo.integrations.transformers import MPOConfig, compress, freeze_central
from torch import Tensor, nn

BASE = {
    "vocab_size": 30000,
    "embedding_size": 128,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
TINY = {**BASE, "vocab_size": 60, "embedding_size": 8, "hidden_size": 12, "intermediate_size": 24}
TINY |= {"num_hidden_layers": 3, "num_attention_heads": 2}
LINEAR = r"(.*\.)?(attention\.(query|key|value|dense)|ffn|ffn_output|pooler)"  # those that MPOs replace, no embedding
DENSE, FULL, LOW, LORA = "dense", "LFA, full rank", "LFA, low rank 0.5", "LoRA, r = 8"


def albert(quick: bool, *, dropout: bool = True) -> Any:
    """With a head for two classes."""
    off = {} if dropout else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.AlbertConfig(**(TINY if quick else BASE), **off)
        return transformers.AlbertForSequenceClassification(config)


def prepared(way: str, quick: bool) -> nn.Module:
    """The model ready to train in that way."""
    model = albert(quick)
    if way in (FULL, LOW):
        compress(model, MPOConfig() if way == FULL else MPOConfig(ratio=0.5, shape="low_rank"))
        freeze_central(model)
    elif way == LORA:
        import peft

        logging.getLogger("peft").setLevel(logging.ERROR)
        config = peft.LoraConfig(r=8, target_modules=LINEAR, modules_to_save=["classifier"])
        model = peft.get_peft_model(model, config)
    elif way != DENSE:
        raise ValueError(f"way: got {way!r}, expected one of {DENSE!r}, {FULL!r}, {LOW!r}, {LORA!r}")
    return model.train()


def batch(quick: bool, device: str, size: int = 16, length: int = 64) -> dict[str, Tensor]:
    """Texts without padding."""
    size, length, vocabulary = (2, 8, 60) if quick else (size, length, 30000)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, vocabulary, (size, length), generator=generator)
    labels = torch.randint(0, 2, (size,), generator=generator)
    return {"input_ids": ids.to(device), "labels": labels.to(device)}


def step(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    """One step of AdamW on what is trainable."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def call() -> None:
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()

    return call, optimizer


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What the optimiser keeps between steps."""
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value))


def mpo_layers(model: nn.Module) -> list[MPOLayer]:
    return [module for module in model.modules() if isinstance(module, MPOLayer)]
