"""What TT and MPO share: a train of cores with a gauge and the record of a cut."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, Generic, Self, TypeVar

from . import _chain
from ._backend import Array, all_finite, backend_of, cast, check_dtype, device_of, dtype_name, permute, working
from ._bounds import Truncation
from ._shapes import n_parameters, shown


class Train(ABC):
    """A train of cores, ``(r_{k-1}, site axes.., r_k)`` each, with ``r_0 = r_n = 1``.

    ``TT`` has one axis a site, ``MPO`` two, a row and a column.
    """

    __slots__ = ("center", "cores", "truncation")

    core_axes: ClassVar[tuple[str, ...]]
    advice: ClassVar[str]  # what to do with a core of other axes

    cores: tuple[Array, ...]
    center: int | None
    truncation: Truncation | None

    def __init__(
        self, cores: Sequence[Array], *, center: int | None = None, truncation: Truncation | None = None
    ) -> None:
        self.cores = _check_cores(type(self), cores)
        self.center = None if center is None else check_center(center, len(self.cores))
        self.truncation = truncation

    @property
    def order(self) -> int:
        """The number of sites."""
        return len(self.cores)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The bond dimensions ``(1, r_1, .., r_{n-1}, 1)``."""
        return (1, *(int(core.shape[-1]) for core in self.cores))

    @property
    def n_parameters(self) -> int:
        """The number of entries of all cores."""
        return n_parameters(self.frame.site_sizes, self.ranks)

    @property
    def frame(self) -> Frame[Self]:
        """What the cores stand for once their site axes are merged into one."""
        return Frame(type(self), tuple(tuple(map(int, core.shape[1:-1])) for core in self.cores))

    @abstractmethod
    def _dense(self) -> Array:
        """The array that the cores make."""

    @property
    @abstractmethod
    def _dense_shape(self) -> tuple[int, ...]:
        """The shape of that array."""

    @abstractmethod
    def _summary(self) -> tuple[str, list[str]]:
        """What it is, for the first line of the repr, and the lines about its sites."""

    def __repr__(self) -> str:
        what, sites = self._summary()
        backend = backend_of(self.cores[0], "cores").backend_name
        share = self.n_parameters / math.prod(self.frame.site_sizes)
        gauge = "no known gauge" if self.center is None else f"center {self.center}"
        lines = [
            f"{type(self).__name__} of a {what} ({backend}, {dtype_name(self.cores[0])})",
            *(f"  {line}" for line in sites),
            f"  bonds  {'-'.join(map(str, self.ranks))}, {gauge}",
            f"  {self.n_parameters:,} parameters, {share:.3g} of dense",
        ]
        if self.truncation is not None:
            lines.append(f"  relative error {self.truncation.relative_error:.3g}")
        return "\n".join(lines)


AnyTrain = TypeVar("AnyTrain", bound=Train)


@dataclass(frozen=True)
class Frame(Generic[AnyTrain]):
    """A kind of train and the axes of its sites: what turns three-way cores into a value."""

    kind: type[AnyTrain]
    site_shapes: tuple[tuple[int, ...], ...]

    @property
    def site_sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(site) for site in self.site_shapes)

    def build(
        self, cores: Sequence[Array], dtype: str, *, center: int | None = None, truncation: Truncation | None = None
    ) -> AnyTrain:
        """The train of three-way ``cores``, in ``dtype``.

        Raises
        ------
        ValueError
            If an entry does not fit ``dtype``: the center carries the norm, and float16 ends at 65504.
        """
        apart = [
            cast(core.reshape((core.shape[0], *site, core.shape[2])), dtype)
            for core, site in zip(cores, self.site_shapes, strict=True)
        ]
        if dtype == "float16" and not all(map(all_finite, apart)):
            raise ValueError(
                f"{self.kind.__name__}: got a norm that overflows float16; scale it down or convert it to bfloat16"
            )
        return self.kind(apart, center=center, truncation=truncation)


def chain_of(train: Train) -> list[Array]:
    """The cores with their site axes merged into one, in a precision that can be factorised."""
    return [working(core.reshape((core.shape[0], -1, core.shape[-1]))) for core in train.cores]


