"""The stages of a run: from one model folder to the next, interrupted at any time and started again.

What a stage makes is built in a folder beside and moved when it is complete, its record with it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from ..calibration import Calibration, calibrate
from ..checkpoint import load, save, write_text, written_beside
from ..config import MPOConfig
from ..evaluation import evaluate as evaluate_model
from ..evaluation import evaluate_task, token_batches
from ..models import open_model, open_tokenizer, with_head
from ..perplexity import evaluate_perplexity
from ..report import CompressionReport, parameter_report
from ..seeds import SeedScores
from ..settings import CalibrationSettings, EvaluateSettings, FinetuneSettings, SqueezeSettings, TaskSettings, plain
from ..sharded import compress_checkpoint
from ..squeezing import SqueezeLog
from ..squeezing import squeeze as squeeze_model
from ..surgery import absorb, freeze_central
from ..surgery import compress as compress_model
from ..targets import mpo_layers
from ..tasks import Split, Task, TaskData, load_task
from ..training import finetune as finetune_model
from .records import check_output, check_plan, to_json, versions, write_plan
from .session import Session

COMPRESSED, FINETUNED, SQUEEZED = "compression.json", "finetune.json", "squeeze.json"


def compress_stage(
    here: Session,
    model: str | Path,
    output: Path,
    config: MPOConfig,
    task: TaskSettings | None = None,
    calibration: CalibrationSettings | None = None,
    settings: dict[str, Any] | None = None,
    cluster: str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Compress a model into a folder, calibrated on a task's training texts where ``calibration`` is given.

    Parameters
    ----------
    here : Session
    model : str or Path
        A folder or a name on the hub.
    output : Path
    config : MPOConfig
    task : TaskSettings, optional
    calibration : CalibrationSettings, optional
    settings : dict, optional
        Kept in the record.
    cluster : str, optional
        Compress a folder matrix by matrix, on dask workers: an address, or ``"local"``.
    workers : int, optional
        Of a local cluster.

    Returns
    -------
    dict
        The record, ``compression.json`` in the folder.
    """
    check_output(output)
    network = collected = None
    if calibration is not None and task is not None:
        data = read_task(task)
        tokenizer = open_tokenizer(model)
        network = open_model(model, as_stored=cluster is not None).to(here.device)
        collected = calibrate_on(
            network, tokenizer, data.train, calibration.examples, calibration.count_all, task.max_length
        )
    if cluster is not None:
        del network  # its weights are read from the folder, as they are needed
        report = compress_checkpoint(model, output, config, calibration=collected, cluster=cluster, workers=workers)
        record = _compression(report, settings)
        write_text(output / COMPRESSED, to_json(record))
    else:
        tokenizer = open_tokenizer(model)
        network = network if network is not None else open_model(model).to(here.device)
        report = compress_model(network, config, collected)
        record = _compression(report, settings)
        with written_beside(output) as part:
            save(network, part, tokenizer)
            write_text(part / COMPRESSED, to_json(record))
    here.say(str(report))
    here.say(f"saved in {output}")
    return record


