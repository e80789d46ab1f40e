"""Predict a task's labels and score them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from .targets import evaluation_mode
from .tasks import Split, Task, TaskData

Texts = Sequence[tuple[str, ...]]


def token_batches(
    model: nn.Module, tokenizer: Any, texts: Texts, *, batch_size: int = 64, max_length: int = 128
) -> Iterator[dict[str, Tensor]]:
    """Tokenise texts in their order, padded to the longest of each batch.

    Parameters
    ----------
    model : nn.Module
        Decides which inputs are made: token types only for pairs, and where its ``forward`` takes them.
    tokenizer : transformers tokenizer
    texts : sequence of tuples of one or two sentences

    Yields
    ------
    dict of (batch, length) tensors
    """
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        yield dict(encode(model, tokenizer, batch, max_length=max_length, padding=True, return_tensors="pt"))


def encode(model: nn.Module, tokenizer: Any, texts: Texts, *, max_length: int, **options: Any) -> Any:
    """Tokenise texts at once; token types only for pairs, and where the model's ``forward`` takes them."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    return tokenizer(
        *columns,
        truncation=True,
        max_length=max_length,
        return_token_type_ids=takes_types and len(columns) == 2,
        **options,
    )


@torch.no_grad()
def predict(
    model: nn.Module, tokenizer: Any, task: Task, split: Split, *, batch_size: int = 64, max_length: int = 128
) -> np.ndarray:
    """The model's answers: class ids, or real values for a regression.

    A model without a head answers a regression on pairs (STS-B) with the cosine similarity of the mean of its
    token vectors, padding left out.

    Returns
    -------
    (n,) array

    Raises
    ------
    ValueError
        If the model has no head for the task, or one of another size.
    """
    if type(model).__name__.endswith("ForSequenceClassification"):
        labels = getattr(getattr(model, "config", None), "num_labels", task.n_labels)
        if labels != task.n_labels:
            raise ValueError(
                f"predict: the model has {labels} labels, task {task.name!r} {task.n_labels}; "
                "load it with num_labels set, or fine-tune it on this task"
            )
        logits = _run(model, tokenizer, split.texts, batch_size, max_length, _logits).float().numpy()
        if task.is_regression:
            return logits[:, 0]
        classes = classes_of_head(model, task)
        return logits.argmax(-1) if classes is None else classes[logits.argmax(-1)]
    if not (task.is_regression and len(task.columns) == 2):
        raise ValueError(
            f"predict: a {type(model).__name__} has no classification head, which task {task.name!r} needs; "
            "fine-tune it on the task first"
        )
    body = getattr(model, "base_model", model)  # a head for something else gives no vectors
    first, second = (
        _run(body, tokenizer, [(text[side],) for text in split.texts], batch_size, max_length, _mean) for side in (0, 1)
    )
    return torch.cosine_similarity(first, second).float().numpy()


def classes_of_head(model: nn.Module, task: Task) -> np.ndarray | None:
    """The task's class of every output of a head that names them in another order; None where they are in order.

    A head whose names (``config.id2label``) are not those of the task is taken to be in order.
    """
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    found = [str(names.get(output, "")).lower() for output in range(task.n_labels)]
    if tuple(found) == task.classes or sorted(found) != sorted(task.classes):
        return None
    return np.array([task.classes.index(name) for name in found])


def evaluate(
    model: nn.Module, tokenizer: Any, task: Task, split: Split, *, batch_size: int = 64, max_length: int = 128
) -> float:
    """The task's metric on a split; higher is better.

    Parameters are those of ``predict``.

    Raises
    ------
    ValueError
        If the model has no head for the task.
    """
    answers = predict(model, tokenizer, task, split, batch_size=batch_size, max_length=max_length)
    return task.score(answers, split.labels)


@dataclass(frozen=True)
class TaskScores:
    """What a model scores on the splits that a task is reported on; ``print`` shows it in a line.

    Attributes
    ----------
    task : Task
    scores : dict of str to float
        Every metric that GLUE reports, the main one first; ``accuracy_mismatched`` is that of MNLI's second dev split.
    majority : float
        The main metric of the most frequent class of the dev split.
    n_examples : int
        Of all splits together.
    """

    task: Task
    scores: dict[str, float]
    majority: float
    n_examples: int

    @property
    def score(self) -> float:
        """The task's main metric; of MNLI the matched one."""
        return self.scores[self.task.metric]

    @property
    def is_majority(self) -> bool:
        """Whether the score is just that of the most frequent class, as is usual on WNLI."""
        return math.isclose(self.score, self.majority, abs_tol=1e-12)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return {
            "task": self.task.name,
            "metric": self.task.metric,
            "scores": self.scores,
            "majority": self.majority,
            "is_majority": self.is_majority,
            "n_examples": self.n_examples,
        }

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.4f}" for name, value in self.scores.items())
        note = "; this is what the most frequent class alone scores" if self.is_majority else ""
        return f"{self.task.name} dev ({self.n_examples} examples): {values}{note}"


def evaluate_task(
    model: nn.Module, tokenizer: Any, data: TaskData, *, batch_size: int = 64, max_length: int = 128
) -> TaskScores:
    """Every metric that GLUE reports for a task, on its dev split; of MNLI on both.

    Parameters are those of ``predict``.

    Raises
    ------
    ValueError
        If the model has no head for the task.
    """
    task = data.task
    scores: dict[str, float] = {}
    for name, split in data.dev_splits.items():
        answers = predict(model, tokenizer, task, split, batch_size=batch_size, max_length=max_length)
        suffix = "_mismatched" if name == "dev_mismatched" else ""
        scores |= {metric + suffix: value for metric, value in task.scores(answers, split.labels).items()}
    return TaskScores(task, scores, task.majority_score(data.dev), sum(map(len, data.dev_splits.values())))


def _logits(output: Any, batch: dict[str, Tensor]) -> Tensor:
    return output.logits


def _mean(output: Any, batch: dict[str, Tensor]) -> Tensor:
    mask = batch["attention_mask"][..., None]
    return (output.last_hidden_state * mask).sum(1) / mask.sum(1)


def _run(model: nn.Module, tokenizer: Any, texts: Texts, batch_size: int, max_length: int, read: Any) -> Tensor:
    """Results in the order of the texts, which run sorted by length so that little padding is computed."""
    order = sorted(range(len(texts)), key=lambda index: sum(map(len, texts[index])))
    device = next(model.parameters()).device
    results: list[Tensor] = []
    with evaluation_mode(model):
        batches = token_batches(
            model, tokenizer, [texts[index] for index in order], batch_size=batch_size, max_length=max_length
        )
        total = -(-len(texts) // batch_size)
        for batch in transformers_logging.tqdm(batches, desc="evaluate", total=total, leave=False):
            on_device = {key: value.to(device) for key, value in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                results.append(read(model(**on_device), on_device).cpu())
    return torch.cat(results)[np.argsort(order)]
