"""One training loop for every network of the book; ``python -m apudae.training`` runs it too.

- :func:`fit`: train a network in place, resume where an earlier run was cut off; gives a
  :class:`History`. :func:`measure`: the mean of a task over a data set
- a :data:`Task`, what a network is trained for: :func:`classification`, :func:`denoising`,
  :func:`adversarial` (on attacked images), :func:`purifying` (a purifier, through a frozen
  classifier), :func:`certifying` (one whose bounds prove something)
- tasks of published defenses: :func:`from_attacked` (Defense-VAE), :func:`joint` (SOAP),
  :func:`noise_prediction` (diffusion)
- :class:`InMemory`, :class:`Streamed`: where batches come from
- :func:`train_gan`: the two networks of a GAN, which do not fit into :func:`fit`
- :func:`precision_of`: the half precision a device computes in
"""

from ..core.processes import precision_of
from .batches import InMemory, Streamed
from .fit import History, fit, measure
from .gan import train_gan
from .tasks import (
    Task,
    adversarial,
    certifying,
    classification,
    denoising,
    from_attacked,
    joint,
    noise_prediction,
    purifying,
)
