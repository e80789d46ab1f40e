"""Compress, fine-tune and squeeze Hugging Face models."""

from .calibration import Calibration, calibrate
from .config import MPOConfig
from .report import CompressionReport, ModuleReport, ParameterReport, parameter_report
from .surgery import absorb, compress, freeze_central, merge

__all__ = [
    "Calibration",
    "CompressionReport",
    "MPOConfig",
    "ModuleReport",
    "ParameterReport",
    "absorb",
    "calibrate",
    "compress",
    "freeze_central",
    "merge",
    "parameter_report",
]
