"""The suite *decompose* on 4096 x 11008. It stands apart because the SVDs of TensorLy, torchTT and quimb take minutes a
call there, and the whole suite hours; contenders whose first call takes more than a minute are called once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import decompose
from records import Row

SIZES = [(4096, 11008)]


def rows(quick: bool, *, device: str = "cpu") -> Iterator[Row]:
    for row in decompose.rows(quick, device=device, sizes=None if quick else SIZES):
        yield replace(row, suite="decompose-large")
