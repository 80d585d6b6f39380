"""A Sphinx extension: the networks and digits of the laboratory, as scripts that pages can load.

They are made from the shipped weights whenever the book is built, into ``_static/laboratory``, so
that the repository does not hold them twice. A page that was opened from a file may load scripts
and nothing else, hence not as data. Numbers are float16 as they are stored, in the layout of
TensorFlow.js: images ``[N, H, W, C]``, kernels ``[H, W, in, out]`` (``[H, W, out, in]`` of
transposed convolutions).
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from apudae import attacks, data, experiments, models, plots, purification

FILES = Path(__file__).parents[1] / "book" / "assets" / "laboratory"
NETWORKS = ("mnist-cnn", "mnist-dae", "mnist-purifier")
DIGITS = 100  # of the bundled test digits


def layers(net: nn.Module) -> list[dict[str, Any]]:
    """What a network does, layer by layer, with its numbers.

    Raises:
        ValueError: a layer that the page does not know.
    """
    found, side = [], (1, 28, 28)  # side: channels, height and width where images are flat
    flat = False
    for layer in net.modules():
        name = type(layer).__name__
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            kind = "conv" if isinstance(layer, nn.Conv2d) else "deconv"
            weight = layer.weight.permute(2, 3, 1, 0)
            shape = {"stride": layer.stride[0], "pad": layer.padding[0]}
            found.append({"kind": kind, **shape, **numbers(weight, layer.bias)})
        elif isinstance(layer, nn.Linear):
            weight, bias = layer.weight, layer.bias
            if flat and weight.shape[1] == np.prod(side):  # it reads an image that was laid flat
                weight = weight.view(-1, *side).permute(0, 2, 3, 1).flatten(1)
            unflattens = _next(net, layer)
            if unflattens is not None:  # and one that becomes an image again
                weight = weight.view(*unflattens, -1).permute(1, 2, 0, 3).flatten(0, 2)
                bias = bias.view(*unflattens).permute(1, 2, 0).flatten()
            found.append({"kind": "linear", **numbers(weight.T, bias)})
            flat = False
        elif isinstance(layer, nn.Flatten):
            found.append({"kind": "flatten"})
            flat, side = True, _before(net)
        elif isinstance(layer, nn.Unflatten):
            channels, height, width = layer.unflattened_size
            found.append({"kind": "unflatten", "shape": [height, width, channels]})
        elif isinstance(layer, nn.ReLU | nn.Sigmoid):
            found.append({"kind": name.lower()})
        elif isinstance(layer, models.Normalize):
            pair = {"mean": layer.mean.item(), "std": layer.std.item()}
            found.append({"kind": "normalize", **pair})
        elif not list(layer.children()):
            raise ValueError(f"laboratory: no {name} in the page")
    return found


def _leaves(net: nn.Module) -> list[nn.Module]:
    return [layer for layer in net.modules() if not list(layer.children())]


def _next(net: nn.Module, layer: nn.Module) -> tuple[int, ...] | None:
    """The shape that a linear layer's numbers are given, at most one activation later."""
    leaves = _leaves(net)
    place = next(k for k, leaf in enumerate(leaves) if leaf is layer)
    shapes = (
        k.unflattened_size for k in leaves[place + 1 : place + 3] if isinstance(k, nn.Unflatten)
    )
    return next((tuple(shape) for shape in shapes), None)


def _before(net: nn.Module) -> tuple[int, ...]:
    """Channels, height and width of the image that a network lays flat."""
    shape: list[tuple[int, ...]] = []
    flat = next(layer for layer in net.modules() if isinstance(layer, nn.Flatten))
    hook = flat.register_forward_hook(lambda _, args, out: shape.append(tuple(args[0].shape[1:])))
    with torch.no_grad():
        net(torch.zeros(1, 1, 28, 28))
    hook.remove()
    return shape[0]


def numbers(weight: torch.Tensor, bias: torch.Tensor) -> dict[str, Any]:
    """Of a layer, float16 in base64."""
    parts = {"weight": weight, "bias": bias}
    return {name: {"shape": list(part.shape), "data": packed(part)} for name, part in parts.items()}


def packed(part: torch.Tensor) -> str:
    """Little-endian float16 in base64."""
    found = part.detach().contiguous().numpy().astype("<f2")
    return base64.b64encode(found.tobytes()).decode()


def scripts() -> dict[str, str]:
    """Name -> a script that adds a network, or the digits, to ``window.LABORATORY``."""
    found = {}
    for name in NETWORKS:
        net = {"sha256": models.about(name)["sha256"], "layers": layers(models.load(name))}
        found[name] = f"(window.LABORATORY ??= {{}})[{json.dumps(name)}] = {json.dumps(net)};\n"
    x, y = data.load("mnist", "test", profile="quick").take(DIGITS)
    pixels = (x * 255).round().to(torch.uint8).numpy().tobytes()
    level = experiments.record("mnist_variants")["calibration"]
    digits = {
        "images": base64.b64encode(pixels).decode(),
        "labels": y.tolist(),
        "mu": level[0],
        "sigma": level[1],
    }
    found["digits"] = f"(window.LABORATORY ??= {{}}).digits = {json.dumps(digits)};\n"
    return found


def still() -> plots.Picture:
    """What a page without scripts shows: digits, attacked through the DAE, and purified."""
    x, y = data.load("mnist", "test", profile="quick").take(8)
    model = purification.Defended(
        models.load("mnist-cnn"), purification.Direct(models.load("mnist-dae"))
    )
    attacked = attacks.pgd(model, x, y, eps=0.2)
    rows = {"clean": x, "attacked": attacked, "purified": model.purifier(attacked)}
    reads = {k: model.classifier(images).argmax(1) for k, images in rows.items()}
    notes = {k: [f"reads {digit}" for digit in found.tolist()] for k, found in reads.items()}
    return plots.image_grid(rows, notes, {k: (v != y).tolist() for k, v in reads.items()})


def write(app: Any, error: Exception | None) -> None:
    """Beside the other files that pages load."""
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir) / "_static" / "laboratory"
        # Sphinx copies files of its own only where a page has changed, too.
        shutil.copytree(FILES, folder, dirs_exist_ok=True)
        for name, text in scripts().items():
            (folder / f"{name}.js").write_text(text, encoding="utf-8")
        still().savefig(folder / "still.png", dpi=120)


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
