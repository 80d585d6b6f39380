"""Models that others bring, and numbers that would lie about them without a word."""

import json
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ATTACKS, RANDOM, SMALL, Linear, Noisy, call, module_of, names
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from apudae import attacks, data, evaluation
from apudae.attacks.losses import dlr_targeted
from apudae.core.arguments import AttackWarning
from apudae.core.norms import length
from apudae.purification import Adaptive, Defended, Direct

DEAD = (-1e4, -65504.0, -1e9, -1e30, torch.finfo(torch.float32).min, -math.inf)


def linear(classes=4, shape=(1, 6, 6), seed=0):
    return Linear(shape, classes, torch.Generator().manual_seed(seed)).float()


class Headed(nn.Module):
    """A model with more classes than its task has."""

    def __init__(self, net, value, extra=2, how="cat"):
        super().__init__()
        self.net, self.value, self.extra, self.how = net, value, extra, how

    def forward(self, x):
        z = self.net(x)
        if self.how == "cat":
            return torch.cat([z, z.new_full((len(z), self.extra), self.value)], 1)
        wide = F.pad(z, (0, self.extra))
        dead = torch.arange(wide.shape[1]) >= z.shape[1]
        return (
            wide.masked_fill(dead, self.value)
            if self.how == "fill"
            else wide.where(~dead, torch.tensor(self.value))
        )


def close(net, n=24, by=0.4):
    """Images near the border of a linear model, and their classes."""
    x = 0.3 + by * torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return x, net(x).argmax(1)


# --- classes that cannot win --------------------------------------------------------------------


@pytest.mark.parametrize("value", DEAD)
@pytest.mark.parametrize("how", ["cat", "fill", "where"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_goes_as_far_as_without_them(value, how, norm):
    net = linear()
    x, y = close(net)
    expected = attacks.deepfool(net, x, y, norm=norm)
    found = attacks.deepfool(Headed(net, value, how=how), x, y, norm=norm)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("value", DEAD)
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "dlr-targeted"])
def test_losses_and_slopes_are_finite_and_lead_the_same_way(value, loss):
    net = linear(classes=4 if loss == "dlr-targeted" else 3)
    x, y = close(net)
    model = Headed(net, value)
    goal = (y + 1) % 3

    def slope(model, goal):
        z = x.clone().requires_grad_(True)
        if loss == "dlr-targeted":
            value = dlr_targeted(model(z), y, goal)
        else:
            value = attacks.LOSSES[loss](model(z), y)
        return value.detach(), torch.autograd.grad(value.sum(), z)[0]

    worth, gradient = slope(model, goal)
    assert worth.isfinite().all() and gradient.isfinite().all()
    if loss in ("ce", "margin", "dlr-targeted"):
        torch.testing.assert_close(worth, slope(net, goal)[0])
    assert (
        slope(model, torch.full_like(y, net(x).shape[1]))[0].isfinite().all()
    )  # towards a dead one


SHORT = {
    "apgd": partial(attacks.apgd, steps=10),
    "targeted": partial(attacks.apgd, steps=10, loss="dlr-targeted", early_stop=True),
    "square": partial(attacks.square, queries=20),
}
TOO_FEW = [("apgd-dlr", 2), ("apgd-targeted", 2), ("apgd-targeted", 3), ("suite", 2), ("suite", 3)]


