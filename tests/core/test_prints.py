"""A number belongs to its model and its images: what tells these apart, to the last bit."""

from __future__ import annotations

import collections
import copy
import functools
import operator
import random
import re
import subprocess
import sys
import types
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from apudae import attacks, experiments, models
from apudae.core.prints import (
    data_print,
    differences,
    exact,
    identity,
    model_print,
    unlike,
)


class Keeps(nn.Module):
    """A classifier of one number per image, and something that it keeps."""

    def __init__(self, kept, **more):
        super().__init__()
        self.kept = kept
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, x):
        return torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1)


@dataclass
class Held:
    inner: object


class Callee:
    """A callable that is no module."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return x * self.scale


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner):
        self.inner = inner


class Temperature(float):
    pass


class Name(str):
    pass


def attributed(thing, value):
    thing.scale = value
    return thing


def closed(value):
    return lambda x: x * value


def hooked(function):
    model = nn.Linear(2, 2, bias=False)
    model.register_forward_hook(function)
    return model


def buffered(value):
    model = Keeps(None)
    model.register_buffer("hidden", value, persistent=False)
    return model


def patched(value):
    """A class whose forward was exchanged after it was written."""
    kind = type("Patched", (Keeps,), {"forward": value})
    return kind(None)


def compiled(value):
    """A function without source."""
    space = {}
    exec(f"def made(x, scale={value}): return x * scale", space)
    return space["made"]


class Extra(Keeps):
    def get_extra_state(self):
        return {"more": self.kept}

    def set_extra_state(self, state):
        self.kept = state["more"]


class Unreadable(Keeps):
    """Whatever is asked of it, it raises."""

    def get_extra_state(self):
        raise OSError("no")

    def __getattr__(self, name):
        raise LookupError(name)


SCALE = torch.ones(2)


def of_global(x):
    return x * SCALE


def moved(value):
    """The same tensor, one number by one bit another."""
    other = value.clone()
    plain = other.view(-1).view(torch.uint8)
    plain[-1] ^= 1
    return other


T = torch.arange(6.0).reshape(2, 3) / 7
A, B = T, moved(T)
WRAPPED = {
    "itself": lambda v: v,
    "array": lambda v: v.numpy(),
    "number": lambda v: v.numpy()[1, 2],
    "array of objects": lambda v: np.array([v.numpy(), None], dtype=object),
    "list": lambda v: [1, [v]],
    "dict": lambda v: {"a": {"b": v}},
    "tuple": lambda v: (None, v),
    "set": lambda v: frozenset([v.numpy().tobytes()]),
    "dataclass": Held,
    "slots": Slotted,
    "namespace": lambda v: types.SimpleNamespace(v=v),
    "callable": Callee,
    "closure": closed,
    "partial": lambda v: functools.partial(torch.mul, other=v),
    "default": lambda v: types.FunctionType(
        of_global.__code__, globals(), "f", (v,), of_global.__closure__
    ),
    "method": lambda v: Callee(v).__call__,
    "distribution": lambda v: torch.distributions.Normal(v, 1 + v),
    "module in a list": lambda v: [Keeps(v)],
    "half": lambda v: v.bfloat16() if v is A else moved(A.bfloat16()),
    "complex": lambda v: torch.complex(v, v).conj(),
    "sparse": lambda v: v.to_sparse(),
    "rows": lambda v: v.to_sparse_csr(),
    "nested": lambda v: torch.nested.nested_tensor([v, v[:1]]),
    "cut": lambda v: v.t()[1:],
    "float": lambda v: v.double()[1, 2].item(),
    "own float": lambda v: Temperature(v[1, 2]),
    "own text": lambda v: Name(v[1, 2].item()),
    "bytes": lambda v: bytearray(v.numpy().tobytes()),
    "decimal": lambda v: Decimal(v[1, 2].item()),
    "fraction": lambda v: Fraction(v[1, 2].item()),
    "path": lambda v: PurePosixPath(str(v[1, 2].item())),
    "pattern": lambda v: re.compile(str(v[1, 2].item())),
    "getter": lambda v: operator.itemgetter(v[1, 2].item()),
    "factory": lambda v: collections.defaultdict(closed(v), a=0.5),
    "queue": lambda v: collections.deque([v]),
    "cached": lambda v: functools.lru_cache(closed(v)),
    "attribute of a function": lambda v: attributed(closed(1.0), v),
    "attribute of a tensor": lambda v: attributed(torch.ones(1), v),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", WRAPPED)
def test_one_bit_of_what_a_model_keeps_makes_another_print(how):
    """Wherever it keeps it; and a copy has the same one, as has one that is built anew."""
    one, other = (Keeps(WRAPPED[how](value)) for value in (A, B))
    assert model_print(one) == model_print(Keeps(WRAPPED[how](A.clone() if how != "half" else A)))
    assert model_print(one) != model_print(other)
    private = [Keeps(None, _kept=WRAPPED[how](value)) for value in (A, B)]
    assert model_print(private[0]) != model_print(private[1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [
        buffered,
        lambda v: Keeps(v, b=nn.Parameter(v)),
        lambda v: nn.Sequential(Keeps(v)),
        lambda v: Extra(v),
        lambda v: hooked(closed(v)),
        lambda v: patched(closed(v)),
        lambda v: patched(lambda self, x: x) if v is A else patched(lambda self, x: x + x),
        lambda v: nn.Sequential(*[nn.ReLU(), nn.Tanh()][:: 1 if v is A else -1]),
        lambda v: hooked(print) if v is A else nn.Linear(2, 2, bias=False),
        lambda v: torch.jit.script(nn.Hardtanh(-1.0, v[1, 2].item())),
        lambda v: torch.jit.script(Traced(v)),
        lambda v: torch.jit.trace(Traced(v), torch.ones(1, 3)),
        lambda v: torch.quantize_per_tensor(100 * v + (v is B), 1.0, 0, torch.qint8),
        lambda v: torch.compile(Keeps(v)),
        lambda v: nn.DataParallel(Keeps(v)),
        lambda v: Keeps(torch.empty(2 + (v is B), device="meta")),
        lambda v: Unreadable(v),
    ],
)  # fmt: skip
def test_whatever_a_model_is_it_has_a_print_of_its_own(make):
    torch.manual_seed(0)
    one = make(A)
    torch.manual_seed(0)
    again = make(A)
    torch.manual_seed(0)
    other = make(B)
    assert model_print(one) == model_print(again) != model_print(other)


class Traced(nn.Module):
    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def forward(self, x):
        return x * self.kept


def test_functions_are_told_by_their_source_and_what_they_take_from_around_them(monkeypatch):
    pair = (lambda x: 2 * x, lambda x: 3 * x)  # on one line
    assert len({model_print(function) for function in (*pair, closed(2.0), closed(3.0))}) == 4
    before = model_print(of_global)
    monkeypatch.setitem(globals(), "SCALE", 2 * SCALE)
    assert model_print(of_global) != before


def test_what_only_counts_or_has_no_source_is_left_to_the_answers():
    """A model may count its calls, and a console keeps no source."""
    for one, other in (
        (Keeps(None, _calls=[1]), Keeps(None, _calls=[2, 3])),
        (Keeps(None, _calls=1), Keeps(None, _calls=2)),
        (closed(1), closed(2)),
    ):
        assert model_print(one) != model_print(other)  # it may as well be a switch
        assert model_print(one, counts=False) == model_print(other, counts=False)
    assert model_print(Keeps(1), counts=False) != model_print(Keeps(2), counts=False)
    x = torch.rand(3, 1, 2, 2)
    one, other = (Keeps(None) for _ in range(2))
    other.forward = types.MethodType(lambda self, x: 1.01 * Keeps.forward(self, x), other)
    same = {"sha256": ""}
    assert unlike(identity(one, x) | same, identity(one, x) | same) == ""
    differ = unlike(identity(one, x) | same, identity(other, x) | same)
    assert differ.startswith("it answers otherwise: logits differ by up to 0.0")


def test_a_call_changes_no_function_of_this_package():
    for attack in (attacks.fgsm, functools.partial(attacks.pgd, steps=2)):
        before = model_print(attack)
        attack(Keeps(None), torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), eps=0.1)
        assert model_print(attack) == before
    assert model_print(attacks.quantised(attacks.fgsm)) != model_print(attacks.fgsm)


def test_loops_end():
    one, other = Keeps(A), Keeps(B)
    for model in (one, other):
        model.kept = [model.kept, model, {"again": None}]
        model.kept[2]["again"] = model.kept
    assert model_print(one) == model_print(copy.deepcopy(one)) != model_print(other)
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert model_print(Keeps(deep))


def test_a_print_is_the_same_in_another_process():
    names = ["direct", "adaptive, default", "jpeg", "resize and pad", "soap"]
    code = (
        "from apudae import experiments; from apudae.core.prints import model_print\n"
        f"for name in {names}: print(model_print(experiments.build('mnist', name)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [model_print(experiments.build("mnist", name)) for name in names]
    assert found.stdout.split() == here and len(set(here)) == 5


def test_a_model_is_asked_the_same_and_left_as_it_was():
    net, x = models.load("mnist-cnn").train(), torch.rand(9, 1, 28, 28)
    draws = torch.get_rng_state()
    found = identity(net, x)
    assert torch.equal(torch.get_rng_state(), draws) and net.training
    assert identity(net, x) == found and len(found["answers"]) == 16
    with torch.no_grad():
        clean = torch.tensor([float(v) for v in found["answers"][0].split()])
        assert torch.allclose(net.eval()(x)[0], clean, rtol=1e-4)


ANSWERS = {"sha256": "a", "answers": ["1 -200 nan", "inf -inf 0"]}


@pytest.mark.parametrize(
    ("answers", "gap"),
    [
        (["1.0009 -200.19 nan", "inf -inf 0.0009"], ""),
        (["1.002 -200 nan", "inf -inf 0"], "up to 0.002"),
        (["1 -200.5 nan", "inf -inf 0"], "up to 0.5"),
        (["1 -200 0", "inf -inf 0"], "up to inf"),
        (["1 -200 nan", "inf inf 0"], "up to inf"),
        (["1 -200 nan", "1e30 -inf 0"], "up to inf"),
        (["1 -200 nan"], "in another shape"),
        (["1 -200", "nan inf -inf 0"], "in another shape"),
    ],
)
def test_answers_differ_by_more_than_rounding(answers, gap):
    differ = unlike(ANSWERS, {"sha256": "a", "answers": answers})
    assert gap in differ and bool(gap) == bool(differ)
    assert "weights" in unlike(ANSWERS, ANSWERS | {"sha256": "b"})


@pytest.mark.parametrize(("jumps", "gap"), [(0, ""), (7, ""), (8, "0.24"), (16, "0.24")])
def test_answers_to_fewer_than_half_of_the_images_may_jump(jumps, gap):
    """JPEG and steps along a sign: another processor's rounding is enough."""
    answers = ["0.24 0"] * jumps + ["0.0009 0"] * (16 - jumps)
    differ = unlike({"sha256": "a", "answers": ["0 0"] * 16}, {"sha256": "a", "answers": answers})
    assert gap in differ and bool(gap) == bool(differ)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_bit_of_images_or_labels_makes_another_print(data):
    n, side = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.uint8]))
    levels = torch.randint(256, (n, 1, side, side), dtype=torch.uint8)
    images = levels if dtype == torch.uint8 else (levels.float() / 255).to(dtype)
    labels = torch.randint(1000, (n,))
    print_ = data_print(images, labels)
    assert data_print(images.clone(), labels.clone()) == print_
    other = labels.clone()
    other[data.draw(st.integers(0, n - 1))] += 256 * data.draw(st.integers(1, 3))
    for changed in (
        (moved(images), labels),
        (images, other),
        (images.reshape(n, 1, 1, -1), labels) if side > 1 else (images[:-1], labels),
        (images.double() if dtype != torch.float64 else images.half(), labels),
    ):
        assert data_print(*changed)["exact"] != print_["exact"]
    assert " 8-bit" in print_["exact"]


