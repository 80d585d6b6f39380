"""Models with one class more, which means "I do not say"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import attacks
from ..core.calling import ask, bounded

SILENT = "a class that no image has"


def towards_each(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    abstain: int,
    targets: int,
    index: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """APGD towards the likeliest classes that are neither ``y`` nor the one that says nothing.

    Who only leaves ``y`` may end at an abstention; this attacker wants an answer, and a wrong one.

    Args:
        model: images -> logits, or a view.
        x: images ``[N, C, H, W]``.
        y: int64 labels ``[N]``.
        abstain: the class that says nothing.
        targets: how many classes are tried.
        index: of the images.
        options: of :func:`apudae.attacks.apgd`.

    Returns:
        Per image, one that is read as another class if there was one.
    """
    size = options.get("batch_size") or max(len(x), 1)

    @torch.no_grad()
    def read(z: Tensor) -> Tensor:
        """Logits; of a view that averages over draws those of its likeliest answers."""
        found = []
        for part in z.split(size):
            if isinstance(model, attacks.View):
                draws = [bounded(said).softmax(1) for said in model.answers(part, 0)]
                found.append(torch.stack(draws).mean(0).log())
            else:
                found.append(ask(model, part))
        return torch.cat(found)

    logits = read(x).scatter(1, y[:, None], -torch.inf)
    logits[:, abstain] = -torch.inf
    best, done = x.clone(), torch.zeros_like(y, dtype=torch.bool)
    for goal in logits.argsort(1, descending=True)[:, :targets].T:
        rest = (~done).nonzero().flatten()
        if len(rest) == 0:
            break
        given = {k: v[rest] if k == "mask" and v is not None else v for k, v in options.items()}
        keys = None if index is None else index[rest.cpu()]
        aim = goal[rest]
        z = attacks.apgd(model, x[rest], aim, targeted=True, index=keys, **given)
        best[rest], done[rest] = z, read(z).argmax(1) == aim
    return best


def silent_class(labels: Tensor, read: dict[str, Tensor], classes: int) -> str:
    """That the last class is nobody's label and yet predicted for a fifth of the images, or ``""``.

    Args:
        labels: int64 ``[N]``.
        read: predicted classes ``[N]``, by what was read.
        classes: how many there are.
    """
    last, known = classes - 1, len(labels.unique())
    if classes < 3 or known < classes / 2 or bool((labels == last).any()):
        return ""
    for name, found in read.items():
        share = (found == last).double().mean().item()
        if share >= 0.2:
            return (
                f"class {last} is the label of no image and is what {100 * share:.0f} % of the "
                f"{name} images are read as, which counts as misread"
            )
    return ""
