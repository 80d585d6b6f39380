import pytest
import torch

from apudae.core import arguments

GOOD = torch.rand(2, 1, 4, 4)
# Tensors whose numbers cannot be read one by one.
ODD = [
    (GOOD.to_sparse(), "torch.sparse_coo"),
    (GOOD.to_mkldnn(), "torch._mkldnn"),
    (GOOD.to("meta"), "on meta"),
    (torch.nested.nested_tensor(list(GOOD)), "nested tensor"),
]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[0.5]], "x: expected a tensor"),
        *[(odd, rf"^x: expected a tensor \[N, C, H, W\], got a .*{told}") for odd, told in ODD],
        (GOOD.to(torch.float8_e5m2), "x: expected floating-point images .* got torch.float8_e5m2"),
        (torch.rand(1, 4, 4), r"x: expected 4 dimensions .* got shape \[1, 4, 4\]"),
        (torch.randint(255, (2, 1, 4, 4)), "x: expected floating-point .* got torch.int64"),
        (GOOD * 255, r"x: expected values in \[0, 1\]"),
        (GOOD - 1.5, r"x: expected values in \[0, 1\]"),
        (GOOD.clone().fill_(float("nan")), "x: holds NaN"),
    ],
)
def test_bad_images_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        arguments.check_images(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_good_images_pass(dtype):
    arguments.check_images(GOOD.to(dtype))
    arguments.check_images(torch.empty(0, 3, 8, 8, dtype=dtype))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1, 2], "y: expected a tensor of labels"),
        (torch.tensor([1, 2]).to_sparse(), r"y: .* labels \[N\], got a .*torch.sparse_coo"),
        (torch.tensor([1, 2], device="meta"), r"y: .* labels \[N\], got a .*on meta"),
        (torch.tensor([[1, 2]]), r"y: expected a tensor of labels \[N\], got shape \[1, 2\]"),
        (torch.tensor([1.0, 2.0]), "y: expected int64 labels, got torch.float32"),
        (torch.tensor([1]), "y: expected 2 labels, one per image, got 1"),
        (torch.tensor([-1, 2]), r"y: expected labels in 0 \.\. 9, got -1 \.\. 2"),
        (torch.tensor([1, 10]), r"y: expected labels in 0 \.\. 9, got 1 \.\. 10"),
    ],
)
def test_bad_labels_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        arguments.check_labels(y, 2, classes=10)


def test_numbers_and_counts():
    arguments.check_number(0.0, "eps")
    arguments.check_count(1, "steps")
    for bad in (-0.1, float("nan"), float("inf"), "0.1"):
        with pytest.raises(ValueError, match="eps: expected a finite number >= 0"):
            arguments.check_number(bad, "eps")
    with pytest.raises(ValueError, match="lr: expected a finite number > 0, got 0"):
        arguments.check_number(0, "lr", exclusive=True)
    for bad in (0, 1.5, True):
        with pytest.raises(ValueError, match="steps: expected an integer >= 1"):
            arguments.check_count(bad, "steps")
