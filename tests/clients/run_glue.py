"""Fine-tune and evaluate a sequence classifier on two CSV files, with transformers' own parts.

    python run_glue.py --model_name_or_path FOLDER --train_file train.csv --validation_file validation.csv \
        --output_dir OUT --do_train --do_eval --max_steps 4 --use_cpu

The files have a column ``label``, and ``sentence`` or ``sentence1`` and ``sentence2``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import datasets
import numpy as np
import tnmpo.integrations.transformers  # noqa: F401
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "a folder, or a name on the hub"})


@dataclass
class DataArguments:
    train_file: str | None = field(default=None, metadata={"help": "CSV with a header"})
    validation_file: str | None = field(default=None, metadata={"help": "CSV with a header"})
    max_seq_length: int = field(default=128, metadata={"help": "longer inputs are cut"})


def main() -> None:
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    names, data, training = parser.parse_args_into_dataclasses(sys.argv[1:])
    set_seed(training.seed)

    files = {"train": data.train_file, "validation": data.validation_file}
    raw = datasets.load_dataset(
        "csv",
        data_files={split: file for split, file in files.items() if file},
        cache_dir=f"{training.output_dir}/data",
    )
    some = next(iter(raw.values()))
    labels = sorted({label for split in raw.values() for label in split["label"]})
    columns = [name for name in ("sentence", "sentence1", "sentence2") if name in some.column_names]

    config = AutoConfig.from_pretrained(names.model_name_or_path, num_labels=len(labels))
    tokenizer = AutoTokenizer.from_pretrained(names.model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(names.model_name_or_path, config=config)

    def tokenize(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return tokenizer(*(rows[name] for name in columns), max_length=data.max_seq_length, truncation=True)

    prepared = raw.map(tokenize, batched=True, remove_columns=columns)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        found = np.argmax(prediction.predictions, axis=1)
        return {
            "accuracy": accuracy_score(prediction.label_ids, found),
            "f1": f1_score(prediction.label_ids, found),
            "matthews_correlation": matthews_corrcoef(prediction.label_ids, found),
        }

    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=prepared.get("train"),
        eval_dataset=prepared.get("validation"),
        compute_metrics=compute_metrics,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    if training.do_train:
        result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    if training.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)


if __name__ == "__main__":
    main()