@pytest.mark.parametrize("value", DEAD[::2])
@pytest.mark.parametrize("alive", [2, 3, 5])
@pytest.mark.parametrize(
    "name", ["pgd", "apgd-ce", "apgd-margin", "apgd-dlr", "apgd-targeted", "square", "cw", "suite"]
)
def test_attacks_find_what_falls_without_them(name, alive, value):
    net = linear(alive)
    x, y = close(net)
    gap = net(x).detach().topk(2).values
    eps = float((gap[:, 0] - gap[:, 1]).median() / 40)
    runs = {
        "pgd": partial(attacks.pgd, eps=eps, steps=20),
        "square": partial(attacks.square, eps=2 * eps, queries=60),
        "cw": partial(attacks.cw, steps=60, searches=4, initial_c=1.0),
        "suite": lambda m, x, y: attacks.suite(m, x, y, eps=eps, attacks=SHORT).images,
    } | {
        f"apgd-{k}": partial(attacks.apgd, eps=eps, steps=20, loss=loss)
        for k, loss in {
            "ce": "ce",
            "margin": "margin",
            "dlr": "dlr",
            "targeted": "dlr-targeted",
        }.items()
    }
    fell = net(runs[name](Headed(net, value, extra=4), x, y)).argmax(1) != y
    other = "apgd-margin" if (name, alive) in TOO_FEW else name
    best = net(runs[other](net, x, y)).argmax(1) != y
    assert best.any()
    assert fell.sum() >= (0.8 if other != name else 1) * best.sum()


@pytest.mark.parametrize("value", [-1e9, -math.inf])
def test_so_do_evaluations_and_averages_over_draws(value):
    net = linear()
    x, y = close(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)
        kinds = {"eps": 0.02, "budget": SMALL, "progress": False}
        whole, plain = (evaluation.evaluate(m, x, y, **kinds) for m in (Headed(net, value), net))
    assert whole.n == 24 and "misleading gradients" not in names(whole)
    assert torch.equal(whole.right("PGD"), plain.right("PGD"))
    model = Defended(Headed(net, value), Noisy(0.01), draws=2)
    assert attacks.pgd(model, x, y, eps=0.1).isfinite().all()
    smooth = evaluation.Smoothed(Headed(net, value), 0.1, draws=2)
    assert attacks.pgd(smooth, x, y, eps=0.1).isfinite().all()


@pytest.mark.parametrize("targeted", [False, True])
def test_a_true_class_that_cannot_win_is_no_error(targeted):
    net = Headed(linear(), -math.inf)
    x, y = close(net)
    for name in ("pgd", "apgd", "square", "deepfool", "cw"):
        options = {} if name == "deepfool" else {"targeted": targeted}
        z = call(name, net, x, torch.full_like(y, 5), eps=0.1, norm="l2", **options)
        assert z.isfinite().all()


# --- second derivatives -------------------------------------------------------------------------


class Convolutions(nn.Module):
    def __init__(self, again):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        self.again = again

    def body(self, x):
        return torch.sigmoid(self.b(torch.tanh(self.a(x))))

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False) if self.again else self.body(x)


class Attention(nn.Module):
    def __init__(self, fused, again=False):
        super().__init__()
        self.q, self.fused, self.again = nn.Linear(6, 6), fused, again

    def body(self, x):
        t = x.flatten(1).view(len(x), 1, 6, 6)
        q = self.q(t)
        if self.fused:
            out = F.scaled_dot_product_attention(q, q, t)
        else:
            out = (q @ q.transpose(2, 3) / 6**0.5).softmax(3) @ t
        return torch.sigmoid(out).view(x.shape)

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False) if self.again else self.body(x)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


DAES = {
    "checkpoint": (partial(Convolutions, True), partial(Convolutions, False)),
    "fused attention": (partial(Attention, True), partial(Attention, False)),
    "both": (partial(Attention, True, True), partial(Attention, False)),
}


@pytest.mark.parametrize("name", DAES)
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("stepper", ["descent", "adam"])
def test_a_dae_that_torch_differentiates_once_has_the_slope_of_one_it_does_twice(
    name, frozen, stepper
):
    special, plain = (make().double().eval() for make in DAES[name])
    plain.load_state_dict(special.state_dict())
    x = torch.rand(3, 1, 6, 6, dtype=torch.float64)
    slopes = []
    for dae in (special, plain):
        dae.requires_grad_(not frozen)
        z = x.clone().requires_grad_(True)
        out = Adaptive(dae, steps=3, stepper=stepper, step_size=0.1)(z)
        slopes.append(torch.autograd.grad(out.square().sum(), z)[0])
    torch.testing.assert_close(*slopes)
    model = Defended(linear(), Adaptive(special.float(), steps=2, stepper=stepper)).eval()
    found = evaluation.inspect_model(model, x.float(), torch.zeros(3, dtype=torch.int64), eps=0.1)
    assert "zero gradients" not in {finding.name for finding in found}


