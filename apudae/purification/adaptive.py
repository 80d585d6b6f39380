"""Adaptive purification: :class:`Adaptive`, and the variants of the authors' code as its options.

:data:`PRESETS` are those variants, which :meth:`Adaptive.preset` takes by name. Steps and step
sizes are the APuDAE authors', for colour images; where their code calls a variant with none, the
entry says so. In every variant these are corrected, since the authors' results depend on them only
by accident:

- each image is purified on its own (four of the objectives look at the sum or the mean over the
  batch: with the mean, an attacked image among clean ones may keep most of its error);
- every iterate stays in [0, 1];
- the inner gradient is taken with respect to the image alone, and can itself be differentiated;
- μ and s come from :func:`apudae.purification.calibrate` on validation images. Theirs are
  measured on test images, and the main script then sets s to 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from ..core.arguments import check_choice, check_count, check_number, checked, require
from ..core.calling import in_training, remembering
from ..core.norms import clip, per_image
from .purifier import Purifier, Watch, keepable
from .reconstruction import Calibration, check_calibration
from .steps import OBJECTIVES, STEPPERS, ExactStep, State, Stepper, twice


@dataclass(frozen=True)
class Variant:
    """Options of :class:`apudae.purification.Adaptive`, and what they stand for.

    Attributes:
        options: keyword arguments.
        formula: what is lowered, with ``d`` the reconstruction error of an image.
        remark: what differs from the authors' code, beyond what differs in all variants.
    """

    options: dict[str, object] = field(default_factory=dict)
    formula: str = "d"
    remark: str = ""


_UNIT = 1 / 255
PRESETS: dict[str, Variant] = {
    "simple": Variant(
        {"objective": "error", "stepper": "adam", "steps": 12, "step_size": _UNIT},
        "d",
    ),
    "biased": Variant(
        {"objective": "sigmoid", "stepper": "adam", "steps": 16, "step_size": _UNIT},
        "d · sigmoid((d − μ)/s)",
        "d is the image's own error; theirs is the batch's sum, for which the sigmoid is always 1",
    ),
    "biased-steps": Variant(
        {"objective": "error", "paced": True, "stepper": "adam", "steps": 16, "step_size": _UNIT},
        "d, steps scaled by sigmoid((d − μ)/s)",
        "scaled by the image's own error; never called there: steps and size are those of 'biased'",
    ),
    "probabilistic-mean": Variant(
        {"objective": "match", "stepper": "adam", "steps": 13, "step_size": 2 * _UNIT},
        "(d − μ)²/s²",
        "d is the image's own error, not the batch's mean; steps and size are those of "
        "'probabilistic'",
    ),
    "probabilistic": Variant(
        {
            "objective": "hinge",
            "stepper": "adam",
            "steps": 13,
            "step_size": 2 * _UNIT,
            "noise": 0.7 * _UNIT,
        },
        "max(d − μ, 0)²/s², each step adds U(−1, 1) · noise · min(((d − μ)/2s)², 4)",
        "the authors' default; the noise ends once d ≤ μ, theirs grows again below μ",
    ),
    "kl": Variant(
        {"objective": "match", "stepper": "adam", "steps": 16, "step_size": 2 * _UNIT},
        "(d − μ)²/s²",
        "not a KL divergence; d is the image's own error, which makes it 'probabilistic-mean' with "
        "three more steps",
    ),
    "l2": Variant(
        {"objective": "error", "stepper": "l2", "steps": 16, "step_size": 0.1},
        "d, gradient over its length",
        "called without options there: steps and their length are this package's",
    ),
    "sign": Variant(
        {
            "objective": "error",
            "stepper": "sign",
            "steps": 16,
            "step_size": _UNIT,
            "eps": 8 * _UNIT,
        },
        "d, sign of the gradient, |change| ≤ ε",
        "called without options there: steps, size and ε are this package's",
    ),
}
_OWN_DRAW = 2**16 - 2  # one that no caller may ask for, nor, in `uniforms`, any attack
_NOISE_CAP = 4.0  # the authors let the noise grow up to here


@checked
class Adaptive(Purifier):
    """Move the image until the DAE reconstructs it well (APuDAE, arXiv 2208.13838).

    Steps on the image, downhill on an objective of its own reconstruction error ``d``::

        z ← clip(z − step_size · step(∇ objective(d(z))) + noise),   d(z) = ‖z − R(z)‖²

    from ``z = x``. The classifier then sees ``z``, not the DAE's output. Objectives, with μ and s
    from :func:`calibrate`:

    - ``"error"``: d;
    - ``"hinge"``: max(d − μ, 0)²/s², without a gradient once the error is normal (but Adam's
      momentum walks on for some steps; ``stop`` does not);
    - ``"match"``: (d − μ)²/s², which pulls a low error up;
    - ``"sigmoid"``: d · sigmoid((d − μ)/s).

    The result can be differentiated with respect to ``x`` and the DAE's weights, through every step
    (second order in the DAE), once. Each step is worked out again on the way back, so memory grows
    by one image, and what the stepper remembers of it, per step. (Attacks trade some memory for
    time: their steps keep what fits into a gibibyte.) The DAE must be in evaluation mode.

    Exact does not mean useful: this gradient can be *masked*, and an attacker should also try
    ``replace(...)`` with smooth stand-ins, as :func:`apudae.purification.smooth` makes them.

    - Adam and sign steps: their derivative is almost zero almost everywhere, and Adam's is huge
      where a pixel's gradient is about its ``eps``. Try a smooth stepper, such as ``Descent()``.
    - ``stop`` is a threshold: an image that is done at once has the gradient of no purifier. Try
      ``stop=None``.
    - ``"hinge"`` and ``noise`` have no slope below μ. Try ``"error"`` or ``"match"``.

    The defaults were chosen on validation digits (record ``mnist_selection``).

    Args:
        dae: a denoising autoencoder, images -> images of the same shape.
        objective: one of the above.
        stepper: ``"adam"``, ``"descent"``, ``"sign"``, ``"l2"`` (gradient over its length), or a
            :class:`apudae.purification.Stepper`.
        steps: how many.
        step_size: with Adam and sign about how far a pixel moves per step, in pixel units; with
            ``"l2"`` the length of the step; with ``"descent"`` the factor of the gradient.
        calibration: μ and s; needed by all objectives but ``"error"``, by ``paced`` and ``stop``.
        noise: each step adds ``U(−1, 1) · noise · min((max(d − μ, 0)/2s)², 4)``, which stays.
        paced: scale each image's steps by sigmoid((d − μ)/s).
        eps: no pixel ends further than this from where it was.
        stop: leave an image as it is once its error is at most μ + ``stop`` · s. It then costs
            nothing more.
        reconstruct: hand the classifier R(z), not z.
        expected: σ and a number of copies: ``d`` is the mean of ‖z − R(z + σn)‖² over so many
            standard normal ``n``, as the DAE was trained to lower it (PurSAMERE, arXiv 2602.06269,
            minimises this expectation; without its sharpness-aware steps). They are drawn once,
            from the seed, and the same for all images and steps, so that nothing is random.
        seed: of the noise.
        precision: ``"float32"`` (that is, the images' own) or ``"auto"``: bfloat16 inside the DAE
            where the hardware has it.

    Raises:
        ValueError: an option out of range or without its calibration; a DAE whose output is not an
            image like its input, or in training mode with layers that act differently there.
    """

    def __init__(
        self,
        dae: nn.Module,
        *,
        objective: str = "error",
        stepper: str | Stepper = "adam",
        steps: int = 30,
        step_size: float = 0.02,
        calibration: Calibration | tuple[float, float, int] | None = None,
        noise: float = 0.0,
        paced: bool = False,
        eps: float | None = None,
        stop: float | None = None,
        reconstruct: bool = False,
        expected: tuple[float, int] | None = None,
        seed: int = 0,
        precision: str = "float32",
    ) -> None:
        super().__init__(dae, seed, precision)
        check_choice(objective, OBJECTIVES, "objective")
        if not isinstance(stepper, Stepper):
            check_choice(stepper, STEPPERS, "stepper")
        check_count(steps, "steps", minimum=0, maximum=2**16 - 1)
        check_number(step_size, "step_size", exclusive=True)
        check_number(noise, "noise")
        if eps is not None:
            check_number(eps, "eps")
        if stop is not None:
            check_number(stop, "stop", minimum=-float("inf"))
        if expected is not None:
            require(len(expected) == 2, f"expected: expected σ and a number, got {expected!r:.60}")
            check_number(expected[0], "expected", exclusive=True)
            check_count(expected[1], "expected", maximum=2**16 - 1)
        needs = {
            f"objective {objective!r}": objective != "error",
            "noise": noise > 0,
            "paced": paced,
            "stop": stop is not None,
        }
        for name, need in needs.items():
            if need and calibration is None:
                raise ValueError(
                    f"calibration: {name} needs the mean and spread of clean errors; measure them "
                    "with purification.calibrate(dae, validation_images)"
                )
        if calibration is not None:
            given = tuple(calibration)
            require(
                2 <= len(given) <= 3 and not isinstance(calibration, nn.Module),
                f"calibration: expected mean and spread of clean errors, got {calibration!r:.60}",
            )
            calibration = check_calibration(Calibration(*given))
        given = locals()
        self.options = {name: given[name] for name in Adaptive.__init__.__kwdefaults__}
        if expected is None:  # new: older records tell a purifier by what it keeps
            del self.options["expected"]
        self.steps, self.step_size, self.noise, self.eps = steps, step_size, noise, eps
        self.stepper = stepper if isinstance(stepper, Stepper) else STEPPERS[stepper]
        self.mu, self.sigma = (calibration or (0.0, 1.0))[:2]
        self.paced, self.returns_reconstruction = paced, reconstruct
        self.enough = None if stop is None else self.mu + stop * self.sigma

    @classmethod
    def preset(
        cls,
        name: str,
        dae: nn.Module,
        calibration: Calibration | tuple[float, float, int] | None = None,
        **changes: object,
    ) -> Adaptive:
        """A variant of the authors' code by name, see :data:`apudae.purification.PRESETS`.

        Args:
            name: of the variant.
            dae: a denoising autoencoder.
            calibration: as of the class.
            changes: options that differ from the variant's, such as ``steps=30``.
        """
        check_choice(name, PRESETS, "name")
        return cls(dae, calibration=calibration, **{**PRESETS[name].options, **changes})

    def replace(self, **changes: object) -> Adaptive:
        """The same purifier with other options, around the same DAE."""
        return Adaptive(self.dae, **{**self.options, **changes})

    def extra_repr(self) -> str:
        default = Adaptive.__init__.__kwdefaults__
        shown = {k: v for k, v in self.options.items() if v != default[k]}
        shown |= {"steps": self.steps, "step_size": self.step_size}
        if shown.pop("calibration", None):
            shown |= {"mu": self.mu, "sigma": self.sigma}
        return ", ".join(f"{k}={f'{v:g}' if isinstance(v, float) else v}" for k, v in shown.items())

    def inner_gradient(self, x: Tensor) -> Tensor:
        """The gradient of the objective at the images, as the first step meets it."""
        with torch.inference_mode(False):
            return self._look(x.detach().clone(), graph=False)[1]

    def error(self, x: Tensor) -> Tensor:
        """Reconstruction errors ``[N]``, those under noise where ``expected`` is given."""
        if "expected" not in self.options:
            return super().error(x)
        sigma, copies = self.options["expected"]
        noise = [self._normal(x, None, _OWN_DRAW, k) for k in range(copies)]
        clean = x.repeat(copies, *[1] * (x.dim() - 1))
        noisy = clean + sigma * torch.cat(noise).repeat_interleave(len(x), 0)
        away = (clean - self.reconstruct(noisy)).square().flatten(1).sum(1)
        return away.unflatten(0, (copies, len(x))).mean(0)

    def seen_by_classifier(self, z: Tensor) -> Tensor:
        return clip(self.reconstruct(z)) if self.returns_reconstruction else z

    def _purify(self, x: Tensor, index: Tensor | None, draw: int, watch: Watch | None) -> Tensor:
        if names := in_training(self.dae):
            raise ValueError(
                f"dae: {names} in training mode, which draws anew at every pass or couples the "
                "images of a batch; call .eval()"
            )
        # The steps need gradients even where the caller switched them off. Whether the steps can
        # themselves be differentiated is the caller's choice.
        parameters = tuple(p for p in self.dae.parameters() if p.requires_grad)
        graph = torch.is_grad_enabled() and (x.requires_grad or len(parameters) > 0)
        with torch.inference_mode(False), torch.set_grad_enabled(graph):
            x = x if graph else x.detach().clone()  # a clone may leave inference mode
            z, state = x, self.stepper.start(x)
            look = remembering(partial(self._look, graph=True))
            kept = keepable(self, x, self._first_step) if graph else 0
            place = torch.arange(len(x), device=x.device)  # of the images still on their way
            done: list[tuple[Tensor, Tensor]] = []
            t = 1
            for t in range(1, self.steps + 1):
                if watch and t > 1:
                    watch(_gather([*done, (place, z)]))
                keep = t <= kept
                if keep:
                    z = z if z.requires_grad else z.detach().requires_grad_(True)
                    d, gradient = twice(partial(look, z), self.dae)
                else:
                    d, gradient = self._look(z.detach(), graph=False)
                # An error of NaN goes on, and shows.
                if self.enough is not None and (stop := d <= self.enough).any():
                    done.append((place[stop], z[stop]))
                    parts = (z, x, place, d, gradient, *state)
                    z, x, place, d, gradient, *state = (part[~stop] for part in parts)
                    index = None if index is None else index[~stop.to(index.device)]
                    if not len(z):
                        break
                move = partial(self._move, t, index, draw)
                if keep:
                    z, state = move(z, x, d, gradient, tuple(state))
                    continue
                z, *state = ExactStep.apply(
                    self.dae, look, move, d, gradient, parameters, z, x, *state, *parameters
                )
            end = _gather([*done, (place, z)])
            for _ in range(t, self.steps + 1) if watch else ():
                watch(end)
            return end if watch else self.seen_by_classifier(end)

    def _first_step(self, z: Tensor) -> Tensor:
        d, gradient = twice(partial(self._look, z, graph=True), self.dae)
        return self._move(1, None, 0, z, z, d, gradient, self.stepper.start(z))[0]

    def _look(self, z: Tensor, *, graph: bool) -> tuple[Tensor, Tensor]:
        """Errors ``[N]`` and the objective's gradient: one pass forward, one back to the image."""
        with torch.enable_grad():
            z = z if graph else z.requires_grad_(True)
            d = self.error(z)
            value = OBJECTIVES[self.options["objective"]](d, self.mu, self.sigma)
            # A sum over images: each image's gradient is its own.
            (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=graph)
        return (d, gradient) if graph else (d.detach(), gradient)

    def _move(
        self,
        t: int,
        index: Tensor | None,
        draw: int,
        z: Tensor,
        x: Tensor,
        d: Tensor,
        gradient: Tensor,
        state: State,
    ) -> tuple[Tensor, State]:
        direction, state = self.stepper.step(gradient, state, t)
        if self.paced:
            direction = direction * per_image(((d - self.mu) / self.sigma).sigmoid(), z)
        z = z - self.step_size * direction
        if self.noise:
            above = ((d - self.mu).clamp(min=0) / (2 * self.sigma)).square().clamp(max=_NOISE_CAP)
            z = z + self.noise * per_image(above, z) * self._noise(z, index, draw, t)
        if self.eps is not None:
            z = torch.clamp(z, min=x - self.eps, max=x + self.eps)
        return clip(z), state


def _gather(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Images put back in their order."""
    if len(parts) == 1:
        return parts[0][1]
    places, images = zip(*parts, strict=True)
    return torch.cat(images)[torch.cat(places).argsort()]
