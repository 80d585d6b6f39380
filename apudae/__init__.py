"""apudae: adversarial purification with denoising autoencoders.

The package under the book. Modules are imported by name::

    from apudae import attacks, checkpoints, data, purification

Two conventions hold everywhere. Images are float32 tensors ``[N, C, H, W]`` with values in
[0, 1]; ε and step sizes are in the same units. Classifiers return logits ``[N, classes]`` and
normalise inside, so that an attack or a purifier never sees normalised pixels.
"""

__version__ = "0.1.0"
