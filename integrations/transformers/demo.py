"""The embedded default: everything at once on a small ALBERT and a generated task, offline."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn
from transformers import DataCollatorForLanguageModeling, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from tnmpo import plot

from .acceptability import AcceptabilityData, acceptability_task, corpus, word_tokenizer
from .calibration import calibrate
from .checkpoint import save
from .config import MPOConfig
from .evaluation import evaluate, token_batches
from .models import with_head
from .report import parameter_report
from .squeezing import SqueezeLog, squeeze
from .surgery import absorb, compress, freeze_central
from .targets import mpo_layers
from .training import finetune

_BATCH = 64
_RATE_OF_ALL = 5e-4
_RATE_OF_AUXILIARY = 2e-3


@dataclass(frozen=True)
class DemoSizes:
    """How much the demo computes. The defaults take a few minutes on two cores."""

    pretrain_sentences: int = 20_000
    pretrain_steps: int = 600
    finetune_steps: int = 300
    squeeze_steps: int = 10
    squeeze_finetune_steps: int = 30
    train_sentences: int = 16_000
    validation_sentences: int = 1_000
    test_sentences: int = 2_000


@dataclass(frozen=True)
class DemoRow:
    """One model of the table.

    ``parameters`` are those of the model at rest, ``size`` its weights in bytes.
    """

    model: str
    score: float
    trained: int
    parameters: int
    size: int
    seconds_per_step: float


@dataclass(frozen=True)
class DemoResult:
    """The table, the log of the squeezing and the path of the picture."""

    rows: tuple[DemoRow, ...]
    squeezing: SqueezeLog
    picture: Path


def run_demo(folder: str | Path, *, seed: int = 0, sizes: DemoSizes | None = None) -> DemoResult:
    """Pre-train, fine-tune, compress and squeeze a small ALBERT on generated sentences.

    Parameters
    ----------
    folder : str or Path
        Gets the picture and the squeezed model.
    seed : int
        Of the sentences, the weights and the order of training.
    sizes : DemoSizes, optional

    Returns
    -------
    DemoResult
        Scores are accuracies on a test split that nothing else looks at; the squeezing decides on a validation split.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _bars() as bars:
        return _Demo(folder, seed, sizes or DemoSizes(), bars).run()


