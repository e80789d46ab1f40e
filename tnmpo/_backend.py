"""The TensorLy backend of an argument, and what TensorLy's backends spell differently.

TensorLy's backend *objects* are used (``load_backend``); its global state is neither read nor
written, so threads with different backends never meet.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from tensorly.backend import load_backend

Array = Any  # a tensor of any backend
Backend = Any  # a TensorLy backend object

_BACKEND_OF_PACKAGE = {
    "numpy": "numpy",
    "torch": "pytorch",
    "jax": "jax",
    "jaxlib": "jax",
    "cupy": "cupy",
    "tensorflow": "tensorflow",
}
_EXPECTED = "a numpy array, a torch tensor, a jax array"
_WORKING_DTYPE = {"float16": "float32", "bfloat16": "float32"}
_DOUBLE_DTYPE = {"float32": "float64", "complex64": "complex128"}
_REAL_DTYPE = {"complex64": "float32", "complex128": "float64"}
_BFLOAT16_EPSILON = 2.0**-7
_BLOCK = 1 << 22  # entries of which a norm takes double precision at a time
_INEXACT_DTYPES = {"float16", "bfloat16", "float32", "float64", "complex64", "complex128"}


def backend_of(tensor: Array, argument: str) -> Backend:
    """Return the TensorLy backend object that ``tensor`` belongs to.

    Raises
    ------
    TypeError
        If ``tensor`` is not an array of a known backend, one of its special kinds (numpy's matrices and masked
        arrays, torch's sparse tensors), or without values, as inside ``jax.jit`` and ``tf.function``.
    """
    layout = str(getattr(tensor, "layout", "torch.strided"))  # numpy arrays have none
    if isinstance(tensor, np.matrix | np.ma.MaskedArray) or layout != "torch.strided":
        kind = f"{type(tensor).__name__} of layout {layout}" if hasattr(tensor, "layout") else type(tensor).__name__
        raise TypeError(f"{argument}: got a {kind}, expected a plain dense array; convert it first")
    for cls in type(tensor).__mro__:
        name = _BACKEND_OF_PACKAGE.get(cls.__module__.partition(".")[0])
        if name is not None and hasattr(tensor, "dtype") and hasattr(tensor, "shape"):
            if name == "jax" and is_jax_tracer(detach(tensor)):
                raise TypeError(
                    f"{argument}: got a jax tracer without values, expected an array; bonds and gauges depend on "
                    "the values: call it outside jax.jit and jax.vmap (jax.grad is fine)"
                )
            if name == "tensorflow" and type(tensor).__name__ != "EagerTensor":
                raise TypeError(
                    f"{argument}: got a {type(tensor).__name__} of tensorflow, expected an eager tensor; bonds and "
                    "gauges depend on the values: call it outside tf.function, and pass tf.convert_to_tensor(variable)"
                )
            return _load(name)
    raise TypeError(
        f"{argument}: got {type(tensor).__name__}, expected {_EXPECTED}; "
        "convert it first, e.g. with numpy.asarray(..., dtype=float)"
    )


@cache
def _load(name: str) -> Backend:
    """TensorLy's backend object. Loading the one of jax switches on 64-bit types for the process: not ours to do."""
    if name != "jax":
        return load_backend(name)
    import jax  # an array of it has come in: it is imported already

    wide = jax.config.read("jax_enable_x64")
    try:
        return load_backend(name)
    finally:
        jax.config.update("jax_enable_x64", wide)


def array_of(values: np.ndarray, backend: str, dtype: str) -> Array:
    """The numbers as an array of the package ``backend``, which is imported here, in that dtype."""
    packages = sorted(set(_BACKEND_OF_PACKAGE) - {"jaxlib"})
    if backend not in packages:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(packages)}")
    if dtype not in _INEXACT_DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(sorted(_INEXACT_DTYPES))}")
    package = importlib.import_module(backend)
    if backend == "numpy":
        if dtype == "bfloat16":
            raise ValueError("dtype: got 'bfloat16' on numpy, which has none; use torch or jax")
        return values.astype(dtype)
    if backend == "torch":
        return package.tensor(values).to(getattr(package, dtype))
    if backend == "tensorflow":
        return package.cast(package.constant(values), dtype)
    if backend == "jax":
        if dtype in ("float64", "complex128") and not package.config.read("jax_enable_x64"):
            raise ValueError(
                f"dtype: got {dtype!r} on jax with its 64-bit types off, expected one of 32 bits or less; "
                "jax.config.update('jax_enable_x64', True) switches them on"
            )
        return package.numpy.asarray(values, dtype=dtype)
    return package.asarray(values).astype(dtype)