def test_one_that_neither_way_differentiates_twice_is_named_at_once():
    class Unknown(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx, gradient):
            if torch.is_grad_enabled():
                raise RuntimeError("once only")
            return 2 * gradient * ctx.saved_tensors[0]

    model = Defended(linear(), Adaptive(module_of(Unknown.apply), steps=2))
    x, y = torch.rand(3, 1, 6, 6), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(
        ValueError, match="dae: autograd cannot differentiate it twice; try BPDA: onc"
    ):
        attacks.pgd(model, x, y, eps=0.1)
    found = evaluation.inspect_model(model, x, y, eps=0.1)  # says so, and goes on
    assert "zero gradients" in {finding.name for finding in found}
    assert attacks.pgd(attacks.BPDA(model), x, y, eps=0.1).isfinite().all()


# --- wrapped and hidden defenses ----------------------------------------------------------------


@pytest.fixture
def few():
    return data.Split(*close(linear()))


@pytest.fixture
def defended():
    dae = Convolutions(False).eval().requires_grad_(False)
    return Defended(linear(), Adaptive(dae, steps=2, step_size=0.05, stepper="descent"))


TINY = evaluation.Budget(pgd=2, apgd=2, targets=2, queries=2, weights=(0.1,), curve=4)


def evaluated(model, few, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)
        return evaluation.evaluate(
            model, *few.take(4), eps=0.1, budget=TINY, curves=False, progress=False, **options
        )


def test_a_wrapped_defense_gets_all_attacks(defended, few):
    whole = [row.name for row in evaluated(defended, few).rows]
    assert len(whole) > 8
    for wrap in (
        nn.DataParallel,
        nn.Sequential,
        lambda m: torch.compile(m, backend="eager"),
        torch.optim.swa_utils.AveragedModel,
        lambda m: Defended(m.classifier, nn.Sequential(m.purifier)),
        lambda m: Defended(m.classifier, nn.DataParallel(m.purifier)),
    ):
        report = evaluated(wrap(defended), few)
        assert [row.name for row in report.rows] == whole
        assert "parts not named" not in names(report)


class Holder(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_a_hidden_defense_is_said_to_be_with_what_is_left_out(defended, few):
    hidden = {
        "transfer from the classifier, BPDA": (
            nn.Sequential(defended, nn.Linear(4, 4)),
            Holder(defended),
            nn.Sequential(defended.purifier, defended.classifier),
        ),
        "so BPDA averaged": (Defended(defended.classifier, Holder(defended.purifier)),),
    }
    for lost, models in hidden.items():
        for model in models:
            report = evaluated(model, few)
            (told,) = [f for f in report.findings if f.name == "parts not named"]
            assert lost in str(told) and "do not apply" in str(told)


def test_views_look_through_wrappers(defended, few):
    x, y = few.take(4)
    for make in (attacks.BPDA, attacks.Averaged, partial(attacks.ReconstructionAware, weight=0.1)):
        views = [make(model) for model in (defended, nn.DataParallel(defended))]
        one, other = (attacks.pgd(view, x, y, eps=0.1, steps=2) for view in views)
        assert torch.equal(one, other)
        with pytest.raises(ValueError, match=r"^model: expected a Defended one, got Linear"):
            make(defended.classifier)


# --- what others keep in their modules ----------------------------------------------------------


class Keeps(nn.Module):
    def __init__(self, state=None, buffer=None):
        super().__init__()
        self.net, self.state = linear(), state
        self.register_buffer("kept", buffer)

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state

    def forward(self, x):
        return self.net(x)


IMAGES = torch.rand(8, 1, 6, 6)
FOREIGN = {
    "extra dict": lambda: Keeps({"a": 1}),
    "extra object": lambda: Keeps(object()),
    "extra function": lambda: Keeps(lambda z: z),
    "int8": lambda: Keeps(0, torch.ones(3, dtype=torch.int8)),
    "sparse": lambda: Keeps(0, torch.eye(3).to_sparse()),
    "compressed rows": lambda: Keeps(0, torch.eye(3).to_sparse_csr()),
    "meta": lambda: Keeps(0, torch.ones(3, device="meta")),
    "8 bits": lambda: Keeps(0, torch.ones(3).to(torch.float8_e4m3fn)),
    "quantised": lambda: Keeps(0, torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)),
    "script": lambda: torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(36, 4))),
    "trace": lambda: torch.jit.trace(linear(), IMAGES),
    "exported": lambda: torch.export.export(
        linear(), (IMAGES,), dynamic_shapes=({0: torch.export.Dim("n")},)
    ).module(),
    "fx": lambda: torch.fx.symbolic_trace(linear()),
    "half": lambda: linear().bfloat16(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FOREIGN)
