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
    is_half,
    peak,
    permute,
    working,
)
from ._bounds import Truncation
from ._shapes import n_parameters, shown

_WIDER_DTYPE = {"float16": "bfloat16", "bfloat16": "float64", "float32": "float64", "complex64": "complex128"}
_COMPLEX_DTYPE = {"float32": "complex64", "float64": "complex128"}


class Train(ABC):
    """A train of cores, ``(r_{k-1}, site axes.., r_k)`` each, with ``r_0 = r_n = 1``.

    ``TT`` has one axis a site, ``MPO`` two, a row and a column. It is a value: its cores are not to be written into,
    for results may share them.
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
        check_alike(self, self._summand(other))
        cores = _chain.add(_merged(self), _merged(other))
        return self.frame.build(cores, dtype_name(self.cores[0]))

    def __radd__(self, other: int) -> Self:
        """So that the builtin ``sum``, which begins with 0, adds trains."""
        return self if isinstance(other, int) and other == 0 else self._summand(other)

    def __sub__(self, other: Self) -> Self:
        """The difference, as the sum."""
        return self + -self._summand(other)

    def __rsub__(self, other: Any) -> Self:
        return self._summand(other)

    def _summand(self, other: Any) -> Any:
        """``other``, if it is a train: an array would make the result dense, which is for the caller to say."""
        if not isinstance(other, Train):
            name = type(self).__name__
            raise TypeError(
                f"other: got {type(other).__name__}, expected a tnmpo.{name}; decompose it in the same sites, or make "
                f"an array of this one with to_{'tensor' if len(self.core_axes) == 3 else 'matrix'}()"
            )
        return other

    def __array__(self, *_: Any, **__: Any) -> Any:
        """Refused, so that no numpy function takes the train for an object without axes."""
        dense = "to_tensor" if len(self.core_axes) == 3 else "to_matrix"
        raise TypeError(
            f"array: got {type(self).__name__}, expected an array; {dense}() makes one, tnmpo.norm gives the norm"
        )

    def __neg__(self) -> Self:
        """The train times -1, in the same gauge; it shares all cores but one with this one."""
        return self * -1

    def __mul__(self, scalar: Any) -> Self:
        """The train times a scalar, in the same gauge: the center takes it (site 0 where none is known).

        The other cores are shared with this train. Where the product is out of the range of the dtype in that one core,
        every core takes a share, and the gauge is lost.
        """
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
        number = isinstance(factor, complex | float)
        factor, size = (factor, abs(factor)) if number else (cast(factor, kind), peak(factor))
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            core = operation(cores[site], factor)
            if size > 0 and peak(cores[site]) > 0 and not np.finfo(_range_of(kind)).tiny <= peak(core) < math.inf:
                return self._scaled_in_shares(site, factor, size, operation, kind)
        cores[site] = core
        return type(self)(cores, center=self.center)

    def _scaled_in_shares(
        self, site: int, factor: Any, size: float, operation: Callable[[Array, Any], Array], kind: str
    ) -> Self:
        """The same where no core alone can take the factor, which is of that size."""
        cores = [working(cast(core, kind)) for core in _merged(self)]
        core, exponent = _chain.around_one(cores[site], near=0)
        if not isinstance(factor, complex | float):
            factor = cast(factor, dtype_name(core))
        of_factor = math.frexp(size)[1]
        half = of_factor // 2  # two to the whole of it need not be a number
        cores[site] = operation(core, factor * 2.0**-half * 2.0 ** (half - of_factor))
        cores, of_cores = _chain.all_around_one(cores, near=0)
        of_factor = -of_factor if operation is operator.truediv else of_factor
        shares = _chain.spread(cores, exponent + of_factor + of_cores)
        _check_range(self.frame.kind, cores, [cast(share, kind) for share in shares], kind)
        return self.frame.build(shares, kind)

    def conj(self) -> Self:
        """The complex conjugate, in the same gauge; a real train's shares its cores."""
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
        gauge = "no known gauge" if self.center is None else f"center {self.center}"
        lines = [
            f"{type(self).__name__}: {what} ({backend}, {dtype_name(self.cores[0])})",
            *(f"  {line}" for line in sites),
            f"  bonds  {'-'.join(map(str, self.ranks))}, {gauge}",
            f"  {size_in_words(self)}",
        ]
        if self.truncation is not None:
            lines.append(f"  relative error {self.truncation.relative_error:.3g}")
        return "\n".join(lines)


