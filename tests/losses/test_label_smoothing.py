import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from kullback import FormError, cross_entropy
from kullback.losses import LabelSmoothing

B, T, V, PAD = 16, 13, 4233, -1


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, T, V, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randint(0, V, (B, T), generator=generator)
    lengths = torch.randint(1, T + 1, (B,), generator=generator)
    return x, torch.where(torch.arange(T) < lengths[:, None], target, PAD)


def wenet(x, target, size, padding_idx, smoothing, normalize_length):
    """The arithmetic of WeNet's and ESPnet's loss: `nn.KLDivLoss` on a dense smoothed target, padding filled with 0."""
    flat, labels = x.reshape(-1, size), target.reshape(-1)
    ignore = labels == padding_idx
    dense = torch.full_like(flat, smoothing / (size - 1))
    dense.scatter_(1, labels.masked_fill(ignore, 0).unsqueeze(1), 1.0 - smoothing)
    per_class = torch.nn.KLDivLoss(reduction="none")(flat.log_softmax(1), dense)
    denominator = len(labels) - ignore.sum().item() if normalize_length else x.shape[0]
    return per_class.masked_fill(ignore.unsqueeze(1), 0).sum() / denominator


def written_out(x, target, size, padding_idx, smoothing):
    """The copies that write y (log y - log q) instead of calling `nn.KLDivLoss`, per token."""
    keep = target != padding_idx
    other = smoothing / (size - 1)
    dense = F.one_hot(target.clamp(min=0), size).to(x.dtype) * (1.0 - smoothing - other) + other
    loss = dense * (dense.log() - x.log_softmax(-1)) * keep.unsqueeze(-1)
    return loss.sum() / keep.sum()


@pytest.mark.parametrize("normalize_length", [True, False])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_equals_the_source_at_a_decoders_shape(batch, epsilon, normalize_length):
    x, target = batch
    ours = LabelSmoothing(V, PAD, epsilon, normalize_length)(x, target)
    source = wenet(x, target, V, PAD, epsilon, normalize_length)
    assert ours.item() == pytest.approx(source.item(), rel=1e-12)
    (g,), (g_source,) = torch.autograd.grad(ours, x), torch.autograd.grad(source, x)
    torch.testing.assert_close(g, g_source, rtol=1e-9, atol=1e-15)
    single = LabelSmoothing(V, PAD, epsilon, normalize_length)(x.detach().float(), target)
    assert single.item() == pytest.approx(source.item(), rel=1e-6)


def test_at_smoothing_zero_wenets_loss_is_right_and_written_out_copies_are_nan(batch):
    """`nn.KLDivLoss` gives the limit where the target is 0 and the score is finite."""
    x, target = batch
    small, labels = x[:2, :, :7].detach(), target[:2].clamp(max=6)
    ours = LabelSmoothing(7, PAD, 0.0, normalize_length=True)(small, labels)
    cross_entropy = F.cross_entropy(small.reshape(-1, 7), labels.reshape(-1), ignore_index=PAD)
    assert ours.item() == pytest.approx(cross_entropy.item(), rel=1e-12)
    assert wenet(small, labels, 7, PAD, 0.0, True).item() == pytest.approx(ours.item(), rel=1e-12)
    assert written_out(small, labels, 7, PAD, 0.0).isnan()
    smoothed = LabelSmoothing(7, PAD, 0.1, normalize_length=True)(small, labels)  # the copy is right elsewhere
    assert written_out(small, labels, 7, PAD, 0.1).item() == pytest.approx(smoothed.item(), rel=1e-12)


def test_without_a_token_the_copies_divide_by_zero_and_ours_is_zero(batch):
    x, _ = batch
    small, nothing = x[:2, :, :7].detach(), torch.full((2, T), PAD)
    assert wenet(small, nothing, 7, PAD, 0.1, True).isnan()
    assert written_out(small, nothing, 7, PAD, 0.1).isnan()
    assert LabelSmoothing(7, PAD, 0.1, normalize_length=True)(small, nothing).item() == 0