def test_images_between_grey_levels_are_told_apart_and_never_trusted_to_an_old_print():
    """Half a grey level is lost where pixels are rounded to 8 bits."""
    x = torch.full((2, 1, 2, 2), 100 / 255)
    near, labels = x + 0.46 / 255, torch.zeros(2, dtype=torch.int64)
    ours, theirs = data_print(x, labels), data_print(near, labels)
    assert ours["sha256"] == theirs["sha256"] and differences(ours, theirs) == ["exact"]
    old = {key: ours[key] for key in ("n", "sha256")}  # of an older version
    assert differences(ours, old) == []
    assert "8-bit pixels only" in differences(theirs, old)[0]
    assert differences({"data": theirs}, {"data": old}) == ["data"]
    assert " 8-bit" not in exact(torch.tensor([0.1]))


def test_truth_values_count_wherever_they_are_kept(tmp_path, monkeypatch):
    """They choose between two ways forward that may differ in their gradients alone."""
    soft, hard = (Keeps(None, _soft=soft) for soft in (True, False))
    assert model_print(soft, counts=False) != model_print(hard, counts=False)


def test_a_helper_in_another_file_and_a_global_class_belong_to_the_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    prints = []
    for number, (step, turn) in enumerate((("x", "g"), ("x * 1", "g"), ("x", "g * 0"))):
        name = f"helper{number}"
        (tmp_path / f"{name}.py").write_text(f"def step(x):\n    return {step}\n", "utf-8")
        (tmp_path / f"foreign{number}.py").write_text(
            f"import torch\nimport {name} as helper\n"
            "class Turn(torch.autograd.Function):\n"
            "    @staticmethod\n    def forward(ctx, x):\n        return x.clone()\n"
            f"    @staticmethod\n    def backward(ctx, g):\n        return {turn}\n"
            "class Net(torch.nn.Module):\n"
            "    def forward(self, x):\n        return helper.step(Turn.apply(x)).mean((2, 3))\n",
            "utf-8",
        )
        found = __import__(f"foreign{number}")
        for kind in (found.Net, found.Turn):
            kind.__module__ = "foreign"
        found.helper.__name__ = "helper"
        prints.append(model_print(found.Net()))
    assert len(set(prints)) == 3


