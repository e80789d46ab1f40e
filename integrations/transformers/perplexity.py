"""Perplexity of causal language models, over windows that overlap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from .targets import evaluation_mode

_LONGEST = 1024  # the default window, where the model has room for more

Window = tuple[list[int], int]  # token ids, and how many of the last are scored


@dataclass(frozen=True)
class PerplexityResult:
    """How well a causal model predicts texts; ``print`` shows it in a line.

    Attributes
    ----------
    loss : float
        The mean negative log-likelihood of a token, in nats.
    n_tokens : int
        The tokens that were scored, each once.
    n_texts : int
    max_length, stride : int
        Of the windows.
    """

    loss: float
    n_tokens: int
    n_texts: int
    max_length: int
    stride: int

    @property
    def perplexity(self) -> float:
        """``exp(loss)``; infinite where that overflows."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return {
            "perplexity": self.perplexity,
            "loss": self.loss,
            "n_tokens": self.n_tokens,
            "n_texts": self.n_texts,
            "max_length": self.max_length,
            "stride": self.stride,
        }

    def __str__(self) -> str:
        return (
            f"perplexity {self.perplexity:.4f} ({self.loss:.4f} nats a token) over {self.n_tokens:,} tokens of "
            f"{self.n_texts:,} texts; windows of {self.max_length}, stride {self.stride}"
        )


def perplexity(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str] | Path,
    *,
    max_length: int | None = None,
    stride: int | None = None,
    batch_size: int = 4,
) -> float:
    """The exponential of the mean negative log-likelihood of a token; lower is better.

    Parameters, errors and notes are those of ``evaluate_perplexity``.
    """
    return evaluate_perplexity(
        model, tokenizer, texts, max_length=max_length, stride=stride, batch_size=batch_size
    ).perplexity


@torch.no_grad()
def evaluate_perplexity(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str] | Path,
    *,
    max_length: int | None = None,
    stride: int | None = None,
    batch_size: int = 4,
) -> PerplexityResult:
    """Score every token of texts given those before it.

    Parameters
    ----------
    model : transformers causal language model
        Compressed or not; it runs on its own device in evaluation mode.
    tokenizer : transformers tokenizer
    texts : sequence of str, or Path
        Texts that know nothing of each other, or a file in UTF-8, which is one text.
    max_length : int, optional
        Tokens of a window, at least 2. By default what the model has positions for, at most 1,024.
    stride : int, optional
        By how many tokens windows advance, less than ``max_length``, so that each token is scored once, given at least
        ``max_length - stride`` before it. By default half of ``max_length``. The smaller, the lower the perplexity and
        the longer it takes.
    batch_size : int
        Windows in one forward pass.

    Returns
    -------
    PerplexityResult

    Raises
    ------
    TypeError
        If the model has no causal language-modelling head, or ``texts`` is one string.
    ValueError
        If the model is an encoder that sees both sides, a text is empty, no text has two tokens, or a length does not
        fit.

    Notes
    -----
    The windows are those of transformers' page on fixed-length models; the mean is over tokens, not over windows or
    texts. The special tokens that the tokenizer adds belong to the text: a token at the beginning of a sequence is
    context for the first word, and without one the first token is not scored. Padding is neither context nor scored.
    """
    _check_model(model)
    max_length, stride = _lengths(model, max_length, stride)
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected a positive integer")
    sequences = [tokenizer(text, verbose=False)["input_ids"] for text in _texts(texts)]
    windows = [window for ids in sequences for window in _windows(ids, max_length, stride)]
    n_tokens = sum(scored for _, scored in windows)
    if n_tokens == 0:
        raise ValueError("texts: none has two tokens, so there is nothing to predict; pass longer texts")
    windows.sort(key=lambda window: -len(window[0]))  # little padding, and a window that is too large fails at once
    total = 0.0
    starts = range(0, len(windows), batch_size)
    with evaluation_mode(model):
        for start in transformers_logging.tqdm(starts, desc="perplexity", leave=False):
            total += _loss(model, tokenizer, windows[start : start + batch_size])
    return PerplexityResult(total / n_tokens, n_tokens, len(sequences), max_length, stride)


def _windows(ids: list[int], max_length: int, stride: int) -> Iterator[Window]:
    """Windows of a text; each scores the tokens that the one before did not reach, the first one's first has none."""
    reached = 1
    for start in range(0, len(ids), stride):
        end = min(start + max_length, len(ids))
        if end > reached:
            yield ids[start:end], end - reached
        reached = max(reached, end)
        if end == len(ids):
            return


def _loss(model: nn.Module, tokenizer: Any, windows: Sequence[Window]) -> float:
    """The summed negative log-likelihood of the scored tokens, in nats."""
    longest = max(len(ids) for ids, _ in windows)
    filler = getattr(tokenizer, "pad_token_id", None) or 0
    ids = torch.full((len(windows), longest), filler)
    mask, scored = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
    for row, (tokens, n_scored) in enumerate(windows):
        # padded on the right: no token before sees it, and positions count from the first token
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        scored[row, len(tokens) - n_scored : len(tokens)] = True
    device = next(model.parameters()).device
    ids, mask, scored = ids.to(device), mask.to(device), scored.to(device)
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    total = 0.0
    for row, wanted in enumerate(scored[:, 1:]):  # the logits at a position are those of the next token
        losses = nn.functional.cross_entropy(logits[row, :-1][wanted].float(), ids[row, 1:][wanted], reduction="none")
        total += float(losses.double().sum())
    return total


def _texts(texts: Any) -> list[str]:
    if isinstance(texts, Path):
        texts = [texts.read_text(encoding="utf-8")]
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(f"texts: got {type(texts).__name__}, expected a list of texts, or a pathlib.Path of a file")
    if not texts:
        raise ValueError("texts: got an empty list, expected at least one text")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{number}]: got {type(text).__name__}, expected str")
        if not text.strip():
            raise ValueError(f"texts[{number}]: is empty; leave it out")
    return list(texts)


def _check_model(model: nn.Module) -> None:
    name = type(model).__name__
    is_causal = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or name.endswith(("ForCausalLM", "LMHeadModel"))
    if not is_causal:
        raise TypeError(
            f"model: got a {name}, which has no causal language-modelling head; "
            "load it with transformers.AutoModelForCausalLM"
        )
    config = getattr(model, "config", None)
    is_encoder = getattr(config, "model_type", None) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if is_encoder and not getattr(config, "is_decoder", False):
        raise ValueError(
            f"model: got a {name} whose tokens see those after them; load it with is_decoder=True, "
            "or score it on a task instead"
        )


def _lengths(model: nn.Module, max_length: int | None, stride: int | None) -> tuple[int, int]:
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if max_length is None:
        max_length = min(positions or _LONGEST, _LONGEST)
    if max_length < 2 or (positions is not None and max_length > positions):
        room = f"2 to {positions}, the model's positions" if positions is not None else "at least 2"
        raise ValueError(f"max_length: got {max_length}, expected {room}")
    if stride is None:
        stride = max_length // 2
    if not 1 <= stride < max_length:
        raise ValueError(
            f"stride: got {stride}, expected 1 to {max_length - 1}, less than max_length: "
            "every window needs a token to begin with"
        )
    return max_length, stride