def test_pytorchs_convention_by_name():
    x, target = torch.randn(5, 9, dtype=torch.float64), torch.tensor([0, 3, 8, -1, 2])
    ours = LabelSmoothing(9, -1, 0.2, True, spread="all", divergence=cross_entropy)(x, target)
    assert ours.item() == pytest.approx(
        F.cross_entropy(x, target, ignore_index=-1, label_smoothing=0.2).item(), rel=1e-12
    )
    as_kl = LabelSmoothing(9, -1, 0.2, True, spread="all")(x, target)
    on, off = 0.8 + 0.2 / 9, 0.2 / 9
    entropy = -(on * math.log(on) + 8 * off * math.log(off))
    assert (ours - as_kl).item() == pytest.approx(entropy, rel=1e-12)


def test_a_model_that_predicts_the_smoothed_label_costs_nothing():
    rest = math.log(0.1 / 4)
    x = torch.tensor([[rest, rest, math.log(0.9), rest, rest]], dtype=torch.float64, requires_grad=True)
    loss = LabelSmoothing(5, -1, 0.1)(x, torch.tensor([2]))
    loss.backward()
    assert 0 <= loss.item() < 1e-15
    assert x.grad.abs().max() < 1e-15


@pytest.mark.parametrize("normalize_length", [True, False])
def test_nothing_but_padding_is_a_connected_zero_and_padding_may_hold_nan(normalize_length):
    loss = LabelSmoothing(5, 0, 0.1, normalize_length)
    x = torch.full((2, 3, 5), math.nan, requires_grad=True)
    value = loss(x, torch.zeros(2, 3, dtype=torch.long))
    value.backward()
    assert value.item() == 0
    assert (x.grad == 0).all()
    empty = torch.zeros(0, 3, 5, requires_grad=True)
    assert loss(empty, torch.zeros(0, 3, dtype=torch.long)).item() == 0


def test_steps_in_parts_add_up(batch):
    x, target = (t[:, :, :50] if t.dim() == 3 else t.clamp(max=49) for t in batch)
    for normalize_length, whole in ((True, int((target != PAD).sum())), (False, B)):
        loss = LabelSmoothing(50, PAD, 0.1, normalize_length)
        parts = [loss(a, b, num_items=whole) for a, b in zip(x.split([10, 6]), target.split([10, 6]), strict=True)]
        assert sum(parts).item() == pytest.approx(loss(x, target).item(), rel=1e-12)


def test_no_dense_target_is_made():
    """No tensor of N·V cells but the logits and their gradient: 2048 rows go in blocks."""
    n, v = 2048, 1000

    class Largest(TorchDispatchMode):
        dense = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                storage = result.untyped_storage()
                large = storage.size() >= n * v * result.element_size()
                self.dense += large and storage.data_ptr() != x.untyped_storage().data_ptr()
            return result

    x = torch.randn(n, v, requires_grad=True)
    target = torch.zeros(n, dtype=torch.long)
    with Largest() as forward:
        loss = LabelSmoothing(v, -1, 0.1)(x, target)
    assert forward.dense == 0
    with Largest() as both:
        wenet(x, target, v, -1, 0.1, True)
    assert both.dense > 0  # the watch sees what it is there to see
    loss.backward()
    assert x.grad.shape == (n, v)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LabelSmoothing(5, -1, 1.5), "smoothing is 1.5"),
        (lambda: LabelSmoothing(5, -1, 0.1, spread="some"), "spread is 'some'"),
        (lambda: LabelSmoothing(1, -1, 0.1), "no other class"),
        (lambda: LabelSmoothing(5)(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)), "V=4 but size=5"),
        (
            lambda: LabelSmoothing(5)(torch.zeros(2, 3, 5), torch.zeros(3, 2, dtype=torch.long)),
            r"x has rows of shape \(2, 3\) but target has \(3, 2\).*transpose",
        ),
        (lambda: LabelSmoothing(5)(torch.zeros(1, 5), torch.tensor([5])), "holds 5"),
    ],
)
def test_errors(call, message):
    with pytest.raises(FormError, match=message):
        call()


def test_one_token_without_a_batch_counts_once_and_padding_is_minus_one():
    """-1 is padding unless said otherwise, as in WeNet; a single token is a batch of one."""
    x = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    row = LabelSmoothing(3)(x[None, None], torch.tensor([[2]]))
    assert row.item() > 0.01
    assert LabelSmoothing(3)(x, torch.tensor(2)).item() == row.item()
    assert LabelSmoothing(3)(x.expand(1, 2, 3), torch.tensor([[2, -1]])).item() == row.item()
    with pytest.raises(FormError, match=r"row \(0, 1\) holds -2"):
        LabelSmoothing(3)(x.expand(1, 2, 3), torch.tensor([[2, -2]]))
