"""MPOConfig: what to compress, into which shape, to which budget; presets per architecture."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

import tnmpo

from .presets import PAPER_SHAPES

_SHAPES = ("auto", "low_rank", "interleaved")
_ALLOTMENTS = ("model", "module")
_EXECUTIONS = ("auto", "dense", "factored")


@dataclass(kw_only=True)
class MPOConfig(QuantizationConfigMixin):
    """How to compress a model; also what transformers knows as a quantization config.

    ``AutoModel.from_pretrained(name, quantization_config=MPOConfig(ratio=0.5))`` compresses on load.

    At most one of ``ratio``, ``rank`` and ``tol`` sets the budget. None of them means interleaved
    MPOs at full rank: lossless, a little larger than dense, for lightweight fine-tuning.

    Parameters
    ----------
    ratio : float, optional
        Parameters kept over dense parameters, over the weight matrices of the targeted modules at rest, in (0, 1].
    rank : int or dict from pattern to int, optional
        A cap on every bond; with a dict, of the modules whose name a pattern matches (a suffix or a regular
        expression for the whole name), the others keep full bonds.
    tol : float, optional
        Relative (weighted) error that every matrix may have, in [0, 1).
    shape : {"auto", "low_rank", "interleaved"}
        ``low_rank`` is ``U V`` (an SVD in the weighted norm), ``interleaved`` the paper's, ``auto``
        takes per matrix the one with the lower (weighted) error at equal parameters.
    rank_multiple : int
        Bonds of low-rank matrices that ``ratio`` or ``tol`` choose are multiples of it, rounded down for a ``ratio``
        and up for a ``tol``, where there is room. 8 is what the tensor cores of a GPU want of 16-bit numbers: two
        forward products with a bond of 152 took a quarter of the time of those with 153 (H100, CUDA graph, 4,096
        tokens).
    order : int
        Sites of an interleaved MPO. With 5, the paper's shapes are used where it has one.
    target_modules : str or list of str, optional
        As in PEFT: a list of suffixes, or one regular expression that matches whole names. By default the word
        embedding, the encoder's linear layers and the pooler, for architectures with a preset.
    exclude_modules : str or list of str, optional
        Likewise; wins over ``target_modules``.
    allot : {"model", "module"}
        ``model`` shares one budget among all matrices, by relative (weighted) error per parameter;
        ``module`` lets every matrix keep ``ratio`` by itself (interleaved: by the largest single cap).
    cache : bool
        Let layers keep the dense weight, or the tables of a lookup, that they contract from their cores, until these
        change: the time of a dense layer, for up to its memory. Low-rank layers need none.
    execution : {"auto", "dense", "factored"}
        How linear layers multiply, see ``MPOLinear``; ``auto`` takes what costs less.
    layers : dict, optional
        What the layers of a compressed checkpoint look like, by name; written when a model is saved, not by hand.
    quant_method : str
        ``"mpo"``, the name in transformers' registry.

    Raises
    ------
    ValueError, TypeError
        If a value is out of range, or two budgets are given.

    Examples
    --------
    >>> MPOConfig(ratio=0.5, shape="low_rank").ratio
    0.5
    """

    ratio: float | None = None
    rank: int | Mapping[str, int] | None = None
    tol: float | None = None
    shape: str = "auto"
    rank_multiple: int = 1
    order: int = 5
    target_modules: str | Sequence[str] | None = None
    exclude_modules: str | Sequence[str] | None = None
    allot: str = "model"
    cache: bool = True
    execution: str = "auto"
    layers: dict[str, Any] | None = None
    quant_method: str = "mpo"  # type: ignore[assignment]

    def __post_init__(self) -> None:
        budgets = [name for name in ("ratio", "rank", "tol") if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise ValueError(f"MPOConfig: got {' and '.join(budgets)}, expected at most one budget")
        _check_number(self.ratio, "ratio", "in (0, 1]", lambda value: 0 < value <= 1)
        _check_number(self.tol, "tol", "in [0, 1)", lambda value: 0 <= value < 1)
        _check_word(self.shape, "shape", _SHAPES)
        _check_word(self.allot, "allot", _ALLOTMENTS)
        _check_word(self.execution, "execution", _EXECUTIONS)
        if not isinstance(self.cache, bool):
            raise TypeError(f"cache: got {self.cache!r}, expected True or False")
        _check_rank(self.order, "order")
        _check_rank(self.rank_multiple, "rank_multiple")
        if isinstance(self.rank, Mapping):
            if not self.rank:
                raise ValueError("rank: got an empty dictionary, expected at least one pattern with its rank")
            for pattern, rank in self.rank.items():
                _check_expression(pattern, "rank")
                _check_rank(rank, f"rank[{pattern!r}]")
        elif self.rank is not None:
            _check_rank(self.rank, "rank")
        if self.shape == "low_rank" and not budgets:
            raise ValueError(
                "MPOConfig: shape='low_rank' without a budget would only enlarge the model; pass ratio, rank or tol"
            )
        for name in ("target_modules", "exclude_modules"):
            _check_patterns(getattr(self, name), name)

    @property
    def is_lossless(self) -> bool:
        """Whether no budget is set."""
        return self.ratio is None and self.rank is None and self.tol is None

    def interleaved_shape(self, weight_shape: tuple[int, int], *, is_embedding: bool) -> tnmpo.MPOShape:
        """The paper's shape of such a weight, or balanced factors; a vocabulary is padded inside."""
        if self.order == 5 and weight_shape in PAPER_SHAPES:
            return tnmpo.MPOShape(*PAPER_SHAPES[weight_shape])
        rows, cols = weight_shape
        return tnmpo.plan_shape((tnmpo.padded_size(rows, self.order) if is_embedding else rows, cols), self.order)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return copy.deepcopy(asdict(self))

    def to_diff_dict(self) -> dict[str, Any]:
        """All values: none is left out where this is printed."""
        return self.to_dict()


def _check_number(value: Any, name: str, wanted: str, fits: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {value!r}, expected a number {wanted}")
    if not fits(value):
        raise ValueError(f"{name}: got {value}, expected a number {wanted}")


def _check_word(value: Any, name: str, words: Sequence[str]) -> None:
    if value not in words:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, words))}")


def _check_rank(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, expected a positive integer")
    if value < 1:
        raise ValueError(f"{name}: got {value}, expected a positive integer")


def _check_patterns(value: Any, name: str) -> None:
    if value is None:
        return
    if isinstance(value, str):
        _check_expression(value, name)
        return
    if not isinstance(value, Sequence) or not all(isinstance(entry, str) for entry in value):
        raise TypeError(f"{name}: got {value!r}, expected a list of name suffixes or one regular expression")
    if len(value) == 0:
        raise ValueError(f"{name}: got an empty list, expected at least one name suffix")


def _check_expression(value: Any, name: str) -> None:
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{name}: got {value!r}, which is no regular expression ({error}); '.*' stands for any characters"
        ) from error
