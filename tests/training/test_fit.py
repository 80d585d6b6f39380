import copy
import math

import pytest
import torch
from support import dies_after
from torch import nn
from torch.nn import functional as F

from apudae import attacks, data, models, training
from apudae.core.scores import accuracy
from apudae.purification import Defended, Direct
from apudae.training import tasks


@pytest.fixture(scope="module")
def digits():
    return data.load("mnist", "train").take(600)


def test_denoising_is_the_mean_squared_error_of_the_denoised_image(generator):
    x = torch.rand(50, 1, 28, 28, generator=generator)
    y = torch.zeros(50, dtype=torch.int64)
    loss = training.denoising(0.4)(nn.Identity(), x, y, generator)
    assert abs(loss.item() - 0.16) < 0.01  # R(x) = x leaves exactly the noise: σ² per pixel
    noisy = []
    training.denoising(0.4)(lambda z: noisy.append(z) or z, x, y, generator)
    assert noisy[0].min() < 0  # not clipped
    assert noisy[0].max() > 1


def test_a_classifier_learns(digits):
    model = models.build("mnist-cnn", width=8)
    history = training.fit(
        model, *digits, epochs=6, batch_size=32, validation=data.load("mnist", "validation")
    )
    assert history.loss[-1] < 0.3 * history.loss[0]
    assert len(history.loss) == len(history.validation) == len(history.seconds) == 6
    assert accuracy(model, *data.load("mnist", "validation")).percent > 80


def test_a_dae_learns_to_clean(digits):
    dae = models.build("mnist-dae", width=8)
    task = training.denoising(0.4)
    before = training.measure(dae, *digits, task)
    training.fit(dae, *digits, task=task, epochs=8, batch_size=32, lr=5e-3)
    after = training.measure(dae, *digits, task)
    identity = training.measure(nn.Identity(), *digits, task)
    assert after < 0.5 * before
    assert after < 0.5 * identity


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_state(digits):
    x, y = digits.images[:128], digits.labels[:128]
    start = models.build("mnist-dae", width=4)
    state = torch.random.get_rng_state()
    results = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(start)
        training.fit(model, x, y, task=training.denoising(0.3), epochs=1, seed=seed)
        results.append(torch.cat([p.flatten() for p in model.parameters()]).detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_every_image_is_seen_once_per_epoch(digits):
    x = digits.images[:100]
    y = torch.arange(100)
    seen = []

    def task(model, images, labels, generator):
        assert torch.equal(images, x[labels])
        seen.append(labels)
        return model(images).square().mean()

    training.fit(models.build("mnist-dae", width=4), x, y, task=task, epochs=3, batch_size=32)
    assert [len(batch) for batch in seen] == [32, 32, 32, 4] * 3
    for epoch in range(3):
        assert torch.cat(seen[4 * epoch : 4 * epoch + 4]).sort().values.tolist() == list(range(100))
    assert torch.cat(seen[:4]).tolist() != torch.cat(seen[4:8]).tolist()


def test_modes_are_restored(digits):
    model = models.build("mnist-cnn", width=4).eval()
    model.net[0].train()
    training.fit(
        model, digits.images[:64], digits.labels[:64], epochs=1, validation=digits.take(64)
    )
    assert not model.training
    assert model.net[0].training
    assert not model.net[1].training


def test_a_frozen_model_and_bad_validation_images_are_named(digits):
    model = models.build("mnist-cnn", width=4).requires_grad_(False)
    with pytest.raises(ValueError, match="model: no parameter is trainable"):
        training.fit(model, *digits)
    with pytest.raises(ValueError, match="validation images: expected values in"):
        bad = (digits.images * 255, digits.labels)
        training.fit(model.requires_grad_(True), *digits, validation=bad)


def test_a_loss_that_explodes_stops_with_a_clear_error(digits):
    def explode(model, x, y, generator):
        return model(x).mean() * math.nan

    with pytest.raises(RuntimeError, match=r"the loss became nan in epoch 1, by step \d+; try a"):
        training.fit(models.build("mnist-dae", width=4), *digits, task=explode)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: expected an integer >= 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"lr": 0.0}, "lr: expected a finite number > 0"),
    ],
)
def test_bad_options_are_named(options, message, digits):
    with pytest.raises(ValueError, match=message):
        training.fit(models.build("mnist-cnn"), *digits, **options)
    with pytest.raises(ValueError, match="sigma: expected a finite number > 0"):
        training.denoising(0)
    with pytest.raises(ValueError, match="labels: expected 600 labels"):
        training.fit(models.build("mnist-cnn"), digits.images, digits.labels[1:])


