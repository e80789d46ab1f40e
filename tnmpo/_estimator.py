"""MPODecomposition: the decomposition as an object with fit_transform, TensorLy's habit."""

from __future__ import annotations

from typing import Any

from ._backend import Array
from ._decompose import mpo_decompose
from ._mpo import MPO
from ._weights import Weight


class MPODecomposition:
    """A decomposition whose options are fixed before the matrix comes, as TensorLy's and scikit-learn's classes are.

    Parameters
    ----------
    rank, shape, weight, center : optional
        As for ``tnmpo.mpo_decompose``; the rank comes first, as in TensorLy.

    Attributes
    ----------
    decomposition_ : MPO
        The last result, after ``fit`` or ``fit_transform``.

    Examples
    --------
    >>> import numpy as np
    >>> W = np.random.default_rng(0).normal(size=(16, 36))
    >>> decomposition = MPODecomposition(rank=4, shape=((4, 4), (6, 6)))
    >>> decomposition
    MPODecomposition(rank=4, shape=((4, 4), (6, 6)))
    >>> decomposition.fit_transform(W).ranks
    (1, 4, 1)
    """

    decomposition_: MPO

    def __init__(
        self, rank: Any = None, shape: Any = None, *, weight: Weight | None = None, center: int | None = None
    ) -> None:
        self.rank, self.shape, self.weight, self.center = rank, shape, weight, center

    def fit(self, W: Array, y: Any = None) -> MPODecomposition:
        """Decompose an (I, J) matrix and keep the result; ``y`` is there for pipelines and ignored."""
        self.fit_transform(W)
        return self

    def fit_transform(self, W: Array, y: Any = None) -> MPO:
        """Decompose an (I, J) matrix.

        Raises
        ------
        ValueError, TypeError
            As ``tnmpo.mpo_decompose``: options are checked when the matrix is there.
        """
        self.decomposition_ = mpo_decompose(W, self.shape, self.rank, weight=self.weight, center=self.center)
        return self.decomposition_

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The options by name; none of them has options of its own, so ``deep`` changes nothing."""
        return {"rank": self.rank, "shape": self.shape, "weight": self.weight, "center": self.center}

    def set_params(self, **params: Any) -> MPODecomposition:
        """Change options by name.

        Raises
        ------
        ValueError
            If there is no such option.
        """
        for name, value in params.items():
            if name not in self.get_params():
                raise ValueError(f"set_params: got {name!r}, expected one of {', '.join(self.get_params())}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        given = (f"{name}={value!r}" for name, value in self.get_params().items() if value is not None)
        return f"{type(self).__name__}({', '.join(given)})"
