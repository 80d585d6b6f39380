"""Classifiers, autoencoders and other networks, built or loaded by name.

- :func:`load`: a trained network, verified: ``models.load("mnist-cnn")``
- :func:`names`, :func:`about`: which there are, and how each was trained and measured
- :func:`save`: store one of your own; :data:`WEIGHTS` is the folder of those that are shipped
- :func:`build`: an untrained network by a name in :data:`MODELS`, its weights fixed by a seed
- classifiers: :class:`MnistCNN`, :class:`MnistMLP`, :class:`CifarResNet`; :class:`Normalize` is
  their first layer
- denoising autoencoders: :class:`ConvDAE`, :class:`REDNet`; :class:`CertifiedDAE`, with
  :class:`Cut` as its first layer, is made for proofs
- networks of other defenses: :class:`MagNet`, :class:`VAE`, :class:`Generator` and
  :class:`Critic`, :class:`SharedAutoencoder`, :class:`UNet`
"""

from .checkpoints import WEIGHTS, about, load, names, save
from .networks import (
    MODELS,
    CertifiedDAE,
    CifarResNet,
    ConvDAE,
    Cut,
    MnistCNN,
    MnistMLP,
    Normalize,
    REDNet,
    build,
)
from .others import VAE, Critic, Generator, MagNet, SharedAutoencoder, UNet
