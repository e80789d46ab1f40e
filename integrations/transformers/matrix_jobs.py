"""What is done to one matrix of a checkpoint, by any process that sees its files: survey its spectra, cut it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

import tnmpo

from .config import MPOConfig
from .lowrank import LowRankBasis
from .planning import Plan, Planner, check_finite, decompose, relative_spectra, shares_budget
from .shards import StoredTensor, part_metadata, stored_tensors, write_part

# A worker of several threads holds one matrix all the same.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class MatrixJob:
    """One matrix, and where the results go.

    Attributes
    ----------
    names : tuple of str
        Of the modules that hold it.
    is_embedding : bool
    stored : StoredTensor
    is_transposed : bool
        Whether it is stored as (inputs, outputs).
    metric : Path or None
        The file with the norm to cut in.
    config : MPOConfig
    folder : Path
    rank : optional
        What it is cut to; under a shared budget not known before all are surveyed.
    """

    names: tuple[str, ...]
    is_embedding: bool
    stored: StoredTensor
    is_transposed: bool
    metric: Path | None
    config: MPOConfig
    folder: Path
    rank: Any = None

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def survey_file(self) -> Path:
        return self.folder / f"{self.name}.survey.safetensors"

    @property
    def result_file(self) -> Path:
        return self.folder / f"{self.name}.cores.safetensors"


@dataclass(frozen=True)
class MatrixResult:
    """What a matrix became.

    Attributes
    ----------
    cores : tuple of StoredTensor
    error : float or None
        Relative, None where nothing was cut.
    """

    cores: tuple[StoredTensor, ...]
    error: float | None


@dataclass(frozen=True, eq=False)
class _Matrix:
    names: tuple[str, ...]
    is_embedding: bool
    weight: Tensor

    @property
    def name(self) -> str:
        return self.names[0]


def survey(job: MatrixJob) -> None:
    """Find what a shared budget is allotted by, and write it beside the basis that the cut will need.

    Raises
    ------
    ValueError
        If the weight is not finite.
    """
    with _ONE_AT_A_TIME:
        matrix = _read(job)
        check_finite(matrix)
        plan = Planner(job.config).draft(matrix, read_metric(job.metric))
        tensors = {f"bond.{k}": torch.from_numpy(values) for k, values in enumerate(relative_spectra(plan))}
        metadata: dict[str, Any] = {"bonds": len(tensors)}
        if plan.basis is not None:
            # with the memory layout that it has: products with another one may be rounded otherwise
            is_turned = not plan.basis.basis.is_contiguous()
            metadata |= {"is_right": plan.basis.is_right, "is_turned": is_turned}
            tensors["basis"] = plan.basis.basis.T if is_turned else plan.basis.basis
            tensors["spectrum"] = torch.from_numpy(plan.basis.spectrum)
        write_part(job.survey_file, tensors, metadata)


def surveyed_spectra(job: MatrixJob) -> list[np.ndarray] | None:
    """What `survey` found; None where it has not run."""
    metadata = part_metadata(job.survey_file)
    if metadata is None:
        return None
    with safe_open(job.survey_file, framework="pt") as file:
        return [file.get_tensor(f"bond.{k}").numpy().copy() for k in range(metadata["bonds"])]


def cut(job: MatrixJob) -> None:
    """Decompose a matrix and write its cores.

    Raises
    ------
    ValueError
        If the weight is not finite, or the ratio below its rank-one size.
    """
    with _ONE_AT_A_TIME:
        matrix, metric, planner = _read(job), read_metric(job.metric), Planner(job.config)
        if shares_budget(job.config):
            plan = replace(_draft(job, matrix, metric), rank=job.rank)
        else:
            check_finite(matrix)
            plan = planner.alone(matrix, metric, job.rank)
        if job.config.shape == "auto":
            plan = planner.challenge(plan)
        mpo, error = decompose(plan)
        cores = {f"cores.{site}": core for site, core in enumerate(mpo.cores)}
        write_part(job.result_file, cores, {"order": mpo.order, "error": error})
        job.survey_file.unlink(missing_ok=True)


def result_of(job: MatrixJob) -> MatrixResult | None:
    """What `cut` wrote; None where it has not run."""
    metadata = part_metadata(job.result_file)
    if metadata is None:
        return None
    found = stored_tensors(job.result_file)
    return MatrixResult(tuple(found[f"cores.{site}"] for site in range(metadata["order"])), metadata["error"])


def write_metric(path: Path, metric: tnmpo.Weight) -> None:
    """The norm of a calibration, for `read_metric`."""
    sides = {"rows": metric.rows, "cols": metric.cols}
    write_part(path, {side: torch.as_tensor(value) for side, value in sides.items() if value is not None}, {})


def read_metric(path: Path | None) -> tnmpo.Weight | None:
    """The norm in a file; None without one."""
    if path is None:
        return None
    found = stored_tensors(path)
    return tnmpo.Weight(**{side: tensor.read() for side, tensor in found.items()})


def _read(job: MatrixJob) -> _Matrix:
    weight = job.stored.read()
    return _Matrix(job.names, job.is_embedding, weight.T if job.is_transposed else weight)


def _draft(job: MatrixJob, matrix: _Matrix, metric: tnmpo.Weight | None) -> Plan[_Matrix]:
    """The plan that was surveyed."""
    metadata = part_metadata(job.survey_file)
    if metadata is None or "is_right" not in metadata:
        return Planner(job.config).draft(matrix, metric)
    found = stored_tensors(job.survey_file)
    basis = found["basis"].read()
    directions = LowRankBasis(
        matrix.weight,
        basis.T if metadata["is_turned"] else basis,
        found["spectrum"].read().numpy(),
        metadata["is_right"],
    )
    rows, cols = matrix.weight.shape
    return Plan(matrix, tnmpo.MPOShape.low_rank((rows, cols)), None, metric, directions)