def is_jax_tracer(tensor: Array) -> bool:
    """Whether jax is tracing ``tensor`` for a derivative, a compilation or a map."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(tensor, jax.core.Tracer)


def dtype_name(tensor: Array) -> str:
    """``'float32'`` for ``numpy.float32`` (of either byte order) as for ``torch.float32``."""
    return getattr(tensor.dtype, "name", None) or str(tensor.dtype).rpartition(".")[2]


def cast(tensor: Array, dtype: str) -> Array:
    """``tensor`` in the dtype of that name; the tensor itself when it has it already."""
    if dtype_name(tensor) == dtype:
        return tensor
    if hasattr(tensor, "permute"):
        return tensor.to(getattr(sys.modules["torch"], dtype))
    with np.errstate(over="ignore"):  # as in torch: who casts down looks for infinities
        return tensor.astype(dtype)


def detach(tensor: Array) -> Array:
    """``tensor`` without its derivative; on jax only so do the values of a traced array become known."""
    if hasattr(tensor, "detach"):
        return tensor.detach()
    if is_jax_tracer(tensor):
        return sys.modules["jax"].lax.stop_gradient(tensor)
    return tensor


def permute(tensor: Array, axes: Sequence[int]) -> Array:
    """``tensor`` with its axes in another order."""
    axes = tuple(axes)
    return tensor.permute(axes) if hasattr(tensor, "permute") else tensor.transpose(axes)


def device_of(tensor: Array) -> str:
    """The device of ``tensor``, in its backend's words."""
    return str(getattr(detach(tensor), "device", "cpu"))


def working(tensor: Array) -> Array:
    """``tensor`` in a precision that can be factorised: half precision becomes float32."""
    name = dtype_name(tensor)
    return cast(tensor, _WORKING_DTYPE.get(name, name))


def double(tensor: Array) -> Array:
    """``tensor`` in double precision, real or complex; on jax only where 64-bit types are switched on."""
    name = dtype_name(working(tensor))
    if is_jax(tensor) and not sys.modules["jax"].config.read("jax_enable_x64"):
        return cast(tensor, name)
    return cast(tensor, _DOUBLE_DTYPE.get(name, name))


