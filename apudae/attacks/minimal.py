"""The smallest change that is enough: Carlini & Wagner's attack and DeepFool.

Here ε is a limit, infinite unless given: an image whose smallest change is longer is pulled back to
the ball, where it usually stands. They are called like all attacks; see :mod:`apudae.attacks`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..core.arguments import check_count, check_number, checked
from ..core.calling import bounded
from ..core.norms import Ball, length, per_image
from .losses import margin
from .objective import Best, Objective, by_chunk, check_attack, gradient_of

# C&W shrink the images by this before the change of variables: at ±1 the slope of tanh is 0, and
# black and white pixels would hardly leave. Chosen on validation digits among 1 − 10⁻⁶ … 0.9.
_INSIDE = 0.99


@checked
def cw(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float = math.inf,
    confidence: float = 0.0,
    steps: int = 1000,
    searches: int = 9,
    step_size: float = 0.01,
    initial_c: float = 1e-3,
    targeted: bool = False,
    mask: Tensor | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Carlini & Wagner's L2 attack: Adam on ‖x′ − x‖² + c · max(κ − margin, 0) (2017, §VI.A).

    x′ = (tanh w + 1) / 2 keeps the pixels in [0, 1]. For each image, c is searched: halved between
    the largest that failed and the smallest that succeeded, times ten while none has. The closest
    x′ that succeeded is returned, an image for which none did is returned as it was.

    Args besides those of all attacks:
        eps: limit of the L2 length.
        confidence: κ, by how much the wrong class must win, in logits.
        steps: Adam steps for each c. An image whose objective has not fallen by 0.01 % within a
            tenth of them goes on to the next c.
        searches: values of c that are tried.
        step_size: of Adam, in w.
        initial_c: the first c.
    """
    shared = {"batch_size": batch_size, "mask": mask, "unbounded": True}
    counts = {"steps": steps, "searches": searches}
    ball = check_attack(model, x, y, eps, "l2", **shared, **counts)
    check_number(confidence, "confidence")
    check_number(step_size, "step_size", exclusive=True)
    check_number(initial_c, "initial_c", exclusive=True)
    objective = Objective(model, "margin", targeted)

    def attack(ball: Ball, y: Tensor, index: Tensor) -> Tensor:
        x = ball.x
        best = Best(x)  # the image itself, until a change succeeds; then the shortest that does
        # What is wrong already needs no change.
        wrong = objective.value(x, y)[1] & (confidence == 0)
        best.offer(best.places(standing=True), x, x.new_zeros(len(x)), wrong)
        c = x.new_full((len(x),), initial_c)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        place = best.places(standing=True)
        for _ in range(searches if len(place) else 0):
            won = _descend(objective, best, place, ball, y, c, confidence, steps, step_size)
            high[place] = torch.where(won, torch.minimum(high[place], c[place]), high[place])
            low[place] = torch.where(won, low[place], torch.maximum(low[place], c[place]))
            c = torch.where(high < torch.inf, (low + high) / 2, c * 10)
        return _within(best.images, ball)

    return by_chunk(attack, objective, ball, y, batch_size=batch_size, packed=True)


