"""Compress a checkpoint that is larger than memory, matrix by matrix, on one machine or many."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers
from transformers.pytorch_utils import Conv1D

import tnmpo

from .calibration import Calibration
from .checkpoint import model_card, write_text
from .config import MPOConfig
from .matrix_jobs import MatrixJob, MatrixResult, cut, result_of, survey, surveyed_spectra, write_metric
from .planning import allot, own_ranks, shares_budget
from .quantizer import attach
from .report import CompressionReport, ModuleReport, uncovered_weights
from .shards import StoredTensor, copy_companions, write_shards
from .skeleton import StoredModel, open_model, stored_targets
from .surgery import put_layers
from .targets import Target, find_targets
from .workers import LOCAL, connected, run_each

logger = logging.getLogger(__name__)

_RUN = "run.json"
_RANKS = "ranks.json"


def compress_checkpoint(
    source: str | Path,
    output: str | Path,
    config: MPOConfig,
    *,
    calibration: Calibration | None = None,
    cluster: Any = None,
    workers: int | None = None,
    max_shard_size: int | str = "5GB",
) -> CompressionReport:
    """Compress a checkpoint folder of transformers without ever holding the model.

    The new folder holds, bit for bit, what ``compress`` and ``save_pretrained`` would have written, and is loaded as
    any compressed model.

    Parameters
    ----------
    source : str or Path
        A folder with ``config.json`` and safetensors, in one file or sharded.
    output : str or Path
        A folder that does not exist yet. The tokenizer's files are copied.
    config : MPOConfig
    calibration : Calibration, optional
        As for ``compress``.
    cluster : None, str or distributed.Client
        None works in this process, one matrix after another; ``"local"`` starts workers on this machine; else the
        address of a dask scheduler, or a client of one, whose workers see both folders under the same paths.
    workers : int, optional
        Processes of a local cluster, by default one for each core.
    max_shard_size : int or str
        Bytes in a file of the new folder.

    Returns
    -------
    CompressionReport
        The same as that of ``compress``.

    Raises
    ------
    ValueError, TypeError
        If the checkpoint is incomplete or damaged, a weight is not finite, a pattern matches nothing, the budget cannot
        be met, ``output`` exists, or the folder of an unfinished run is one of another run.
    ImportError, ConnectionError
        If ``cluster`` asks for dask.distributed and it is not installed, or no scheduler answers.
    RuntimeError
        If workers die again and again at one matrix, or do not see the folders.

    Notes
    -----
    Every matrix is written beside the output, to the folder ``<output>.parts``, as soon as it is done. After a
    crash or Ctrl-C the same call goes on from there; it refuses the parts of other settings or another source.

    Memory: of a worker one matrix with its factorisation, whatever its threads; of this process one shard of the
    new folder, and the calibration. Disk, besides the two folders: the cores once more, and under a shared budget (a
    ratio with ``allot="model"``) for every low-rank matrix its singular vectors, no larger than itself in single
    precision, from the first pass to the second.

    The bits are the same wherever the same number of threads multiplies: with another one, sums are rounded otherwise.

    Weights that transformers would convert while loading (fused experts) stay dense: copied, under the names in the
    files, as are all that no target covers.

    A script that starts a local cluster needs ``if __name__ == "__main__":`` around it, as any that starts processes.
    """
    source, output = Path(source), Path(output)
    if not isinstance(config, MPOConfig):
        raise TypeError(f"config: got {type(config).__name__}, expected an MPOConfig such as MPOConfig(ratio=0.5)")
    if workers is not None and (cluster != LOCAL or workers < 1):
        raise ValueError(f"workers: got {workers} with cluster={cluster!r}, expected a positive number with 'local'")
    if output.exists():
        raise ValueError(f"output: {output} exists; name a new folder")
    dense = open_model(source)
    targets = stored_targets(dense, find_targets(dense.model, config))
    if calibration is not None and not any(calibration.weight(target.name) for target in targets):
        raise ValueError(
            f"calibration: it knows none of the targeted modules ({targets[0].name}, ...); "
            "calibrate the very model that is compressed"
        )
    parts = output.with_name(f"{output.name}.parts").absolute()
    _claim(parts, dense, config, calibration)
    jobs = _jobs(dense, targets, config, calibration, parts)
    with connected(cluster, workers) as client:
        jobs = _with_ranks(jobs, targets, config, client)
        _run(cut, jobs, [result_of(job) is not None for job in jobs], client, "compress")
    dense.checkpoint.check_unchanged()
    results = [_found(job, result_of(job)) for job in jobs]
    report = _install_all(dense.model, targets, jobs, results, config)
    _assemble(dense, targets, results, parts / "whole", max_shard_size, report)
    output.parent.mkdir(parents=True, exist_ok=True)
    os.replace(parts / "whole", output)
    shutil.rmtree(parts)
    return report


# --- the parts


def _claim(parts: Path, dense: StoredModel, config: MPOConfig, calibration: Calibration | None) -> None:
    """Make the folder of the parts, or see that the one there is of the same run."""
    run = {
        "tnmpo": version("tnmpo"),
        "config": config.to_dict(),
        "model": dense.model.config.to_json_string(),
        "source": dense.checkpoint.files,
        "calibration": _digest(calibration),
    }
    record = parts / _RUN
    if not parts.exists():
        parts.mkdir(parents=True)
        write_text(record, json.dumps(run, indent=2))
    earlier = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    # as it reads when it comes back from a file
    changed = [name for name, value in json.loads(json.dumps(run)).items() if earlier.get(name) != value]
    if changed:
        raise ValueError(
            f"output: {parts} holds parts of another run ({', '.join(changed)} differ); "
            "remove it to start anew, or name another folder"
        )


def _digest(calibration: Calibration | None) -> str | None:
    if calibration is None:
        return None
    digest = hashlib.sha256()
    for name, values in sorted({**calibration.covariances, **calibration.token_counts}.items()):
        digest.update(name.encode())
        digest.update(values.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _jobs(
    dense: StoredModel, targets: Sequence[Target], config: MPOConfig, calibration: Calibration | None, parts: Path
) -> list[MatrixJob]:
    jobs = []
    files: dict[int, Path] = {}
    for target in targets:
        stored = dense.weight_of(target)
        assert stored is not None
        metric = calibration.weight(target.name) if calibration is not None else None
        if metric is not None and id(metric) not in files:  # query, key and value share theirs
            files[id(metric)] = parts / f"{target.name}.metric.safetensors"
            write_metric(files[id(metric)], metric)
        jobs.append(
            MatrixJob(
                target.names,
                target.is_embedding,
                stored,
                isinstance(target.modules[0], Conv1D),
                None if metric is None else files[id(metric)],
                config,
                parts,
            )
        )
    return jobs


def _with_ranks(jobs: list[MatrixJob], targets: Sequence[Target], config: MPOConfig, client: Any) -> list[MatrixJob]:
    ranks = _shared_ranks(jobs, targets, config, client) if shares_budget(config) else own_ranks(targets, config)
    return [replace(job, rank=rank) for job, rank in zip(jobs, ranks, strict=True)]


def _shared_ranks(jobs: list[MatrixJob], targets: Sequence[Target], config: MPOConfig, client: Any) -> list[Any]:
    """Remembered, because the cuts remove the spectra that they come from."""
    record = jobs[0].folder / _RANKS
    if not record.is_file():
        _run(survey, jobs, [surveyed_spectra(job) is not None for job in jobs], client, "spectra")
        spectra = [_found(job, surveyed_spectra(job)) for job in jobs]
        ranks = [
            tuple(map(int, rank)) if isinstance(rank, Sequence) else int(rank)
            for rank in allot(targets, spectra, config)
        ]
        write_text(record, json.dumps(ranks))
    return [tuple(rank) if isinstance(rank, list) else rank for rank in json.loads(record.read_text(encoding="utf-8"))]


def _run(function: Any, jobs: Sequence[MatrixJob], done: Sequence[bool], client: Any, title: str) -> None:
    if any(done):
        logger.info("%s: %d of %d matrices were done before", title, sum(done), len(jobs))
    waiting = [job for job, is_done in zip(jobs, done, strict=True) if not is_done]
    run_each(function, waiting, client, title, n_done=sum(done))


def _found(job: MatrixJob, result: Any) -> Any:
    if result is None:
        raise RuntimeError(
            f"{job.name}: a worker has done it, but its file in {job.folder} is not seen here; the workers must see "
            "the folders under the same paths"
        )
    return result


# --- the whole


def _install_all(
    model: transformers.PreTrainedModel,
    targets: Sequence[Target],
    jobs: Sequence[MatrixJob],
    results: Sequence[MatrixResult],
    config: MPOConfig,
) -> CompressionReport:
    """What ``compress`` does, on a model without memory."""
    uncovered = uncovered_weights(model, targets)
    reports = []
    for target, job, result in zip(targets, jobs, results, strict=True):
        mpo = tnmpo.MPO([core.like for core in result.cores])
        is_weighted = job.metric is not None
        reports.append(ModuleReport.compressed(target, mpo, result.error, config, weighted=is_weighted))
        put_layers(model, target, mpo, config)
    report = CompressionReport(tuple(reports), uncovered, sum(p.numel() for p in model.parameters()))
    attach(model, copy.deepcopy(config), report)
    return report


def _assemble(
    dense: StoredModel,
    targets: Sequence[Target],
    results: Sequence[MatrixResult],
    folder: Path,
    max_shard_size: int | str,
    report: CompressionReport,
) -> None:
    model: Any = dense.model
    cores = {
        f"{target.name}.cores.{site}": core
        for target, result in zip(targets, results, strict=True)
        for site, core in enumerate(result.cores)
    }
    ours = {**dense.stored, **cores}
    names = [name for name in model.state_dict() if name in ours]
    _warn_of_missing(model, ours, dense)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped here
    folder.mkdir()
    model.hf_quantizer.get_state_dict_and_metadata(model)  # the manifest
    model.config.architectures = [type(model).__name__]
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    copy_companions(dense.checkpoint.folder, folder)
    model_card(model).save(folder / "README.md")
    pieces = {name: ours[name] for name in names} | dense.strangers
    write_shards(folder, pieces, max_shard_size, report.model_parameters)


def _warn_of_missing(model: Any, ours: dict[str, StoredTensor], dense: StoredModel) -> None:
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    missing = [name for name in model.state_dict() if name not in ours and name not in tied]
    if missing and not dense.strangers:
        logger.warning(
            "%s lacks %s: whoever loads it gets random values there", dense.checkpoint.folder, ", ".join(missing[:5])
        )
