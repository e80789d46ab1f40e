"""The value TT: a general tensor as a train of three-way cores."""

from __future__ import annotations

from typing import Any

from ._backend import Array
from ._train import Train, contracted, times


class TT(Train):
    """A tensor as a tensor train (TT), also called a matrix product state (MPS).

    ``T[i1..in] = T1[i1] T2[i2] .. Tn[in]``, each ``Tk[ik]`` an ``r_{k-1} x r_k`` matrix.

    Parameters
    ----------
    cores : sequence of (r_{k-1}, d_k, r_k) arrays
        Of one backend and dtype, ``r_0 = r_n = 1``. They are not copied.
    center : int, optional
        The site around which the cores are canonical, where that is known. It is taken on trust;
        ``tnmpo.is_canonical`` checks it, ``tnmpo.canonicalize`` makes it so.
    truncation : Truncation, optional
        The record of the cut that made these cores.

    Raises
    ------
    ValueError, TypeError
        If the cores do not form a train.

    Examples
    --------
    >>> import numpy as np
    >>> tt = TT([np.ones((1, 2, 3)), np.ones((3, 4, 1))])
    >>> tt.shape, tt.ranks, tt.n_parameters
    ((2, 4), (1, 3, 1), 18)
    >>> tt.to_tensor().shape
    (2, 4)
    """

    __slots__ = ()

    core_axes = ("rank", "site", "rank")
    advice = "for a matrix use MPO, or reshape it first"

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimension of every site."""
        return tuple(int(core.shape[1]) for core in self.cores)

    def to_tensor(self) -> Array:
        """The dense (d_1, .., d_n) tensor, on the cores' backend, device and dtype; scales as for ``MPO.to_matrix``."""
        return contracted(self).reshape(self.shape)

    def _dense(self) -> Array:
        return self.to_tensor()

    @property
    def _dense_shape(self) -> tuple[int, ...]:
        return self.shape

    def to_tensorly(self) -> Any:
        """The same cores as a ``tensorly.tt_tensor.TTTensor``; nothing is copied."""
        from tensorly.tt_tensor import TTTensor

        return TTTensor(list(self.cores))

    @classmethod
    def from_tensorly(cls, tensor: Any) -> TT:
        """A TT on the cores of a ``TTTensor`` (or any list of three-way factors); nothing is copied.

        Examples
        --------
        >>> import numpy as np
        >>> tt = TT([np.ones((1, 2, 3)), np.ones((3, 4, 1))])
        >>> TT.from_tensorly(tt.to_tensorly()).cores[0] is tt.cores[0]
        True
        """
        return cls(getattr(tensor, "factors", tensor))

    def _summary(self) -> tuple[str, list[str]]:
        return f"{times(self.shape)} tensor", []
