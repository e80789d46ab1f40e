"""Compress a checkpoint with the workers of a cluster: arguments source, output, address."""

from __future__ import annotations

import sys

from tnmpo.integrations.transformers import MPOConfig
from tnmpo.integrations.transformers.sharded import compress_checkpoint

if __name__ == "__main__":
    source, output, address = sys.argv[1:]
    compress_checkpoint(source, output, MPOConfig(ratio=0.5, target_modules="all-linear"), cluster=address)
