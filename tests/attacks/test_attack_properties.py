"""What must hold for every attack, whatever the shape, norm, ε and type: searched, not listed."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ATTACKS, RANDOM, call
from torch import nn

from apudae.core.norms import NORMS, length

DTYPES = (torch.float32, torch.float64)
MODELS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Bumpy(nn.Module):
    """Random logits with curvature, and flat ground: some images get no gradient at all."""

    def __init__(self, pixels: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(7, pixels, generator=generator))
        self.outer = nn.Parameter(torch.randn(classes, 7, generator=generator))

    def forward(self, x):
        hidden = (x.flatten(1) - 0.5) @ self.inner.T
        return torch.relu(hidden) @ self.outer.T


@st.composite
def problems(draw):
    norm = draw(st.sampled_from(NORMS))
    name = draw(st.sampled_from([n for n in ATTACKS if (n, norm) != ("cw", "linf")]))
    least = 6 if name == "square" and norm == "l2" else 1
    side = st.integers(least, 9)
    shape = (draw(st.integers(0, 5)), draw(st.integers(1, 3)), draw(side), draw(side))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    # Uniform pixels, or black and white ones, which have only one way to go.
    x = torch.rand(shape, generator=generator, dtype=draw(st.sampled_from(DTYPES)))
    x = x.round() if draw(st.booleans()) else x
    classes = draw(st.integers(4, 6))
    y = torch.randint(classes, shape[:1], generator=generator)
    model = Bumpy(math.prod(shape[1:]), classes, generator).to(draw(st.sampled_from(MODELS)))
    eps = draw(st.one_of(st.just(0.0), st.floats(1e-8, 3.0)))
    return name, norm, model, x, y, eps


@settings(max_examples=400, deadline=None)
@given(problems())
def test_ball_range_shape_type_and_no_side_effects(problem):
    name, norm, model, x, y, eps = problem
    before = x.clone()
    weights = [p.clone() for p in model.parameters()]
    adversarial = call(name, model, x, y, eps=eps, norm=norm)
    assert adversarial.shape == x.shape
    assert adversarial.dtype == x.dtype
    assert not adversarial.requires_grad
    assert torch.equal(x, before)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    if len(x):
        # A pixel near 1 is known to 2⁻²⁴ in float32; over an image this adds up.
        slack = 4 * torch.finfo(x.dtype).eps * math.sqrt(x[0].numel())
        assert length(adversarial - x, norm).max() <= eps * (1 + 1e-6) + slack
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1


@settings(max_examples=150, deadline=None)
@given(problems(), st.data())
def test_an_image_alone_is_attacked_as_in_its_batch(problem, data):
    """In float64: signs and comparisons amplify the rounding that batches differ in."""
    name, norm, model, x, y, eps = problem
    model, x = model.double(), x.double()
    if len(x) == 0:
        return
    whole = call(name, model, x, y, eps=eps, norm=norm)
    one = torch.tensor([data.draw(st.integers(0, len(x) - 1))])
    keyed = {"index": one} if name in RANDOM else {}
    alone = call(name, model, x[one], y[one], eps=eps, norm=norm, **keyed)
    torch.testing.assert_close(alone, whole[one], rtol=0, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(NORMS),
    st.sampled_from(["bim", "apgd"]),
    st.floats(0.01, 0.5),
)
def test_no_gradient_attack_lowers_the_loss(seed, norm, name, eps):
    """The best iterate is kept, so nothing an attack returns is better for the model than x."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(20, 1, 6, 6, generator=generator, dtype=torch.float64)
    model = Bumpy(36, 5, generator).double()
    y = model(x).argmax(1)
    adversarial = call(name, model, x, y, eps=eps, norm=norm)
    with torch.no_grad():
        before, after = (
            nn.functional.cross_entropy(model(z), y, reduction="none") for z in (x, adversarial)
        )
    if name == "apgd":  # it starts elsewhere; over its steps it climbs all the same
        assert after.mean() >= before.mean()
    else:
        assert (after >= before - 1e-12).all()


BUDGETS = {  # what makes each of them stronger
    "bim": ("steps", 4, 16),
    "pgd": ("restarts", 1, 4),
    "apgd": ("steps", 6, 24),
    "square": ("queries", 10, 80),
}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(NORMS),
    st.sampled_from(list(BUDGETS)),
    st.booleans(),
    st.floats(0.02, 0.2),
)
def test_more_of_anything_never_leaves_more_standing(seed, norm, name, early_stop, eps):
    """A larger ε, more steps, restarts or queries; within the error of 80 images."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(80, 1, 6, 6, generator=generator, dtype=torch.float64)
    model = Bumpy(36, 5, generator).double()
    y = model(x).argmax(1)
    eps = eps if norm == "linf" else 4 * eps
    option, few, many = BUDGETS[name]
    options = {} if name == "square" else {"early_stop": early_stop}

    def standing(eps, budget):
        made = call(name, model, x, y, eps=eps, norm=norm, **{option: budget}, **options)
        return int((model(made).argmax(1) == y).sum())

    least = standing(eps, few)
    assert standing(eps, many) <= least + (0 if option == "restarts" else 4)
    assert standing(1.5 * eps, few) <= least + 4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(NORMS), st.floats(0.02, 0.2))
def test_seeing_the_gradient_is_worth_more_than_asking(seed, norm, eps):
    """White-box PGD beside as many queries of Square as it has passes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(80, 1, 6, 6, generator=generator, dtype=torch.float64)
    model = Bumpy(36, 5, generator).double()
    y = model(x).argmax(1)
    eps = eps if norm == "linf" else 4 * eps
    white, black = (
        int((model(call(name, model, x, y, eps=eps, norm=norm, **o)).argmax(1) == y).sum())
        for name, o in (("pgd", {"steps": 20}), ("square", {"queries": 100}))
    )
    assert white <= black + 2
