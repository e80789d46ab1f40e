"""Run by torchrun on two processes: trains a tiny compressed model on the CPU, writes what each process has at the end.

torchrun --standalone --nproc-per-node 2 ddp_train.py FOLDER
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
import transformers
from tiny import batch, bert
from tnmpo.integrations.transformers import MPOConfig, compress, freeze_central
from tnmpo.integrations.transformers.trainer import MPOTrainer
from torch import nn
from torch.utils.data import Dataset

STEPS = 4
ROWS_PER_STEP = 8
FSDP_STEPS = 3


class Rows(Dataset):
    """Sentences of several lengths, with labels."""

    def __init__(self, n: int = 48) -> None:
        self.rows = batch(size=n)
        self.labels = torch.arange(n) % 3

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**{key: value[index] for key, value in self.rows.items()}, "labels": self.labels[index]}


def light_model() -> tuple[nn.Module, nn.Module]:
    """A compressed model with frozen central tensors, and the dense one; no dropout, which each process draws anew."""
    settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 3}
    dense = bert("BertForSequenceClassification", **settings)
    model = copy.deepcopy(dense)
    compress(model, MPOConfig(ratio=0.6, shape="low_rank", execution="dense"))
    freeze_central(model)
    return model, dense


def trainer(folder: Path, processes: int, **settings) -> MPOTrainer:
    """SGD, since Adam makes a step out of the rounding errors of a gradient that is zero."""
    model, teacher = light_model()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        learning_rate=0.1,
        optim="sgd",
        per_device_train_batch_size=ROWS_PER_STEP // processes,
        save_strategy="steps",
        save_steps=STEPS,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=3,
        **settings,
    )
    result = MPOTrainer(model, arguments, core_learning_rate=0.05, teacher=teacher, train_dataset=Rows())
    result.remove_callback(transformers.PrinterCallback)
    return result


def plain_steps(model: nn.Module, rank: int, processes: int) -> float:
    """Plain torch, each process on its share of every batch; the loss of the last one."""
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    rows, share = Rows(), ROWS_PER_STEP // processes
    model.train()
    for step in range(FSDP_STEPS):
        start = step * ROWS_PER_STEP + rank * share
        chosen = [rows[index] for index in range(start, start + share)]
        loss = model(**{key: torch.stack([row[key] for row in chosen]) for key in chosen[0]}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def main(folder: Path) -> None:
    ours = trainer(folder / "run", 2, ddp_backend="gloo")
    loss = ours.train().training_loss
    rank = torch.distributed.get_rank()
    torch.save(
        {
            "loss": loss,
            "parameters": dict(ours.model.named_parameters()),
            "wrapped": type(ours.model_wrapped).__name__,
            "teacher": type(ours.teacher).__name__,
        },
        folder / f"ddp-{rank}.pt",
    )

    try:
        trainer(folder / "sharded", 2, ddp_backend="gloo", fsdp=True)
        refusal = ""
    except ValueError as error:
        refusal = str(error)

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, _ = light_model()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (*model.bert.encoder.layer, model):
        fully_shard(layer, mesh=mesh)
    loss = plain_steps(model, rank, 2)
    held = sum(parameter.to_local().numel() for parameter in model.parameters())
    whole = {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}
    torch.save({"loss": loss, "parameters": whole, "held": held, "refusal": refusal}, folder / f"fsdp-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