class _Demo:
    def __init__(self, folder: Path, seed: int, sizes: DemoSizes, bars: Progress) -> None:
        self.folder, self.seed, self.sizes, self.bars = folder, seed, sizes, bars
        self.tokenizer = word_tokenizer()
        self.data: AcceptabilityData = acceptability_task(
            seed,
            n_train=sizes.train_sentences,
            n_validation=sizes.validation_sentences,
            n_test=sizes.test_sentences,
        )
        self.rows: list[DemoRow] = []

    def run(self) -> DemoResult:
        base = self.pretrain()
        self.train_and_report("dense", self.fresh(base), _RATE_OF_ALL)

        full = self.fresh(base)
        compress(full, MPOConfig())
        self.train_and_report("MPO, full rank", full, _RATE_OF_ALL)

        light = self.fresh(base)
        compress(light, MPOConfig())
        freeze_central(light)
        seconds = self.train_and_report("MPO, full rank + LFA", light, _RATE_OF_AUXILIARY)

        before = _spectra(light)
        log = self.squeeze(light)
        self.report("MPO + LFA, squeezed", light, seconds)
        picture = self.folder / "bonds.png"
        plot.bonds(before, _spectra(light)).savefig(picture, dpi=110)
        ranks = {name: layer.ranks for name, layer, _ in mpo_layers(light)}
        save(light, self.folder / "squeezed", self.tokenizer)

        cut = self.fresh(base)
        compress(cut, MPOConfig())
        for name, layer, _ in mpo_layers(cut):
            layer.truncate_(ranks[name])
        freeze_central(cut)
        # as many steps as the squeezed model had altogether
        steps = self.sizes.finetune_steps + len(log.steps) * self.sizes.squeeze_finetune_steps
        self.train_and_report("MPO, cut at once + LFA", cut, _RATE_OF_AUXILIARY, steps)

        budget = sum(layer.mpo.n_parameters for _, layer, _ in mpo_layers(light))
        dense = sum(layer.weight_shape[0] * layer.weight_shape[1] for _, layer, _ in mpo_layers(light))
        low = self.fresh(base)
        texts = self.data.train.spread(min(512, len(self.data.train))).texts
        calibration = calibrate(low, token_batches(low, self.tokenizer, texts))
        calibration.count_tokens(token_batches(low, self.tokenizer, self.data.train.texts))
        compress(low, MPOConfig(ratio=min(1.0, budget / dense), shape="low_rank"), calibration)
        freeze_central(low)
        self.train_and_report("low rank, calibrated + LFA", low, _RATE_OF_AUXILIARY, steps)
        return DemoResult(tuple(self.rows), log, picture)

    def pretrain(self) -> nn.Module:
        """An ALBERT that has learned to fill in masked words."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = transformers.AlbertForMaskedLM(_albert(len(self.tokenizer)))
        sentences = [self.tokenizer(text) for text in corpus(self.sizes.pretrain_sentences, self.seed)]
        steps = self.sizes.pretrain_steps
        with self.bar("pre-train", steps) as callback:
            trainer = Trainer(
                model=model,
                args=TrainingArguments(
                    output_dir=str(self.folder / "pretraining"),
                    max_steps=steps,
                    per_device_train_batch_size=_BATCH,
                    learning_rate=1e-3,
                    warmup_steps=steps // 10,
                    seed=self.seed,
                    bf16=torch.cuda.is_available(),
                    save_strategy="no",
                    report_to=[],
                    disable_tqdm=True,
                    dataloader_pin_memory=torch.cuda.is_available(),
                ),
                train_dataset=sentences,
                data_collator=DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=0.3, seed=self.seed),
                callbacks=[callback],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return model.albert

    def fresh(self, base: nn.Module) -> nn.Module:
        """A copy of the pre-trained model under a new head."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            body = transformers.AlbertModel(copy.deepcopy(base.config))  # type: ignore[arg-type]
        body.load_state_dict(base.state_dict(), strict=False)  # the masked model has no pooler
        model = with_head(body, self.data.task, seed=self.seed)
        return model.to(next(base.parameters()).device)

    def train(self, label: str, model: nn.Module, learning_rate: float, steps: int) -> float:
        with self.bar(label, steps) as callback:
            log = finetune(
                model,
                self.tokenizer,
                self.data.task,
                self.data.train,
                steps=steps,
                learning_rate=learning_rate,
                batch_size=_BATCH,
                seed=self.seed,
                progress=False,
                callbacks=[callback],
            )
        return log.seconds_per_step

    def train_and_report(self, label: str, model: nn.Module, learning_rate: float, steps: int | None = None) -> float:
        seconds = self.train(label, model, learning_rate, steps or self.sizes.finetune_steps)
        self.report(label, model, seconds)
        return seconds

    def report(self, label: str, model: nn.Module, seconds: float) -> None:
        score = evaluate(model, self.tokenizer, self.data.task, self.data.test)
        trained = parameter_report(model).trainable
        if any(True for _ in mpo_layers(model)):
            absorb(model)
        total = parameter_report(model).total
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        self.rows.append(DemoRow(label, score, trained, total, size, seconds))

    def squeeze(self, model: nn.Module) -> SqueezeLog:
        with self.bar("squeeze", self.sizes.squeeze_steps) as callback:

            def tune(current: nn.Module) -> None:
                finetune(
                    current,
                    self.tokenizer,
                    self.data.task,
                    self.data.train,
                    steps=self.sizes.squeeze_finetune_steps,
                    learning_rate=_RATE_OF_AUXILIARY / 2,
                    batch_size=_BATCH,
                    seed=self.seed,
                    progress=False,
                )

            return squeeze(
                model,
                lambda current: evaluate(current, self.tokenizer, self.data.task, self.data.validation),
                tune,
                max_drop=0.02,
                max_steps=self.sizes.squeeze_steps,
                step=8,
                on_step=lambda _: callback.advance(),
            )

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[_Advance]:
        task = self.bars.add_task(label, total=total)
        yield _Advance(lambda: self.bars.advance(task))
        self.bars.update(task, completed=total)


class _Advance(TrainerCallback):
    """Moves a progress bar by one each optimiser step."""

    def __init__(self, advance: Callable[[], None]) -> None:
        self.advance = advance

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance()


@contextmanager
def _bars() -> Iterator[Progress]:
    """One bar a stage; the bars of transformers would write over them."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns) as bars:
            yield bars
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def _albert(vocabulary: int) -> transformers.AlbertConfig:
    return transformers.AlbertConfig(
        vocab_size=vocabulary,
        embedding_size=128,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        type_vocab_size=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        initializer_range=0.05,  # with the usual 0.02, so small a model hardly starts to learn
    )


def _spectra(model: nn.Module) -> dict[str, list[Any]]:
    return {name.removeprefix("albert."): layer.bond_spectra() for name, layer, _ in mpo_layers(model)}
