"""Networks of the published defenses that the book compares with, for 28×28 digits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MagNet(nn.Module):
    """The autoencoder that reforms digits in MagNet (Meng & Chen 2017, table 3): images to images.

    Five convolutions with sigmoids, three features each, at full size and at half.
    """

    def __init__(self) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int = 3) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Sigmoid()]

        self.net = nn.Sequential(
            *layer(1),
            nn.AvgPool2d(2),
            *layer(3),
            *layer(3),
            nn.Upsample(scale_factor=2),
            *layer(3),
            *layer(3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class VAE(nn.Module):
    """A variational autoencoder, images to images: the code's mean is decoded (Li & Ji 2019).

    Args:
        latent: numbers of the code.
    """

    def __init__(self, latent: int = 64) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 49, 2 * latent),
        )
        self.decoder = _decoder(latent)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x)[0])

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the code, ``[N, latent]`` each."""
        mean, spread = self.encoder(x).chunk(2, 1)
        return mean, spread.clamp(-10, 10)


class Generator(nn.Module):
    """Codes ``[N, latent]`` to digits ``[N, 1, 28, 28]``: half of a generative adversarial network.

    Args:
        latent: numbers of the code.
    """

    def __init__(self, latent: int = 64) -> None:
        super().__init__()
        self.latent = latent
        self.net = _decoder(latent)

    def forward(self, code: Tensor) -> Tensor:
        return self.net(code)


class Critic(nn.Module):
    """Digits to a number ``[N]``, larger for real ones: the other half (Arjovsky et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(64 * 49, 128),
            nn.LeakyReLU(0.2),
            nn.Linear(128, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]


def _decoder(latent: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(latent, 64 * 49),
        nn.ReLU(),
        nn.Unflatten(1, (64, 7, 7)),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),
        nn.Sigmoid(),
    )


class SharedAutoencoder(nn.Module):
    """A classifier and a denoising autoencoder of 28×28 digits on one encoder (Shi et al. 2021).

    ``forward(x)`` gives the logits ``[N, 10]``, ``reconstruct(x)`` the images, ``forward(x,
    both=True)`` both. The layers are those of the authors' code, with a narrower code.

    Args:
        hidden: numbers of the code that both share; 1,024 in the authors' code.
    """

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 49, hidden),
            nn.ReLU(),
        )
        self.head = nn.Linear(hidden, 10)
        self.decoder = nn.Sequential(
            nn.Linear(hidden, 64 * 49),
            nn.ReLU(),
            nn.Unflatten(1, (64, 7, 7)),
            nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 3, stride=2, padding=1, output_padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor, *, both: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        code = self.encoder(x)
        return (self.head(code), self.decoder(code)) if both else self.head(code)

    def reconstruct(self, x: Tensor) -> Tensor:
        """What the decoder makes of the images."""
        return self.decoder(self.encoder(x))


class Block(nn.Module):
    """A residual block that is told the level of noise."""

    def __init__(self, inputs: int, outputs: int, told: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(8, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.level = nn.Linear(told, outputs)
        self.second = nn.Sequential(
            nn.GroupNorm(8, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        h = self.first(x) + self.level(told)[:, :, None, None]
        return self.skip(x) + self.second(h)


class UNet(nn.Module):
    """Noise in 28×28 digits: ``(images in [-1, 1] plus noise, levels [N])`` -> the noise.

    It sees 2×2 pixels as four features, which makes it about five times as fast.

    Args:
        width: features at 14×14; twice as many at 7×7.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width, told, wide = width, 4 * width, 2 * width
        self.tell = nn.Sequential(nn.Linear(width, told), nn.SiLU(), nn.Linear(told, told))
        self.begin = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, width, 3, padding=1))
        self.down = Block(width, width, told)
        self.middle = nn.ModuleList([Block(width, wide, told), Block(wide, wide, told)])
        self.up = Block(wide + width, width, told)
        self.end = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, 4, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        half = self.width // 2
        speeds = torch.exp(-math.log(10_000) * torch.arange(half, device=z.device) / half)
        angles = t[:, None].to(z.dtype) * speeds.to(z.dtype)
        told = self.tell(torch.cat([angles.sin(), angles.cos()], 1))
        kept = self.down(self.begin(z), told)
        h = F.avg_pool2d(kept, 2)
        for block in self.middle:
            h = block(h, told)
        return self.end(self.up(torch.cat([F.interpolate(h, scale_factor=2), kept], 1), told))
