"""Bounds of a network's outputs over a box of inputs: what no change inside the box can exceed.

- :func:`traced`: a network as a graph of layers that bounds can be carried through
- :func:`interval`: lower and upper bounds of its outputs (interval bounds: Gowal et al. 2018)
- :func:`margins`: lower bounds of how far a class's logit lies above each other one
- :class:`Leads`: a layer that computes such differences itself

Layers: linear ones, convolutions, batch norm in evaluation mode, sums and products with constants,
sums of two branches, branches side by side, and whatever only rises: ReLU, sigmoid, tanh, clamps,
pooling. All else is refused by name.

With ``rounding``, which proofs take, everything is computed in float64, and the bounds are widened
by what float32 can lose in each layer: a sum of k products, in whatever order, is off by at most
about k · 2⁻²⁴ of the sum of their sizes (Higham 2002, section 3.1). So they hold for the network as
it is run in float32, too, as long as its convolutions are sums of products in float32 (Winograd
forms of cuDNN and oneDNN are not, nor is TF32, cuDNN's default on newer GPUs).
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .arguments import check_labels, require

UNIT = 2.0**-24  # half of float32's distance from 1 to the next number


class Leads(nn.Module):
    """How far each class's logit lies above the largest other one: ``[N, features]`` to classes.

    A linear layer and a difference, in one, since their bounds are much tighter together.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.linear(x)
        first, second = logits.topk(2).values.split(1, 1)
        return logits - torch.where(logits == first, second, first)


class Interval(NamedTuple):
    """Lower and upper bounds, of the same shape."""

    low: Tensor
    high: Tensor

    def widened(self, by: Tensor | float) -> Interval:
        """Both moved outwards."""
        return Interval(self.low - by, self.high + by)

    @property
    def size(self) -> Tensor:
        """The largest absolute value between them."""
        return torch.maximum(self.low.abs(), self.high.abs())


# What rises with its input, and by how many units float32 may miss a value of at most 1.
_RISING: dict[Any, float] = {
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Identity, nn.Flatten, nn.Unflatten), 0),
    **dict.fromkeys((nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Dropout), 0),
    **dict.fromkeys((nn.Sigmoid, nn.Tanh), 8),
    **dict.fromkeys((torch.relu, F.relu, F.hardtanh, torch.clamp, torch.flatten), 0),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, torch.tanh, F.tanh), 8),
    **dict.fromkeys(("relu", "clamp", "flatten", "view", "reshape", "unflatten"), 0),
    **dict.fromkeys(("sigmoid", "tanh"), 8),
}
_LINEAR = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.AvgPool2d)