def size_in_words(train: Train) -> str:
    """The number of parameters, and beside those of the dense array."""
    share = train.n_parameters / math.prod(train.frame.site_sizes)
    return f"{train.n_parameters:,} parameters, " + (
        f"{share:.3g} of dense" if share < 100 else f"{share:,.0f} times dense"
    )


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
            If an entry does not fit ``dtype``, or all of a core vanish in it: the center carries the norm, and float16
            ends at 65504.
        """
        apart = [
            cast(core.reshape((core.shape[0], *site, core.shape[2])), dtype)
            for core, site in zip(cores, self.site_shapes, strict=True)
        ]
        _check_range(self.kind, cores, apart, dtype)
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
        raise TypeError(f"scalar: got {name}, expected a number; products are @ and tnmpo.hadamard")
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


def _range_of(kind: str) -> str:
    """A dtype that numpy knows, with the range of this one."""
    return "float32" if kind == "bfloat16" else kind


def _check_range(kind: type[Train], wanted: Sequence[Array], cores: Sequence[Array], dtype: str) -> None:
    """Refuse ``cores``, which are ``wanted`` in ``dtype``, where an entry overflowed or a whole core underflowed."""
    for before, after in zip(wanted, cores, strict=True):
        largest = peak(after)
        if largest == 0 and before is not after and peak(before) > 0:
            what, direction = "underflows", "up"
        elif not math.isfinite(largest):
            what, direction = "overflows", "down"
        else:
            continue
        remedy = f" or convert it to {_WIDER_DTYPE[dtype]}" if dtype in _WIDER_DTYPE else ""
        raise ValueError(f"{kind.__name__}: got a norm that {what} {dtype}; scale it {direction}{remedy}")


def contracted(train: Train) -> Array:
    """All entries, flattened in the order of the sites, in the dtype of the cores."""
    return _chain.contract(_merged(train), look=not is_half(train.cores[0]) and _may_look(train.cores))


def _may_look(cores: Sequence[Array]) -> bool:
    """Whether the values are at hand: not while torch compiles or maps.

    Nor in a training step on an accelerator, where every look would wait for all work before it.
    """
    if not hasattr(cores[0], "permute"):
        return True
    import torch  # a tensor of it has come in: it is imported already

    trained = cores[0].device.type != "cpu" and any(core.requires_grad for core in cores)
    if trained or torch.compiler.is_compiling():
        return False
    try:
        sum(core[(0,) * core.ndim] for core in cores).item()
    except RuntimeError:  # tensors without values: under torch.func.vmap, on the meta device, in a fake mode
        return False
    return True


def regrouped(array: Array, dimensions: Sequence[int], axes: Sequence[int]) -> Array:
    """The entries in these dimensions, then the axes in this order, all without the axes of dimension 1.

    Those change no order, and numpy allows for 64 axes.
    """
    kept = [axis for axis, dimension in enumerate(dimensions) if dimension != 1]
    place = {axis: position for position, axis in enumerate(kept)}
    return permute(array.reshape(tuple(dimensions[axis] for axis in kept)), [place[a] for a in axes if a in place])


def interleaved(dense: Array, frame: Frame[Any]) -> Array:
    """The entries of a dense array in the order of the sites, one axis a site axis that is not 1."""
    axes = len(frame.site_shapes[0])
    dims = [site[axis] for axis in range(axes) for site in frame.site_shapes]
    order = len(frame.site_shapes)
    return regrouped(dense, dims, [axis * order + k for k in range(order) for axis in range(axes)])


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
