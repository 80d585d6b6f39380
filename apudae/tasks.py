"""What a network is trained for.

A task is a function ``(model, x, y, generator) -> loss``: the mean loss of a batch of images ``x``
(float32 ``[B, C, H, W]`` in [0, 1]) with labels ``y``. All randomness comes from the generator.
Anything of that form can be handed to :func:`apudae.training.fit`. A task that has a method
``announce`` is told before each batch how far the training is, from 0 to 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .checks import check_number, evaluating

Task = Callable[[nn.Module, Tensor, Tensor, Generator], Tensor]
KINDS = ("gaussian", "uniform")


def classification(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
    """Cross-entropy of the logits, the mean over the batch."""
    return F.cross_entropy(model(x).float(), y)


classification.labelled = True  # the labels must fit the model's classes


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
    low, high = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    check_number(low, "sigma", exclusive=True)
    check_number(high, "sigma", exclusive=True)
    if low > high:
        raise ValueError(f"sigma: expected (low, high), got {sigma}")
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")

    def task(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        draws = {"generator": generator, "device": x.device, "dtype": x.dtype}
        if kind == "gaussian":
            noise = torch.randn(x.shape, **draws)
        else:
            noise = (2 * torch.rand(x.shape, **draws) - 1) * 3**0.5
        level = low + (high - low) * torch.rand(len(x), 1, 1, 1, **draws) if low < high else low
        return F.mse_loss(model(x + level * noise).float(), x)

    task.name = f"denoising, {kind}, {low:g} to {high:g}"
    return task


def adversarial(attack: Callable[..., Tensor], **options: object) -> Task:
    """Classification of attacked images (Madry et al. 2018): the attack aims at the model itself.

    The attack sees the model in evaluation mode; its random draws differ from batch to batch.

    Args:
        attack: any of :mod:`apudae.attacks`, such as ``attacks.pgd``.
        options: its keyword arguments, such as ``eps=0.3, steps=7, early_stop=True``.
    """
    attacked = _Attacked(attack, options)

    def task(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        bare = _bare(model)
        hit = attacked(bare, bare, x, y, generator)
        return F.cross_entropy(model(hit).float(), y)

    task.labelled = True
    task.name = f"adversarial, {attacked.name}"
    return task


def purifying(
    classifier: nn.Module,
    attack: Callable[..., Tensor],
    *,
    eps: float,
    weight: float = 1.0,
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
        warm_up: share of the training in which ε grows from 0 to ``eps``.
        options: the attack's other keyword arguments; with ``relative_step`` its step size is so
            many times the ε of the moment.

    Raises:
        ValueError: a radius, weight or share out of range, or a classifier in training mode.
    """
    check_number(eps, "eps", exclusive=True)
    check_number(weight, "weight")
    check_number(warm_up, "warm_up")
    if warm_up > 1:
        raise ValueError(f"warm_up: expected a share of the training, 0 to 1, got {warm_up}")
    if any(module.training for module in classifier.modules()):
        raise ValueError("classifier: expected one in evaluation mode; call .eval() first")
    relative = options.pop("relative_step", None)
    attacked = _Attacked(attack, options)
    now = {"eps": eps}

    def task(model: nn.Module, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        bare = _bare(model)
        ball = now if relative is None else now | {"step_size": relative * now["eps"]}
        hit = attacked(nn.Sequential(bare, classifier), bare, x, y, generator, **ball)
        drawn = model(hit).float()
        return F.cross_entropy(classifier(drawn).float(), y) + weight * F.mse_loss(drawn, x)

    def announce(progress: float) -> None:
        # A thousandth at least: a ball of radius 0 has no steps.
        now["eps"] = eps * max(min(progress / warm_up, 1.0), 1e-3) if warm_up else eps

    task.announce = announce
    task.labelled = False  # the classes are the classifier's, not the purifier's
    told = {"eps": eps, "weight": weight, "warm_up": warm_up, "relative_step": relative}
    task.name = f"purifying, {attacked.name}, {sorted(told.items())}"
    return task


class _Attacked:
    """An attack as training makes it: seeded by the batch, on the model in evaluation mode.

    In bfloat16 where training is; never in float16, in which small image gradients are 0 and the
    attack is too weak.
    """

    def __init__(self, attack: Callable[..., Tensor], options: dict[str, object]) -> None:
        self.attack, self.options = attack, options
        self.seeded = "seed" in inspect.signature(attack).parameters
        self.name = f"{getattr(attack, '__name__', repr(attack))}, {sorted(options.items())}"

    def __call__(
        self,
        whole: nn.Module,
        trained: nn.Module,
        x: Tensor,
        y: Tensor,
        generator: Generator,
        **more: object,
    ) -> Tensor:
        seed = torch.randint(2**31, (1,), generator=generator, device=generator.device).item()
        keyed = {"seed": seed} if self.seeded else {}
        kind = x.device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
        with evaluating(trained), torch.autocast(kind, torch.bfloat16, enabled=half):
            return self.attack(whole, x, y, **{**keyed, **self.options, **more})


def _bare(model: nn.Module) -> nn.Module:
    """Without DDP and torch.compile around it."""
    while hasattr(model, "module") or hasattr(model, "_orig_mod"):
        model = model.module if hasattr(model, "module") else model._orig_mod
    return model
