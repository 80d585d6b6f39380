"""Purifiers, images -> images, and the classifier they defend."""

from ..core.calling import takes_keys
from .adaptive import PRESETS, Adaptive, Variant
from .diffusion import DiffPure, OneStep, guess, signal
from .gan import DefenseGAN
from .purifier import Defended, Direct, Purifier, Trajectory
from .reconstruction import Calibration, calibrate, reconstruct, reconstruction_error
from .soap import Soap
from .steps import OBJECTIVES, STEPPERS, Adam, Descent, Normalised, Sign, Stepper
from .surrogates import smooth
from .transforms import JPEG, BitDepth, Median, ResizePad

__all__ = [
    "JPEG",
    "OBJECTIVES",
    "PRESETS",
    "STEPPERS",
    "Adam",
    "Adaptive",
    "BitDepth",
    "Calibration",
    "Defended",
    "DefenseGAN",
    "Descent",
    "DiffPure",
    "Direct",
    "Median",
    "Normalised",
    "OneStep",
    "Purifier",
    "ResizePad",
    "Sign",
    "Soap",
    "Stepper",
    "Trajectory",
    "Variant",
    "calibrate",
    "guess",
    "reconstruct",
    "reconstruction_error",
    "signal",
    "smooth",
    "takes_keys",
]
