"""Searching cheaply: in bfloat16, with graphs that are kept, in full passes; scored truly."""

import copy
import re

import pytest
import support
import torch
from support import Linear, components, read, run, small
from torch import nn

from apudae import attacks, models
from apudae.attacks import adaptive
from apudae.attacks.objective import Objective, check_attack
from apudae.core.calling import HALF, MEMORY, half, within
from apudae.evaluation import attackers
from apudae.purification import Adaptive, Defended, DefenseGAN, DiffPure, Direct
from apudae.purification.purifier import GRAPHS as kept_graphs


@pytest.fixture
def hardware(monkeypatch):
    """A machine that says it computes in bfloat16: any can, though not all are faster by it."""

    def set_to(dtype):
        monkeypatch.setattr(adaptive, "precision_of", lambda device: dtype)

    set_to(torch.bfloat16)
    return set_to


@pytest.fixture(scope="module")
def digits():
    return read(40)


@pytest.fixture(scope="module")
def defended():
    return Defended(small(), Direct(components()))


@pytest.mark.parametrize("attack", ["pgd", "apgd", "square", "cw"])
def test_what_it_finds_the_real_model_misreads(hardware, digits, defended, attack):
    """Of the bfloat16 that rounds logits to three digits nothing is left in what counts."""
    x, y = digits
    search = {
        "pgd": lambda m: attacks.pgd(m, x, y, eps=0.06, steps=20, early_stop=True),
        "apgd": lambda m: attacks.apgd(m, x, y, eps=0.06, steps=20, early_stop=True),
        "square": lambda m: attacks.square(m, x, y, eps=0.06, queries=60),
        "cw": lambda m: attacks.cw(m, x, y, steps=30, searches=2, step_size=0.1),
    }[attack]
    found = {}
    for name, model in {"exact": defended, "half": attacks.HalfPrecision(defended)}.items():
        images = search(model)
        assert images.dtype == torch.float32
        found[name] = defended(images).argmax(1) != y
    changed = (images - x).flatten(1).abs().amax(1) > 0
    if attack == "cw":  # what did not succeed comes back as it was
        assert found["half"][changed].all()
    assert (found["exact"] == found["half"]).double().mean() >= 0.85
    assert abs(found["exact"].sum() - found["half"].sum()) <= 3