def test_what_was_trained_can_defend(digits):
    """The pieces fit: a DAE trained here goes straight into a defended classifier."""
    dae = models.build("mnist-dae", width=4)
    training.fit(dae, *digits, task=training.denoising(0.4), epochs=1)
    logits = Defended(models.build("mnist-cnn"), Direct(dae))(digits.images[:3])
    assert logits.shape == (3, 10)


def weights(model):
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


OPTIONS = {
    "plain": {},
    "averaged": {"ema": 0.9},
    "sgd and cosine": {"optimizer": "sgd", "schedule": "cosine", "lr": 0.02},
    "constant": {"schedule": "constant"},
    "half precision": {"precision": "bfloat16"},
    "augmented": {"augment": True},
}


class WithDropout(nn.Module):
    """Batch norm has buffers, dropout draws from the global generator: both must resume too."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Conv2d(1, 4, 5, stride=3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Dropout(0.3),
                nn.Flatten(),
                nn.Linear(256, 10),
            )

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_killed_run_resumes_and_ends_bit_identical(name, digits, tmp_path, monkeypatch):
    x, y = digits.take(200)
    run = {"epochs": 4, "batch_size": 32, "validation": (x, y), "seed": 5} | OPTIONS[name]
    whole = WithDropout()
    expected = training.fit(whole, x, y, **run)
    first = WithDropout()
    path = tmp_path / "deep" / "run.pt"
    validation = {"validation": None}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        dies_after(patch, 22, KeyboardInterrupt)  # in the last epoch of 7 steps each
        training.fit(first, x, y, checkpoint=path, **run | validation)
    second = WithDropout()
    torch.rand(7)  # the global state of another day
    found = training.fit(second, x, y, checkpoint=path, **run)
    assert torch.equal(weights(second), weights(whole))
    assert found.loss == expected.loss
    again = training.fit(second, x, y, checkpoint=path, **run)  # nothing is left to do
    assert again.loss == expected.loss
    assert torch.equal(weights(second), weights(whole))
    assert [p.name for p in path.parent.iterdir()] == ["run.pt"]


def test_a_checkpoint_of_something_else_is_named_and_nothing_is_lost(digits, tmp_path):
    x, y = digits.take(64)
    path = tmp_path / "run.pt"
    model = models.build("mnist-cnn", width=4)
    training.fit(model, x, y, epochs=1, checkpoint=path)
    content = path.read_bytes()
    other = models.build("mnist-cnn", width=8)
    before = weights(other)
    with pytest.raises(ValueError, match=r"run\.pt does not fit the model: net\.1\.bias is"):
        training.fit(other, x, y, epochs=1, checkpoint=path)
    with pytest.raises(ValueError, match=r"a run with lr 0\.002, this one has 0\.1"):
        training.fit(model, x, y, epochs=1, checkpoint=path, lr=0.1)
    assert path.read_bytes() == content
    assert torch.equal(weights(other), before)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RuntimeError, match=r"run\.pt is not a checkpoint of a training run"):
        training.fit(model, x, y, epochs=1, checkpoint=path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_last_good_checkpoint_survives_a_loss_that_explodes(bad, digits, tmp_path):
    x, y = digits.take(64)
    path = tmp_path / "run.pt"
    seen = []

    def explode(model, images, labels, generator):
        seen.append(1)
        loss = training.classification(model, images, labels, generator)
        return loss * bad if len(seen) > 2 else loss

    model = models.build("mnist-cnn", width=4)
    with pytest.raises(RuntimeError, match=f"the loss became {bad} in epoch 2, by step 1"):
        training.fit(model, x, y, task=explode, epochs=3, batch_size=32, checkpoint=path)
    kept = torch.load(path, weights_only=True)
    assert kept["done"] == 1
    assert all(v.isfinite().all() for v in kept["model"].values())


def test_weights_that_end_an_epoch_as_nan_are_not_kept(digits, tmp_path):
    """The loss is finite to the end, the last gradient is not."""

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.nan

    seen = []

    def task(model, images, labels, generator):
        seen.append(1)
        loss = training.classification(model, images, labels, generator)
        return Broken.apply(loss) if len(seen) == 4 else loss

    path = tmp_path / "run.pt"
    model = models.build("mnist-cnn", width=4)
    with pytest.raises(RuntimeError, match=r"net\..* became NaN or infinite in epoch 2"):
        training.fit(model, *digits.take(64), task=task, epochs=3, batch_size=32, checkpoint=path)
    assert torch.load(path, weights_only=True)["done"] == 1


def test_adversarial_training_that_explodes_says_so_and_not_that_the_attack_failed(digits):
    model = models.build("mnist-cnn", width=4)
    task, batches = training.adversarial(attacks.fgsm, eps=0.1), []

    def explode(model, images, labels, generator):
        batches.append(len(images))
        if len(batches) > 1:  # in a step of its own: a loss needs its weights until it is followed
            next(model.parameters()).data.fill_(math.nan)
        return task(model, images, labels, generator)

    with pytest.raises(RuntimeError, match=r"became NaN or infinite in epoch 1; try a learning"):
        training.fit(model, *digits.take(64), task=explode, epochs=1, batch_size=32)


def test_a_run_is_resumed_only_as_what_it_was(digits, tmp_path):
    x, y = digits.take(64)
    run = {"epochs": 1, "checkpoint": tmp_path / "run.pt", "precision": "float32"}
    dae = models.build("mnist-dae", width=4)
    training.fit(dae, x, y, task=training.denoising(0.3), **run)
    for changed, message in (
        ({"task": training.denoising(0.5)}, "a run with task 'denoising, gaussian, 0.3 to 0.3'"),
        ({"task": training.denoising(0.3, kind="uniform")}, "a run with task"),
        ({"precision": "bfloat16"}, "a run with precision 'float32', this one has 'bfloat16'"),
        ({"augment": True}, "a run with augment False"),
    ):
        options = {"task": training.denoising(0.3)} | run | changed
        with pytest.raises(ValueError, match=message):
            training.fit(dae, x, y, **options)
    with pytest.raises(ValueError, match="a run with images"):
        training.fit(dae, 1 - x, y, task=training.denoising(0.3), **run)


def _freeze(net):
    net.net[0].requires_grad_(False)


def _weigh(factor):
    def task(model, x, y, generator):
        return factor * training.classification(model, x, y, generator)

    return task


def _other_code():
    def task(model, x, y, generator):
        return training.classification(model, 1 - x, y, generator)

    return task


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.net.__setitem__(2, nn.Tanh()), "a model of other layers"),
        (lambda m: setattr(m.net[3], "p", 0.9), "a model of other layers"),
        (lambda m: setattr(m.net[1], "momentum", 0.5), "a model of other layers"),
        (lambda m: setattr(m, "shift", torch.ones(3)), "a model of other layers"),
        (lambda m: m.net.register_forward_hook(lambda *_: None), "a model of other layers"),
        (_freeze, "a model of other layers, options, code, or frozen weights"),
        (lambda m: setattr(m, "_soft", 1), "a model of other layers"),
        (lambda m: {"task": _weigh(2)}, "a task of other code or values"),
        (lambda m: {"task": _weigh(2.0)}, "a task of other code or values"),
        (lambda m: {"task": _other_code()}, "a task of other code or values"),
        (lambda m: {"validation": 0.5}, "other validation images or labels"),
    ],
)
def test_a_run_does_not_go_on_with_another_network_task_or_validation_set(
    change, message, digits, tmp_path
):
    x, y = digits.take(32)

    def run(**changes):
        options = {"task": _weigh(1), "validation": 1.0} | changes
        options["validation"] = (x * options["validation"], y)
        training.fit(net, x, y, epochs=1, checkpoint=tmp_path / "run.pt", **options)

    net = WithDropout()
    run()
    trained = weights(net)
    run()  # the same network, trained
    net = WithDropout()
    run()  # or built anew
    assert torch.equal(weights(net), trained)
    changes = change(net)
    with pytest.raises(ValueError, match=message):
        run(**(changes if isinstance(changes, dict) else {}))


def test_labels_without_a_class_are_named_before_training(digits):
    x, y = digits.take(20)
    for task in (training.classification, training.adversarial(attacks.fgsm, eps=0.1)):
        with pytest.raises(ValueError, match=r"labels: expected labels in 0 \.\. 9, got"):
            training.fit(models.build("mnist-cnn"), x, y + 5, task=task)


def test_what_cannot_be_a_source_is_named(digits):
    x, y = digits.take(20)
    model = models.build("mnist-cnn")
    with pytest.raises(ValueError, match="images: expected a tensor or a source of apudae"):
        training.fit(model, x.numpy(), y)
    with pytest.raises(ValueError, match=r"images: expected 4 dimensions .* got shape \[20, 28"):
        training.fit(model, (x[:, 0] * 255).to(torch.uint8), y)
    source = training.InMemory(x, y, batch_size=5)
    with pytest.raises(ValueError, match=r"device: a source from apudae\.training has its own"):
        training.fit(model, source, device="cpu")
    training.fit(model, source, epochs=1)


def test_averaged_weights_are_the_running_mean(digits):
    """Against the plain weights after 1, 2 and 3 steps, averaged by hand."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return self.w

    def task(model, x, y, generator):
        return model(x)

    x, y = digits.take(4)
    model = One()
    options = {"optimizer": "sgd", "schedule": "constant", "lr": 0.5, "precision": "float32"}
    training.fit(model, x, y, task=task, epochs=3, ema=0.9, **options)
    path = []
    for epochs in (1, 2, 3):
        other = One()
        training.fit(other, x, y, task=task, epochs=epochs, **options)
        path.append(other.w.item())
    average = path[0]
    for value in path[1:]:
        average = 0.9 * average + 0.1 * value
    assert model.w.item() == pytest.approx(average, rel=1e-5)