def test_what_attacks_take_evaluate_takes_and_goes_on_with(name, tmp_path):
    model = FOREIGN[name]().eval() if name != "exported" else FOREIGN[name]()
    x, y = close(linear(), n=8)
    given = {"eps": 0.01, "budget": TINY, "curves": False, "progress": False}
    reports = [evaluation.evaluate(model, x, y, record=tmp_path / "r", **given) for _ in range(2)]
    assert all(report.complete for report in reports)
    assert reports[0].rows[2].calls > 0 and reports[1].rows == reports[0].rows


def test_lazy_layers_are_named():
    model, (x, y) = nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), close(linear())
    for run in (attacks.pgd, attacks.suite, evaluation.evaluate):
        with pytest.raises(ValueError, match=r"^model: it has lazy layers without weights"):
            run(model, x, y, eps=0.1)


# --- luck and size ------------------------------------------------------------------------------


class Lucky(nn.Module):
    random = True

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


RANDOMS = {
    "global noise": lambda net: nn.Sequential(Noisy(0.3), net),
    "keyed noise": lambda net: Defended(net, Direct(nn.Identity(), noise=0.3)),
    "it says so": Lucky,
    "dropout always on": lambda net: module_of(lambda x: net(F.dropout(x, 0.5, True))),
    "pooling of random windows": lambda net: nn.Sequential(
        nn.Upsample(scale_factor=1.5), nn.FractionalMaxPool2d(2, output_size=6), net
    ),
}


@pytest.mark.parametrize("name", RANDOMS)
def test_a_suite_warns_of_a_random_model(name):
    net = linear()
    x, y = close(net)
    few = {"fgsm": attacks.fgsm}
    with pytest.warns(AttackWarning, match="model: it is random") as caught:
        attacks.suite(RANDOMS[name](net), x, y, eps=0.01, attacks=few)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacks.suite(net, x, y, eps=0.01, attacks=few)
        attacks.suite(attacks.EOT(RANDOMS[name](net), 3), x, y, eps=0.01, attacks=few)


