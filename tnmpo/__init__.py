"""Matrix product operators for weight matrices, on any TensorLy backend.

>>> import numpy as np, tnmpo
>>> W = np.random.default_rng(0).normal(size=(768, 3072))
>>> mpo = tnmpo.mpo_decompose(W, shape=((4, 4, 4, 4, 3), (4, 4, 8, 6, 4)), rank=64)
>>> mpo.ranks
(1, 16, 64, 64, 12, 1)
"""

from . import io as io
from . import plot as plot
from . import random as random
from ._algebra import apply, hadamard, inner, kron, norm, trace
from ._allot import allot_ranks
from ._blocks import mutual_information
from ._bounds import Truncation
from ._canonical import canonicalize, is_canonical
from ._contract import ContractionPlan, contraction_plan
from ._decompose import mpo_decompose, tt_decompose
from ._entanglement import bond_spectra, effective_rank, entanglement_entropy, entropy_deficit, schmidt_gap
from ._estimator import MPODecomposition
from ._fit import ALSFit, als_fit
from ._mpo import MPO
from ._profile import EntanglementProfile, entanglement_profile
from ._randomized import Sketch, randomized_decompose, randomized_tt_decompose
from ._ranks import EntropyFraction, MaxRank, ParameterBudget, RankPolicy, Tolerance
from ._residual import SpectralBounds, output_error, spectral_norm_bounds
from ._search import ShapeCandidate, ShapeRanking, search_shape
from ._shapes import MPOShape, padded_size, plan_shape
from ._streaming import stream_decompose
from ._truncate import truncate
from ._tt import TT
from ._vocabularies import ITensorCutoff, QuimbCutoff, TeNPyCutoff
from ._weights import Weight

__all__ = [
    "MPO",
    "TT",
    "ALSFit",
    "ContractionPlan",
    "EntanglementProfile",
    "EntropyFraction",
    "ITensorCutoff",
    "MPODecomposition",
    "MPOShape",
    "MaxRank",
    "ParameterBudget",
    "QuimbCutoff",
    "RankPolicy",
    "ShapeCandidate",
    "ShapeRanking",
    "Sketch",
    "SpectralBounds",
    "TeNPyCutoff",
    "Tolerance",
    "Truncation",
    "Weight",
    "allot_ranks",
    "als_fit",
    "apply",
    "bond_spectra",
    "canonicalize",
    "contraction_plan",
    "effective_rank",
    "entanglement_entropy",
    "entanglement_profile",
    "entropy_deficit",
    "hadamard",
    "inner",
    "is_canonical",
    "kron",
    "mpo_decompose",
    "mutual_information",
    "norm",
    "output_error",
    "padded_size",
    "plan_shape",
    "randomized_decompose",
    "randomized_tt_decompose",
    "schmidt_gap",
    "search_shape",
    "spectral_norm_bounds",
    "stream_decompose",
    "trace",
    "truncate",
    "tt_decompose",
]