def is_jax(tensor: Array) -> bool:
    """Whether ``tensor`` is one of jax's, traced or not."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(tensor, jax.Array)


def resolution(tensor: Array) -> float:
    """The relative spacing of the numbers of the dtype of ``tensor``."""
    name = dtype_name(tensor)
    return _BFLOAT16_EPSILON if name == "bfloat16" else float(np.finfo(name).eps)


def real_dtype(name: str) -> str:
    """``'float32'`` for ``'complex64'``, and so on; real names are their own."""
    return _REAL_DTYPE.get(name, name)


def is_half(tensor: Array) -> bool:
    """Whether ``tensor`` has a 16-bit dtype, in which nothing can be factorised."""
    return dtype_name(tensor) in _WORKING_DTYPE


def check_values(tensor: Array, argument: str) -> float:
    """Refuse what has no decomposition: integers, empty arrays, NaN and Inf. Returns the largest magnitude."""
    check_dtype(tensor, argument)
    if 0 in tensor.shape:
        raise ValueError(f"{argument}: got shape {tuple(tensor.shape)}, expected at least one entry on each axis")
    if getattr(tensor, "is_meta", False):
        raise ValueError(f"{argument}: got a tensor on the meta device, expected one with values; load it first")
    largest = peak(tensor)
    if not math.isfinite(largest):
        raise ValueError(f"{argument}: got NaN or Inf among its entries, expected finite numbers; clean it first")
    return largest


def check_matrix(W: Array) -> None:
    """Refuse what is no matrix that can be decomposed."""
    backend_of(W, "W")
    if len(W.shape) != 2:
        raise ValueError(f"W: got {len(W.shape)} axes, expected a matrix; reshape it to two, or use tnmpo.tt_decompose")
    check_norm(W, "W")


def check_dtype(tensor: Array, argument: str) -> None:
    """Refuse what is not floating or complex, or too long for a backend to factorise."""
    if dtype_name(tensor) not in _INEXACT_DTYPES:
        raise TypeError(
            f"{argument}: got dtype {dtype_name(tensor)}, expected one of {', '.join(sorted(_INEXACT_DTYPES))}; "
            "convert it first, e.g. to float64"
        )


def check_norm(tensor: Array, argument: str) -> None:
    """``check_values``, and refuse what is finite but so large that its norm, a Schmidt value, need not be."""
    largest, name = check_values(tensor, argument), dtype_name(tensor)
    limit = float(np.finfo(_WORKING_DTYPE.get(name, name)).max)
    if largest > limit / (2 * math.sqrt(math.prod(tensor.shape))):  # 2: for the parts of a complex number
        raise ValueError(
            f"{argument}: got entries up to {largest:.3g}, whose norm overflows {name}; scale them down first"
        )


def all_finite(tensor: Array) -> bool:
    """Whether every entry is finite."""
    return math.isfinite(peak(tensor))


def peak(tensor: Array) -> float:
    """The largest magnitude among all real and imaginary parts; NaN where there is one.

    No temporary of the tensor's size is made. On the CPU it is numpy that looks: threads of torch would go on spinning
    for a while, in the way of those of the products that follow.
    """
    tensor = detach(tensor)
    tensor = tensor if dtype_name(tensor) == "bfloat16" else at_hand(tensor)  # which numpy has not
    extremes = [abs(float(extreme)) for part in parts_of(tensor) for extreme in (part.max(), part.min())]
    return float(np.max(extremes))  # unlike the builtin, numpy's does not lose a NaN


def frobenius_norm(tensor: Array) -> float:
    """The square root of the sum of all squares, in double precision at any scale, on the device of ``tensor``.

    Of jax on the host: on a device it may have no double precision.
    """
    tensor = as_numpy(tensor) if is_jax(tensor) else at_hand(detach(tensor))
    largest = peak(tensor)
    if largest == 0:
        return 0.0
    flat, energy = tensor.reshape((-1,)), 0.0
    for first in range(0, flat.shape[0], _BLOCK):
        entries = double(flat[first : first + _BLOCK]) / largest
        energy += float(as_numpy(conj(entries) @ entries).real)
    return largest * math.sqrt(energy)


def parts_of(tensor: Array) -> list[Array]:
    """The real and the imaginary part of a complex tensor, a real one alone."""
    if "complex" not in dtype_name(tensor):
        return [tensor]
    if hasattr(tensor, "real"):
        return [tensor.real, tensor.imag]
    package = sys.modules["tensorflow"]  # whose tensors are the only ones without
    return [package.math.real(tensor), package.math.imag(tensor)]


def to_numpy(tensor: Array) -> np.ndarray:
    """``tensor`` as a detached numpy array in double precision."""
    return double(as_numpy(tensor))


def as_numpy(tensor: Array) -> np.ndarray:
    """``tensor`` as a detached numpy array of its own dtype (bfloat16: float32), where possible without a copy."""
    tensor = detach(tensor)
    if dtype_name(tensor) == "bfloat16":
        tensor = cast(tensor, "float32")
    if hasattr(tensor, "permute"):
        tensor = tensor.cpu().resolve_conj().resolve_neg()
    elif hasattr(tensor, "get") and not isinstance(tensor, np.ndarray):  # cupy
        tensor = tensor.get()
    return np.asarray(tensor)


def at_hand(tensor: Array) -> Array:
    """A tensor in the memory of the CPU as numpy's, whose products and eigenvalues are faster there than torch's."""
    if is_jax(tensor):
        on_cpu = all(device.platform == "cpu" for device in tensor.devices())
    else:
        on_cpu = device_of(tensor) == "cpu"
    try:
        return as_numpy(tensor) if on_cpu else tensor
    except RuntimeError:  # torch.func wraps tensors in others, which have no memory
        return tensor


def handed_over(array: Array, tensor: Array) -> Array:
    """``like`` of an array that nobody else holds: torch takes numpy's memory as it is."""
    if hasattr(tensor, "permute") and isinstance(array, np.ndarray):
        return sys.modules["torch"].from_numpy(array).to(tensor.device)
    return like(array, tensor)


def like(array: Array, tensor: Array) -> Array:
    """``array``, of any backend, on the backend and device of ``tensor``, in its own dtype."""
    if hasattr(tensor, "permute"):
        torch = sys.modules["torch"]
        return (array if hasattr(array, "permute") else torch.tensor(as_numpy(array))).to(tensor.device)
    if isinstance(tensor, np.ndarray | np.generic):
        return as_numpy(array)
    if is_jax(tensor):
        return array if is_jax(array) else sys.modules["jax"].numpy.asarray(as_numpy(array))
    return backend_of(tensor, "tensor").tensor(as_numpy(array))


def transposed(matrix: Array) -> Array:
    """The transpose."""
    return permute(matrix, (1, 0))


def adjoint(matrix: Array) -> Array:
    """The conjugate transpose."""
    return conj(transposed(matrix))


def conj(tensor: Array) -> Array:
    """The complex conjugate; a real tensor itself."""
    return backend_of(tensor, "tensor").conj(tensor) if "complex" in dtype_name(tensor) else tensor
