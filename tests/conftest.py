"""One Hypothesis profile for every test, and one thread for each of the many small factorisations."""

import os

# Read when numpy and torch are imported: on matrices this small threads only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# Without deadlines, since machines are shared, and reproducible.
settings.register_profile("tnmpo", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("tnmpo")