def test_asking_first_changes_no_draw_of_a_suite():
    """Torch's generators stand where the attacks alone would have left them."""
    net, left = linear(), []
    x, y = close(net)
    noisy = nn.Sequential(Noisy(0.3), net)
    for model in (noisy, attacks.objective._Plain(noisy)):  # a view is not asked first
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AttackWarning)
            attacks.suite(model, x, y, eps=0.01, attacks={"fgsm": attacks.fgsm})
        left.append(torch.rand(1))
    assert torch.equal(*left)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    ("norm", "eps", "loud"),
    [
        ("linf", 8, True),
        ("linf", 1.5, True),
        ("linf", 1, False),
        ("linf", 8 / 255, False),
        ("l2", 128, True),
        ("l2", 6, False),
    ],
)
def test_a_ball_larger_than_all_images_draws_a_warning(name, norm, eps, loud):
    if (name, norm) == ("cw", "linf"):
        pytest.skip("L2 only")
    net = linear()
    x, y = close(net, n=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(name, net, x, y, eps=eps, norm=norm)
    told = [str(w.message) for w in caught if str(w.message).startswith("eps: ")]
    assert bool(told) == loud
    assert all(f"did you mean {eps:g} / 255?" in text for text in told)


def test_an_infinite_limit_and_curves_draw_none(few):
    net = linear()
    x, y = close(net, n=20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attacks.deepfool(net, x, y)
        attacks.cw(net, x, y, steps=2, searches=2)
        evaluation.evaluate(net, x, y, eps=0.7, budget=SMALL, progress=False)
    assert not [w for w in caught if str(w.message).startswith("eps: ")]


# --- attacks of one's own -----------------------------------------------------------------------

RETURNS = {
    "tuple": (lambda x: (x, True), r"returned a tuple, expected images"),
    "None": (lambda x: None, "returned a NoneType"),
    "numpy": (lambda x: x.numpy(), "returned a ndarray"),
    "list": (lambda x: list(x), "returned a list"),
    "integers": (lambda x: (x * 255).to(torch.uint8), "of torch.uint8, expected"),
    "truth values": (lambda x: x > 0.5, "of torch.bool"),
    "complex": (lambda x: x.to(torch.complex64), "of torch.complex64"),
    "another shape": (lambda x: x.flatten(1), r"returned shape \[\d+, 36\]"),
    "another size": (lambda x: x[:, :, 1:], "returned shape"),
    "fewer": (lambda x: x[1:], "returned shape"),
    "another device": (lambda x: x.to("meta"), "returned images on meta, expected cpu"),
    "sparse": (lambda x: x.to_sparse(), "returned a tensor of torch.float32, torch.sparse_coo"),
    "NaN": (lambda x: x * math.nan, "left the linf ball"),
    "infinite": (lambda x: x + math.inf, "left the linf ball"),
    "logits": (lambda x: linear()(x), r"returned shape \[\d+, 4\]"),
}


@pytest.mark.parametrize("name", RETURNS)
@pytest.mark.parametrize("use", ["suite", "evaluate"])
def test_what_an_own_attack_returns_is_looked_at(name, use):
    make, message = RETURNS[name]
    net = linear()
    x, y = close(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)
        run = {"suite": attacks.suite, "evaluate": evaluation.evaluate}[use]
        more = {} if use == "suite" else {"budget": SMALL, "curves": False, "progress": False}
        own = {"mine": lambda model, x, y: make(x)}
        with pytest.raises(ValueError, match=rf"^attacks: 'mine' .*{message}"):
            run(net, x, y, eps=0.001, attacks=own, **more)


@pytest.mark.parametrize("name", [name for name in RETURNS if name not in ("NaN", "infinite")])
def test_what_a_quantised_attack_returns_is_looked_at_as_well(name):
    make, message = RETURNS[name]
    net = linear()
    x, y = close(net)

    def mine(model, x, y, **options):
        return make(x)

    with pytest.raises(ValueError, match=rf"^attacks: 'mine' .*{message}"):
        attacks.quantised(mine)(net, (255 * x).round() / 255, y, eps=0.1)


class Pairs:
    def __call__(self, model, x, y, **options):
        return x, y


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        (attacks.suite, "'suite' returned a WorstCase"),
        (partial(attacks.suite, attacks={"FGSM": attacks.fgsm}), "'suite' returned a WorstCase"),
        (Pairs(), "'Pairs' returned a tuple"),
    ],
)
def test_what_is_no_attack_on_images_is_named_by_what_it_is_called(attack, told):
    net = linear()
    x, y = close(net, n=4)
    with pytest.raises(ValueError, match=f"^attacks: {told}, expected images"):
        attacks.quantised(attack)(net, (255 * x).round() / 255, y, eps=0.1)


