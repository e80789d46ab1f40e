"""Fine-tune a model, dense or compressed, on a task with transformers' Trainer."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from .checkpoint import write_text
from .evaluation import classes_of_head, encode
from .report import parameter_report
from .tasks import Split, Task
from .trainer import MPOTrainer

_RECORD = "settings.json"


@dataclass(frozen=True)
class FinetuneLog:
    """What a training run did.

    Attributes
    ----------
    steps : int
        Optimiser steps; fewer than asked for where the run was stopped early.
    loss : float
        The mean over the run.
    seconds_per_step : float
        Wall-clock time, loading of batches included, and evaluations where there are any.
    held_out : float or None
        The task's metric on the examples that were set aside, of the model as it is left; of a model without a head its
        loss. None where none were.
    """

    steps: int
    loss: float
    seconds_per_step: float
    held_out: float | None = None


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
    core_learning_rate: float | None = None,
    teacher: nn.Module | None = None,
    early_stop: int | None = None,
    hold_out: int | Split | None = None,
) -> FinetuneLog:
    """Train the parameters that are trainable, in place, with AdamW and linear decay.

    Parameters
    ----------
    model : nn.Module
        With a head for the task. After ``freeze_central`` this is lightweight fine-tuning. Without a head it
        learns its teacher's sentence vectors, each sentence alone and without labels.
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
        Where checkpoints of the run are kept; a run that was interrupted goes on from the last.
    save_steps : int
        Steps between two checkpoints, and with ``early_stop`` between two evaluations.
    progress : bool
        Whether the Trainer shows its progress bar and logs.
    callbacks : sequence of TrainerCallback
        Handed to the Trainer.
    core_learning_rate : float, optional
        The peak for the cores of MPO layers, where it is to differ; see ``MPOTrainer``.
    teacher : nn.Module, optional
        The dense model, whose answers are learned beside the labels; see ``MPOTrainer``.
    early_stop : int, optional
        Patience: after so many evaluations in a row without a better one the run ends. The model is left as it
        was at the best. Never pass dev for ``split``: the examples that decide are set aside from it.
    hold_out : int or Split, optional
        How many examples are set aside, or those that were: they are not trained on, decide where ``early_stop`` is
        given, and are scored at the end. With ``early_stop`` a tenth by default, at most 1000.

    Returns
    -------
    FinetuneLog

    Raises
    ------
    ValueError
        If there are no steps, no evaluation would come before the last step, ``folder`` holds checkpoints of a run with
        other settings, or a model without a head has no teacher.

    Notes
    -----
    On CUDA in bfloat16 where there is one, on the CPU otherwise; under ``torchrun`` on all processes
    (transformers' Trainer and Accelerate).
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected a positive integer")
    has_head = "labels" in inspect.signature(model.forward).parameters
    if teacher is None and not has_head:
        raise ValueError(
            f"model: a {type(model).__name__} has no head for task {task.name!r}; load it with one, or "
            "pass a teacher whose vectors it learns"
        )
    if early_stop is not None:
        _check_early_stop(early_stop, save_steps, steps, folder)
        hold_out = hold_out if hold_out is not None else min(1000, len(split) // 10)
    held_out = hold_out if isinstance(hold_out, Split) else None
    if isinstance(hold_out, int):
        split, held_out = split.hold_out(hold_out, seed)
    metric = "eval_score" if has_head else "eval_loss"
    settings = {
        "task": task.name,
        "examples": len(split),
        "steps": steps,
        "learning_rate": learning_rate,
        "core_learning_rate": core_learning_rate,
        "batch_size": batch_size,
        "warmup": warmup,
        "max_length": max_length,
        "seed": seed,
        "teacher": None if teacher is None else _name_of(teacher),
        "early_stop": early_stop,
        "trainable": parameter_report(model).trainable,
    }
    with ExitStack() as stack:
        target = str(folder) if folder is not None else stack.enter_context(tempfile.TemporaryDirectory())
        trainer = MPOTrainer(
            model,
            TrainingArguments(
                output_dir=target,
                max_steps=steps,
                learning_rate=learning_rate,
                per_device_train_batch_size=batch_size,
                per_device_eval_batch_size=batch_size,
                warmup_steps=round(warmup * steps),
                lr_scheduler_type="linear",
                train_sampling_strategy="group_by_length",  # batches with little padding
                seed=seed,
                bf16=torch.cuda.is_available(),
                eval_strategy="no" if early_stop is None else "steps",
                eval_steps=None if early_stop is None else save_steps,
                save_strategy="no" if folder is None and early_stop is None else "steps",
                save_steps=save_steps,
                save_total_limit=1,
                load_best_model_at_end=early_stop is not None,
                metric_for_best_model=metric,
                greater_is_better=has_head,
                restore_callback_states_from_checkpoint=early_stop is not None,
                logging_steps=max(1, steps // 10),
                report_to=[],
                disable_tqdm=not progress,
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            core_learning_rate=core_learning_rate,
            teacher=teacher,
            train_dataset=_Examples(model, tokenizer, task, split, max_length, has_head),
            eval_dataset=_Examples(model, tokenizer, task, held_out, max_length, has_head) if held_out else None,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=_scorer(task, classes_of_head(model, task)) if has_head else None,
            callbacks=[*callbacks, *([EarlyStoppingCallback(early_stop)] if early_stop is not None else [])],
        )
        if not progress:
            trainer.remove_callback(PrinterCallback)
        resume = None
        if folder is not None:
            resume = _last_checkpoint(Path(folder), settings)
            if trainer.is_world_process_zero():
                write_text(Path(folder) / _RECORD, json.dumps(settings))
        result = trainer.train(resume_from_checkpoint=resume)
        score = trainer.evaluate()[metric] if held_out is not None else None
    taken = trainer.state.global_step
    done = 0 if resume is None else int(resume.rpartition("-")[2])
    return FinetuneLog(taken, result.training_loss, result.metrics["train_runtime"] / max(1, taken - done), score)


def _name_of(teacher: nn.Module) -> str:
    """Where it was loaded from, else its class."""
    return getattr(teacher, "name_or_path", "") or type(teacher).__name__


def _check_early_stop(patience: int, save_steps: int, steps: int, folder: str | Path | None) -> None:
    if patience < 1:
        raise ValueError(f"early_stop: got {patience}, expected a positive number of evaluations")
    if save_steps >= steps:
        raise ValueError(
            f"early_stop: with save_steps {save_steps} of {steps} steps only the last is evaluated; lower save_steps"
        )
    if folder is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("early_stop: several processes load the best model from one place; pass a folder they share")


def _last_checkpoint(folder: Path, settings: dict[str, Any]) -> str | None:
    """The checkpoint to go on from; one of a run with other settings is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / _RECORD
    checkpoint = get_last_checkpoint(str(folder))
    if checkpoint is not None and record.is_file() and (earlier := json.loads(record.read_text())) != settings:
        changed = ", ".join(f"{name} {earlier.get(name)}" for name in settings if earlier.get(name) != settings[name])
        raise ValueError(
            f"folder: {folder} holds checkpoints of a run with other settings ({changed}); remove it to start anew"
        )
    return checkpoint


def _scorer(task: Task, classes: np.ndarray | None) -> Callable[[EvalPrediction], dict[str, float]]:
    """The task's metric, as the Trainer wants it; ``classes`` are those of the head's outputs."""

    def score(answers: EvalPrediction) -> dict[str, float]:
        logits = answers.predictions[0] if isinstance(answers.predictions, tuple) else answers.predictions
        guessed, right = logits[:, 0] if task.is_regression else logits.argmax(-1), answers.label_ids
        if classes is not None:
            guessed, right = classes[guessed], classes[right]
        return {"score": task.score(guessed, right)}

    return score


class _Examples(Dataset):
    """A split as tokenised examples, padded later batch by batch; for a model without a head every sentence alone."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, task: Task, split: Split, max_length: int, has_head: bool
    ) -> None:
        texts = split.texts if has_head else tuple((text,) for texts in split.texts for text in texts)
        self.inputs = encode(model, tokenizer, texts, max_length=max_length)
        self.labels = split.labels.astype("float32" if task.is_regression else "int64") if has_head else None
        classes = classes_of_head(model, task) if has_head else None
        if classes is not None:  # the head's numbers of the classes
            self.labels = np.argsort(classes)[split.labels]
        self.size = len(texts)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {key: values[index] for key, values in self.inputs.items()}
        return example if self.labels is None else {**example, "labels": self.labels[index]}
