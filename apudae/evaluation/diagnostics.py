"""Signs that a measured robustness is not one.

Each rule of :data:`RULES` says when it is raised, what that means and what to do. The checks look
at a model (:func:`inspect_model`) or at what attacks left of it (:mod:`apudae.evaluation`).
"""

from __future__ import annotations

from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn

from ..attacks.losses import cross_entropy, margin
from ..core.arguments import checked
from ..core.calling import (
    ask,
    differentiable,
    evaluating,
    looks_at_the_batch,
    looks_like_probabilities,
    takes_keys,
)
from ..core.calling import is_random as is_random
from ..core.norms import in_ball, steepest
from ..purification.purifier import Defended, Purifier


@dataclass(frozen=True)
class Rule:
    """When a warning is raised, what it means, what to do."""

    raised_if: str
    means: str
    do: str


RULES: dict[str, Rule] = {
    "training mode": Rule(
        "layers that act differently in training stand in that mode",
        "the report is of the model in evaluation mode; an accuracy that is taken in training mode "
        "is another model's",
        "call model.eval() before you attack and score",
    ),
    "few images": Rule(
        "fewer than 20 images are measured",
        "the interval is so wide that hardly any claim fits beside it",
        "measure more images",
    ),
    "everything in reach": Rule(
        "ε is larger than the distance of any two images",
        "the attacker may show whatever image it likes, so that nothing can stand",
        "give ε in units of pixels in [0, 1]: 8 / 255 for 8 of 255 grey levels",
    ),
    "changes as it is asked": Rule(
        "something that the model keeps has changed after it was asked; counts in names with a "
        "leading underscore may",
        "a record of it is not gone on with, for it cannot be told from one of another model; and "
        "if its answers depend on that, they depend on the order of the attacks",
        "let a forward pass change nothing but whole numbers in names like `_calls`",
    ),
    "answers depend on the past": Rule(
        "an image gets other logits after near duplicates of it were asked about than from a fresh "
        "copy of the model, and the same after unrelated images",
        "an attack of many queries meets its own shadow; an attacker with a copy of the model, or "
        "one who worked elsewhere and asks once, does not",
        "attack and score fresh copies; this protocol does, where the model can be copied",
    ),
    "random forward": Rule(
        "the same images get other logits when asked again",
        "one lucky draw is not a success, one unlucky draw not a defense; gradients are noisy",
        "average gradients over draws (EOT), score on fresh draws; this protocol does both",
    ),
    "probabilities": Rule(
        "no output is negative and each row sums to 1",
        "a softmax that is sure of itself hardly moves, whatever the loss: attacks get weak",
        "return the values before the softmax",
    ),
    "answers depend on the batch": Rule(
        "the logits of most of the first eight images change by more than a hundredth of their "
        "spread when each image is asked alone, or of a quarter of them among other neighbours",
        "what fell in one batch may stand in another, so that the number is one of a batch size",
        "give batch norm its running statistics; let no image see its neighbours; attack and "
        "score each image alone, as this protocol does where the model answers to one image",
    ),
    "parts not named": Rule(
        "a purifier of this package stands inside a module that does more than hand images on",
        "attacks that need its parts are left out, and the accuracy is likely lower",
        "hand in Defended(classifier, purifier) itself, all else being part of the classifier",
    ),
    "zero gradients": Rule(
        "for more than half of the images the cross-entropy has no gradient",
        "gradient attacks cannot start there: a rounding, a cut graph, a saturated softmax",
        "name the parts, Defended(classifier, purifier), so that BPDA can go round; use a "
        "loss that does not saturate (DLR) and attacks without gradients (Square)",
    ),
    "random gradients": Rule(
        "the same images get the same logits and other gradients when asked again, their cosine "
        "below 0.9 at the median image",
        "a backward pass of the model's own returns what it likes: no step along it leads anywhere",
        "go round it: the classifier inside, estimated gradients (NES), a learned substitute; "
        "this protocol does all three",
    ),
    "flat logits": Rule(
        "the logits of more than half of the images are the same to the last bit at points of the "
        "ball that differ",
        "answers in steps, or a plateau where the model is sure: an attack inside has no slope, "
        "whether or not there is a way out",
        "begin outside and walk along the border; attack the classifier inside, or a substitute; "
        "this protocol does, and where they find nothing the number is not to be trusted",
    ),
    "misleading gradients": Rule(
        "a small step along the gradient changes the margin by less than a third of what the "
        "gradient promises, or by more than three times that, at the median image",
        "the gradient is masked; an attack that follows it may be weaker than others",
        "attack through smooth stand-ins (surrogates, BPDA), and trust the strongest only",
    ),
    "unseen optimisation": Rule(
        "the model optimises something in its forward pass (autograd runs inside), and its "
        "gradient does not match what it does",
        "the attack does not see the inner optimisation, because it is cut off or masked by its "
        "steps",
        "take the inner gradient with create_graph=True and update by expressions, not in place; "
        "then attack smooth surrogates of its steps",
    ),
    "mask not found": Rule(
        "the gradient looks masked, the model's parts are not named, and no rounding or cut that "
        "a gradient could be passed through was found inside",
        "only attacks without gradients try this model in earnest; its accuracy is likely lower",
        "name the parts, Defended(classifier, purifier), or hand in an attack of your own",
    ),
    "black box wins": Rule(
        "Square or the transfer attack misleads clearly more images than the white box did",
        "who knows less cannot do more: the gradients are masked or the white box is too weak",
        "look at the gradients; attack stand-ins, with more steps and restarts",
    ),
    "noise wins": Rule(
        "random points of the ball are misread clearly more often than attacked ones",
        "the attack does not work at all",
        "look at the gradients and at the signs of losses and steps",
    ),
    "more steps are weaker": Rule(
        "an attack with more steps leaves clearly more images standing",
        "the attack does not converge: its gradients are noise, or its step size is wrong",
        "average over more draws; try other step sizes; use APGD, which sets its own",
    ),
    "a class that no image has": Rule(
        "the last class is the label of no image, and a fifth or more of the clean images or of "
        "those in their worst case are read as it",
        "if it means 'I do not say', an abstention was counted as a mistake: the worst case is "
        "not that of the answers that are given",
        "name it, abstain=..., so that abstentions are an outcome of their own",
    ),
    "the attack cannot win": Rule(
        "a readout of the logits was made so that an adversarial example is known to exist, and "
        "APGD found one for fewer than 80 % of ten images (Zimmermann et al. 2022)",
        "the attack finds nothing on this model even where there is something",
        "do not trust the number; look at the gradients; attack stand-ins and without gradients",
    ),
    "the loss does not rise": Rule(
        "APGD raises the margin above that of 40 random points of the ball for fewer than 80 % of "
        "ten images",
        "the gradient leads nowhere, or there is none (an indicator of Pintor et al. 2022)",
        "look at the gradients; attack stand-ins and without gradients",
    ),
    "does not fall": Rule(
        "under an ε at which every image can become grey, more than a tenth still stands",
        "no image that grey holds its digit: the attack fails, not the attacker",
        "do not report the number at the smaller ε; find out why the attack fails",
    ),
}
# Warnings of a gradient that does not tell what the model does.
MASKS = (
    "zero gradients",
    "random gradients",
    "flat logits",
    "misleading gradients",
    "unseen optimisation",
)