@pytest.mark.parametrize("bad", [3, "pgd", [attacks.pgd], {"a": 3}, {"a": None}, {"a": "pgd"}])
def test_what_is_no_list_of_attacks_is_named(bad):
    net = linear()
    x, y = close(net)
    for run in (attacks.suite, evaluation.evaluate):
        with pytest.raises(ValueError, match=r"^attacks"):
            run(net, x, y, eps=0.1, attacks=bad)


# --- arguments ----------------------------------------------------------------------------------

WRONG = {
    "seed": [-1, True, 1.5, "0", None, 2**70, torch.tensor(3)],
    "early_stop": ["no", 1, None],
    "targeted": ["yes", 0, None],
    "random_start": ["no", 1],
    "steps": [True, "3", None, 2.0, -1, np.float64(2)],
    "restarts": [True, "3", 0],
    "queries": ["many", 0, True],
    "searches": [0, 1.5],
    "candidates": ["all", True],
    "step_size": ["a", True, math.nan, math.inf],
    "alpha": ["a", True, math.nan],
    "p": ["a", math.nan],
    "loss": [None, 3, attacks.dlr],
    "norm": [None, 2, "linf ", "L2"],
    "eps": ["a", None, True, math.nan, -1, torch.tensor(0.1), "8/255"],
    "batch_size": [True, 0, "2", 2.0],
    "index": [[0, 1], np.arange(24), torch.arange(3), torch.arange(24).float(), "all"],
    "x": [None, "x.png", [[0.1]]],
    "y": [None, [0, 1], np.zeros(24, int), torch.zeros(24), torch.zeros(24, 4).long()],
    "model": [None, "mnist-cnn", nn.Flatten, lambda x: x],
}


def _cases():
    import inspect

    for name, attack in ATTACKS.items():
        for argument in inspect.signature(attack).parameters:
            yield from ((name, argument, k) for k in range(len(WRONG.get(argument, ()))))


@pytest.mark.parametrize(("name", "argument", "k"), list(_cases()))
def test_every_argument_of_every_attack_is_named(name, argument, k):
    net = linear()
    x, y = close(net)
    good = {"model": net, "x": x, "y": y, "eps": 0.1}
    with pytest.raises(ValueError, match=rf"^{argument}\b") as caught:
        ATTACKS[name](**good | {argument: WRONG[argument][k]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpy_numbers_are_numbers(name, kind):
    net = linear()
    x, y = close(net)
    plain = call(name, net, x, y, eps=0.1, seed=7)
    assert torch.equal(call(name, net, x, y, eps=np.float64(0.1), seed=kind(7)), plain)
    worst = attacks.suite(net, x, y, eps=0.1, seed=kind(7), batch_size=kind(5))
    assert torch.equal(worst.images, attacks.suite(net, x, y, eps=0.1, seed=7, batch_size=5).images)


def test_numpy_numbers_reach_a_record(tmp_path):
    net = linear()
    x, y = close(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)
        evaluation.evaluate(
            net, x, y, eps=np.float32(0.1), seed=np.int64(3), batch_size=np.int64(9), budget=SMALL,
            curves=False, progress=False, record=tmp_path / "r",
        )  # fmt: skip
    assert json.loads((tmp_path / "r.json").read_text())["settings"]["seed"] == 3


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(
        st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)
    )
)
def test_images_of_any_other_size_are_named(shape):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    x, y = torch.rand(shape), torch.zeros(shape[0], dtype=torch.int64)
    if x[0].numel() == 36:
        assert length(attacks.fgsm(net, x, y, eps=0.1) - x).max() <= 0.1 + 1e-6
        return
    with pytest.raises(ValueError, match=rf"^model: fails on images \{list(shape[1:])}"):
        attacks.pgd(net, x, y, eps=0.1)
