"""Purifiers, images -> images, and the classifier they defend.

- :class:`Defended`: a classifier behind a purifier, images -> logits
- :class:`Direct`: the output of a denoising autoencoder (DAE) itself
- :class:`Adaptive`: steps on the image until the DAE reconstructs it well; :data:`PRESETS` are the
  authors' variants of it, each a :class:`Variant`
- :data:`OBJECTIVES`: what it lowers; :data:`STEPPERS`: how, each a :class:`Stepper`:
  :class:`Adam`, :class:`Descent`, :class:`Sign`, :class:`Normalised`
- :func:`reconstruct`, :func:`reconstruction_error`: R(x) and d(x) = ‖x − R(x)‖²
- :func:`calibrate`: which error is normal, a :class:`Calibration`
- :func:`smooth`: stand-ins for an adaptive purifier, for an attacker who knows it
- published defenses: :class:`BitDepth`, :class:`Median`, :class:`JPEG`, :class:`ResizePad`;
  :class:`Soap`; :class:`DiffPure`, with :func:`signal`, :func:`guess` and :class:`OneStep`;
  :class:`DefenseGAN`
- :class:`Purifier`, :class:`Trajectory`: what a purifier of your own begins from, and what it
  records; :func:`takes_keys`: whether the random draws of a module can be named
"""

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
