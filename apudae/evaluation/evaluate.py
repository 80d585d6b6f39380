"""The protocol: attack a model in every way at hand, and report what stands.

:func:`evaluate` looks at a model (``diagnostics``), plans its attacks (``attackers``), runs them
(``protocol``) and gives a ``report`` with each image's worst case, curves and warnings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.objective import beyond_all, check_attack, keys_of
from ..attacks.suite import check_takes, taken
from ..core.arguments import (
    LEVEL,
    check_count,
    check_grid,
    check_labels,
    check_logits,
    check_writable,
    checked,
    require,
    warn,
)
from ..core.calling import ask, evaluating, is_random, takes_keys, unwrapped
from ..core.files import fingerprint, held, inside, model_fingerprint
from ..core.norms import in_ball, within_reach
from ..core.prints import CHANGING, exact, identity, model_print
from ..purification.purifier import Defended, Purifier
from .attackers import BUDGETS, Attack, Budget, plan
from .diagnostics import MASKS, Finding, inspect_model, is_cut
from .protocol import Evaluation
from .report import ON_ALL, Report


@checked
def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    budget: str | Budget = "quick",
    norm: str = "linf",
    attacks: Mapping[str, Callable[..., Tensor]] | None = None,
    mask: Tensor | None = None,
    quantised: bool = False,
    random: bool | None = None,
    curves: bool = True,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int | None = None,
    title: str = "",
    record: str | Path | None = None,
    progress: bool = True,
) -> Report:
    """Measure how many images a model reads rightly in the worst case that we can find.

    1. The model is looked at: is it random, does its gradient tell what it does?
    2. PGD along the exact gradient and transfer from the bare classifier attack *all* images. Then
       BPDA, BPDA averaged over the purification, the reconstruction-aware attack, smooth
       surrogates, APGD on two losses, and Square attack those that still stand. What does not
       apply to the model (a bare classifier has no purifier) is left out. Where the gradient
       looks masked, roundings and cuts inside the model are found and passed straight through.
    3. An image counts only if it withstands everything, the clean image and noise included.
    4. Of a **random** model every attack averages gradients over draws (EOT). For each image the
       attack with the highest share of misread draws, of 20, is chosen, and scored again on 20
       fresh draws; the mean is reported. ("Any draw of any attack" would fell every image.)
    5. Curves: PGD over ε, steps and draws, on the first images (50, or 100 at the reference).

    Raised warnings are in the report, and drawn as :class:`~apudae.evaluation.AttackWarning`.

    Args:
        model: any module images -> logits. Of a :class:`~apudae.purification.Defended` one the
            protocol knows the parts and attacks them too. One whose ``forward`` takes ``index``
            and ``draw`` is told them; others find the global generators seeded.
        x: images ``[N, C, H, W]`` in [0, 1].
        y: int64 labels ``[N]``.
        eps: radius of the ball, in pixel units.
        budget: ``"quick"``, ``"reference"`` or a :class:`~apudae.evaluation.Budget`.
        norm: ``"linf"`` or ``"l2"``.
        attacks: more attacks by name, of your own, called as in :func:`apudae.attacks.suite`.
        mask: the pixels that may change, as in :mod:`apudae.attacks`.
        quantised: round what each attack finds to 8 bits before it is scored, as in
            :func:`apudae.attacks.quantised`: what counts could lie in a file. The protocol's own
            attacks go on behind the border then, so that less is lost.
        random: whether the model is; found out if None. False is a promise that is checked.
        curves: draw them too.
        seed: of the attacks.
        index: of the images, keys of the random draws; by default their places.
        batch_size: images per pass.
        title: of the model, for tables and figures.
        record: a path without ending, where the report is saved after every attack. If it is
            there already and was made with the same settings, the evaluation goes on from it.
            An own attack belongs to them with what it keeps and its code, the model also with
            what it answers.
        progress: print an estimate of the time and show a bar.

    Raises:
        ValueError: an argument that cannot be used (ε = 0 too: measure ``accuracy`` then), a model
            that was promised not to be random and is, NaN logits, or a record made otherwise.
    """
    if not isinstance(budget, Budget):
        if budget not in BUDGETS:
            raise ValueError(f"budget: expected {' or '.join(BUDGETS)} or a Budget, got {budget!r}")
        budget = BUDGETS[budget]
    bare = unwrapped(model)
    model = bare if isinstance(bare, Defended) else model  # whose parts are attacked, too
    shared = {"index": index, "batch_size": batch_size}
    ball = check_attack(model, x, y, eps, norm, mask=mask, **shared)
    check_takes(attacks or {}, ball)
    wide = norm != "l2" or min(x.shape[2:]) >= 6
    require(wide, f"x: Square in L2 needs 6 x 6 pixels or more, got {list(x.shape[2:])}")
    if quantised:
        check_grid(x, eps=eps)
    if eps == 0:
        raise ValueError("eps: expected a number > 0; without an attack, use accuracy(model, x, y)")
    check_count(len(x), "number of images")
    index = keys_of(x, index)
    path = None if record is None else inside(Path(record).parent, Path(record).name, ".json")
    with held(path, "record"), torch.inference_mode(False), evaluating(model):
        x, y = x.detach().clamp(0, 1), y.clone()  # copies: they may come from inference mode
        limits = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(budget).items()}
        settings = {
            "title": title or type(model).__name__,
            "eps": float(eps),
            "norm": norm,
            "budget": next((k for k, v in BUDGETS.items() if v == budget), "own"),
            "options": limits,
            "own_attacks": list(attacks or {}),
            "curves": curves,
            "seed": seed,
            "index_sha256": _sha256(index),
            "model_sha256": model_fingerprint(model),
            "data_sha256": fingerprint(x),
            "labels_sha256": _sha256(y),
            "quantised": quantised or None,  # these two are new: None is what old records say
            "mask": _told(ball.mask),
        }
        first = slice(0, min(len(x), 50, batch_size or 50))
        classes, found = _first_look(model, x[first], y, index[first], eps, norm)
        if found and random is False:
            raise ValueError(
                "random: the model was said not to be, but its logits change when asked"
            )
        settings["random"] = found if random is None else random
        settings["data_exact"], settings["model"] = exact(x), identity(model, x, index)
        settings["own_attacks_sha256"] = model_print(dict(attacks or {}))
        run = Evaluation(model, x, y, index, settings, budget, record, batch_size, ball.mask)
        if not run.report.complete:
            if path is not None:
                check_writable(path.parent, "record")
            _go(run, first, classes, attacks or {}, progress)
    for finding in run.report.findings:
        warn(f"{settings['title']}: {finding}")
    return run.report


def _sha256(numbers: Tensor) -> str:
    return hashlib.sha256(numbers.cpu().numpy().tobytes()).hexdigest()


def _told(mask: Tensor | None) -> dict[str, Any] | None:
    share = None if mask is None else mask.double().mean().item()
    return share and {"sha256": _sha256(mask), "share": share}


def _go(
    run: Evaluation,
    first: slice,
    classes: int,
    own: Mapping[str, Callable[..., Tensor]],
    progress: bool,
) -> None:
    """All that is left to do."""
    model, report, s = run.model, run.report, run.report.settings
    x, y = run.x[first], run.y[first]
    if not report.findings:
        shared = {key: s[key] for key in ("eps", "norm", "random")}
        seen = {
            "few images": report.n < 20 and f"{report.n} images",
            "everything in reach": beyond_all(s["eps"], s["norm"], run.x),
            "changes as it is asked": s["model"]["sha256"] == CHANGING and "two prints differ",
        }
        raised = [Finding(name, what) for name, what in seen.items() if what]
        report.findings = raised + inspect_model(model, x, y, **shared)
    found = {finding.name for finding in report.findings}
    masked = not found.isdisjoint(MASKS)
    options = {k: s[k] for k in ("eps", "norm", "seed")} | {"batch_size": run.batch_size}
    looks = {"random": s["random"], "classes": classes, "masked": masked}
    planned = plan(model, x, run.budget, **looks, **options)
    names = {attack.name for attack in planned}
    for name in own:
        if name in names.union(ON_ALL):
            raise ValueError(f"attacks: {name!r} is one of the protocol's own; take another name")
    passable = isinstance(model, Defended) or "straight-through" in names
    if masked and not passable and "mask not found" not in found and is_cut(model, x, y):
        report.findings.append(Finding("mask not found", "the margin has no gradient, either"))
    for name, attack in own.items():
        known = taken(attack, options)
        planned.append(Attack(name, "own", partial(attack, model, **known), gradients=100))
    run.finish(planned, _points(run, options) if s["curves"] else [], progress)


def _first_look(
    model: nn.Module, x: Tensor, y: Tensor, index: Tensor, eps: float, norm: str
) -> tuple[int, bool]:
    """Number of classes and whether the model is random, after what it answers was checked."""
    # A purifier of this package must be told its draws, or it replays one for ever.
    inner = next((m for m in model.modules() if isinstance(m, Purifier) and m.random), None)
    if inner is not None and not takes_keys(model):
        raise ValueError(
            f"model: a {type(model).__name__} cannot hand the number of a draw on to the random "
            f"{type(inner).__name__} inside; use Defended, or a forward(x, index, draw)"
        )
    try:
        with torch.no_grad():
            logits = ask(model, x, index=index)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        raise ValueError(
            "model: it takes gradients in its forward pass and fails under torch.no_grad(); put "
            "`with torch.enable_grad():` round that part"
        ) from error
    check_logits(logits, y[: len(x)])
    check_labels(y, len(y), logits.shape[1])
    # At random points of the ball, too: noise may depend on the image.
    moved = in_ball(x, eps, norm, torch.arange(len(x)), seed=1)
    return logits.shape[1], is_random(model, x) or is_random(model, moved)


def _points(run: Evaluation, options: dict[str, Any]) -> list[tuple[str, float, Attack]]:
    """PGD over ε, up to where every image can become grey, over steps, and over draws."""
    eps, norm, budget = options["eps"], options["norm"], run.budget
    random, most = run.report.settings["random"], min(budget.pgd, 50)
    grey = 0.5 if norm == "linf" else 0.5 * run.x[0].numel() ** 0.5

    def pgd(radius: float, **changes: int) -> Attack:
        return Attack.pgd(run.model, budget, random, options | {"eps": radius}, **changes)

    grey = 0 if run.ball.mask is not None else grey  # what the mask keeps stays what it was
    twice = max(within_reach(2 * eps, norm, run.x), eps)
    least = LEVEL if run.report.settings["quantised"] else 0  # below it nothing changes
    radii = sorted({r for r in (eps / 4, eps / 2, eps, twice, max(grey, twice)) if r > least})
    steps = [count for count in (5, 10, 20, 50, 100, 200) if count <= budget.pgd]
    draws = [count for count in (1, 5, 20) if count <= budget.draws and random]
    return [
        *(("ε", round(radius, 6), pgd(radius, steps=most)) for radius in radii),
        *(("steps", count, pgd(eps, steps=count)) for count in steps),
        *(("draws", count, pgd(eps, steps=most, draws=count)) for count in draws),
    ]