def test_half_precision_trains_as_well_and_keeps_float32_weights(digits):
    losses = {}
    for precision in ("float32", "bfloat16"):
        model = models.build("mnist-cnn", width=8)
        history = training.fit(model, *digits, epochs=4, batch_size=32, precision=precision)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        losses[precision] = history.loss[-1]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.2)
    assert losses["bfloat16"] != losses["float32"]


def test_eight_bit_pixels_train_as_floats_do(digits):
    x, y = digits.take(100)
    results = []
    for images in (x, (x * 255).round().to(torch.uint8)):
        model = models.build("mnist-cnn", width=4)
        training.fit(model, images, y, epochs=1)
        results.append(weights(model))
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


def test_compiled_training_is_the_same_training(digits):
    x, y = digits.take(64)
    results = []
    for compiled in (False, True):
        model = models.build("mnist-cnn", width=4)
        try:
            training.fit(model, x, y, epochs=1, compile=compiled, precision="float32")
        except Exception as error:  # no working C++ compiler on this machine
            if "compil" not in str(error).lower():
                raise
            pytest.skip("torch.compile needs a C++ compiler here")
        results.append(weights(model))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_too_little_memory_names_the_batch_size(digits):
    def greedy(model, x, y, generator):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    with pytest.raises(RuntimeError, match="too little memory for batches of 48; try 24"):
        training.fit(models.build("mnist-cnn"), *digits, task=greedy, batch_size=48)


