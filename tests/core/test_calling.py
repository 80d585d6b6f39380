"""The one call of a model: what comes in stays as it was, what comes out is looked at."""

import traceback
import warnings
from collections import OrderedDict, namedtuple
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import ATTACKS, call, module_of
from torch import nn
from torch.nn import functional as F
from torchvision.ops import DropBlock2d, StochasticDepth

from apudae import attacks, evaluation
from apudae.core.arguments import AttackWarning
from apudae.core.calling import (
    ask,
    bounded,
    called,
    differentiable,
    evaluating,
    in_training,
    logits_of,
    looks_at_the_batch,
    takes_keys,
    unwrapped,
)
from apudae.core.scores import accuracy
from apudae.purification import Adaptive, Defended, Direct, calibrate, reconstruction_error

SHAPE = (1, 6, 6)


@pytest.fixture
def net(generator):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5)).eval()


@pytest.fixture
def x(generator):
    return torch.rand(8, *SHAPE, generator=generator)


@pytest.fixture
def y(net, x):
    return net(x).argmax(1)


# --- wrappers, told by type ---------------------------------------------------------------------


class HasModule(nn.Module):
    """A network whose own part happens to have a wrapper's name."""

    def __init__(self, net, name):
        super().__init__()
        self.net = net
        setattr(self, name, nn.Flatten())

    def forward(self, x):
        return -self.net(x)


class Quiet(nn.DataParallel):
    """A subclass that hands on as its base does."""


class Loud(nn.DataParallel):
    def forward(self, x):
        return -super().forward(x)


class Chain(nn.Sequential):
    """As quiet."""


class Turned(nn.Sequential):
    def forward(self, x):
        return -super().forward(x)


class Called(nn.Sequential):
    def __call__(self, x):
        return -super().__call__(x)


class CalledInParallel(nn.DataParallel):
    def __call__(self, x):
        return -super().__call__(x)


class Gathers(nn.DataParallel):
    def gather(self, outputs, output_device):
        return -super().gather(outputs, output_device)


def own_forward(net):
    model = nn.Sequential(net)
    model.forward = lambda x: -net(x)
    return model


def hooked(net):
    model = nn.DataParallel(net)
    model.register_forward_hook(lambda module, x, out: -out)
    return model


def after_hooked(net):
    """Beside an Identity that is none."""
    model = nn.Sequential(net, nn.Identity())
    model[1].register_forward_hook(lambda module, x, out: -out)
    return model


