"""What the machine can do, measured, and the least time that work of known size takes on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from side_by_side import medians


@dataclass(frozen=True)
class Rates:
    """Measured rates.

    Attributes
    ----------
    half, single, double, gram : float
        FLOP/s of square products in bfloat16, float32 (on CUDA as torch makes them by default, not in TF32) and
        float64, and of the Gram matrix of a tall float64 matrix (all of it, not the half that symmetry would leave).
    copy : float
        Bytes read plus bytes written, a second.
    """

    half: float
    single: float
    double: float
    gram: float
    copy: float

    def seconds(
        self, *, half: float = 0, single: float = 0, double: float = 0, gram: float = 0, moved: float = 0
    ) -> float:
        """A lower bound: the products at their rates, or the bytes at theirs, whichever takes longer.

        For bytes that come from memory; a matrix that fits into the caches may be read faster.
        """
        products = half / self.half + single / self.single + double / self.double + gram / self.gram
        return max(products, moved / self.copy)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@lru_cache(maxsize=8)
def measured_rates(device: str = "cpu", size: int = 2048) -> Rates:
    """Time one product of each kind of that size, and a copy far larger than the caches."""
    generator = torch.Generator().manual_seed(0)
    single = torch.randn(size, size, generator=generator).to(device)
    half, double = single.bfloat16(), single.double()
    tall = torch.randn(4 * size, size // 4, generator=generator).double().to(device)
    source = torch.empty(8 * size * size, device=device).fill_(1)
    target = torch.empty_like(source)
    seconds = medians(
        {
            "half": lambda: half @ half,
            "single": lambda: single @ single,
            "double": lambda: double @ double,
            "gram": lambda: tall.T @ tall,
            "copy": lambda: target.copy_(source),
        },
        rounds=5,
        device=device,
    )
    product = 2 * size**3
    return Rates(
        half=product / seconds["half"],
        single=product / seconds["single"],
        double=product / seconds["double"],
        gram=2 * tall.shape[0] * tall.shape[1] ** 2 / seconds["gram"],
        copy=2 * source.numel() * source.element_size() / seconds["copy"],
    )