def _raises(model, x, y, generator):
    raise RuntimeError("something else")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (_raises, r"^task: fails on a batch \[20, 1, 28, 28\]: something else$"),
        (nn.CrossEntropyLoss(), r"task: fails on a batch \[20, 1, 28, 28\]: TypeError: "),
        (F.cross_entropy, r"task: fails on a batch \[20, 1, 28, 28\]: "),
        (lambda m, x, y, g: None, "task: expected a mean loss that has a gradient, got None"),
        (lambda m, x, y, g: 0.5, "task: expected a mean loss that has a gradient, got 0.5"),
        (lambda m, x, y, g: F.cross_entropy(m(x), y, reduction="none"), r"got shape \[20\]"),
        (lambda m, x, y, g: F.cross_entropy(m(x), y).detach(), "expected a mean loss that has"),
        (training.denoising(0.1), r"images \[20, 1, 28, 28\] back, got \[20, 10\]"),
    ],
)
def test_a_task_that_cannot_be_trained_for_is_named(task, message, digits):
    with pytest.raises((RuntimeError, ValueError), match=message):
        training.fit(models.build("mnist-cnn", width=4), *digits.take(20), task=task)


def test_a_reconstruction_of_another_shape_is_not_stretched_to_fit(digits):
    x, y = digits.take(4)
    with pytest.raises(ValueError, match=r"expected images \[4, 3, 28, 28\] back, got \[4, 1, 28"):
        training.fit(nn.Conv2d(3, 1, 1), x.expand(4, 3, 28, 28), y, task=training.denoising(0.1))


