"""apudae: adversarial purification with denoising autoencoders.

The package under the book. Its rooms are imported by name::

    from apudae import attacks, data, evaluation, models, purification

Two conventions hold everywhere. Images are float32 tensors ``[N, C, H, W]`` with values in
[0, 1]; ε and step sizes are in the same units. Classifiers return logits ``[N, classes]`` and
normalise inside, so that an attack or a purifier never sees normalised pixels.
"""

__version__ = "0.4.0"
