"""Defenses that hide their weakness, each with a known truth."""

import torch
from torch import nn

from apudae.core.norms import uniforms
from apudae.purification import reconstruction_error


class Quantise(nn.Module):
    """Rounds pixels: the gradient is zero everywhere, and the images hardly change."""

    def __init__(self, levels=16):
        super().__init__()
        self.levels = levels

    def forward(self, x):
        return (x * self.levels).round() / self.levels


class Hot(nn.Module):
    """Logits times 1000: the softmax is so sure that the cross-entropy has no gradient."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, x):
        return 1000 * self.classifier(x)


class Detached(nn.Module):
    """Descends the reconstruction error on a fresh leaf, as the authors' code does."""

    def __init__(self, dae, steps, step_size):
        super().__init__()
        self.dae, self.steps, self.step_size = dae, steps, step_size

    def forward(self, x):
        with torch.enable_grad():
            z = x.detach().clone()
            for _ in range(self.steps):
                z.requires_grad_(True)
                (g,) = torch.autograd.grad(reconstruction_error(self.dae, z).sum(), z)
                z = (z.detach() - self.step_size * g).clamp(0, 1)
        return z.detach()


class Rarely(nn.Module):
    """A classifier that answers nonsense in one draw of twenty, for clean images too."""

    def __init__(self, classifier, chance=0.05):
        super().__init__()
        self.classifier, self.chance = classifier, chance

    def forward(self, x, index=None, draw=0):
        index = torch.zeros(1, dtype=torch.int64) if index is None else index
        luck = uniforms((1,), index, 7, draw, device=x.device)
        logits = self.classifier(x)
        return torch.where(luck < self.chance, logits.roll(1, 1), logits)


class Noisy(nn.Module):
    """Adds Gaussian noise from torch's global generator."""

    def __init__(self, sigma):
        super().__init__()
        self.sigma = sigma

    def forward(self, x):
        return x + self.sigma * torch.randn_like(x)


class Opaque(nn.Module):
    """A preprocessor and a classifier that nobody may tell apart."""

    def __init__(self, preprocess, classifier):
        super().__init__()
        self.preprocess, self.classify = preprocess, classifier

    def forward(self, x):
        return self.classify(self.preprocess(x))