def test_of_a_random_model_a_later_draw_is_asked_too():
    class Noisy(nn.Module):
        def __init__(self, size):
            super().__init__()
            self._size = size

        def forward(self, x, index, draw):
            return x.mean((2, 3)) + (self._size * draw)

    x = torch.rand(8, 3, 4, 4)
    one, other = (identity(Noisy(size), x) | {"sha256": ""} for size in (1, 8))
    assert "answers otherwise" in unlike(one, other)


def test_numpys_and_pythons_draws_are_named_too_and_left_as_they_were():
    class Padded(nn.Module):
        def forward(self, x):
            shift = np.random.randint(1, 100) + random.random() + torch.rand(())
            return x.mean((2, 3)) + shift

    x, before = torch.rand(8, 3, 4, 4), (random.getstate(), np.random.get_state()[1].tolist())
    one, other = (identity(Padded(), x) for _ in range(2))
    assert one == other and len(set(one["answers"])) == 16
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_the_type_that_torch_makes_numbers_of_does_not_matter():
    net, x = models.load("mnist-cnn"), torch.rand(2, 1, 28, 28)
    found = identity(net, x)
    torch.set_default_dtype(torch.float64)
    try:
        assert unlike(identity(net, x), found) == ""
    finally:
        torch.set_default_dtype(torch.float32)
