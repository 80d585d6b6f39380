"""The protocol: attack a model in every way at hand, and report what stands.

:func:`evaluate` looks at a model (``diagnostics``), plans its attacks (``attackers``), runs them
(``protocol``) and gives a ``report`` with each image's worst case, curves and warnings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
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
from ..core.calling import ask, evaluating, in_training, is_random, takes_keys, unwrapped
from ..core.files import fingerprint, held, inside, model_fingerprint
from ..core.norms import in_ball, within_reach
from ..core.prints import CHANGING, exact, identity, model_print
from ..core.processes import check_shared, everyones, rank, together, world
from ..purification.purifier import Defended, Purifier
from .attackers import BUDGETS, Attack, Budget, plan, why_not_half
from .could_win import could_win, told
from .diagnostics import MASKS, Finding, inspect_model, is_cut
from .isolation import isolated, spare
from .protocol import Evaluation, part_name
from .report import ON_ALL, Report
from .response import called_for, respond, speaking, transfer


@checked
def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    budget: str | Budget = "quick",
    search: str | None = None,
    norm: str = "linf",
    attacks: Mapping[str, Callable[..., Tensor]] | None = None,
    substitutes: Mapping[str, nn.Module] | None = None,
    abstain: int | None = None,
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
    5. Where answers depend on earlier queries or on the batch, fresh copies and each image alone
       are attacked and scored. Where a warning says that gradients hide something or that a weaker
       attack won, what it prescribes is run on what still stands, before the report: attacks along
       the classifier inside, along the border, along estimated gradients (NES), from a substitute
       learned from the answers, and Square again.
    6. Curves: PGD over ε, steps and draws, on the first images (50, or 100 at the reference); with
       them, how often the attack finds what is known to be there (attack unit tests).

    Under ``torchrun`` the processes share the images, on one machine or many, and each gets the
    whole report: that of one process, but for what rounding makes of another batch.

    Raised warnings are in the report, and drawn as :class:`~apudae.evaluation.AttackWarning`.

    Args:
        model: any module images -> logits. Of a :class:`~apudae.purification.Defended` one the
            protocol knows the parts and attacks them too. One whose ``forward`` takes ``index``
            and ``draw`` is told them; others find the global generators seeded.
        x: images ``[N, C, H, W]`` in [0, 1].
        y: int64 labels ``[N]``.
        eps: radius of the ball, in pixel units.
        budget: ``"quick"``, ``"reference"`` or a :class:`~apudae.evaluation.Budget`.
        search: ``"auto"`` or ``"float32"``, instead of the budget's own.
        norm: ``"linf"`` or ``"l2"``.
        attacks: more attacks by name, of your own, called as in :func:`apudae.attacks.suite`.
        substitutes: models by name, to transfer from: APGD finds images that mislead them, and
            follows their gradient while the model answers.
        abstain: the class that means "I do not say". It counts as misread in the worst case, and
            the report also tells how many clean images it is said of, and how many images are
            misled to another class (APGD towards each is run for that).
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
    name_of_budget = next((k for k, v in BUDGETS.items() if v == budget), "own")
    budget = budget if search is None else replace(budget, search=search)
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
    check_count(len(x), "number of images", minimum=world())
    index = keys_of(x, index)
    path = None if record is None else inside(Path(record).parent, Path(record).name, ".json")
    mine = (
        path if path is None or world() == 1 else path.with_name(f"{part_name(Path(record))}.json")
    )
    if path is not None:
        together(partial(check_shared, path.parent))
    modes = in_training(bare)
    with held(mine, "record"), torch.inference_mode(False), evaluating(model):
        kept = spare(bare)  # as it is before it is asked
        x, y = x.detach().clamp(0, 1), y.clone()  # copies: they may come from inference mode
        limits = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(budget).items()}
        settings = {
            "title": title or type(model).__name__,
            "eps": float(eps),
            "norm": norm,
            "budget": name_of_budget,
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
            "abstain": abstain,
            "substitutes": {k: model_print(net) for k, net in (substitutes or {}).items()} or None,
        }
        first = slice(0, min(len(x), 50, batch_size or 50))
        few = x[first], y, index[first], eps, norm
        classes, found = together(partial(_first_look, model, *few), first=True)
        target, odd = isolated(bare, kept, x[first], index[first])
        if modes:
            odd["training mode"] = modes
        marks = everyones(sorted(odd))
        agree = all(mark == marks[0] for mark in marks)
        require(agree, f"processes: they see differently what answers depend on, {marks}")
        asked = model if target is bare else target
        if asked is not model:
            classes, found = together(partial(_first_look, asked, *few), first=True)
        if found and random is False:
            raise ValueError(
                "random: the model was said not to be, but its logits change when asked"
            )
        if abstain is not None:
            check_count(abstain, "abstain", minimum=0, maximum=classes - 1)
        settings["random"] = found if random is None else random
        settings["data_exact"], settings["model"] = exact(x), identity(model, x, index)
        settings["own_attacks_sha256"] = model_print(dict(attacks or {}))
        same = everyones({k: v for k, v in settings.items() if k != "model"})
        differ = sorted({k for other in same for k in other if other[k] != same[0][k]})
        require(not differ, f"processes: they differ in {', '.join(differ)}")
        run = Evaluation(asked, x, y, index, settings, budget, record, batch_size, ball.mask)
        if not run.report.complete:
            if path is not None:
                check_writable(path.parent, "record")
            _go(run, first, classes, attacks or {}, substitutes or {}, odd, progress)
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
    substitutes: Mapping[str, nn.Module],
    odd: Mapping[str, str],
    progress: bool,
) -> None:
    """All that is left to do; what looks at the model as a whole, process 0 does."""
    model, report, s = run.model, run.report, run.report.settings
    x, y = run.all.x, run.labels
    few, labels = x[first], y[first]

    def look() -> tuple[list[Finding], dict[str, list[int]], str, bool]:
        seen = {
            "few images": len(x) < 20 and f"{len(x)} images",
            "everything in reach": beyond_all(s["eps"], s["norm"], x),
            "changes as it is asked": s["model"]["sha256"] == CHANGING and "two prints differ",
        }
        raised, won = report.findings, report.could_win
        if not raised:
            shared = {key: s[key] for key in ("eps", "norm", "random")}
            raised = [Finding(name, what) for name, what in (seen | odd).items() if what]
            looks = inspect_model(model, few, labels, **shared)
            raised = raised + [finding for finding in looks if finding.name not in odd]
            if s["curves"] and not s["random"]:
                won = could_win(model, run.all, y, seed=s["seed"])
                raised += [Finding(name, what) for name, what in told(won).items()]
        auto = run.budget.search == "auto"
        why = why_not_half(model, few[:16], labels[:16], s["norm"]) if auto else "it was asked for"
        return raised, won, why, _masked(raised) and is_cut(model, few, labels)

    report.findings, report.could_win, why, cut = together(look, first=True)
    if progress and rank() == 0 and why:
        print(f"searching in {str(x.dtype).removeprefix('torch.')}: {why}", flush=True)
    run.half = not why
    masked = _masked(report.findings)
    options = {k: s[k] for k in ("eps", "norm", "seed")} | {"batch_size": run.batch_size}
    looks = {"random": s["random"], "classes": classes, "masked": masked, "half": run.half}
    planned = plan(model, x, run.budget, **looks, **options)
    names = {attack.name for attack in planned}
    passable = isinstance(model, Defended) or "straight-through" in names
    known = any(finding.name == "mask not found" for finding in report.findings)
    if cut and not passable and not known:
        report.findings.append(Finding("mask not found", "the margin has no gradient, either"))
    more = {"random": s["random"], **options}
    planned += [
        a for k, other in substitutes.items() for a in transfer(model, other, k, run.budget, **more)
    ]
    if s.get("abstain") is not None:
        planned.append(speaking(model, run.budget, s["abstain"], classes=classes, **more))
    for name, attack in own.items():
        if name in {a.name for a in planned}.union(ON_ALL):
            raise ValueError(f"attacks: {name!r} is one of the protocol's own; take another name")
        known = taken(attack, options)
        planned.append(Attack(name, "own", partial(attack, model, **known), gradients=100))

    def response(raised: list[Finding]) -> list[Attack]:
        if not called_for(model, raised):
            return []
        return respond(model, run.all, y, run.budget, classes=classes, **more)

    run.finish(planned, _points(run, options) if s["curves"] else [], progress, response)


def _masked(findings: list[Finding]) -> bool:
    return any(finding.name in MASKS for finding in findings)


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
        changed = options | {"eps": radius}
        return Attack.pgd(run.model, budget, random, changed, half=run.half, **changes)

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
