"""What TT and MPO share: a train of cores with a gauge and the record of a cut."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Complex, Integral, Real
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from . import _chain
from ._backend import (
    Array,
    all_finite,
    backend_of,
    cast,
    check_dtype,
    conj,
    device_of,
    dtype_name,
    peak,
    permute,
    working,
)
from ._bounds import Truncation
from ._shapes import n_parameters, shown

_COMPLEX_DTYPE = {"float32": "complex64", "float64": "complex128"}


class Train(ABC):
    """A train of cores, ``(r_{k-1}, site axes.., r_k)`` each, with ``r_0 = r_n = 1``.

    ``TT`` has one axis a site, ``MPO`` two, a row and a column.
    """

    __slots__ = ("center", "cores", "truncation")

    __array_ufunc__ = None  # numpy's arrays and scalars leave the operators to the train

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

    def __add__(self, other: Self) -> Self:
        """The sum; its bonds are the sums of the two. ``tnmpo.truncate`` takes off what is superfluous."""
        if not isinstance(other, Train):
            return NotImplemented
        check_alike(self, other)
        cores = _chain.add(_merged(self), _merged(other))
        return self.frame.build(cores, dtype_name(self.cores[0]))

    def __radd__(self, other: int) -> Self:
        """So that the builtin ``sum``, which begins with 0, adds trains."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __sub__(self, other: Self) -> Self:
        """The difference, as the sum."""
        return self + -other if isinstance(other, Train) else NotImplemented

    def __neg__(self) -> Self:
        return self * -1

    def __mul__(self, scalar: Any) -> Self:
        """The train times a scalar, in the same gauge: the center takes it (site 0 where none is known)."""
        return self._scaled(scalar, operator.mul)

    __rmul__ = __mul__

    def __truediv__(self, scalar: Any) -> Self:
        """The train over a scalar, as ``*``."""
        return self._scaled(scalar, operator.truediv)

    def _scaled(self, scalar: Any, operation: Callable[[Array, Any], Array]) -> Self:
        kind = dtype_name(self.cores[0])
        factor = as_scalar(scalar, self.cores[0], divisor=operation is operator.truediv)
        if factor is NotImplemented:
            return NotImplemented
        if is_complex(factor) and "complex" not in kind:
            kind = _COMPLEX_DTYPE[kind]
        cores = [cast(core, kind) for core in self.cores]
        site = 0 if self.center is None else self.center
        cores[site] = operation(cores[site], factor if isinstance(factor, complex | float) else cast(factor, kind))
        return type(self)(cores, center=self.center)

    def conj(self) -> Self:
        """The complex conjugate, in the same gauge."""
        return type(self)([_conjugate(core) for core in self.cores], center=self.center)

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
    return [working(core) for core in _merged(train)]


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


def check_alike(one: Train, other: Train) -> None:
    """Refuse two trains that are not of one kind, backend, dtype and device, with the same sites."""
    if type(one) is not type(other):
        raise TypeError(
            f"other: got a {type(other).__name__}, expected a {type(one).__name__} as the first; "
            "only a product @ takes one of each"
        )
    check_same_place(one.cores[0], other.cores[0])
    if one.frame.site_shapes != other.frame.site_shapes:
        raise ValueError(
            f"other: got sites {other.frame.site_shapes}, expected {one.frame.site_shapes} as of the first; "
            "decompose both in one shape"
        )


def check_same_place(mine: Array, other: Array) -> None:
    """Refuse an array of another backend, dtype or device."""
    wanted, got = (
        f"{backend_of(array, 'other').backend_name} {dtype_name(array)} on {device_of(array)}"
        for array in (mine, other)
    )
    if got != wanted:
        raise TypeError(f"other: got {got}, expected {wanted}; convert them to one backend, dtype and device")


def as_scalar(scalar: Any, where: Array, *, divisor: bool = False) -> Any:
    """A number, or an array without axes, that multiplies ``where``; NotImplemented for what is none of ours.

    It is weak: it never changes the precision of ``where``, though a complex one makes it complex.
    """
    kind = dtype_name(where)
    if isinstance(scalar, Train):
        name = type(scalar).__name__
        raise TypeError(f"scalar: got a {name}, expected a number; products are @ and tnmpo.hadamard")
    if isinstance(scalar, Complex) and not isinstance(scalar, bool):
        scalar = float(scalar) if isinstance(scalar, Real) else complex(scalar)
        largest = abs(scalar)
    elif hasattr(scalar, "shape") and hasattr(scalar, "dtype"):
        if len(scalar.shape) > 0:
            raise TypeError(f"scalar: got an array of {len(scalar.shape)} axes, expected a number; for products use @")
        expected = backend_of(where, "cores").backend_name
        if backend_of(scalar, "scalar").backend_name != expected:
            raise TypeError(f"scalar: got a {type(scalar).__name__}, expected a number or an array of {expected}")
        check_dtype(scalar, "scalar")
        largest = peak(scalar)
    else:
        return NotImplemented
    if divisor and largest == 0:
        raise ZeroDivisionError("scalar: got 0, expected a number that divides")
    if not largest <= float(np.finfo(kind if kind != "bfloat16" else "float32").max):
        raise ValueError(f"scalar: got {scalar}, expected a finite number within the range of {kind}; scale in steps")
    if is_complex(scalar) and "complex" not in kind and kind not in _COMPLEX_DTYPE:
        raise TypeError(f"scalar: got the complex {scalar}, which {kind} has no partner for; convert the cores first")
    return scalar


def is_complex(scalar: Any) -> bool:
    """Whether a number or an array has an imaginary part, be it 0."""
    return isinstance(scalar, complex) or "complex" in str(getattr(scalar, "dtype", ""))


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


def _merged(train: Train) -> list[Array]:
    """The cores with their site axes merged into one, as they are."""
    return [core.reshape((core.shape[0], -1, core.shape[-1])) for core in train.cores]


def _conjugate(core: Array) -> Array:
    conjugated = conj(core)
    # torch only marks its tensors as conjugated, which numpy and files cannot read
    return conjugated.resolve_conj() if hasattr(conjugated, "resolve_conj") else conjugated


def contracted(train: Train) -> Array:
    """All entries, flattened in the order of the sites, in the dtype of the cores."""
    return _chain.contract(_merged(train))


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
