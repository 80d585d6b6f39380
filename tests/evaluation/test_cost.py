import sys

import pytest
import torch
from torch import nn

from apudae.evaluation.cost import Meter


class Holds(nn.Module):
    def forward(self, x):
        big = torch.ones(20_000_000)  # 76 MiB
        return x + big[0]


def test_it_counts_images_seconds_and_memory():
    model = Holds()
    x = torch.rand(3, 1, 2, 2)
    model(x)
    with Meter(model, x.device) as cost:
        model(x)
        model(x[:1])
    model(x)  # not counted any more
    assert cost.images == 4 and cost.seconds > 0
    if sys.platform == "linux":
        assert 60 < cost.mebibytes < 200
        with Meter(model, x.device) as cost:  # the peak is that of this time
            pass
        assert cost.mebibytes < 20


def test_after_an_error_nothing_is_left_behind():
    model = nn.Identity()
    with pytest.raises(KeyError), Meter(model, torch.device("cpu")):
        raise KeyError
    assert not model._forward_pre_hooks