def finetune_stage(
    here: Session,
    model: str | Path,
    output: Path,
    task: TaskSettings,
    tuning: FinetuneSettings,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Fine-tune a model once per seed and score every run on dev, once, at its end.

    Parameters are those of ``compress_stage``. A run that was interrupted goes on from its last checkpoint, seeds that
    are finished are not run again.

    Returns
    -------
    dict
        The record, ``finetune.json`` in the folder, which holds the model of the first seed.
    """
    check_output(output)
    data = read_task(task)
    tokenizer = open_tokenizer(model)
    work = output.with_name(f".{output.name}.training")
    plan = {"model": str(model), "model_written": _written(model), **plain(task), **plain(tuning)}
    plan.pop("seeds")  # another seed may be added to those that are done
    check_plan(work, plan)
    trained_on = data.train.hold_out(tuning.hold_out, tuning.seeds[0])[0] if tuning.hold_out else data.train
    teacher = open_model(tuning.teacher).to(here.device) if tuning.teacher is not None else None
    if teacher is not None and not _has_head(teacher):
        _check_vectors_are_wanted(teacher, open_model(model), data.task)
    runs: list[dict[str, Any]] = []
    for seed in tuning.seeds:
        done = work / f"seed-{seed}.json"
        if done.is_file() and (seed != tuning.seeds[0] or (work / f"model-{seed}").is_dir()):
            runs.append(json.loads(done.read_text()))
            here.say(f"seed {seed}: finished before, {data.task.metric} {runs[-1]['score']:.4f}")
            continue
        network = _to_train(here, open_model(model)).to(here.device)
        if teacher is None or _has_head(teacher):  # else it learns the teacher's sentence vectors, and has none either
            network = with_head(network, data.task, seed=seed)
        if tuning.lfa:
            freeze_central(network)
        if not runs:
            here.say(str(parameter_report(network)))
        if here.is_main:
            write_plan(work, plan)
        log = finetune_model(
            network,
            tokenizer,
            data.task,
            trained_on,
            steps=tuning.steps,
            learning_rate=tuning.rate,
            batch_size=tuning.batch_size,
            max_length=task.max_length,
            seed=seed,
            folder=work / f"seed-{seed}",
            save_steps=tuning.save_steps,
            core_learning_rate=tuning.core_learning_rate,
            teacher=teacher,
            early_stop=tuning.early_stop,
        )
        score = evaluate_model(network, tokenizer, data.task, data.dev, max_length=task.max_length)
        trained = parameter_report(network)
        if tuning.lfa:
            absorb(network)
        runs.append(
            {
                "seed": seed,
                "score": score,
                "steps": log.steps,
                "trained_parameters": trained.trainable,
                "auxiliary_parameters": trained.auxiliary,
                "parameters": parameter_report(network).total,
                "seconds_per_step": log.seconds_per_step,
            }
        )
        if here.is_main:
            if seed == tuning.seeds[0]:
                save(network, work / f"model-{seed}", tokenizer)
            write_text(done, to_json(runs[-1]))
            shutil.rmtree(work / f"seed-{seed}", ignore_errors=True)
        PartialState().wait_for_everyone()
        if len(tuning.seeds) > 1:
            here.say(f"seed {seed}: {data.task.metric} {score:.4f}")
    scores = SeedScores(
        data.task.name, "dev", data.task.metric, len(data.dev), {run["seed"]: run["score"] for run in runs}
    )
    record = {
        "task": data.task.name,
        "metric": data.task.metric,
        "split": "dev",
        "score": scores.mean,
        "deviation": scores.deviation,
        "steps": tuning.steps,
        "batch_size": tuning.batch_size,
        "learning_rate": tuning.rate,
        "trained_parameters": runs[0]["trained_parameters"],
        "auxiliary_parameters": runs[0]["auxiliary_parameters"],
        "parameters": runs[0]["parameters"],
        "seeds": runs,
        "settings": settings or {},
        "versions": versions(),
    }
    if here.is_main:
        with written_beside(output) as part:
            shutil.copytree(work / f"model-{tuning.seeds[0]}", part, dirs_exist_ok=True)
            write_text(part / FINETUNED, to_json(record))
        shutil.rmtree(work)
    if len(runs) > 1:
        here.say(str(scores))
    spread = "" if scores.deviation is None else f" +- {scores.deviation:.4f} (standard deviation)"
    here.say(
        f"{data.task.name} dev ({len(data.dev)} examples), {data.task.metric} {scores.mean:.4f}{spread}; "
        f"seed {', '.join(map(str, tuning.seeds))}, {runs[0]['steps']} steps of {tuning.batch_size}, "
        f"{runs[-1]['seconds_per_step']:.3f} s a step; saved in {output}"
    )
    return record


def squeeze_stage(
    here: Session,
    model: str | Path,
    output: Path,
    task: TaskSettings,
    squeezing: SqueezeSettings,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Lower the bonds of a model step by step; a part of train decides, dev is scored once, at the end.

    Parameters are those of ``compress_stage``. After every step the model and the log are saved beside the output, and
    a second start goes on from there.

    Returns
    -------
    dict
        The record, ``squeeze.json`` in the folder.
    """
    check_output(output)
    data = read_task(task)
    rest, chooser = data.train.hold_out(squeezing.hold_out, squeezing.seed)
    tokenizer = open_tokenizer(model)
    network = with_head(_to_train(here, open_model(model)), data.task, seed=squeezing.seed).to(here.device)
    freeze_central(network)
    calibration = None
    if squeezing.examples:
        calibration = calibrate_on(network, tokenizer, rest, squeezing.examples, True, task.max_length)
    work = output.with_name(f".{output.name}.squeezing")
    plan = {"model": str(model), "model_written": _written(model), **plain(task), **plain(squeezing)}
    check_plan(work, plan)
    write_plan(work, plan)
    earlier = _read_log(work)
    if earlier is not None:
        # the calibration above is that of the model at the start, as it was the first time
        network = load(work / f"step-{len(earlier.steps)}").to(here.device)
        here.say(f"going on after step {len(earlier.steps)}")
    started, before = time.monotonic(), len(earlier.steps) if earlier is not None else 0

    def tune(current: nn.Module) -> None:
        finetune_model(
            current,
            tokenizer,
            data.task,
            rest,
            steps=squeezing.finetune_steps,
            learning_rate=squeezing.learning_rate,
            batch_size=squeezing.batch_size,
            max_length=task.max_length,
            seed=squeezing.seed,
            progress=False,
        )

    def record_step(log: SqueezeLog) -> None:
        # The log names the model it belongs to by its length, so that the two cannot come apart.
        save(network, work / f"step-{len(log.steps)}")
        write_text(work / "log.json", to_json(log.to_dict()))
        shutil.rmtree(work / f"step-{len(log.steps) - 1}", ignore_errors=True)
        last = log.steps[-1]
        left = (time.monotonic() - started) / (last.number - before) * (squeezing.max_steps - last.number)
        here.say(
            f"step {last.number} of at most {squeezing.max_steps}: {last.module} bond {last.bond}, {last.rank} -> "
            f"{last.new_rank}, {last.parameters:,} parameters, {data.task.metric} {last.score:.4f}"
            + (f"; at most {_duration(left)} left" if last.kept else ", put back")
        )

    log = squeeze_model(
        network,
        lambda current: evaluate_model(current, tokenizer, data.task, chooser, max_length=task.max_length),
        tune,
        max_drop=squeezing.max_drop,
        max_steps=squeezing.max_steps,
        step=squeezing.step,
        criterion=squeezing.criterion,
        calibration=calibration,
        on_step=record_step,
        log=earlier,
    )
    trained = parameter_report(network)
    absorb(network)
    score = evaluate_model(network, tokenizer, data.task, data.dev, max_length=task.max_length)
    record = {
        **log.to_dict(),
        "trained_parameters": trained.trainable,
        "auxiliary_parameters": trained.auxiliary,
        "kept_parameters": sum(layer.mpo.n_parameters for _, layer, _ in mpo_layers(network)),
        "model_parameters": parameter_report(network).total,
        "task": data.task.name,
        "metric": data.task.metric,
        "split": "dev",
        "score": score,
        "settings": settings or {},
        "versions": versions(),
    }
    with written_beside(output) as part:
        save(network, part, tokenizer)
        write_text(part / SQUEEZED, to_json(record))
    shutil.rmtree(work)
    here.say(str(log))
    here.say(
        f"{data.task.name} dev ({len(data.dev)} examples), {data.task.metric} {score:.4f}; seed {squeezing.seed}, "
        f"decided on {len(chooser)} held-out training examples; saved in {output}"
    )
    return record


def evaluate_stage(
    here: Session, model: str | Path, task: TaskSettings, evaluation: EvaluateSettings
) -> dict[str, Any]:
    """Score a model on a task's dev split, by every metric that GLUE reports."""
    data = read_task(task)
    tokenizer = open_tokenizer(model)
    network = open_model(model).to(here.device)
    scores = evaluate_task(network, tokenizer, data, batch_size=evaluation.batch_size, max_length=task.max_length)
    record = {
        **scores.to_dict(),
        "split": "dev",
        "score": scores.score,
        "how": "head" if _has_head(network) else "cosine of mean token vectors",
        **_size(network),
    }
    here.say(f"{scores} ({record['how']}); {_size_text(record)}")
    return record


def perplexity_stage(
    here: Session, model: str | Path, text: Path, max_length: int | None, stride: int | None, batch_size: int
) -> dict[str, Any]:
    """The perplexity of a causal model on a text file."""
    tokenizer = open_tokenizer(model)
    network = open_model(model).to(here.device)
    result = evaluate_perplexity(network, tokenizer, text, max_length=max_length, stride=stride, batch_size=batch_size)
    record = {**result.to_dict(), "text": str(text), **_size(network)}
    here.say(f"{result}; {_size_text(record)}")
    return record


def _has_head(model: nn.Module) -> bool:
    return type(model).__name__.endswith("ForSequenceClassification")


def _check_vectors_are_wanted(teacher: nn.Module, student: nn.Module, task: Task) -> None:
    """Refuse a teacher without a head, which has only sentence vectors to teach, where a head is to learn."""
    if _has_head(student) or not (task.is_regression and len(task.columns) == 2):
        raise ValueError(
            f"teacher: a {type(teacher).__name__} has no classification head, so its sentence vectors are learned; "
            f"they serve a regression on pairs, by a model without a head; fine-tune the teacher on {task.name} first"
        )


def _to_train(here: Session, model: Any) -> Any:
    """In single precision: small steps would be rounded away in 16 bits."""
    kinds = {parameter.dtype for parameter in model.parameters()}
    if kinds & {torch.float16, torch.bfloat16}:
        here.say(f"trains, and saves, in float32; the model was in {', '.join(sorted(map(str, kinds)))}")
        model = model.float()
    return model


def _size(model: nn.Module) -> dict[str, int]:
    return {"parameters": parameter_report(model).total, "mpo_weights": sum(1 for _ in mpo_layers(model))}


def _size_text(record: dict[str, Any]) -> str:
    return f"{record['parameters']:,} parameters, {record['mpo_weights']} MPO weights"


def _compression(report: CompressionReport, settings: dict[str, Any] | None) -> dict[str, Any]:
    return {**report.to_dict(), "settings": settings or {}, "versions": versions()}


def _written(model: str | Path) -> int | None:
    """When a local model was written: work on it does not go on with another of the same name."""
    config = Path(model) / "config.json"
    return config.stat().st_mtime_ns if config.is_file() else None


def read_task(task: TaskSettings) -> TaskData:
    """The task's examples."""
    return load_task(task.task, task.data_dir)


def _read_log(work: Path) -> SqueezeLog | None:
    record = work / "log.json"
    return SqueezeLog.from_dict(json.loads(record.read_text(encoding="utf-8"))) if record.is_file() else None


def calibrate_on(
    network: nn.Module, tokenizer: Any, train: Split, examples: int, count_all: bool, max_length: int
) -> Calibration:
    """Covariances from examples spread over the training file, token counts from all of it; pairs as two texts."""
    chosen = [(text,) for texts in train.spread(min(examples, len(train))).texts for text in texts]
    calibration = calibrate(network, token_batches(network, tokenizer, chosen, max_length=max_length))
    if count_all and calibration.input_embedding in calibration.token_counts:
        everything = [(text,) for texts in train.texts for text in texts]
        others = list((Counter(everything) - Counter(chosen)).elements())  # the chosen ones are counted already
        calibration.count_tokens(token_batches(network, tokenizer, others, batch_size=512, max_length=max_length))
    return calibration


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