def after_own_forward(net):
    model = nn.Sequential(net, nn.Identity())
    model[1].forward = lambda x: -x
    return model


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "subclass": Quiet,
    "average": torch.optim.swa_utils.AveragedModel,
    "Sequential": nn.Sequential,
    "subclass of Sequential": Chain,
    "with Identity": lambda net: nn.Sequential(nn.Identity(), net, nn.Identity()),
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "nested": lambda net: nn.DataParallel(nn.Sequential(nn.DataParallel(net))),
}
OTHERS = {
    "an attribute named module": lambda net: HasModule(net, "module"),
    "an attribute named _orig_mod": lambda net: HasModule(net, "_orig_mod"),
    "another forward": Loud,
    "another forward of Sequential": Turned,
    "another call": Called,
    "another call of DataParallel": CalledInParallel,
    "another way to gather": Gathers,
    "a hooked Identity": after_hooked,
    "an Identity with a forward of its own": after_own_forward,
    "a forward of its own": own_forward,
    "a hook": hooked,
    "twice": lambda net: nn.Sequential(nn.Flatten(), nn.Unflatten(1, SHAPE)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_only_hands_images_on_is_looked_through(name, net, x):
    head = net if name != "Sequential" else HasModule(net, "module")
    model = WRAPPERS[name](head).eval()
    assert type(unwrapped(model)) is type(head)
    assert torch.equal(unwrapped(model)(x), model(x))


@pytest.mark.parametrize("name", OTHERS)
def test_what_does_more_is_not(name, net):
    model = OTHERS[name](net)
    assert unwrapped(model) is model


@pytest.mark.parametrize("name", [*WRAPPERS, *OTHERS])
def test_adversarial_training_attacks_the_network_that_is_trained(name, net, x, y):
    """The attack is told from the loss: it must be that of the model as a whole."""
    from apudae.training import adversarial

    if name == "twice":
        pytest.skip("no classifier")
    model = (WRAPPERS | OTHERS)[name](net).train()
    task = adversarial(attacks.fgsm, eps=0.1)
    generator = torch.Generator().manual_seed(0)
    found = task(model, x, y, generator)
    expected = F.cross_entropy(model(attacks.fgsm(model.eval(), x, y, eps=0.1)), y)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", WRAPPERS)
def test_draws_are_named_through_wrappers(name, net, x):
    model = Defended(net, Direct(nn.Identity(), noise=0.3))
    wrapped = WRAPPERS[name](model)
    assert takes_keys(wrapped)
    index = torch.arange(8)
    assert torch.equal(ask(wrapped, x, draw=3, index=index), model(x, index=index, draw=3))


# --- the input stays as it was ------------------------------------------------------------------


def in_place(x):
    x.sub_(0.5)


def by_slice(x):
    x[:, :, 0] = 0


def by_numpy(x):
    x.detach().numpy()[...] += 0.25


def by_data(x):
    x.data.mul_(0.5)


def on_a_view(x):
    x.detach().flatten(1)[:, 3:5] = 1.0


def by_out(x):
    torch.mul(x.detach(), 2, out=x.detach())


EDITS = {f.__name__: f for f in (in_place, by_slice, by_numpy, by_data, on_a_view, by_out)}


class Edits(nn.Module):
    def __init__(self, edit, net):
        super().__init__()
        self.edit, self.net = edit, net

    def forward(self, x):
        self.edit(x)
        return self.net(x)


USES = {
    "accuracy": lambda m, d, x, y: accuracy(m, x, y),
    "ask": lambda m, d, x, y: ask(m, x),
    "defended": lambda m, d, x, y: ask(Defended(m, nn.Identity()), x),
    "certify": lambda m, d, x, y: evaluation.certify(
        m, x, sigma=0.1, n=20, n0=10, alpha=0.01, noise_trained=True
    ),
    "inspect": lambda m, d, x, y: evaluation.inspect_model(m, x, y, eps=0.1),
    "evaluate": lambda m, d, x, y: evaluation.evaluate(m, x, y, eps=0.1, progress=False),
    "suite": lambda m, d, x, y: attacks.suite(m, x, y, eps=0.1),
    "reconstruction_error": lambda m, d, x, y: reconstruction_error(d, x),
    "calibrate": lambda m, d, x, y: calibrate(d, x),
    "Direct": lambda m, d, x, y: Direct(d)(x),
    "Adaptive": lambda m, d, x, y: Adaptive(d, steps=2)(x),
    "trajectory": lambda m, d, x, y: Defended(m, Direct(nn.Identity())).trajectory(x),
} | {name: lambda m, d, x, y, n=name: call(n, m, x, y, eps=0.1, norm="l2") for name in ATTACKS}


EVERY = [(edit, use) for edit in EDITS for use in ("accuracy", "pgd", "Direct")]
EVERY += [(edit, use) for edit in ("in_place", "by_numpy") for use in USES if use != "noise"]


@pytest.mark.parametrize(("edit", "use"), sorted(set(EVERY)))
@pytest.mark.parametrize("mode", ["plain", "no_grad"])
def test_a_model_that_changes_its_input_is_refused_and_harms_nobody(use, edit, mode, net, x, y):
    model = Edits(EDITS[edit], net)
    dae = Edits(EDITS[edit], nn.Sequential(nn.Flatten(), nn.Unflatten(1, SHAPE)))
    before = x.clone()
    with torch.no_grad() if mode == "no_grad" else torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="it changes its input in place"):
            USES[use](model, dae, x, y)
    assert torch.equal(x, before)


def test_an_input_with_a_graph_is_put_back(net, x):
    x.requires_grad_(True)
    before = x.detach().clone()
    for edit in EDITS.values():
        with pytest.raises(ValueError, match=r"^dae: it changes its input in place"):
            called(Edits(edit, net), x, "dae")
        assert torch.equal(x.detach(), before)


def test_the_call_changes_no_number(net, x):
    """Nor the memory format, the graph, or what a NaN becomes."""
    seen = []
    spy = module_of(lambda z: (seen.append(z), net(z))[1])
    spotted = x.clone()
    spotted[0, 0, 0, 0] = float("nan")
    assert torch.equal(logits_of(spy, spotted)[1:], net(spotted)[1:])
    last = x.to(memory_format=torch.channels_last).requires_grad_(True)
    assert torch.equal(logits_of(spy, last), net(last))
    assert seen[-1] is last
    with torch.inference_mode():
        assert torch.equal(logits_of(spy, x), net(x))


# --- what comes out -----------------------------------------------------------------------------

Pair = namedtuple("Pair", ["loss", "logits"])
OUTPUTS = {
    "tuple": (lambda z: (z, z), r"got tuple; say where .* key=0\)"),
    "dict": (lambda z: {"a": z, "logits": z}, r"key='logits'\)"),
    "dict of another name": (lambda z: OrderedDict(out=z), r"key='out'\)"),
    "object": (lambda z: SimpleNamespace(logits=z), r"key='logits'\)"),
    "None": (lambda z: None, "got None; let its forward return them as a tensor"),
    "numpy": (lambda z: z.detach().numpy(), "got ndarray; let"),
    "list of floats": (lambda z: z.tolist(), "got list"),
    "scores": (lambda z: z[:, 0], r"got shape \[8\]"),
    "maps": (lambda z: z[:, :, None, None], r"got shape \[8, 5, 1, 1\]"),
    "another batch": (lambda z: z[:-1], r"got shape \[7, 5\]"),
    "complex": (lambda z: z.to(torch.complex64), "of torch.complex64"),
    "sparse": (lambda z: z.detach().to_sparse(), "of torch.float32, torch.sparse_coo"),
    "nested": (lambda z: torch.nested.nested_tensor(list(z)), "got a nested tensor of"),
    "another device": (lambda z: z.to("meta"), r"on cpu, where images are, got meta"),
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize(
    "use", ["accuracy", "ask", "pgd", "square", "suite", "evaluate", "certify"]
)
def test_outputs_that_are_no_logits_are_named_with_what_to_do(name, use, net, x, y):
    make, message = OUTPUTS[name]
    model = module_of(lambda z: make(net(z)))
    with pytest.raises(ValueError, match=r"^model: expected logits \[\d+, classes\]") as caught:
        USES[use](model, None, x, y)
    if use != "certify":
        assert caught.match(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("name", ["tuple", "dict", "None"])
def test_a_defended_classifier_is_held_to_it(name, draws, net, x):
    classifier = module_of(lambda z: OUTPUTS[name][0](net(z)))
    with pytest.raises(ValueError, match="model: expected logits"):
        logits_of(Defended(classifier, nn.Identity(), draws=draws), x)


def test_counts_and_half_precision_are_logits(net, x, y):
    votes = module_of(lambda z: F.one_hot(net(z).argmax(1), 5))
    assert logits_of(votes, x).dtype == torch.float32
    assert accuracy(votes, x, y).correct == 8


class Refuses(torch.Tensor):
    """Tensors of no operation."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return NotImplemented


class Breaks(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise ZeroDivisionError(func)


class Labelled(torch.Tensor):
    """Another object at each operation, such as a reader of image files returns."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        return out.detach().as_subclass(cls) if isinstance(out, torch.Tensor) else out


@pytest.mark.parametrize("kind", [Refuses, Breaks, Labelled])
def test_logits_of_a_subclass_are_the_tensor_underneath(kind, net, x, y):
    model = module_of(lambda z: net(z).as_subclass(kind))
    for use in ("ask", "pgd"):
        found = USES[use](model, None, x, y)
        assert type(found) is torch.Tensor and torch.equal(found, USES[use](net, None, x, y))
    assert type(logits_of(module_of(lambda z: nn.Parameter(net(z).detach())), x)) is torch.Tensor
    dae = module_of(lambda z: (0.9 * z).as_subclass(kind))
    assert torch.equal(Direct(dae)(x), (0.9 * x).clamp(0, 1))


PICKS = {
    "tuple": (lambda z: (z.sum(), z), 1),
    "dict": (lambda z: {"logits": z}, "logits"),
    "dict named like a method": (lambda z: {"values": z}, "values"),
    "named tuple": (lambda z: Pair(z.sum(), z), "logits"),
    "object": (lambda z: SimpleNamespace(scores=z), "scores"),
    "itself": (lambda z: z, None),
}


@pytest.mark.parametrize("name", PICKS)
def test_the_adapter_takes_the_logits_out_and_keeps_gradients_and_modes(name, net, x, y):
    make, key = PICKS[name]
    inner = nn.Sequential(net, nn.Dropout(0.5))

    class Rich(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return make(self.inner(x))

    model = attacks.logits(Rich().train(), key)
    assert inner[1].training
    for attack in (attacks.pgd, partial(attacks.square, queries=20)):
        with pytest.warns(AttackWarning, match="Dropout in training mode"):
            assert torch.equal(attack(model, x, y, eps=0.1), attack(net, x, y, eps=0.1))
    assert inner[1].training
    function = attacks.logits(lambda z: make(net(z)), key)
    assert torch.equal(attacks.pgd(function, x, y, eps=0.1), attacks.pgd(net, x, y, eps=0.1))


@pytest.mark.parametrize("key", ["no", 7, "0"])
@pytest.mark.parametrize("make", [PICKS["tuple"][0], PICKS["dict"][0], PICKS["object"][0]])
def test_the_adapter_names_a_key_that_is_not_there(make, key, net, x):
    with pytest.raises(ValueError, match=f"^key: the model's output has no {key!r}"):
        logits_of(attacks.logits(module_of(lambda z: make(net(z))), key), x)


# --- models that fail on images -----------------------------------------------------------------


class Two(nn.Module):
    def forward(self, x, t):
        return x


FAILS = {
    "size": lambda net: nn.Sequential(nn.Flatten(), nn.Linear(35, 5)),
    "channels": lambda net: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()),
    "device": lambda net: nn.Sequential(nn.Flatten(), nn.Linear(36, 5, device="meta")),
    "mixed types": lambda net: nn.Sequential(net, nn.Linear(5, 5).double()),
    "required arguments": lambda net: Two(),
    "assertion": lambda net: module_of(lambda z: (_ for _ in ()).throw(AssertionError("3 x 3"))),
    "script": lambda net: torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(35, 5))),
}


@pytest.mark.parametrize("name", FAILS)
@pytest.mark.parametrize("use", ["accuracy", "ask", "fgsm", "pgd", "cw", "suite", "evaluate"])
def test_a_model_that_fails_on_the_images_is_named_with_their_shape(name, use, net, x, y):
    model = FAILS[name](net).eval()
    with pytest.raises(ValueError, match=r"^model: ") as caught:
        USES[use](model, None, x, y)
    assert caught.match(r"fails on images \[1, 6, 6\], torch.float|got meta")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None or name == "device"


@pytest.mark.parametrize("name", ["size", "channels", "mixed types"])
@pytest.mark.parametrize("use", ["reconstruction_error", "calibrate", "Direct", "Adaptive"])
def test_so_is_a_dae(name, use, net, x, y):
    with pytest.raises(ValueError, match=r"^dae: fails on images \[1, 6, 6\]"):
        USES[use](None, FAILS[name](net).eval(), x, y)


class OwnError(Exception):
    pass


# What somebody's forward may raise, and how it is told.
FAULTS = {
    "key": (KeyError("lost"), "KeyError: 'lost'"),
    "no words": (KeyError(), "KeyError"),
    "division": (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    "file": (FileNotFoundError(2, "No such file", "a.npy"), "FileNotFoundError: .*a.npy."),
    "attribute": (AttributeError("no 'fc'"), "AttributeError: no 'fc'"),
    "own": (OwnError("one\ntwo"), "OwnError: one"),
    "value": (ValueError("too small"), "too small"),
    "no value": (ValueError(), "ValueError"),
    "assertion": (AssertionError(), "AssertionError"),
    "end": (StopIteration(3), "StopIteration: 3"),
    "depth": (RecursionError("too deep"), "too deep"),
}
ASKED = dict.fromkeys(("accuracy", "ask", "pgd", "suite", "evaluate"), "model")
ASKED |= dict.fromkeys(("Direct", "Adaptive", "calibrate"), "dae")


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("use", ASKED)
def test_whatever_a_forward_raises_is_told_of_the_model_and_kept(name, use, x, y):
    error, words = FAULTS[name]

    def fails(z):
        raise error

    with pytest.raises(ValueError, match=rf"^{ASKED[use]}: fails on images .*: {words}$") as caught:
        USES[use](module_of(fails), module_of(fails), x, y)
    cause = caught.value.__cause__
    assert type(cause) is type(error) and cause.args == error.args
    assert any(entry.name == "fails" for entry in traceback.extract_tb(cause.__traceback__))


OURS = [torch.OutOfMemoryError("no room"), MemoryError("no room"), KeyboardInterrupt()]
OURS += [NotImplementedError("one mode only"), AttackWarning("as an error")]


@pytest.mark.parametrize("error", OURS, ids=repr)
def test_what_is_not_the_models_fault_passes_as_it_is(error, x):
    def fails(z):
        raise error

    with pytest.raises(type(error)) as caught:
        ask(module_of(fails), x)
    assert caught.value is error


def test_what_the_package_says_inside_a_model_passes_as_it_is(x):
    with pytest.raises(ValueError, match=r"^stepper: expected one of"):
        ask(module_of(lambda z: Adaptive(nn.Identity(), stepper="none")(z)), x)


# --- modes --------------------------------------------------------------------------------------


class Own(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


class Helps(nn.Module):
    def _drop(self, x):
        return F.dropout(x, 0.5, self.training)

    def forward(self, x):
        return self._drop(x)


class ByName(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, getattr(self, "training"))  # noqa: B009


class ByProperty(nn.Module):
    @property
    def chance(self):
        return 0.5 * self.training

    def forward(self, x):
        return F.dropout(x, self.chance)


class InALoop(nn.Module):
    def forward(self, x):
        return torch.stack([F.dropout(z, 0.5, self.training) for z in x])


class ByFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = lambda x: F.dropout(x, 0.5, self.training)

    def forward(self, x):
        return self.drop(x)


class Mixin:
    def drop(self, x):
        return F.dropout(x, 0.5, self.training)


class Mixed(nn.Module, Mixin):
    def forward(self, x):
        return self.drop(x)


class OfOwn(Own):
    def forward(self, x):
        return -super().forward(x)


class OfDropout(nn.Dropout):
    def forward(self, x):
        return -super().forward(x)


class OfLSTM(nn.LSTM):
    def forward(self, x):
        return F.dropout(super().forward(x)[0], 0.5, self.training)


class Overrides(Own):
    """Nothing of what its base does."""

    def __init__(self):
        super().__init__()
        self.train(self.training)

    def forward(self, x):
        return x


def hooked_layer(hook):
    layer = nn.Linear(4, 4)
    layer.register_forward_pre_hook(hook)
    return layer


def shaken(module, x):
    return (x[0] + module.training,)


HIDDEN_MODES = {
    "helper": (Helps(), True),
    "getattr": (ByName(), True),
    "property": (ByProperty(), True),
    "comprehension": (InALoop(), True),
    "function of the object": (ByFunction(), True),
    "mixin": (Mixed(), True),
    "base": (OfOwn(), True),
    "base of torch": (OfDropout(), True),
    "layer of torch with more": (OfLSTM(4, 4), True),
    "hook": (hooked_layer(shaken), True),
    "bound hook": (hooked_layer(partial(shaken)), True),
    "spectral norm": (torch.nn.utils.spectral_norm(nn.Linear(4, 4)), True),
    "Dropout of 0": (nn.Dropout(0.0), False),
    "Dropout2d of 0": (nn.Dropout2d(0.0), False),
    "AlphaDropout of 0": (nn.AlphaDropout(0.0), False),
    "FeatureAlphaDropout of 0": (nn.FeatureAlphaDropout(0.0), False),
    "StochasticDepth of 0": (StochasticDepth(0.0, "row"), False),
    "DropBlock2d of 0": (DropBlock2d(0.0, 3), False),
    "LSTM of one layer": (nn.LSTM(4, 4, dropout=0.1), False),
    "TransformerEncoderLayer of 0": (nn.TransformerEncoderLayer(4, 2, dropout=0.0), False),
    "LSTMCell": (nn.LSTMCell(4, 4), False),
    "weight norm": (torch.nn.utils.weight_norm(nn.Linear(4, 4)), False),
    "overridden": (Overrides(), False),
}
MODES = HIDDEN_MODES | {
    "BatchNorm2d": (nn.BatchNorm2d(1), True),
    "Dropout": (nn.Dropout(0.1), True),
    "AlphaDropout": (nn.AlphaDropout(0.1), True),
    "FeatureAlphaDropout": (nn.FeatureAlphaDropout(0.1), True),
    "RReLU": (nn.RReLU(), True),
    "tracked InstanceNorm2d": (nn.InstanceNorm2d(1, track_running_stats=True), True),
    "InstanceNorm2d": (nn.InstanceNorm2d(1), False),
    "StochasticDepth": (StochasticDepth(0.2, "row"), True),
    "MultiheadAttention with dropout": (nn.MultiheadAttention(4, 2, dropout=0.1), True),
    "MultiheadAttention": (nn.MultiheadAttention(4, 2), False),
    "LSTM with dropout": (nn.LSTM(4, 4, 2, dropout=0.1), True),
    "LSTM": (nn.LSTM(4, 4, 2), False),
    "one's own": (Own(), True),
    "LayerNorm": (nn.LayerNorm(4), False),
    "GroupNorm": (nn.GroupNorm(1, 1), False),
    "Conv2d": (nn.Conv2d(1, 1, 1), False),
}


@pytest.mark.parametrize("name", MODES)
def test_layers_that_act_differently_in_training_are_known(name):
    layer, acts = MODES[name]
    model = nn.Sequential(layer).train()
    assert in_training(model) == (type(layer).__name__ if acts else "")
    assert in_training(model.eval()) == ""


FOREIGN = {
    "script": torch.jit.script,
    "trace": lambda net: torch.jit.trace(net, torch.rand(8, *SHAPE)),
    "frozen": lambda net: torch.jit.freeze(torch.jit.script(net)),
    "fx": torch.fx.symbolic_trace,
    "exported": lambda net: torch.export.export(
        net, (torch.rand(8, *SHAPE),), dynamic_shapes=({0: torch.export.Dim("n")},)
    ).module(),
    "half": lambda net: net.bfloat16(),
    "double": lambda net: net.double(),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_modules_of_other_makes_can_be_asked_and_attacked(name, net, x, y):
    model = FOREIGN[name](net)
    with evaluating(model):
        torch.testing.assert_close(ask(model, x), ask(net, x))
    assert accuracy(model, x, y).n == 8
    for attack in ("pgd", "apgd", "square", "deepfool"):
        assert call(attack, model, x, y, eps=0.1).shape == x.shape


@pytest.mark.parametrize("bad", [None, "mnist-cnn", nn.Flatten, lambda x: x, 3, [nn.Flatten()]])
@pytest.mark.parametrize("use", ["accuracy", "pgd", "noise", "cw", "suite", "evaluate", "certify"])
def test_what_is_no_module_is_named(bad, use, x, y):
    with pytest.raises(ValueError, match=r"^model: expected a torch.nn.Module, got "):
        USES[use](bad, None, x, y)


# --- answers that depend on the batch -----------------------------------------------------------


def centred(x):
    return x - x.mean(0, keepdim=True)


BATCHES = {
    "batch norm": (lambda: nn.BatchNorm2d(1, track_running_stats=False), True),
    "batch norm of numbers": (
        lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36, track_running_stats=False)),
        True,
    ),
    "centred": (lambda: module_of(centred), True),
    "neighbour": (lambda: module_of(lambda x: x + x.roll(1, 0)), True),
    "instance norm": (lambda: nn.InstanceNorm2d(1), False),
    "layer norm": (lambda: nn.LayerNorm([1, 6, 6]), False),
    "tracked": (lambda: nn.BatchNorm2d(1), False),
}


@pytest.mark.parametrize("name", BATCHES)
def test_answers_that_depend_on_the_batch_are_found(name, net, x, y):
    make, depends = BATCHES[name]
    model = nn.Sequential(make(), net).eval()
    assert looks_at_the_batch(model, x) == depends
    if name == "batch norm of numbers":  # which has no answer to one image
        with pytest.raises(
            ValueError, match=r"^model: fails on images .* more than 1 value per ch"
        ):
            evaluation.inspect_model(model, x, y, eps=0.05)
        return
    seen = {f.name for f in evaluation.inspect_model(model, x, y, eps=0.05)}
    assert ("answers depend on the batch" in seen) == depends
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attacks.suite(model, x, y, eps=0.05, attacks={"fgsm": attacks.fgsm})
    assert any("depend on the batch" in str(w.message) for w in caught) == depends


@pytest.mark.parametrize("attack", ["pgd", "square", "noise", "deepfool"])
def test_every_attack_warns_of_batch_norm_without_statistics(attack, net, x, y):
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), net).eval()
    with pytest.warns(AttackWarning, match="BatchNorm2d without running statistics"):
        call(attack, model, x, y, eps=0.05)


