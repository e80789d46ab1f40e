"""What a compression did, and what is trained: numbers to read and to print."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import nn

import tnmpo

from ..torch.contraction import faster_execution, overheads, shapes_of
from ..torch.lookup import LIMIT
from ..torch.lookup_plan import kept_cuts, table_entries
from .config import MPOConfig
from .targets import Target, dense_weights, mpo_layers, obstacle

_SPEED_BATCH = 512  # tokens at which reports compare the cost with a dense layer


@dataclass(frozen=True)
class ModuleReport:
    """One weight matrix before and after.

    Attributes
    ----------
    name : str
    weight_shape : (I, J)
    kind : {"low-rank", "interleaved", "whole"}
        A whole matrix is an MPO of order 1: its factors would have been as large as itself.
    ranks : tuple of int
        With the boundary ones.
    dense_parameters, parameters : int
    relative_error : float
        Exact, in the calibrated norm where ``weighted`` is true, else the Frobenius norm.
    relative_cost : float or None
        FLOPs of the layer on 512 tokens over those of the dense one, where nothing is kept from the call before. Above
        1 it is slower. None for an embedding: a lookup has no dense FLOPs to compare with.
    relative_time : float or None
        The same in time, on an accelerator, where a product takes longer to start than many take to run: estimated from
        counts, for an H100 and calls one by one. None on a CPU, where FLOPs tell, and for an embedding.
    dense_bytes, core_bytes : int
        Of the weight before and of its cores.
    cached_bytes : int
        What the layers will keep besides, once they were used in evaluation: the dense weight contracted from the
        cores, or the tables of a lookup.
    tied : tuple of str
        Other modules that share the weight.
    """

    name: str
    weight_shape: tuple[int, int]
    kind: str
    ranks: tuple[int, ...]
    dense_parameters: int
    parameters: int
    relative_error: float
    weighted: bool
    relative_cost: float | None
    relative_time: float | None
    dense_bytes: int
    core_bytes: int
    cached_bytes: int
    tied: tuple[str, ...] = ()

    @classmethod
    def compressed(
        cls, target: Target, mpo: tnmpo.MPO, error: float | None, config: MPOConfig, *, weighted: bool
    ) -> ModuleReport:
        rows, cols = target.weight.shape
        size = target.weight.element_size()
        return cls(
            name=target.name,
            weight_shape=(rows, cols),
            kind="whole" if mpo.order == 1 else "low-rank" if mpo.shape.is_low_rank else "interleaved",
            ranks=mpo.ranks,
            dense_parameters=rows * cols,
            parameters=mpo.n_parameters,
            relative_error=error or 0.0,
            weighted=weighted and error is not None,
            relative_cost=_relative_cost(mpo, config.execution) if target.is_multiplied else None,
            relative_time=_relative_time(mpo, config.execution) if target.is_multiplied else None,
            dense_bytes=rows * cols * size,
            core_bytes=mpo.n_parameters * size,
            cached_bytes=_cached_entries(target, mpo, config) * size,
            tied=target.names[1:],
        )


def _relative_cost(mpo: tnmpo.MPO, execution: str) -> float:
    plan = tnmpo.contraction_plan(mpo.shape, mpo.ranks, _SPEED_BATCH)
    if execution == "auto":
        return plan.relative_cost
    flops = plan.factored_flops if execution == "factored" else plan.rebuild_flops + plan.dense_flops
    return flops / plan.dense_flops


def _relative_time(mpo: tnmpo.MPO, execution: str) -> float | None:
    counted = overheads(mpo.cores[0])
    if not counted:
        return None
    plan = tnmpo.contraction_plan(mpo.shape, mpo.ranks, _SPEED_BATCH)
    way = faster_execution(mpo.cores, _SPEED_BATCH, amortised=False) if execution == "auto" else execution
    return plan.cost(way, rebuild=True, **counted) / plan.cost("dense", rebuild=False, **counted)


def _cached_entries(target: Target, mpo: tnmpo.MPO, config: MPOConfig) -> int:
    """The numbers that the layers of a target keep besides the cores; one core is the weight itself."""
    if not config.cache or mpo.order == 1:
        return 0
    entries = math.prod(mpo.shape.matrix_shape)  # with the padding, which is cut off as a view
    execution = config.execution
    if execution == "auto":  # kept, the contraction counts for nothing
        execution = faster_execution(mpo.cores, _SPEED_BATCH, amortised=True)
    of_linear = entries if execution == "dense" else 0
    of_lookup = _lookup_entries(mpo, target.weight.numel(), entries) if target.is_embedding else 0
    return sum(of_lookup if isinstance(module, nn.Embedding) else of_linear for module in target.modules)


def _lookup_entries(mpo: tnmpo.MPO, entries: int, padded: int) -> int:
    """The numbers in the tables that an embedding keeps, or in its dense table where these would be hardly smaller."""
    limit = LIMIT // mpo.cores[0].element_size()
    shapes = shapes_of(list(mpo.cores))
    cuts = kept_cuts(shapes, min(entries // 2, limit))
    if cuts is None:
        return padded if entries <= limit else 0
    return table_entries(shapes, cuts)


class UncoveredWeight(NamedTuple):
    """A weight of two and more axes that no target covers.

    Attributes
    ----------
    name : str
    parameters : int
    share : float
        Of all parameters of the dense model.
    reason : str
        The class that owns the weight, and in words why it is not covered.
    """

    name: str
    parameters: int
    share: float
    reason: str


@dataclass(frozen=True)
class CompressionReport:
    """What ``compress`` did; ``print`` shows it as a table.

    Attributes
    ----------
    modules : tuple of ModuleReport
    uncovered : tuple of UncoveredWeight
        Weights of two and more axes that no target covered, largest first: name, parameters, share of the dense
        model's parameters, reason.
    model_parameters : int
        Of the whole model afterwards, shared ones counted once.
    """

    modules: tuple[ModuleReport, ...]
    uncovered: tuple[UncoveredWeight, ...]
    model_parameters: int

    @property
    def dense_parameters(self) -> int:
        """Of the targeted matrices, before."""
        return sum(module.dense_parameters for module in self.modules)

    @property
    def parameters(self) -> int:
        """Of the targeted matrices, after."""
        return sum(module.parameters for module in self.modules)

    @property
    def ratio(self) -> float:
        """Parameters kept over dense parameters, of the targeted matrices."""
        return self.parameters / self.dense_parameters

    @property
    def slower(self) -> tuple[str, ...]:
        """The linear layers that need more FLOPs than dense ones on 512 tokens, or on an accelerator more time."""
        return tuple(
            module.name for module in self.modules if max(module.relative_cost or 0, module.relative_time or 0) > 1
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return {
            "modules": [asdict(module) for module in self.modules],
            "uncovered": [list(entry) for entry in self.uncovered],
            "dense_parameters": self.dense_parameters,
            "parameters": self.parameters,
            "ratio": self.ratio,
            "model_parameters": self.model_parameters,
        }

    def __str__(self) -> str:
        width = max(len(module.name) for module in self.modules)
        lines = [
            f"{'module':{width}}  {'weight':>12}  {'kind':11}  {'bonds':>16}  {'kept':>6}  {'error':>8}  {'FLOPs':>6}"
        ]
        for module in self.modules:
            size = f"{module.weight_shape[0]} x {module.weight_shape[1]}"
            bonds = "-".join(map(str, module.ranks[1:-1]))
            kept = module.parameters / module.dense_parameters
            error = f"{module.relative_error:.2e}" if module.relative_error else "exact"
            lines.append(
                f"{module.name:{width}}  {size:>12}  {module.kind:11}  {bonds:>16}  {kept:6.3f}  "
                f"{error:>8}  "
                + (f"{'lookup':>6}" if module.relative_cost is None else f"{module.relative_cost:5.2f}x")
            )
        norm = "weighted by the calibration" if any(module.weighted for module in self.modules) else "Frobenius"
        lines += [
            f"kept {self.parameters:,} of {self.dense_parameters:,} parameters of {len(self.modules)} matrices "
            f"({self.ratio:.4f}); the whole model has {self.model_parameters:,}",
            f"error: relative, {norm}; FLOPs: of the dense layer's, at {_SPEED_BATCH} tokens",
            *self._speed(),
            self._memory(),
            *self._not_covered(),
        ]
        return "\n".join(lines)

    def _not_covered(self) -> Iterator[str]:
        """The five largest kinds of weights; those that differ in the number of their layer are one kind."""
        kinds: dict[tuple[str, str], list[UncoveredWeight]] = {}
        for weight in self.uncovered:
            kinds.setdefault((re.sub(r"\.\d+(?=\.)", ".*", weight.name), weight.reason), []).append(weight)
        ordered = sorted(kinds.items(), key=lambda entry: -sum(weight.parameters for weight in entry[1]))
        for (pattern, reason), weights in ordered[:5]:
            name = weights[0].name if len(weights) == 1 else f"{pattern} ({len(weights)} weights)"
            count, share = (sum(getattr(weight, field) for weight in weights) for field in ("parameters", "share"))
            yield f"not covered: {name}, {count:,} parameters, {share:.1%} of the dense model: {reason}"
        rest = [weight.share for _, weights in ordered[5:] for weight in weights]
        if rest:
            yield f"not covered: {len(rest)} more, {sum(rest):.1%} together"

    def _speed(self) -> Iterator[str]:
        linear = [module for module in self.modules if module.relative_cost is not None]
        fast = [module for module in linear if (module.relative_cost or 1) < 1]
        slow = [module for module in linear if (module.relative_cost or 0) > 1]
        late = [module for module in fast if (module.relative_time or 0) > 1]
        if fast:
            name = "faster than dense" if not late else "fewer FLOPs than dense"
            yield f"{name}: {len(fast)} of {len(linear)} linear layers, {_range(fast)} the FLOPs"
        if late:
            times = [module.relative_time or 0.0 for module in late]
            span = f"{min(times):.1f}x to {max(times):.1f}x"
            yield f"slower than dense all the same: {len(late)} of them, about {span} the time at {_SPEED_BATCH} tokens"
            yield "  (products so small that this device spends the time on starting them)"
            if any(module.cached_bytes for module in late):
                yield "  interleaved ones in calls that contract their cores; a kept weight is one product, as dense"
        if slow:
            line = f"slower than dense: {len(slow)} of {len(linear)} linear layers, {_range(slow)} the FLOPs "
            if all(module.cached_bytes for module in slow):
                yield line + "in calls that contract their cores:"
                yield (
                    "  one for every optimiser step in training, the first in evaluation; the weight is then kept, and "
                    "they are as fast as dense"
                )
            else:
                yield line + "in every call:"
                yield "  they save storage and trained parameters, not time"

    def _memory(self) -> str:
        dense, cores, cached = (
            sum(getattr(module, name) for module in self.modules)
            for name in ("dense_bytes", "core_bytes", "cached_bytes")
        )
        line = f"memory: {_bytes(cores)} of cores, where the dense weights had {_bytes(dense)}"
        if not cached:
            return line
        return line + f"; in use, {_bytes(cached)} of contracted weights and tables besides (none with cache=False)"


def _range(modules: Sequence[ModuleReport]) -> str:
    costs = [module.relative_cost or 0.0 for module in modules]
    lowest, highest = f"{min(costs):.2f}x", f"{max(costs):.2f}x"
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def uncovered_weights(model: nn.Module, targets: Sequence[Target]) -> tuple[UncoveredWeight, ...]:
    """The weights of two and more axes that are in no target and no MPO layer, largest first."""
    covered = {id(target.parameter) for target in targets}
    covered.update(id(core) for _, layer, _ in mpo_layers(model) for core in layer.cores)
    untargeted = {id(target.parameter) for target in dense_weights(model)}
    total = sum(parameter.numel() for parameter in model.parameters())
    rest = []
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and id(parameter) not in covered:
            owner = model.get_submodule(name.rpartition(".")[0])
            is_free = id(parameter) in untargeted
            reason = f"{type(owner).__name__}, not targeted" if is_free else obstacle(owner, parameter)
            rest.append(UncoveredWeight(name, parameter.numel(), parameter.numel() / total, reason))
    return tuple(sorted(rest, key=lambda weight: -weight.parameters))


@dataclass(frozen=True)
class ParameterReport:
    """How many parameters a model has, of which kind, and how many are trained; shared ones count once."""

    total: int
    trainable: int
    central: int
    auxiliary: int
    other: int

    @property
    def trainable_share(self) -> float:
        return self.trainable / self.total

    def __str__(self) -> str:
        return (
            f"trainable params: {self.trainable:,} || all params: {self.total:,} || "
            f"trainable%: {100 * self.trainable_share:.4f}\n"
            f"central: {self.central:,} || auxiliary: {self.auxiliary:,} || other: {self.other:,}"
        )


def parameter_report(model: nn.Module) -> ParameterReport:
    """Count the parameters of a model by kind.

    Parameters
    ----------
    model : nn.Module
        Compressed or not; a dense one has only ``other`` parameters.

    Returns
    -------
    ParameterReport
        The first line of its text has PEFT's words and format.

    Examples
    --------
    >>> import torch
    >>> print(parameter_report(torch.nn.Linear(3, 2)))
    trainable params: 8 || all params: 8 || trainable%: 100.0000
    central: 0 || auxiliary: 0 || other: 8
    """
    central = auxiliary = 0
    for _, layer, _ in mpo_layers(model):
        central += sum(layer.cores[site].numel() for site in layer.central)
        auxiliary += sum(layer.cores[site].numel() for site in layer.auxiliary)
    parameters = list(model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    return ParameterReport(
        total=total,
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        central=central,
        auxiliary=auxiliary,
        other=total - central - auxiliary,
    )


def print_trainable_parameters(model: nn.Module) -> None:
    """Print how many parameters are trained, in PEFT's words and format; shared ones count once.

    Examples
    --------
    >>> import torch
    >>> print_trainable_parameters(torch.nn.Linear(3, 2))
    trainable params: 8 || all params: 8 || trainable%: 100.0000
    """
    print(str(parameter_report(model)).splitlines()[0])
