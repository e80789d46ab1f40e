"""Fine-tune a model, dense or compressed, on a task with transformers' Trainer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .checkpoint import write_text
from .evaluation import encode
from .report import parameter_report
from .tasks import Split, Task


@dataclass(frozen=True)
class FinetuneLog:
    """What a training run did.

    Attributes
    ----------
    steps : int
    loss : float
        The mean over the run.
    seconds_per_step : float
        Wall-clock time, loading of batches included.
    """

    steps: int
    loss: float
    seconds_per_step: float


def finetune(
    model: nn.Module,
    tokenizer: Any,
    task: Task,
    split: Split,
    *,
    steps: int,
    learning_rate: float,
    batch_size: int = 32,
    warmup: float = 0.06,
    max_length: int = 128,
    seed: int = 0,
    folder: str | Path | None = None,
    save_steps: int = 500,
    progress: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
) -> FinetuneLog:
    """Train the parameters that are trainable, in place, with AdamW and linear decay.

    Parameters
    ----------
    model : nn.Module
        With a head for the task. After ``freeze_central`` this is lightweight fine-tuning.
    tokenizer : transformers tokenizer
    task : Task
    split : Split
        The training sentences.
    steps : int
        Optimiser steps.
    learning_rate : float
        The peak; 3e-5 to 1e-4 where everything trains, around 2e-4 where the auxiliary tensors do.
    batch_size : int
        Sentences per step and device.
    warmup : float
        Fraction of the steps.
    max_length : int
        Tokens; longer texts are cut.
    seed : int
        Of the order of the sentences and of dropout.
    folder : str or Path, optional
        Where checkpoints of the run are kept, every ``save_steps``; a run that was interrupted goes on from the last.
    progress : bool
        Whether the Trainer shows its progress bar and logs.
    callbacks : sequence of TrainerCallback
        Handed to the Trainer.

    Returns
    -------
    FinetuneLog

    Raises
    ------
    ValueError
        If there are no steps, or ``folder`` holds checkpoints of a run with other settings.

    Notes
    -----
    On CUDA in bfloat16 where there is one, on the CPU otherwise; under ``torchrun`` on all processes
    (transformers' Trainer and Accelerate).
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected a positive integer")
    # Heads for classification drop num_items_in_batch, so that loss and gradient would grow with the accumulation
    # steps (huggingface/transformers issue 47688).
    model.accepts_loss_kwargs = False  # type: ignore[assignment]
    with ExitStack() as stack:
        target = str(folder) if folder is not None else stack.enter_context(tempfile.TemporaryDirectory())
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=target,
                max_steps=steps,
                learning_rate=learning_rate,
                per_device_train_batch_size=batch_size,
                warmup_steps=round(warmup * steps),
                lr_scheduler_type="linear",
                train_sampling_strategy="group_by_length",  # batches with little padding
                seed=seed,
                bf16=torch.cuda.is_available(),
                save_strategy="no" if folder is None else "steps",
                save_steps=save_steps,
                save_total_limit=1,
                logging_steps=max(1, steps // 10),
                report_to=[],
                disable_tqdm=not progress,
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            train_dataset=_Examples(model, tokenizer, task, split, max_length),
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=list(callbacks),
        )
        if not progress:
            trainer.remove_callback(PrinterCallback)
        settings = {
            "task": task.name,
            "examples": len(split),
            "steps": steps,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "seed": seed,
            "trainable": parameter_report(model).trainable,
        }
        resume = None if folder is None else _last_checkpoint(Path(folder), settings)
        result = trainer.train(resume_from_checkpoint=resume)
    done = 0 if resume is None else int(resume.rpartition("-")[2])
    return FinetuneLog(steps, result.training_loss, result.metrics["train_runtime"] / max(1, steps - done))


def _last_checkpoint(folder: Path, settings: dict[str, Any]) -> str | None:
    """The checkpoint to go on from; one of a run with other settings is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "settings.json"
    checkpoint = get_last_checkpoint(str(folder))
    if checkpoint is not None and record.is_file() and (earlier := json.loads(record.read_text())) != settings:
        changed = ", ".join(f"{name} {earlier.get(name)}" for name in settings if earlier.get(name) != settings[name])
        raise ValueError(
            f"folder: {folder} holds checkpoints of a run with other settings ({changed}); remove it to start anew"
        )
    write_text(record, json.dumps(settings))
    return checkpoint


class _Examples(Dataset):
    """A split as tokenised examples, padded later batch by batch."""

    def __init__(self, model: nn.Module, tokenizer: Any, task: Task, split: Split, max_length: int) -> None:
        self.inputs = encode(model, tokenizer, split.texts, max_length=max_length)
        self.labels = split.labels.astype("float32" if task.is_regression else "int64")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**{key: values[index] for key, values in self.inputs.items()}, "labels": self.labels[index]}
