"""Compress a checkpoint in this process and print by how many bytes its peak memory grew.

Arguments: small, large, output.

A model of the same widths with one layer is compressed first, so that libraries are loaded before the peak is taken.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from tnmpo.integrations.transformers import MPOConfig
from tnmpo.integrations.transformers.sharded import compress_checkpoint


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    small, large, output = map(Path, sys.argv[1:])
    config = MPOConfig(ratio=0.5, shape="low_rank", target_modules=["up_proj", "down_proj"])
    compress_checkpoint(small, output / "small", config)
    before = peak()
    compress_checkpoint(large, output / "large", config, max_shard_size="4MB")
    print(peak() - before)