def test_who_falls_only_by_rounding_has_not_fallen(hardware):
    """A margin below the rounding of bfloat16: fallen there, standing in truth."""

    class Near(nn.Module):
        def forward(self, x):
            logit = x.flatten(1).sum(1)
            if torch.is_autocast_enabled(x.device.type):
                logit = -logit
            return torch.stack([logit, torch.zeros_like(logit)], 1)

    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    objective = Objective(attacks.HalfPrecision(Near()))
    value, fell, _ = objective.gradient(x, y)
    assert not fell.any() and (value > 1).all()  # the loss is that of the search
    assert not objective.value(x, y)[1].any()
    assert objective.view(x).argmax(1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_without_bfloat16_nothing_changes(hardware, digits, defended, dtype):
    hardware(dtype)
    x, y = digits
    plain, view = (
        attacks.pgd(m, x, y, eps=0.06, steps=5) for m in (defended, attacks.HalfPrecision(defended))
    )
    assert torch.equal(plain, view)
    why = attackers.why_not_half(defended, x[:8], y[:8])
    assert why == "this hardware does not compute in bfloat16"
    assert all(
        row.search == "float32" for row in run(small(), digits, eps=0.06, budget=support.SMALL).rows
    )


def test_an_evaluation_says_in_what_it_searched(hardware, digits):
    report = run(small(), digits, eps=0.06, budget=support.SMALL, curves=False)
    searched = {row.name: row.search for row in report.rows}
    assert set(searched.values()) == {"float32", "bfloat16"} and searched["noise"] == "float32"
    shown = {line[0]: line[-1] for line in report.table().rows}
    assert shown["PGD"] == "bfloat16" and shown["noise"] == "–"
    exact = run(small(), digits, eps=0.06, budget=support.SMALL, curves=False, search="float32")
    assert {row.search for row in exact.rows} == {"float32"}
    assert exact.settings["options"]["search"] == "float32"
    assert (exact.right() == report.right()).double().mean() >= 0.9


def test_models_that_mind_half_precision_are_searched_without(hardware, digits):
    class Minds(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.inner, self.how = small(), how

        def forward(self, x):
            logits = self.inner(x)
            if logits.dtype == torch.bfloat16:
                if self.how == "fails":
                    return torch.from_numpy(logits.detach().numpy())
                return logits.roll(1, 1) if self.how == "lies" else logits * torch.nan
            return logits

    x, y = digits
    whys = [attackers.why_not_half(Minds(how), x[:12], y[:12]) for how in ("fails", "lies", "nan")]
    assert whys[0].startswith("in bfloat16 the model fails (")
    assert whys[1] == "in bfloat16 the model reads only 0 % as it does"
    assert whys[2].startswith("in bfloat16 the model ")
    assert attackers.why_not_half(copy.deepcopy(small()).double(), x[:4].double(), y[:4]) == (
        "the images are float64"
    )
    report = run(Minds("fails"), digits, eps=0.06, budget=support.SMALL, curves=False)
    plain = run(small(), digits, eps=0.06, budget=support.SMALL, curves=False, search="float32")
    assert torch.equal(report.right(), plain.right())


def test_a_walk_that_rounding_sends_elsewhere_is_searched_in_float32(hardware):
    """Adam's steps are signs almost: in bfloat16 they go elsewhere. Plain descent stays near."""
    classifier, dae = models.load("mnist-cnn"), models.load("mnist-dae")
    x, y = read(16)
    walk = Adaptive(dae, steps=10, step_size=0.05)
    why = attackers.why_not_half(Defended(classifier, walk), x, y)
    assert re.fullmatch(r"in bfloat16 a step along its gradient gains only \d+ % of the most", why)
    plain = walk.replace(stepper="descent", step_size=0.2)
    assert attackers.why_not_half(Defended(classifier, plain), x, y) == ""


class Scaled(torch.autograd.Function):
    """Answers as they are; gradients by a factor for each image, another one in half precision."""

    @staticmethod
    def forward(ctx, x, factors, refuses):
        ctx.factors, ctx.refuses = factors, refuses
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.refuses:
            raise RuntimeError("not implemented for BFloat16")
        return gradient * ctx.factors.view(-1, 1, 1, 1), None, None


class Bent(nn.Module):
    def __init__(self, exact, half, refuses=False):
        super().__init__()
        self.inner, self.factors, self.refuses = small(), (exact, half), refuses

    def forward(self, x):
        rough = torch.is_autocast_enabled(x.device.type)
        factors = torch.tensor(self.factors[rough]).repeat(len(x))[: len(x)]
        return self.inner(Scaled.apply(x, factors, self.refuses and rough))


@pytest.mark.parametrize(
    ("model", "may"),
    [
        (Bent([0.0], [0.0]), True),  # there is none, here or there
        (Bent([1.0], [1.0]), True),
        (Bent([1.0], [-1.0]), False),
        (Bent([1.0], [0.0]), False),
        (Bent([0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, -1.0]), False),  # of most images there is none
        (Bent([float("nan")], [1.0]), True),  # other warnings speak of that
        (Bent([1.0], [1.0], refuses=True), False),
    ],
    ids=["none", "same", "turned", "lost", "few", "nan", "refused"],
)
def test_half_precision_needs_a_gradient_that_is_as_good(hardware, digits, model, may):
    x, y = digits
    why = attackers.why_not_half(model, x[:8], y[:8])
    assert (why == "") == may, why


def test_in_l2_it_is_the_direction_that_counts(hardware, digits):
    """Signs that are right are enough for a step in L∞; in L2 such a step goes elsewhere."""

    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.rough = torch.is_autocast_enabled(x.device.type)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            scaled = gradient / gradient.abs().max()
            return scaled.abs().pow(9) * scaled.sign() if ctx.rough else gradient

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, x):
            return self.inner(Steep.apply(x))

    x, y = digits
    plain = Bent([1.0], [1.0])
    assert attackers.why_not_half(plain, x[:8], y[:8], "l2") == ""
    assert "gains only" in attackers.why_not_half(Bent([1.0], [-1.0]), x[:8], y[:8], "l2")
    assert attackers.why_not_half(Model(), x[:8], y[:8]) == ""
    assert "gains only" in attackers.why_not_half(Model(), x[:8], y[:8], "l2")


def walks():
    dae = components()
    generator = models.build("mnist-generator").eval()
    unet = models.build("mnist-diffusion").eval()
    adam = {"steps": 3, "step_size": 0.05}
    stops = {"calibration": (5.0, 2.0), "stop": 0.0, "noise": 0.02}
    return {
        "adam": Adaptive(dae, **adam),
        "descent": Adaptive(dae, stepper="descent", step_size=0.05, steps=3),
        "stops": Adaptive(dae, **adam, **stops),
        "paced": Adaptive(dae, objective="sigmoid", paced=True, calibration=(5.0, 2.0), **adam),
        "gan": DefenseGAN(generator, starts=2, steps=3),
        "diffusion": DiffPure(unet, level=0.1, steps=2),
    }


@pytest.mark.parametrize("name", walks())
@pytest.mark.parametrize("steps", [1, 3])
def test_a_graph_that_is_kept_has_the_same_gradient(name, steps):
    """To the last bit: the same operations, not made again."""
    purifier, (x, _) = walks()[name], read(4)
    index = torch.arange(4)

    def gradient(memory):
        z = x.clone().requires_grad_(True)
        with within(MEMORY, memory):
            out = purifier(z, index=index)
        return torch.autograd.grad(out.square().sum(), z)[0]

    again = gradient(0)
    gradient(2**30)
    (one,) = kept_graphs[purifier].values()
    assert 0 < one < 2**24
    kept = gradient(int(one * 4 * steps))  # of some steps, or of all
    assert again.any() and torch.equal(kept, again)


def test_a_dae_that_cannot_keep_its_graph_is_worked_out_again():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = components()

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)

    x, _ = read(3)
    found = []
    for dae in (components(), Checkpointed()):
        z = x.clone().requires_grad_(True)
        with within(MEMORY, 2**30):
            out = Adaptive(dae, stepper="descent", steps=2, step_size=0.05)(z)
        found.append(torch.autograd.grad(out.square().sum(), z)[0])
    assert torch.allclose(*found, rtol=1e-4, atol=1e-6)