def _descend(
    objective: Objective,
    best: Best,
    place: Tensor,
    ball: Ball,
    y: Tensor,
    c: Tensor,
    confidence: float,
    steps: int,
    step_size: float,
) -> Tensor:
    """One c on the images at ``place``: whether it is enough; ``best`` is offered every success.

    Enough means that the image still succeeded in the last tenth of its run. Adam's first steps
    can jump over a near border that c is too small to hold.
    """

    def short(logits: Tensor, part: slice) -> Tensor:
        some = place[part]
        won = margin(logits, y[some]) * (-1 if objective.targeted else 1)
        return c[some] * (confidence - won).clamp(min=0)

    whole, enough, inside = place, torch.zeros_like(c, dtype=torch.bool), ball[place]
    w = torch.atanh((2 * inside.x - 1) * _INSIDE)
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    before, every = torch.full_like(c[place], torch.inf), max(steps // 10, 1)
    for t in range(1, steps + 1):
        squash = torch.tanh(w)
        z = inside.keep((squash + 1) / 2)
        change = z - inside.x
        # Adam asks for the gradient of the objective in w: the chain rule by hand for the
        # distance and for tanh, the network's part from the margin.
        penalty, fell, pull = objective.gradient(z, y[place], short)
        squared = change.flatten(1).square().sum(1)
        success = fell & (penalty == 0)
        enough[place] |= success
        best.offer(place, z, -squared.sqrt(), success)
        if t % every == 0 and t < steps:
            total = squared + penalty
            going, before = total <= 0.9999 * before, total
            enough[place[going]] = False
            if not going.all():
                state = (place, w, first, second, before, squash, change, pull, inside)
                state = (part[going] for part in state)
                place, w, first, second, before, squash, change, pull, inside = state
                if len(place) == 0:
                    break
        gradient = (2 * change + pull) * (1 - squash.square()) / 2
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        root = (second / (1 - 0.999**t)).sqrt() + 1e-8
        w = w - step_size * first / (1 - 0.9**t) / root
    return enough[whole]


@checked
def deepfool(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float = math.inf,
    norm: str = "l2",
    steps: int = 50,
    candidates: int = 10,
    overshoot: float = 0.02,
    mask: Tensor | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """DeepFool: again and again the shortest way over a linearised border (Moosavi-Dezfooli 2016).

    At each step the model is taken as linear, and the image moves to where the first of the
    ``candidates`` would win. On a linear model the first step is exact, so the distance is (1 +
    overshoot) times the closed form ``(z_y − z_k) / ‖w_y − w_k‖`` (L∞: the 1-norm below).

    Images that are misread already are returned as they are, unless by less than rounding (10⁻⁵
    of the largest logit).

    Args besides those of all attacks:
        eps: limit of the length.
        steps: at most; an image is left alone once it fell.
        candidates: classes to consider, the likeliest on the clean image, ``y`` included.
        overshoot: by which share the whole change is lengthened, to end behind the border.
    """
    shared = {"batch_size": batch_size, "mask": mask, "unbounded": True}
    ball = check_attack(model, x, y, eps, norm, **shared, steps=steps)
    check_count(candidates, "candidates", minimum=2)
    check_number(overshoot, "overshoot")
    objective = Objective(model)

    def attack(ball: Ball, y: Tensor, index: Tensor) -> Tensor:
        x, found = ball.x, ball.x.clone()
        place = torch.arange(len(x), device=x.device)
        others = objective.others(x, y, candidates - 1)
        z, moved = x, torch.zeros_like(x)
        for _ in range(steps):
            gaps, normals, fell = _borders(objective, z, y[place], others[place], ball[place])
            place, z, moved = place[~fell], z[~fell], moved[~fell]
            if len(place) == 0:
                break
            moved = moved + _shortest(gaps[~fell], normals[~fell], norm)
            z = (x[place] + (1 + overshoot) * moved).clamp(0, 1)
            found[place] = z
        return _within(found, ball)

    return by_chunk(attack, objective, ball, y, batch_size=batch_size)


def _borders(
    objective: Objective, z: Tensor, y: Tensor, others: Tensor, ball: Ball
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaps z_k − z_y ``[N, K]``, their gradients ``[N, K, C, H, W]``, and who has fallen."""
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        raw = objective.logits(z, y)
        logits = bounded(raw)
        gaps = logits.gather(1, others) - logits.gather(1, y[:, None])
        normals = [ball.live(gradient_of(gap.sum(), z, retain=True)) for gap in gaps.unbind(1)]
    # Fallen by more than another batch's rounding could undo, and the same aimed for; a class that
    # cannot win says nothing of rounding.
    clear = 1e-5 * raw.detach().where(raw == logits, 0).abs().amax(1)
    fell = margin(logits.detach(), y) > clear
    return gaps.detach() - 2 * clear[:, None], torch.stack(normals, 1), fell


def _shortest(gaps: Tensor, normals: Tensor, norm: str) -> Tensor:
    """The shortest step to any of the linearised borders."""
    flat = normals.flatten(2)
    tiny = torch.finfo(flat.dtype).tiny ** 0.5
    size = (flat.norm(dim=2) if norm == "l2" else flat.abs().sum(2)).clamp(min=tiny)
    far = gaps.abs().to(flat.dtype) / size
    nearest = far.argmin(1)
    image = torch.arange(len(gaps), device=gaps.device)
    normal, size, far = normals[image, nearest], size[image, nearest], far[image, nearest]
    direction = normal / per_image(size, normal) if norm == "l2" else normal.sign()
    return per_image(far, normal) * direction


def _within(found: Tensor, ball: Ball) -> Tensor:
    """What is longer than ε pulled back to the ball; the rest untouched to the last bit."""
    outside = length(found - ball.x, ball.norm) > ball.eps
    return torch.where(per_image(outside, found), ball.project(found), found)