@dataclass(frozen=True)
class Finding:
    """A rule that was raised, with what was seen; prints as a sentence each."""

    name: str
    seen: str

    def __str__(self) -> str:
        rule = RULES[self.name]
        return (
            f"{self.name}: {self.seen}. Raised if {rule.raised_if}. It means: {rule.means}. "
            f"What to do: {rule.do}."
        )


@checked
def inspect_model(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: str = "linf", random: bool = False
) -> list[Finding]:
    """Look at a model's outputs and gradients before it is attacked.

    Args:
        model: images -> logits.
        x: some images ``[N, C, H, W]`` in [0, 1]; 20 to 50 are enough.
        y: int64 labels ``[N]``.
        eps: the radius it will be attacked within; what is looked at is drawn from that ball.
        norm: ``"linf"`` or ``"l2"``.
        random: the model is known to be random.
    """
    found = [Finding("random forward", "two calls do not agree")] if random else []
    z = in_ball(x, eps, norm, torch.arange(len(x)), seed=1)
    with evaluating(model), torch.inference_mode(False):
        z = z.clone()
        logits, calls = _inner_gradients(model, z)
        if looks_like_probabilities(logits):
            found.append(Finding("probabilities", "every row looks like a distribution"))
        if (not random or takes_keys(model)) and looks_at_the_batch(model, z):
            found.append(Finding("answers depend on the batch", "alone they are others"))
        if hidden := _hidden(model):
            found.append(Finding("parts not named", hidden))
        slope, zero = _gradient(model, z, y)
        if zero > 0.5:
            found.append(Finding("zero gradients", f"{100 * zero:.0f} % of {len(x)} images"))
        if not random and zero <= 0.5 and (gap := _unsteady(model, z, y, slope)) < 0.9:
            found.append(Finding("random gradients", f"the cosine of two is {gap:.2g}"))
        if not random and (flat := _flat(model, z, logits, eps, norm)) > 0.5:
            found.append(Finding("flat logits", f"{100 * flat:.0f} % of {len(x)} images"))
        with torch.no_grad():  # a random model that is told its draw keeps it
            steady = not random or torch.allclose(ask(model, z), logits, rtol=1e-4, atol=1e-5)
        ratio = _agreement(model, z, y, slope, eps, norm) if steady else None
        seen = ""
        if ratio is not None and not 1 / 3 <= ratio <= 3:
            seen = f"the margin changes {ratio:.2g} times as much as the gradient promises"
        elif ratio is None and steady:
            seen = "the margin has no gradient"
        if seen and calls:
            seen = f"{calls} inner gradients in one forward pass, and {seen}"
            found.append(Finding("unseen optimisation", seen))
        elif seen and ratio is not None:
            found.append(Finding("misleading gradients", seen))
    return found


