"""transformers' Trainer with what compressed models want: a rate of their own for the cores, and a teacher."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from .distillation import distillation_loss
from .targets import require_mpo_layers

# BertForSequenceClassification, BertForMaskedLM, ...: of these heads nearly none hands num_items_in_batch on to its
# loss; of causal and sequence-to-sequence language models nearly all do.
_HEAD_OF_BATCH_MEANS = re.compile(r"For(?!CausalLM|ConditionalGeneration)[A-Z]")


class MPOTrainer(Trainer):
    """transformers' ``Trainer``; dense models train with it too.

    Parameters
    ----------
    model : PreTrainedModel, optional
        Compressed or not. After ``freeze_central`` this is lightweight fine-tuning.
    args : TrainingArguments, optional
    core_learning_rate : float, optional
        The peak for the trainable cores of MPO layers; everything else, and by default the cores too, has
        ``args.learning_rate``. Weight decay is the Trainer's: none on biases and norms.
    teacher : nn.Module, optional
        The dense model, with the same head: the student is then drawn to its answers. It is moved to the training
        device and put in evaluation mode; it gets no gradients, is part of no checkpoint, and of several processes each
        holds a whole one.
    temperature : float
        Of the softened distributions that student and teacher are compared at.
    alpha : float
        The loss is ``alpha`` times the distance to the teacher and ``1 - alpha`` times the task's; without labels,
        and for models without a head, the distance alone.
    **options
        Those of ``Trainer``: ``train_dataset``, ``data_collator``, ``callbacks``, ...

    Raises
    ------
    ValueError
        If an option is out of range, ``core_learning_rate`` is given for a model without trainable cores, the
        teacher is the model itself or answers in another shape, or ``args.fsdp`` would be passed over.

    Notes
    -----
    Heads other than causal and sequence-to-sequence language models mostly drop ``num_items_in_batch``, while the
    Trainer believes that whoever takes ``**kwargs`` uses it: loss and gradient then grow with accumulation steps times
    processes (huggingface/transformers issue 47688). For these heads the Trainer is told so, and takes
    the mean over micro-batches and processes. A model that has an attribute ``accepts_loss_kwargs`` decides itself.

    Resuming (``train(resume_from_checkpoint=...)``) needs a model prepared as at the start: compressed in the same way,
    then ``freeze_central``. Which cores are frozen is a matter of the model, and stays as it is.
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *,
        core_learning_rate: float | None = None,
        teacher: nn.Module | None = None,
        temperature: float = 2.0,
        alpha: float = 0.5,
        **options: Any,
    ) -> None:
        _check(core_learning_rate, temperature, alpha)
        if args is not None and args.fsdp and args.device.type == "cpu":
            raise ValueError(
                "args.fsdp: Accelerate shards on accelerators only, and would train whole replicas here; leave it out, "
                "or shard with torch's fully_shard in a loop of your own"
            )
        super().__init__(model, args, **options)
        network: Any = self.model
        trained = network.get_base_model() if hasattr(network, "get_base_model") else network
        if not hasattr(trained, "accepts_loss_kwargs") and _HEAD_OF_BATCH_MEANS.search(type(trained).__name__):
            self.model_accepts_loss_kwargs = False
        if core_learning_rate is not None:
            _trainable_cores(network)
        self.core_learning_rate = core_learning_rate
        self.temperature, self.alpha = temperature, alpha
        self.teacher = teacher
        if teacher is not None:
            if teacher is self.model:
                raise ValueError("teacher: got the model itself; pass the dense model, e.g. a deep copy made before")
            teacher.to(self.args.device).eval()
            if not self.label_names:
                self.can_return_loss = True  # a model without a head takes no labels: its loss needs none

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        network: Any = self.model if model is None else model
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.core_learning_rate is not None and is_new:
            _set_rate(optimizer, _trainable_cores(network), self.core_learning_rate)
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if self.teacher is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        batch = dict(inputs)  # label smoothing takes the labels out
        questions = {key: value for key, value in batch.items() if key not in self.label_names}
        if len(questions) < len(batch):
            task_loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        else:
            task_loss, outputs = None, model(**inputs)
        with torch.no_grad():
            target = self.teacher(**questions)
        n_items = num_items_in_batch if self.model_accepts_loss_kwargs else None
        loss = distillation_loss(
            self.accelerator.unwrap_model(model, keep_torch_compile=False),
            outputs,
            target,
            batch,
            temperature=self.temperature,
            n_items=n_items,
        )
        if n_items is not None and self.args.average_tokens_across_devices:
            # The items are those of all devices, whose mean the gradient will be.
            loss = loss * (self.accelerator.num_processes if self.args.n_gpu <= 1 else self.args.n_gpu)
        if task_loss is not None:
            loss = self.alpha * loss + (1 - self.alpha) * task_loss
        return (loss, outputs) if return_outputs else loss


def _trainable_cores(model: nn.Module) -> set[int]:
    layers = require_mpo_layers(model, "core_learning_rate")
    cores = {id(core) for _, layer, _ in layers for core in layer.cores if core.requires_grad}
    if not cores:
        raise ValueError("core_learning_rate: every core of the model is frozen; leave it out, or call freeze_central")
    return cores


def _set_rate(optimizer: torch.optim.Optimizer, cores: set[int], rate: float) -> None:
    """Split every group into cores and others, and give the cores their rate."""
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        ours = [parameter for parameter in group["params"] if id(parameter) in cores]
        others = [parameter for parameter in group["params"] if id(parameter) not in cores]
        if others:
            optimizer.add_param_group({**group, "params": others})
        if ours:
            optimizer.add_param_group({**group, "params": ours, "lr": rate})


def _check(core_learning_rate: float | None, temperature: float, alpha: float) -> None:
    for name, value in (("core_learning_rate", core_learning_rate), ("temperature", temperature)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}: got {value}, expected a positive number")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: got {alpha}, expected a number from 0 (the task alone) to 1 (the teacher alone)")
