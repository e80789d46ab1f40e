"""The TensorLy backend of an argument, and the two factorisations everything rests on.

TensorLy's backend *objects* are used (``load_backend``); its global state is neither read nor
written, so threads with different backends never meet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tensorly.backend import load_backend

Array = Any  # a tensor of any backend
Backend = Any  # a TensorLy backend object

_BACKEND_OF_PACKAGE = {"numpy": "numpy", "torch": "pytorch"}
_WORKING_DTYPE = {"float16": "float32", "bfloat16": "float32"}
_DOUBLE_DTYPE = {"float32": "float64", "complex64": "complex128"}
_INEXACT_DTYPES = {"float16", "bfloat16", "float32", "float64", "complex64", "complex128"}


def backend_of(tensor: Array, argument: str) -> Backend:
    """Return the TensorLy backend object that ``tensor`` belongs to.

    Raises
    ------
    TypeError
        If ``tensor`` is not an array of a known backend.
    """
    for cls in type(tensor).__mro__:
        name = _BACKEND_OF_PACKAGE.get(cls.__module__.partition(".")[0])
        if name is not None and hasattr(tensor, "dtype") and hasattr(tensor, "ndim"):
            return load_backend(name)
    raise TypeError(
        f"{argument}: got {type(tensor).__name__}, expected a numpy array or a torch tensor; "
        "convert it first, e.g. with numpy.asarray(..., dtype=float)"
    )


def dtype_name(tensor: Array) -> str:
    """``'float32'`` for ``numpy.float32`` as for ``torch.float32``."""
    return str(tensor.dtype).rpartition(".")[2]


def cast(tensor: Array, dtype: str) -> Array:
    """``tensor`` in the dtype of that name; the tensor itself when it has it already."""
    if dtype_name(tensor) == dtype:
        return tensor
    if isinstance(tensor, np.ndarray | np.generic):
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
    if dtype_name(tensor) not in _INEXACT_DTYPES:
        raise TypeError(
            f"{argument}: got dtype {dtype_name(tensor)}, expected a floating or complex one; "
            "convert it first, e.g. to float64"
        )
    if 0 in tensor.shape:
        raise ValueError(f"{argument}: got shape {tuple(tensor.shape)}, expected at least one entry on each axis")
    # One pass without a temporary of the tensor's size: a sum is finite only if every entry is,
    # and where it overflowed the entries are looked at one by one.
    if np.isfinite(to_numpy(tensor.sum())) or all_finite(tensor):
        return
    raise ValueError(f"{argument}: got NaN or Inf among its entries, expected finite numbers; clean it first")


def all_finite(tensor: Array) -> bool:
    """Whether every entry is finite."""
    return bool((abs(tensor) < float("inf")).all())


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
    rows, columns = matrix.shape
    if columns >= 2 * rows:
        basis, spectrum = _left_vectors(backend, matrix)
        return basis, spectrum, adjoint(backend, basis) @ matrix
    if rows >= 2 * columns:
        q, r = backend.qr(matrix)  # (m, n), (n, n)
        u, spectrum, vh = backend.svd(r, full_matrices=False)
        return q @ u, spectrum, _scale_rows(spectrum, vh)
    u, spectrum, vh = backend.svd(matrix, full_matrices=False)
    return u, spectrum, _scale_rows(spectrum, vh)


def _left_vectors(backend: Backend, matrix: Array) -> tuple[Array, Array]:
    """All left singular vectors (m, m) and values (m,) of a wide matrix."""
    name = dtype_name(matrix)
    if name in _DOUBLE_DTYPE:
        wide = double(matrix)
        values, vectors = backend.eigh(wide @ adjoint(backend, wide))  # ascending
        spectrum = backend.sqrt(backend.clip(backend.flip(values), 0.0))
        return cast(backend.flip(vectors, axis=1), name), cast(spectrum, name.replace("complex64", "float32"))
    _, r = backend.qr(adjoint(backend, matrix))  # (m, m): matrix = r^H q^H
    u, spectrum, _ = backend.svd(adjoint(backend, r), full_matrices=False)
    return u, spectrum


def _scale_rows(values: Array, matrix: Array) -> Array:
    return values[:, None] * matrix
