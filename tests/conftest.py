"""One Hypothesis profile for every test, one thread for each of the many small factorisations, and jax in 64 bits."""

import os

# Read when numpy and torch are imported: on matrices this small threads only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Read when jax is imported: without it jax has no float64.
os.environ.setdefault("JAX_ENABLE_X64", "1")

from hypothesis import settings

# Without deadlines, since machines are shared, and reproducible.
settings.register_profile("tnmpo", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("tnmpo")