# --- classes that cannot win --------------------------------------------------------------------


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4, 1e30]))
def test_ordinary_logits_keep_every_bit_of_value_and_slope(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    z = (scale * torch.randn(6, 7, generator=generator)).requires_grad_(True)
    if (
        scale <= 30
        or not (z < z.amax(1, keepdim=True) - 1000 * z.amax(1, keepdim=True).abs()).any()
    ):
        assert torch.equal(bounded(z), z)
        weight = torch.randn(6, 7, generator=generator)
        (slope,) = torch.autograd.grad((bounded(z) * weight).sum(), z)
        assert torch.equal(slope, weight)
    assert torch.equal(bounded(bounded(z)), bounded(z))


@pytest.mark.parametrize(("error", "name"), [(RuntimeError, ""), (OwnError, "OwnError: ")])
def test_one_call_differentiates_what_it_can(error, name):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum((1, 2, 3))[:, None].repeat(1, 3)

        @staticmethod
        def backward(ctx, gradient):
            raise error("not known, once and for all")

    model, x = module_of(Once.apply), torch.rand(4, *SHAPE)
    assert not differentiable(model, x)
    with pytest.raises(
        ValueError, match=rf"^model: autograd cannot differentiate it; try BPDA: {name}not"
    ):
        attacks.fgsm(model, x, torch.zeros(4, dtype=torch.int64), eps=0.1)