def test_adversarial_training_makes_a_network_harder_to_attack():
    train = data.load("mnist", "train").take(1500)
    x, y = data.load("mnist", "validation").take(200)
    left = {}
    kinds = {
        "plain": training.classification,
        "hardened": training.adversarial(
            attacks.pgd, eps=0.1, steps=3, step_size=0.05, early_stop=True
        ),
    }
    for name, task in kinds.items():
        model = models.build("mnist-cnn", width=8)
        training.fit(model, *train, task=task, epochs=5, batch_size=50)
        attacked = attacks.pgd(model, x, y, eps=0.1, steps=20, early_stop=True)
        left[name] = accuracy(model, attacked, y).percent
    assert left["hardened"] > left["plain"] + 15


def test_noise_levels_of_a_range_and_of_both_kinds(generator):
    x = torch.rand(4000, 1, 4, 4, generator=generator)
    y = torch.zeros(4000, dtype=torch.int64)
    fed = []

    def keep(z):
        fed.append(z - x)
        return x

    for kind in tasks.KINDS:
        training.denoising((0.2, 0.6), kind=kind)(keep, x, y, generator)
        training.denoising(0.3, kind=kind)(keep, x, y, generator)
        spread, level = (noise.flatten(1).square().mean(1).sqrt() for noise in fed[-2:])
        assert level.mean() == pytest.approx(0.3, rel=0.05)
        # σ uniform on [0.2, 0.6]: its mean is 0.4, its standard deviation 0.115.
        assert spread.mean() == pytest.approx(0.4, rel=0.05)
        assert spread.std() > 0.1 > level.std()
    assert fed[-1].abs().max() <= 0.3 * 3**0.5 + 1e-6  # uniform noise ends somewhere


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: training.denoising((0.5, 0.2)), r"sigma: expected \(low, high\)"),
        (lambda: training.denoising(0.2, kind="salt"), "kind: expected one of gaussian, uniform"),
    ],
)
def test_bad_noise_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "optimizer: expected one of adamw, sgd, got 'lion'"),
        ({"schedule": "step"}, "schedule: expected one of one-cycle, cosine, constant"),
        ({"precision": "int8"}, "precision: expected one of auto, float32, bfloat16, float16"),
        ({"ema": 1.0}, r"ema: expected a decay below 1, got 1\.0"),
        ({"weight_decay": -1}, "weight_decay: expected a finite number >= 0"),
    ],
)
def test_unknown_options_are_named(options, message, digits):
    with pytest.raises(ValueError, match=message):
        training.fit(models.build("mnist-cnn"), *digits, **options)
