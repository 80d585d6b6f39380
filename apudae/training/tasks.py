"""What a network is trained for: to classify, to denoise, to withstand attacks.

A task is a function ``(model, x, y, generator) -> loss``: the mean loss of a batch of images ``x``
(float32 ``[B, C, H, W]`` in [0, 1]) with labels ``y``. All randomness comes from the generator.
Anything of that form can be handed to :func:`apudae.training.fit`. A task that has a method
``announce`` is told before each batch how far the training is, from 0 to 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..core import bounds
from ..core.arguments import check_choice, check_number, checked, require
from ..core.calling import evaluating, unwrapped
from ..core.norms import per_image
from ..purification.diffusion import LEVELS, signal

Task = Callable[[nn.Module, Tensor, Tensor, Generator], Tensor]
KINDS = ("gaussian", "uniform")


def classification(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
    """Cross-entropy of the logits, the mean over the batch."""
    return F.cross_entropy(model(x).float(), y)


classification.labelled = True  # the labels must fit the model's classes


@checked
def denoising(sigma: float | tuple[float, float], *, kind: str = "gaussian") -> Task:
    """The task of a DAE: ``‖R(x + σ·n) − x‖²`` per pixel, ``n`` of mean 0 and variance 1.

    The noisy image is *not* clipped to [0, 1]: with Gaussian noise the residual ``R(x) − x`` then
    points along the score of the data smoothed by it (Vincent 2011; Alain & Bengio 2014).

    Args:
        sigma: standard deviation of the noise; of a pair, each image draws its own in between.
        kind: ``"gaussian"``, or ``"uniform"`` (of the same standard deviation).

    Raises:
        ValueError: a level that is not positive, a pair out of order, an unknown kind.
    """
    pair = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    require(len(pair) == 2, f"sigma: expected a level or (low, high), got {sigma}")
    low, high = pair
    check_number(low, "sigma", exclusive=True)
    check_number(high, "sigma", exclusive=True)
    if low > high:
        raise ValueError(f"sigma: expected (low, high), got {sigma}")
    check_choice(kind, KINDS, "kind")

    def task(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        draws = {"generator": generator, "device": x.device, "dtype": x.dtype}
        if kind == "gaussian":
            noise = _normal(x, generator)
        else:
            noise = (2 * torch.rand(x.shape, **draws) - 1) * 3**0.5
        level = low + (high - low) * torch.rand(len(x), 1, 1, 1, **draws) if low < high else low
        return _squared(model(x + level * noise), x)

    task.name = f"denoising, {kind}, {low:g} to {high:g}"
    return task


@checked
def adversarial(attack: Callable[..., Tensor], **options: object) -> Task:
    """Classification of attacked images (Madry et al. 2018): the attack aims at the model itself.

    The attack sees the model in evaluation mode; its random draws differ from batch to batch.

    Args:
        attack: any of :mod:`apudae.attacks`, such as ``attacks.pgd``.
        options: its keyword arguments, such as ``eps=0.3, steps=7, early_stop=True``.
    """

    def task(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        bare = unwrapped(model)
        hit = _attacked(attack, bare, bare, x, y, generator, options)
        return F.cross_entropy(model(hit).float(), y)

    task.labelled = True
    task.name = f"adversarial, {_name(attack)}, {sorted(options.items())}"
    return task


@checked
def purifying(
    classifier: nn.Module,
    attack: Callable[..., Tensor],
    *,
    eps: float,
    weight: float = 1.0,
    trades: float = 0.0,
    warm_up: float = 0.0,
    **options: object,
) -> Task:
    """A purifier that is trained *through* a frozen classifier, against attacks that know both.

    The attack aims at the classifier behind the purifier R; the loss is the cross-entropy of what
    the classifier reads after R, plus ``weight`` times ``‖R(x') − x‖²`` per pixel. Adversarial
    training (Madry et al. 2018) of the part that may be trained.

    Args:
        classifier: images -> logits, in evaluation mode; its parameters get no gradient.
        attack: any of :mod:`apudae.attacks`, such as ``attacks.pgd``.
        eps: radius of its ball.
        weight: of the reconstruction.
        trades: if above 0, the cross-entropy is that of the clean image, and so many times the
            divergence KL(f(R(x)) ‖ f(R(x'))) is added (Zhang et al. 2019, equation 5; their attack
            raises the divergence, this one stays what it is).
        warm_up: share of the training in which ε grows from 0 to ``eps``.
        options: the attack's other keyword arguments; with ``relative_step`` its step size is so
            many times the ε of the moment.

    Raises:
        ValueError: a radius, weight or share out of range, or a classifier in training mode.
    """
    check_number(eps, "eps", exclusive=True)
    check_number(weight, "weight")
    check_number(trades, "trades")
    check_number(warm_up, "warm_up")
    if warm_up > 1:
        raise ValueError(f"warm_up: expected a share of the training, 0 to 1, got {warm_up}")
    _check_frozen(classifier)
    relative = options.pop("relative_step", None)
    now = {"eps": eps}

    def task(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        bare = unwrapped(model)
        ball = now if relative is None else now | {"step_size": relative * now["eps"]}
        whole = nn.Sequential(bare, classifier)
        hit = _attacked(attack, whole, bare, x, y, generator, options | ball)
        drawn = model(hit).float()
        logits, loss = classifier(drawn).float(), weight * _squared(drawn, x)
        if trades:
            clean = classifier(model(x)).float()
            pair = (part.log_softmax(1) for part in (logits, clean))
            far = F.kl_div(*pair, reduction="batchmean", log_target=True)
            return loss + F.cross_entropy(clean, y) + trades * far
        return loss + F.cross_entropy(logits, y)

    def announce(progress: float) -> None:
        # A thousandth at least: a ball of radius 0 has no steps.
        now["eps"] = eps * max(min(progress / warm_up, 1.0), 1e-3) if warm_up else eps

    task.announce = announce
    task.labelled = False  # the classes are the classifier's, not the purifier's
    own = {"eps": eps, "weight": weight, "warm_up": warm_up, "relative_step": relative}
    own |= {"trades": trades} if trades else {}
    task.name = f"purifying, {_name(attack)}, {sorted(options.items())}, {sorted(own.items())}"
    return task


@checked
def certifying(
    classifier: nn.Module | None = None,
    *,
    eps: float,
    weight: float = 1.0,
    clean: float = 0.5,
    ramp: tuple[float, float] = (0.05, 0.6),
) -> Task:
    """A purifier that is trained through a frozen classifier on *bounds*, so that proofs succeed.

    The loss is ``κ`` times the cross-entropy of the clean image's logits behind the purifier R, and
    ``1 − κ`` times that of the worst logits that interval bounds allow within ε (Gowal et al. 2018,
    equation 12), plus ``weight`` times ``‖R(x) − x‖²`` per pixel. ε grows from 0, and κ falls from
    1 to ``clean``, in one part of the training. Without a classifier, the network that is trained
    is one itself, and nothing is reconstructed.

    Args:
        classifier: images -> logits, layers in a row, in evaluation mode; it gets no gradient.
        eps: radius of the ball in L∞.
        weight: of the reconstruction.
        clean: κ at the end; with 1 no bounds are computed.
        ramp: from which share of the training to which ε grows.

    Raises:
        ValueError: a number out of range, or a classifier in training mode.
    """
    check_number(eps, "eps", exclusive=True)
    check_number(weight, "weight")
    require(0 <= clean <= 1, f"clean: expected a share, 0 to 1, got {clean}")
    require(0 <= ramp[0] < ramp[1] <= 1, f"ramp: expected two growing shares, got {ramp}")
    if classifier is not None:
        _check_frozen(classifier)
    now, graphs = {"share": 0.0}, WeakKeyDictionary()

    def whole(bare: nn.Module) -> nn.Module:
        return bare if classifier is None else nn.Sequential(bare, nn.Hardtanh(0, 1), classifier)

    def task(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        bare, logits, loss = unwrapped(model), model(x).float(), 0.0
        if classifier is not None:
            drawn, logits = logits, classifier(logits.clamp(0, 1)).float()
            loss = weight * _squared(drawn, x)
        kappa = 1 - (1 - clean) * now["share"]
        loss = loss + kappa * F.cross_entropy(logits, y)
        if kappa < 1:
            if bare not in graphs:
                graphs[bare] = bounds.traced(whole(bare))
            radius = eps * now["share"]
            box = bounds.Interval((x - radius).clamp(0, 1), (x + radius).clamp(0, 1))
            with torch.autocast(x.device.type, enabled=False):
                low = bounds.margins(graphs[bare], box, y, rounding=False)
            worst = -low.scatter(1, y[:, None], 0.0)  # of the true class's own logit
            loss = loss + (1 - kappa) * F.cross_entropy(worst, y)
        return loss

    def announce(progress: float) -> None:
        if not progress:
            graphs.clear()  # they are no part of what the task is
        now["share"] = min(max((progress - ramp[0]) / (ramp[1] - ramp[0]), 0.0), 1.0)

    task.announce = announce
    task.labelled = classifier is None  # else the classes are the classifier's, not the purifier's
    task.name = f"certifying, {eps:g}, {weight:g}, {clean:g}, {list(ramp)}"
    return task


def _check_frozen(classifier: nn.Module) -> None:
    if any(module.training for module in classifier.modules()):
        raise ValueError("classifier: expected one in evaluation mode; call .eval() first")


def _attacked(
    attack: Callable[..., Tensor],
    whole: nn.Module,
    trained: nn.Module,
    x: Tensor,
    y: Tensor,
    generator: Generator,
    options: dict[str, object],
) -> Tensor:
    """An attack as training makes it: seeded by the batch, on the model in evaluation mode.

    In bfloat16 where training is; never in float16, in which small image gradients are 0 and the
    attack is too weak.
    """
    seed = torch.randint(2**31, (1,), generator=generator, device=generator.device).item()
    if "seed" in inspect.signature(attack).parameters:
        options = {"seed": seed} | options
    kind = x.device.type
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    with evaluating(trained), torch.autocast(kind, torch.bfloat16, enabled=half):
        return attack(whole, x, y, **options)


def _squared(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error per pixel; shapes that differ would be stretched to fit."""
    shapes = [list(part.shape) for part in (wanted, found)]
    require(shapes[0] == shapes[1], f"model: expected images {shapes[0]} back, got {shapes[1]}")
    return F.mse_loss(found.float(), wanted)


def _name(attack: Callable[..., Tensor]) -> str:
    return getattr(attack, "__name__", repr(attack))


def _normal(like: Tensor, generator: Generator) -> Tensor:
    """Standard normal draws of a tensor's shape, type and device."""
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


@checked
def from_attacked(
    classifier: nn.Module, attack: Callable[..., Tensor], *, weight: float = 1e-3, **options: object
) -> Task:
    """The task of Defense-VAE (Li & Ji 2019): from an attacked image to the clean one.

    Binary cross-entropy per pixel against the clean image, plus ``weight`` times the divergence of
    the code from a standard normal, per number. Half of each batch is attacked, half has Gaussian
    noise. Simplified: one attack with its ε drawn anew for every batch, where the paper mixes
    several with a few ε; and the classifier is not trained on.

    Args:
        classifier: that the images are attacked for; it stays as it is.
        attack: of :mod:`apudae.attacks`.
        weight: of the divergence.
        options: of the attack, such as ``steps=5``; ``eps`` is the largest.
    """
    check_number(weight, "weight")
    most = check_number(options.pop("eps", None), "eps", exclusive=True)

    def task(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        eps = most * torch.rand(1, generator=generator, device=x.device).item()
        half = len(x) // 2
        noisy = x + eps * _normal(x, generator)
        with evaluating(classifier), torch.autocast(x.device.type, enabled=False):
            noisy[:half] = attack(classifier, x[:half], y[:half], eps=eps, **options)
        mean, spread = model.encode(noisy.clamp(0, 1))
        code = mean + (spread / 2).exp() * _normal(mean, generator)
        back = model.decoder(code)
        with torch.autocast(x.device.type, enabled=False):
            wrong = F.binary_cross_entropy(back.float(), x)
            far = (mean.square() + spread.exp() - 1 - spread).float().mean() / 2
        return wrong + weight * far

    told = f"{most:g}, {sorted(options.items())}, {weight:g}"
    task.name = f"from attacked, {_name(attack)}, {told}"
    return task


@checked
def joint(sigma: float = 0.5, weight: float = 1.0) -> Task:
    """The task of the shared network: cross-entropy plus ``weight`` times the squared error.

    Both are taken at one noisy image, clipped to [0, 1], as in the authors' code; the error is the
    mean over pixels, against the image without noise.

    Args:
        sigma: standard deviation of the Gaussian noise.
        weight: of the reconstruction.
    """
    check_number(sigma, "sigma")
    check_number(weight, "weight")

    def task(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        noisy = (x + sigma * _normal(x, generator)).clamp(0, 1)
        logits, back = model(noisy, both=True)
        return F.cross_entropy(logits.float(), y) + weight * _squared(back, x)

    task.labelled = True
    task.name = f"joint, {sigma:g}, {weight:g}"
    return task


def noise_prediction(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
    """The task: the squared error of the predicted noise, at a random level (Ho et al., eq. 14)."""
    t = torch.randint(1, LEVELS + 1, (len(x),), generator=generator, device=x.device)
    noise = _normal(x, generator)
    kept = per_image(signal(t).to(x.dtype), x)
    return _squared(model(kept.sqrt() * (2 * x - 1) + (1 - kept).sqrt() * noise, t), noise)
