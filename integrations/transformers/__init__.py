"""Compress, fine-tune and squeeze Hugging Face models."""

from .calibration import Calibration, calibrate
from .checkpoint import load, save
from .config import MPOConfig
from .quantizer import MPOQuantizer
from .report import CompressionReport, ModuleReport, ParameterReport, parameter_report
from .squeezing import SqueezeLog, SqueezeStep, squeeze
from .surgery import absorb, compress, freeze_central, merge

__all__ = [
    "Calibration",
    "CompressionReport",
    "MPOConfig",
    "MPOQuantizer",
    "ModuleReport",
    "ParameterReport",
    "SqueezeLog",
    "SqueezeStep",
    "absorb",
    "calibrate",
    "compress",
    "freeze_central",
    "load",
    "merge",
    "parameter_report",
    "save",
    "squeeze",
]
