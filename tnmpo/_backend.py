"""The TensorLy backend of an argument, and the two factorisations everything rests on.

TensorLy's backend *objects* are used (``load_backend``); its global state is neither read nor
written, so threads with different backends never meet.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tensorly.backend import load_backend

Array = Any  # a tensor of any backend
Backend = Any  # a TensorLy backend object

_BACKEND_OF_PACKAGE = {"numpy": "numpy", "torch": "pytorch"}
_WORKING_DTYPE = {"float16": "float32", "bfloat16": "float32"}
_DOUBLE_DTYPE = {"float32": "float64", "complex64": "complex128"}
_REAL_DTYPE = {"complex64": "float32", "complex128": "float64"}
_INEXACT_DTYPES = {"float16", "bfloat16", "float32", "float64", "complex64", "complex128"}


def backend_of(tensor: Array, argument: str) -> Backend:
    """Return the TensorLy backend object that ``tensor`` belongs to.

    Raises
    ------
    TypeError
        If ``tensor`` is not an array of a known backend, or one of its special kinds: numpy's matrices and masked
        arrays, torch's sparse tensors.
    """
    layout = str(getattr(tensor, "layout", "torch.strided"))  # numpy arrays have none
    if isinstance(tensor, np.matrix | np.ma.MaskedArray) or layout != "torch.strided":
        kind = f"{type(tensor).__name__} of layout {layout}" if hasattr(tensor, "layout") else type(tensor).__name__
        raise TypeError(f"{argument}: got a {kind}, expected a plain dense array; convert it first")
    for cls in type(tensor).__mro__:
        name = _BACKEND_OF_PACKAGE.get(cls.__module__.partition(".")[0])
        if name is not None and hasattr(tensor, "dtype") and hasattr(tensor, "ndim"):
            return load_backend(name)
    raise TypeError(
        f"{argument}: got {type(tensor).__name__}, expected a numpy array or a torch tensor; "
        "convert it first, e.g. with numpy.asarray(..., dtype=float)"
    )


def dtype_name(tensor: Array) -> str:
    """``'float32'`` for ``numpy.float32`` (of either byte order) as for ``torch.float32``."""
    return getattr(tensor.dtype, "name", None) or str(tensor.dtype).rpartition(".")[2]


def cast(tensor: Array, dtype: str) -> Array:
    """``tensor`` in the dtype of that name; the tensor itself when it has it already."""
    if dtype_name(tensor) == dtype:
        return tensor
    if isinstance(tensor, np.ndarray | np.generic):
        with np.errstate(over="ignore"):  # as in torch: who casts down looks for infinities
            return tensor.astype(dtype)
    import torch  # the tensor is one of torch's: it is imported already

    return tensor.to(getattr(torch, dtype))


def working(tensor: Array) -> Array:
    """``tensor`` in a precision that can be factorised: half precision becomes float32."""
    name = dtype_name(tensor)
    return cast(tensor, _WORKING_DTYPE.get(name, name))


def double(tensor: Array) -> Array:
    """``tensor`` in double precision, real or complex."""
    name = dtype_name(working(tensor))
    return cast(tensor, _DOUBLE_DTYPE.get(name, name))


def is_half(tensor: Array) -> bool:
    """Whether ``tensor`` has a 16-bit dtype, in which nothing can be factorised."""
    return dtype_name(tensor) in _WORKING_DTYPE


def check_values(tensor: Array, argument: str) -> None:
    """Refuse what has no decomposition: integers, empty arrays, NaN and Inf."""
    check_dtype(tensor, argument)
    if 0 in tensor.shape:
        raise ValueError(f"{argument}: got shape {tuple(tensor.shape)}, expected at least one entry on each axis")
    if getattr(tensor, "is_meta", False):
        raise ValueError(f"{argument}: got a tensor on the meta device, expected one with values; load it first")
    if not all_finite(tensor):
        raise ValueError(f"{argument}: got NaN or Inf among its entries, expected finite numbers; clean it first")


def check_dtype(tensor: Array, argument: str) -> None:
    """Refuse what is not floating or complex, or too long for a backend to factorise."""
    if dtype_name(tensor) not in _INEXACT_DTYPES:
        raise TypeError(
            f"{argument}: got dtype {dtype_name(tensor)}, expected one of {', '.join(sorted(_INEXACT_DTYPES))}; "
            "convert it first, e.g. to float64"
        )


def check_norm(tensor: Array, argument: str) -> None:
    """Refuse what is finite but so large that its norm, and with it a Schmidt value, need not be."""
    name = dtype_name(tensor)
    largest, limit = peak(tensor), float(np.finfo(_WORKING_DTYPE.get(name, name)).max)
    if largest > limit / (2 * math.sqrt(math.prod(tensor.shape))):  # 2: for the parts of a complex number
        raise ValueError(
            f"{argument}: got entries up to {largest:.3g}, whose norm overflows {name}; scale them down first"
        )


def all_finite(tensor: Array) -> bool:
    """Whether every entry is finite."""
    return math.isfinite(peak(tensor))


def peak(tensor: Array) -> float:
    """The largest magnitude among all real and imaginary parts; NaN where there is one.

    No temporary of the tensor's size is made.
    """
    if not isinstance(tensor, np.ndarray | np.generic):
        tensor = tensor.detach()
    parts = [tensor.real, tensor.imag] if "complex" in dtype_name(tensor) else [tensor]
    extremes = [abs(float(extreme)) for part in parts for extreme in (part.max(), part.min())]
    return float(np.max(extremes))  # unlike the builtin, numpy's does not lose a NaN


def to_numpy(tensor: Array) -> np.ndarray:
    """``tensor`` as a detached numpy array in double precision."""
    if isinstance(tensor, np.ndarray | np.generic):
        return np.asarray(double(np.asarray(tensor)))
    return double(tensor.detach()).cpu().numpy()


def like(array: Array, tensor: Array) -> Array:
    """``array`` on the backend and device of ``tensor``, in its own dtype."""
    if isinstance(tensor, np.ndarray):
        return array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
    import torch  # the tensor is one of torch's: it is imported already

    return torch.as_tensor(array).to(tensor.device)


def adjoint(backend: Backend, matrix: Array) -> Array:
    """The conjugate transpose."""
    return backend.transpose(backend.conj(matrix))


def thin_svd(backend: Backend, matrix: Array) -> tuple[Array, Array, Array]:
    """Split ``matrix = basis @ rest`` with ``basis`` the left singular vectors.

    Parameters
    ----------
    matrix : (m, n) array

    Returns
    -------
    basis : (m, k) array with orthonormal columns, k = min(m, n)
    spectrum : (k,) real array, descending
    rest : (k, n) array, ``basis^H matrix``, i.e. the singular values times the right vectors

    Notes
    -----
    A wide matrix needs no SVD of its long side. In single precision the basis comes from the Gram
    matrix in double precision, whose relative floor of 1e-8 is below what single precision can
    tell; in double precision from the R factor of a QR. Either way ``rest`` is one product.
    Cost: O(m n min(m, n)).
    """
    given = matrix
    matrix, scale = _factorable(given)
    rows, columns = matrix.shape
    if columns >= 2 * rows:
        basis, spectrum = _left_vectors(backend, matrix)
        rest = adjoint(backend, basis) @ matrix
    elif rows >= 2 * columns:
        q, r = backend.qr(matrix)  # (m, n), (n, n)
        u, spectrum, vh = backend.svd(r, full_matrices=False)
        basis, rest = q @ u, spectrum[:, None] * vh
    else:
        basis, spectrum, vh = backend.svd(matrix, full_matrices=False)
        rest = spectrum[:, None] * vh
    name = dtype_name(given)
    return cast(basis, name), cast(spectrum * scale, _REAL_DTYPE.get(name, name)), cast(rest * scale, name)


def thin_qr(backend: Backend, matrix: Array) -> tuple[Array, Array]:
    """``matrix = q @ r`` with orthonormal columns in ``q``, at any scale of the entries."""
    name = dtype_name(matrix)
    matrix, scale = _factorable(matrix)
    q, r = backend.qr(matrix)
    return cast(q, name), cast(r * scale, name)


def _factorable(matrix: Array) -> tuple[Array, float]:
    """``matrix / scale`` as LAPACK can take it, and the scale.

    Entries are brought around 1, by a power of two so that nothing is rounded: factorisations sum squares. And single
    precision complex becomes double: there torch's QR (MKL) returns NaN for some matrices of dependent columns.
    """
    if dtype_name(matrix) == "complex64":
        matrix = double(matrix)
    largest = peak(matrix)
    if largest == 0 or 1e-6 < largest < 1e6 or not math.isfinite(largest):
        return matrix, 1.0
    scale = max(math.ldexp(1.0, math.frexp(largest)[1] - 1), float(np.finfo(dtype_name(matrix)).tiny))
    return matrix / scale, scale


def _left_vectors(backend: Backend, matrix: Array) -> tuple[Array, Array]:
    """All left singular vectors (m, m) and values (m,) of a wide matrix."""
    name = dtype_name(matrix)
    if name in _DOUBLE_DTYPE:
        wide = double(matrix)
        values, vectors = backend.eigh(wide @ adjoint(backend, wide))  # ascending
        spectrum = backend.sqrt(backend.clip(backend.flip(values), 0.0))
        return cast(backend.flip(vectors, axis=1), name), cast(spectrum, name)
    _, r = backend.qr(adjoint(backend, matrix))  # (m, m): matrix = r^H q^H
    u, spectrum, _ = backend.svd(adjoint(backend, r), full_matrices=False)
    return u, spectrum
