"""Open a model by folder or hub name, compressed or not, with a head for a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from .checkpoint import is_checkpoint, load
from .quantizer import attach
from .tasks import Task

_HEADS = {  # the heads that are kept, by the end of the class's name
    "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
    "ForCausalLM": transformers.AutoModelForCausalLM,
    "LMHeadModel": transformers.AutoModelForCausalLM,
}


def open_model(name: str | Path) -> Any:
    """A compressed model as the class it was saved from, or any of transformers.

    A dense model keeps a head for classification or for causal language modelling, and comes without one else.

    Parameters
    ----------
    name : str or Path
        A folder or the name of a model on the Hugging Face hub.

    Raises
    ------
    ValueError
        If there is no such model.
    """
    if is_checkpoint(name):
        return load(name)
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        auto: Any = transformers.AutoModel
        for ending, with_head_of in _HEADS.items():
            if any(entry.endswith(ending) for entry in config.architectures or ()):
                auto = with_head_of
        return auto.from_pretrained(name)
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

    A model that has one keeps it; a bare one, compressed or not, is put under a new one whose
    weights are drawn with ``seed``.

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
        headed: nn.Module = transformers.AutoModelForSequenceClassification.from_config(config)
    setattr(headed, headed.base_model_prefix, model)  # type: ignore[arg-type]
    if getattr(model, "hf_quantizer", None) is not None:
        attach(headed, model.hf_quantizer.quantization_config, model.hf_quantizer.report)
    return headed.train(model.training)


def _first_line(error: Exception) -> str:
    """What transformers says first; the rest is advice on its own options."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