def check_train(train: Any, argument: str = "train", kind: type[Train] = Train) -> Any:
    """``train`` itself, or an error that says what to pass."""
    if not isinstance(train, kind):
        wanted = "a tnmpo.MPO or a tnmpo.TT" if kind is Train else f"a tnmpo.{kind.__name__}"
        raise TypeError(
            f"{argument}: got {type(train).__name__}, expected {wanted}; tnmpo.mpo_decompose makes an MPO of a matrix, "
            "tnmpo.tt_decompose a TT of a tensor"
        )
    for site, core in enumerate(train.cores):
        if not all_finite(core):
            raise ValueError(f"{argument}: got NaN or Inf in core {site}, expected finite numbers")
    return train


def check_center(center: Any, order: int) -> int:
    """``center`` as a site index; None is ``order // 2``."""
    if center is None:
        return order // 2
    if isinstance(center, bool) or not isinstance(center, Integral):
        raise TypeError(f"center: got {shown(center)}, expected a site index from 0 to {order - 1}")
    site = int(center)
    if not 0 <= site < order:
        raise ValueError(f"center: got {site}, expected a site index from 0 to {order - 1}")
    return site


def contracted(train: Train) -> Array:
    """All entries, flattened in the order of the sites, in the dtype of the cores."""
    return _chain.contract([core.reshape((core.shape[0], -1, core.shape[-1])) for core in train.cores])


def interleaved(dense: Array, frame: Frame[Any]) -> Array:
    """The entries of a dense array in the order of the sites, one axis a site axis."""
    axes = len(frame.site_shapes[0])
    dims = [site[axis] for axis in range(axes) for site in frame.site_shapes]
    order = len(frame.site_shapes)
    return permute(dense.reshape(tuple(dims)), [axis * order + k for k in range(order) for axis in range(axes)])


def times(dimensions: Sequence[int]) -> str:
    return " x ".join(map(str, dimensions))


def _check_cores(kind: type[Train], cores: Any) -> tuple[Array, ...]:
    name, axes = kind.__name__, len(kind.core_axes)
    if isinstance(cores, str) or not hasattr(cores, "__len__") or not hasattr(cores, "__iter__"):
        number = {3: "three", 4: "four"}[axes]
        raise TypeError(f"{name}: got {type(cores).__name__} for cores, expected a sequence of {number}-way arrays")
    if len(cores) == 0:
        raise ValueError(f"{name}: got no cores, expected at least one")
    cores = tuple(cores)
    first_backend = backend_of(cores[0], f"{name}: core 0").backend_name
    check_dtype(cores[0], f"{name}: core 0")
    for site, core in enumerate(cores):
        if backend_of(core, f"{name}: core {site}").backend_name != first_backend or core.dtype != cores[0].dtype:
            raise TypeError(
                f"{name}: core {site} is {type(core).__name__} {dtype_name(core)}, core 0 is "
                f"{type(cores[0]).__name__} {dtype_name(cores[0])}; convert them to one backend and dtype"
            )
        if len(core.shape) != axes:
            raise ValueError(
                f"{name}: core {site} has {len(core.shape)} axes, expected {axes} ({', '.join(kind.core_axes)}); "
                f"{kind.advice}"
            )
        if device_of(core) != device_of(cores[0]):
            raise ValueError(
                f"{name}: core {site} is on {device_of(core)}, core 0 on {device_of(cores[0])}; move them to one device"
            )
        if 0 in core.shape:
            raise ValueError(f"{name}: core {site} has shape {tuple(core.shape)}, expected no empty axis")
        wanted = cores[site - 1].shape[-1] if site else 1
        if core.shape[0] != wanted:
            raise ValueError(
                f"{name}: core {site} has left bond {core.shape[0]}, expected {wanted}"
                + (f", the right bond of core {site - 1}" if site else " at the boundary")
            )
    if cores[-1].shape[-1] != 1:
        raise ValueError(
            f"{name}: core {len(cores) - 1} has right bond {cores[-1].shape[-1]}, expected 1 at the boundary"
        )
    return cores