def test_images_that_are_left_fill_the_passes(digits):
    """Of 40 images in passes of 8 those that fell make room: no pass is small but the last."""
    sizes = []

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, x):
            sizes.append(len(x))
            return self.inner(x)

    x, y = digits
    packed = attacks.pgd(Counted(), x, y, eps=0.08, steps=10, early_stop=True, batch_size=8)
    assert torch.allclose(packed, attacks.pgd(small(), x, y, eps=0.08, steps=10, early_stop=True))
    left = (small()(packed).argmax(1) == y).sum().item()
    assert 0 < left < 30
    passes = -(-left // 8)
    assert len(sizes) > 11 and len(sizes[-passes:]) == passes
    assert max(sizes) <= 8 and sizes[-passes:] == sorted(sizes[-passes:], reverse=True)
    assert max(sizes[-passes:]) - min(sizes[-passes:]) <= passes  # about as large


def test_half_precision_reaches_into_purifiers_and_ends_with_them(hardware):
    seen = []

    class Seen(nn.Module):
        def forward(self, x):
            seen.append(torch.is_autocast_enabled("cpu"))
            return x

    classifier = Linear((1, 4, 4), 3, torch.Generator().manual_seed(0)).float()
    model = Defended(nn.Sequential(Seen(), classifier), Direct(Seen()))
    x, y = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    check_attack(model, x, y, 0.1, "linf")
    view = attacks.HalfPrecision(model)
    seen.clear()
    list(view.answers(x, 0))
    assert seen == [True, True] or seen[-2:] == [True, True]
    seen.clear()
    model(x)
    assert seen == [False, False] and HALF.get() is None
    with within(HALF, torch.bfloat16):
        assert isinstance(half(x), torch.autocast)
        assert not isinstance(half(x.double()), torch.autocast)
