import math

import pytest
import torch

from kullback import FormError, Logits, kl
from kullback.losses import average
from kullback.losses.average import row_weights
from kullback.losses.inputs import forms, tensors
from kullback.losses.terms import Term, mixed


def test_mean_sum_none_over_kept_rows():
    values, mask = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([True, False, True, True])
    assert average(values).item() == 15 / 4
    assert average(values, mask=mask).item() == pytest.approx(13 / 3)
    assert average(values, mask=mask, reduction="sum").item() == 13
    assert average(values, mask=mask, reduction="none").tolist() == [1.0, 0.0, 4.0, 8.0]


def test_one_kept_row_is_divided_by_one():
    values = torch.tensor([3.0, 5.0])
    assert average(values[:1]).item() == 3.0
    assert average(values, mask=torch.tensor([False, True])).item() == 5.0


def test_a_mask_that_would_broadcast_says_so_instead():
    values, mask = torch.arange(6.0).reshape(2, 3), torch.tensor([True, False, True])
    with pytest.raises(FormError, match=r"mask has \(3,\).*write mask.expand\(2, 3\)"):
        average(values, mask=mask)
    assert average(values, mask=mask.expand(2, 3)).item() == (0 + 2 + 3 + 5) / 4


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("num_items", [None, 7, torch.tensor([7])])
@pytest.mark.parametrize("kept", ["all", "some", "none"])
def test_weights_of_rows_say_before_what_the_average_says_after(reduction, num_items, kept):
    """scale · average = Σ weights · values over the rows that weigh anything, and dropped rows may hold NaN."""
    if reduction == "sum":
        num_items = None
    values = torch.tensor([[1.0, -2.0, 4.0], [0.5, 3.0, 8.0]], dtype=torch.float64)
    keep = {"all": None, "some": values > 0.7, "none": values > 9.0}[kept]
    dirty = values if keep is None else torch.where(keep, values, math.nan)
    weights = row_weights(
        tensors("test", values=values), keep=keep, num_items=num_items, reduction=reduction, scale=0.3
    )
    if keep is None:  # every row counts alike: one number says it
        weights = torch.as_tensor(weights, dtype=torch.float64).expand(values.shape)
    assert weights.shape == values.shape
    assert weights.dtype == torch.float64
    assert keep is None or ((weights != 0) == keep).all()
    total = (weights * dirty)[weights != 0].sum()
    expected = 0.3 * average(dirty, mask=keep, num_items=num_items, reduction=reduction)
    assert total.item() == pytest.approx(expected.item(), rel=1e-15, abs=0)


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
        ({"mask": torch.ones(3, 2, dtype=torch.bool)}, r"values has rows of shape \(3,\) but mask has \(3, 2\)"),
        ({"num_items": 0}, "num_items is 0.*counts the kept rows"),
        ({"num_items": 3, "reduction": "sum"}, "denominator of a mean"),
        ({"reduction": "batchmean"}, "write 'mean' or 'sum' or 'none'"),
    ],
)
def test_bad_input_says_what_to_write(kwargs, message):
    with pytest.raises(FormError, match=message):
        average(torch.ones(3), **kwargs)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_term_knows_its_weights_before_its_divergence(reduction):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    keep = torch.tensor([[True, False, True], [True, True, False]])
    y[~keep] = math.nan
    rows, (p, q) = forms("test", p=x, q=y)
    term = Term(rows, kl, p, q, keep, 7 if reduction == "mean" else None, 3.0)
    weights = term.weight(1.0, reduction)
    total = (weights * term.per_row())[weights != 0].sum()
    assert total.item() == pytest.approx(term.value(reduction).item(), rel=1e-14)
    loss, values = mixed([(0.5, term), (0.25, term)], reduction)
    assert loss.item() == pytest.approx(0.75 * values[1].item(), rel=1e-14)


@pytest.mark.parametrize("count", [math.inf, 0, -1, math.nan, torch.tensor(math.inf), torch.tensor(0)])
def test_a_count_of_rows_is_a_finite_number_above_0(count):
    with pytest.raises(FormError, match="num_items"):
        average(torch.tensor([1.0, 2.0]), num_items=count)


@pytest.mark.parametrize("count", [1, 0.5, torch.tensor(1), torch.tensor([0.5])])
def test_any_count_above_0_divides(count):
    assert average(torch.tensor([1.0, 2.0]), num_items=count).item() == 3.0 / float(count)
