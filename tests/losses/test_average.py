import math

import pytest
import torch

from kullback import FormError, Logits, kl
from kullback.losses import average


def test_mean_sum_none_over_kept_rows():
    values, mask = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([True, False, True, True])
    assert average(values).item() == 15 / 4
    assert average(values, mask=mask).item() == pytest.approx(13 / 3)
    assert average(values, mask=mask, reduction="sum").item() == 13
    assert average(values, mask=mask, reduction="none").tolist() == [1.0, 0.0, 4.0, 8.0]


def test_a_mask_broadcasts_over_leading_axes():
    values = torch.arange(6.0).reshape(2, 3)
    assert average(values, mask=torch.tensor([True, False, True])).item() == (0 + 2 + 3 + 5) / 4


def test_parts_with_num_items_add_up_to_the_whole():
    torch.manual_seed(0)
    values, mask = torch.rand(10), torch.rand(10) < 0.6
    whole = average(values, mask=mask)
    kept = int(mask.sum())
    parts = sum(
        average(v, mask=m, num_items=kept) for v, m in zip(values.split([3, 6, 1]), mask.split([3, 6, 1]), strict=True)
    )
    assert parts.item() == pytest.approx(whole.item(), rel=1e-6)
    assert average(values, mask=mask, num_items=torch.tensor(kept)).item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_kept_is_a_connected_zero(reduction):
    x = torch.randn(3, 5, requires_grad=True)
    loss = average(kl(Logits(x), Logits(x.detach() + 1)), mask=torch.zeros(3, dtype=torch.bool), reduction=reduction)
    loss.backward()
    assert loss.item() == 0
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(3, 5))


def test_an_empty_batch_is_a_connected_zero():
    x = torch.randn(0, 5, requires_grad=True)
    loss = average(kl(Logits(x), Logits(x.detach())))
    loss.backward()
    assert loss.item() == 0
    assert x.grad.shape == (0, 5)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_dropped_rows_may_hold_anything(poison):
    torch.manual_seed(1)
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    mask = torch.tensor([True, True, False, True])
    student[2], teacher[2, 0] = poison, poison
    student.requires_grad_()
    teacher.requires_grad_()
    loss = average(kl(Logits(teacher), Logits(student)), mask=mask)
    loss.backward()
    clean = kl(Logits(teacher.detach()[mask]), Logits(student.detach()[mask])).mean()
    assert loss.item() == pytest.approx(clean.item(), rel=1e-6)
    for x in (student, teacher):
        assert torch.isfinite(x.grad).all()
        assert (x.grad[2] == 0).all()
        assert (x.grad[mask] != 0).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mask": torch.ones(3)}, "mask has dtype torch.float32.*mask.bool"),
        ({"mask": torch.ones(3, 2, dtype=torch.bool)}, r"mask has shape \(3, 2\).*one value per row: \(3,\)"),
        ({"num_items": 0}, "num_items is 0.*counts the kept rows"),
        ({"num_items": 3, "reduction": "sum"}, "denominator of a mean"),
        ({"reduction": "batchmean"}, "write 'mean', 'sum' or 'none'"),
    ],
)
def test_bad_input_says_what_to_write(kwargs, message):
    with pytest.raises(FormError, match=message):
        average(torch.ones(3), **kwargs)
