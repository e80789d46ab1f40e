"""What a benchmark reports: one row a measurement, one verdict a goal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One contender in one case, or one goal.

    Attributes
    ----------
    suite, case, contender : str
    seconds : float, optional
        The median of a call.
    rounds : int, optional
        How many it is the median of.
    ratio, against : float and str, optional
        ``seconds`` over the seconds of that contender.
    error : float, optional
        Relative, against the dense matrix or the dense layer's answer.
    limit : float, optional
        The least seconds that the case can take, computed from its FLOPs and bytes and the machine's rates.
    measured, unit, goal, met :
        A number that a goal speaks of, what it counts, the goal in words, and whether it is kept.
    note : str
    """

    suite: str
    case: str
    contender: str
    seconds: float | None = None
    rounds: int | None = None
    ratio: float | None = None
    against: str = ""
    error: float | None = None
    limit: float | None = None
    measured: float | None = None
    unit: str = ""
    goal: str = ""
    met: bool | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Without the fields that say nothing."""
        return {key: value for key, value in asdict(self).items() if value is not None and value != ""}


def verdict(
    suite: str,
    case: str,
    what: str,
    measured: float,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    unit: str = "x",
    note: str = "",
) -> Row:
    """A row that holds a measured number against its goal."""
    met = (at_most is None or measured <= at_most) and (at_least is None or measured >= at_least)
    goal = f"<= {at_most:g}" if at_most is not None else f">= {at_least:g}"
    return Row(suite, case, what, measured=measured, unit=unit, goal=f"{goal} {unit}", met=met, note=note)


def geometric_mean(values: Iterable[float]) -> float:
    """The mean of ratios."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))