class _Tracer(fx.Tracer):
    """Looks into all modules but torch's own layers, and leads."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        whole = (nn.Sequential, nn.ModuleList)
        theirs = type(module).__module__.startswith("torch.nn") and not isinstance(module, whole)
        return theirs or isinstance(module, Leads)


def traced(model: nn.Module) -> fx.GraphModule:
    """A network as a graph of its layers; parameters are shared with it.

    Raises:
        ValueError: its ``forward`` depends on the values it is given, or is no chain of layers.
    """
    tracer = _Tracer()
    model = nn.Sequential(model) if tracer.is_leaf_module(model, "") else model
    try:
        return fx.GraphModule(model, tracer.trace(model))
    except Exception as error:  # whatever a forward does with what is no tensor
        raise ValueError(f"model: {type(model).__name__} is no graph of layers: {error}") from error


def interval(model: nn.Module, box: Interval, *, rounding: bool = True) -> Interval:
    """Bounds of the outputs over all inputs in a box.

    Args:
        model: a network in evaluation mode, or what :func:`traced` made of one.
        box: of inputs, ``[N, ...]``.
        rounding: compute in float64, and allow for float32's rounding in the network.

    Raises:
        ValueError: a layer or an operation that no bound is known of; it is named.
    """
    return _Walk(_ready(model, rounding), rounding).run(_wide(box, rounding))


def margins(model: nn.Module, box: Interval, y: Tensor, *, rounding: bool = True) -> Tensor:
    """Lower bounds of ``logit[y] − logit[k]`` over all inputs in a box: ``[N, classes]``.

    The differences are bounded in the last layer, if it is linear: bounds of the logits would let
    both move apart. That of the class itself is infinite.

    Args:
        model: as of :func:`interval`, images -> logits.
        box: of inputs, ``[N, ...]``.
        y: int64 labels ``[N]``.
        rounding: as of :func:`interval`.
    """
    graph = _ready(model, rounding)
    walk = _Walk(graph, rounding)
    last = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    layer = graph.get_submodule(last.target) if last.op == "call_module" else None
    if isinstance(layer, nn.Linear):
        walk.stop = last
        z = walk.run(_wide(box, rounding))
        check_labels(y, len(z.low), layer.out_features)
        low = _differences(layer, z, rounding)[torch.arange(len(y)), y]
    else:
        z = walk.run(_wide(box, rounding))
        check_labels(y, len(z.low), z.low.shape[1])
        low = z.low.gather(1, y[:, None]) - z.high
    return low.scatter(1, y[:, None], torch.inf)


def _ready(model: nn.Module, rounding: bool) -> fx.GraphModule:
    graph = model if isinstance(model, fx.GraphModule) else traced(model)
    return copy.deepcopy(graph).double() if rounding else graph


def _wide(box: Interval, rounding: bool) -> Interval:
    shapes = [list(part.shape) for part in box]
    require(shapes[0] == shapes[1], f"box: expected bounds of one shape, got {shapes}")
    require((box.low <= box.high).all(), "box: a lower bound lies above the upper one, or is NaN")
    return Interval(*(part.double() for part in box)) if rounding else box


class _Walk(fx.Interpreter):
    """Carries an interval from node to node."""

    stop: fx.Node | None = None  # its input is returned in its place

    def __init__(self, graph: fx.GraphModule, rounding: bool) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.rounding = rounding

    def run_node(self, node: fx.Node) -> Any:
        if node is self.stop:
            return self.fetch_args_kwargs_from_env(node)[0][0]
        return super().run_node(node)

    def call_module(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        layer = self.fetch_attr(str(target))
        (z,) = args
        if isinstance(layer, (nn.BatchNorm2d, nn.Dropout)) and layer.training:
            raise ValueError(f"model: {target} is in training mode; call .eval()")
        if isinstance(layer, _LINEAR):
            return self._linear(layer, z)
        if isinstance(layer, Leads):
            return self._leads(layer.linear, z)
        return self._rising(type(layer), layer, z)

    def call_function(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if target is torch.cat and args and all(isinstance(part, Interval) for part in args[0]):
            sides = zip(*args[0], strict=True)
            return Interval(*(torch.cat(side, *args[1:], **kwargs) for side in sides))
        inside = [part for part in (*args, *kwargs.values()) if isinstance(part, (list, tuple))]
        mixed = any(isinstance(part, Interval) for parts in inside for part in parts)
        mixed = mixed and not any(isinstance(part, Interval) for part in args)
        require(not mixed, f"model: no bounds are known of {getattr(target, '__name__', target)}")
        if not any(isinstance(part, Interval) for part in args):
            return super().call_function(target, tuple(args), dict(kwargs))
        if target in _ARITHMETIC:
            require(not kwargs, f"model: no bounds are known of {', '.join(kwargs)} in sums")
            found = _ARITHMETIC[target](*args)
            return found.widened(2 * UNIT * found.size) if self.rounding else found
        z, *rest = args
        return self._rising(target, lambda part: target(part, *rest, **kwargs), z)

    def call_method(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        z, *rest = args
        if not isinstance(z, Interval):
            return super().call_method(target, tuple(args), dict(kwargs))
        return self._rising(target, lambda part: getattr(part, target)(*rest, **kwargs), z)

    def _rising(self, kind: Any, function: Callable[[Tensor], Tensor], z: Interval) -> Interval:
        name = getattr(kind, "__name__", kind)
        require(kind in _RISING, f"model: no bounds are known of {name}")
        found = Interval(*map(function, z))
        return found.widened(_RISING[kind] * UNIT) if self.rounding else found

    def _linear(self, layer: nn.Module, z: Interval) -> Interval:
        middle, radius = (z.high + z.low) / 2, _sizes(layer, (z.high - z.low) / 2)
        if self.rounding:
            radius = radius + _lost(layer, z)
        middle = layer(middle)
        return Interval(middle - radius, middle + radius)

    def _leads(self, layer: nn.Linear, z: Interval) -> Interval:
        low = _differences(layer, z, self.rounding)
        own = torch.eye(layer.out_features, dtype=torch.bool, device=low.device)
        low = low.masked_fill(own, torch.inf)
        high = (-low.transpose(1, 2)).masked_fill(own, torch.inf)
        found = Interval(low.amin(2), high.amin(2))
        return found.widened(2 * UNIT * found.size) if self.rounding else found


def _differences(layer: nn.Linear, z: Interval, rounding: bool) -> Tensor:
    """Lower bounds of ``output[j] − output[k]`` of a linear layer: ``[N, j, k]``."""
    weight = layer.weight[:, None] - layer.weight
    middle, radius = (z.high + z.low) / 2, (z.high - z.low) / 2
    low = torch.einsum("jkf,nf->njk", weight, middle)
    low = low - torch.einsum("jkf,nf->njk", weight.abs(), radius)
    if layer.bias is not None:
        low = low + (layer.bias[:, None] - layer.bias)
    if rounding:
        error = _lost(layer, z)
        low = low - error[:, :, None] - error[:, None]
    return low


def _sizes(layer: Any, z: Tensor) -> Tensor:
    """A linear layer with the sizes of its weights and no bias, of values that are not negative."""
    if isinstance(layer, nn.Linear):
        return F.linear(z, layer.weight.abs())
    if isinstance(layer, nn.BatchNorm2d):
        scale = (layer.running_var + layer.eps).rsqrt()
        scale = scale if layer.weight is None else scale * layer.weight.abs()
        return z * scale[:, None, None]
    if isinstance(layer, nn.AvgPool2d):
        return layer(z)
    require(layer.padding_mode == "zeros", "model: convolutions must be padded with zeros")
    given = (layer.weight.abs(), None, layer.stride, layer.padding)
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(z, *given, layer.dilation, layer.groups)
    return F.conv_transpose2d(z, *given, layer.output_padding, layer.groups, layer.dilation)


def _lost(layer: Any, z: Interval) -> Tensor:
    """What float32 may lose in a linear layer, at most."""
    if isinstance(layer, nn.BatchNorm2d):
        terms = 8
    elif isinstance(layer, nn.AvgPool2d):
        terms = z.low[0].numel()  # no window is larger
    else:  # a transposed convolution adds over its inputs, which come first
        columns = layer.weight.flatten(2) if layer.weight.dim() > 2 else layer.weight[..., None]
        terms = columns.shape[0 if isinstance(layer, nn.ConvTranspose2d) else 1] * columns.shape[2]
    terms += 3
    # A thousandth more, for what float64 itself has lost.
    share = 1.001 * terms * UNIT / (1 - terms * UNIT)
    size, bias = _sizes(layer, z.size), getattr(layer, "bias", None)
    if isinstance(layer, nn.BatchNorm2d):
        size = size + _sizes(layer, layer.running_mean.abs()[None, :, None, None])
    if bias is not None:
        flat = isinstance(layer, nn.Linear)
        size = size + (bias.abs() if flat else bias.abs()[:, None, None])
    return share * size


def _sum(one: Any, other: Any) -> Interval:
    one, other = _both(one), _both(other)
    return Interval(one.low + other.low, one.high + other.high)


def _difference(one: Any, other: Any) -> Interval:
    other = _both(other)
    return _sum(one, Interval(-other.high, -other.low))


def _product(one: Any, other: Any) -> Interval:
    ends = [a * b for a in _both(one) for b in _both(other)]
    return Interval(
        torch.minimum(torch.minimum(*ends[:2]), torch.minimum(*ends[2:])),
        torch.maximum(torch.maximum(*ends[:2]), torch.maximum(*ends[2:])),
    )


def _quotient(one: Any, other: Any) -> Interval:
    require(not isinstance(other, Interval), "model: no bounds are known of a division by a layer")
    return _product(one, 1 / other)


def _both(value: Any) -> Interval:
    if isinstance(value, Interval):
        return value
    value = torch.as_tensor(value)
    return Interval(value, value)


_ARITHMETIC: dict[Any, Callable[..., Interval]] = {
    **dict.fromkeys((operator.add, torch.add), _sum),
    **dict.fromkeys((operator.sub, torch.sub), _difference),
    **dict.fromkeys((operator.mul, torch.mul), _product),
    **dict.fromkeys((operator.truediv, torch.div), _quotient),
}
