"""Open a model by folder or hub name, compressed or not, with a head for a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from .checkpoint import is_checkpoint, known_class, load
from .quantizer import attach
from .tasks import Task

_PRETRAINING = ("ForMaskedLM", "ForPreTraining")  # heads that tasks replace; the body has a pooler that they lack


def open_model(name: str | Path, *, as_stored: bool = False) -> Any:
    """A compressed model as the class it was saved from, or any of transformers.

    A dense model comes as the class that its ``config.json`` names. Only encoders with the head of their pre-training
    (masked language modelling) come without it.

    Parameters
    ----------
    name : str or Path
        A folder or the name of a model on the Hugging Face hub.
    as_stored : bool
        Keep that head too, and be the class that ``compress_checkpoint`` compresses.

    Raises
    ------
    ValueError
        If there is no such model.
    """
    if is_checkpoint(name):
        return load(name)
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        stored = (config.architectures or ["none"])[0]
        is_replaced = stored.endswith(_PRETRAINING) and not as_stored
        cls: Any = None if is_replaced else known_class(stored)
        return (cls or transformers.AutoModel).from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model: {name} is neither a folder with a model nor a name on the hub: {_first_line(error)}"
        ) from error


def open_tokenizer(name: str | Path) -> Any:
    """The tokenizer that belongs to a model.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        return transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"model: {name} has no tokenizer beside it: {_first_line(error)}") from error


def with_head(model: Any, task: Task, *, seed: int = 0) -> Any:
    """The model with a classification (or regression) head of the task's size.

    A model that has one keeps it. The body of any other, compressed or not, is put under a new one whose weights are
    drawn with ``seed``, and so is what the body lacks for it (a pooler); a head for something else is left behind.

    Raises
    ------
    ValueError
        If the model has a head of another size.
    """
    if type(model).__name__.endswith("ForSequenceClassification"):
        if model.config.num_labels != task.n_labels:
            raise ValueError(
                f"model: its head has {model.config.num_labels} labels, task {task.name!r} {task.n_labels}; "
                "start from a model without a head"
            )
        return model
    config = model.config
    config.num_labels = task.n_labels
    config.problem_type = "regression" if task.is_regression else "single_label_classification"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        headed: Any = transformers.AutoModelForSequenceClassification.from_config(config)
    body = getattr(model, "base_model", model)
    like = next(body.parameters())
    headed.to(like.device, like.dtype)
    for name, part in getattr(headed, headed.base_model_prefix).named_children():
        if getattr(body, name, None) is None:
            setattr(body, name, part)
    setattr(headed, headed.base_model_prefix, body)
    if getattr(model, "hf_quantizer", None) is not None:
        attach(headed, model.hf_quantizer.quantization_config, model.hf_quantizer.report)
    return headed.train(model.training)


def _first_line(error: Exception) -> str:
    """What transformers says first; the rest is advice on its own options."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