def _hidden(model: nn.Module) -> str:
    """A purifier that the protocol cannot reach, and what is left out for it; or nothing."""
    named = isinstance(model, Defended)
    whole = model.purifier if named else model
    inner = next((m for m in whole.modules() if isinstance(m, (Defended, Purifier))), None)
    if inner is None or isinstance(whole, Purifier):
        return ""
    lost = "BPDA averaged over the steps, reconstruction-aware attacks and surrogates"
    lost = lost if named else f"transfer from the classifier, BPDA, {lost}"
    return f"a {type(inner).__name__} inside a {type(whole).__name__}, so {lost} do not apply"


def is_cut(model: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether the margin of most images has no gradient, so that no loss has one."""
    with evaluating(model):
        slope, _ = _gradient(model, x, y)
    return (slope.flatten(1).abs().amax(1) == 0).float().mean().item() > 0.5


@torch.no_grad()
def _inner_gradients(model: nn.Module, z: Tensor) -> tuple[Tensor, int]:
    """Logits, and how often a forward pass calls autograd: one that does optimises something.

    Replaced is what ``grad`` and ``backward`` call, however they were imported. No public hook sees
    both and nothing else: a TorchFunctionMode would take every operation of the model through
    Python, and have a compiled model compiled anew.
    """
    calls, run = [], torch.autograd._engine_run_backward

    def counted(*args, **kwargs):
        calls.append("backward")
        return run(*args, **kwargs)

    with mock.patch.object(torch.autograd, "_engine_run_backward", counted):
        logits = ask(model, z)
    return logits, len(calls)


def _gradient(model: nn.Module, z: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """The margin's gradient, and the share of images whose cross-entropy has none."""
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        logits = ask(model, z) if differentiable(model, z[:1]) else None
        if logits is None or not logits.requires_grad:
            return torch.zeros_like(z), 1.0
        options = {"retain_graph": True, "materialize_grads": True}  # zeros where there is none
        steep, slope = (
            torch.autograd.grad(loss(logits, y).sum(), z, **options)[0].nan_to_num(0.0)
            for loss in (cross_entropy, margin)
        )
    return slope, (steep == 0).flatten(1).all(1).float().mean().item()


def _unsteady(model: nn.Module, z: Tensor, y: Tensor, slope: Tensor) -> float:
    """The cosine of the margin's gradient and that of another call, at the median image."""
    one, other = (g.flatten(1).double() for g in (slope, _gradient(model, z, y)[0]))
    able = (one.norm(dim=1) > 0) & (other.norm(dim=1) > 0)
    if not able.any():
        return 1.0
    return torch.cosine_similarity(one[able], other[able], eps=0).median().item()


@torch.no_grad()
def _flat(model: nn.Module, z: Tensor, logits: Tensor, eps: float, norm: str) -> float:
    """Share of images whose logits stay what they are, to the last bit, at two points near by."""
    index = torch.arange(len(z))
    near = [in_ball(z, eps / 4, norm, index, seed=2, stream=k) for k in range(2)]
    same = [(ask(model, point) == logits).all(1) for point in near]
    return (same[0] & same[1]).double().mean().item()


@torch.no_grad()
def _agreement(
    model: nn.Module, z: Tensor, y: Tensor, slope: Tensor, eps: float, norm: str
) -> float | None:
    """Change of the margin along the gradient's step over what the gradient promises: the median.

    None where no image has a gradient.
    """
    step = steepest(slope, norm) * (eps / 20)
    there, back = (margin(ask(model, z + side * step), y) for side in (1, -1))
    promised = 2 * (slope * step).flatten(1).sum(1)
    able = promised > 0
    if not able.any():
        return None
    return ((there - back)[able] / promised[able]).median().item()
