"""Compress, fine-tune and squeeze Hugging Face models.

Importing this package registers ``quant_method = "mpo"`` with transformers.
"""

from .calibration import Calibration, calibrate
from .checkpoint import load, save
from .config import MPOConfig
from .conv1d import MPOConv1D
from .export import export_onnx
from .inspection import Inspection, inspect_model
from .perplexity import perplexity
from .quantizer import MPOQuantizer
from .report import (
    CompressionReport,
    ModuleReport,
    ParameterReport,
    UncoveredWeight,
    parameter_report,
    print_trainable_parameters,
)
from .seeds import SeedScores, finetune_seeds
from .sharded import compress_checkpoint
from .squeezing import SqueezeLog, SqueezeStep, squeeze
from .surgery import absorb, compress, freeze_central, merge
from .trainer import MPOTrainer
from .training import finetune

__all__ = [
    "Calibration",
    "CompressionReport",
    "Inspection",
    "MPOConfig",
    "MPOConv1D",
    "MPOQuantizer",
    "MPOTrainer",
    "ModuleReport",
    "ParameterReport",
    "SeedScores",
    "SqueezeLog",
    "SqueezeStep",
    "UncoveredWeight",
    "absorb",
    "calibrate",
    "compress",
    "compress_checkpoint",
    "export_onnx",
    "finetune",
    "finetune_seeds",
    "freeze_central",
    "inspect_model",
    "load",
    "merge",
    "parameter_report",
    "perplexity",
    "print_trainable_parameters",
    "save",
    "squeeze",
]
