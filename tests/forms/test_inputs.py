"""What a form accepts, what it leaves alone, and what a verb makes of dtypes and shapes."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import kullback
from cases import DATA, DTYPES, FORMS, SMALL, normal
from kullback import Labels, Logits, LogProbs, Probs, cross_entropy, entropy, kl, losses
from kullback.divergences import TABLE
from kullback.verbs import measure


@pytest.mark.parametrize("names", list(itertools.product(FORMS, FORMS)), ids="-".join)
def test_nothing_given_is_modified(names):
    for case, row in itertools.product(SMALL, TABLE):
        x, y = (DATA[n](s, torch.float32) for n, s in zip(names, case.make(), strict=True))
        kept = x.clone(), y.clone(), x._version, y._version
        x.requires_grad_(), y.requires_grad_()
        measure(row, FORMS[names[0]](x), FORMS[names[1]](y)).sum().backward()
        assert torch.equal(x.detach(), kept[0]), case
        assert torch.equal(y.detach(), kept[1]), case
        assert (x._version, y._version) == kept[2:], case


@pytest.mark.parametrize(("left", "right"), list(itertools.product(DTYPES, DTYPES)), ids=str)
def test_mixed_dtypes(left, right):
    """float64 if an input is, else float32; every gradient in its own input's dtype; inputs count as exact."""
    a, b = normal(3, 5, seed=1).to(left), normal(3, 5, seed=2).to(right)
    truth = kl(Logits(a.double()), Logits(b.double()))
    x, y = a.requires_grad_(), b.requires_grad_()
    value = kl(Logits(x), Logits(y))
    assert value.dtype == (torch.float64 if torch.float64 in (left, right) else torch.float32)
    # eager rounds once, to 6e-8; the C++ engine's terms are float32, each within a few of these
    rtol = 1e-12 if value.dtype == torch.float64 else 5e-7
    torch.testing.assert_close(value.double(), truth, rtol=rtol, atol=0, check_dtype=False)
    value.sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (left, right)


@pytest.mark.parametrize("form", [Logits, Probs, LogProbs])
def test_lists_arrays_and_tensors_mean_the_same(form):
    rows = {Logits: [[1.0, 2.0]], Probs: [[0.25, 0.75]], LogProbs: [[math.log(0.5), math.log(0.5)]]}[form]
    truth = form(torch.tensor(rows)).data
    single, double = np.array(rows, dtype=np.float32), np.array(rows)
    frozen = single.copy()
    frozen.flags.writeable = False
    for given in (rows, tuple(map(tuple, rows)), single, frozen):
        assert torch.equal(form(given).data, truth)
        assert form(given).data.dtype == torch.float32
    assert form(double).data.dtype == torch.float64
    assert torch.equal(form(np.asfortranarray(double.repeat(2, 0))).data, torch.tensor(double.repeat(2, 0)))


def test_integers_in_a_list_are_numbers():
    assert torch.equal(Logits([0, 1]).data, torch.tensor([0.0, 1.0]))
    assert torch.equal(Probs([0, 1]).data, torch.tensor([0.0, 1.0]))


def test_a_tensor_is_held_without_a_copy():
    x = torch.full((2, 2), 0.5)
    for form in (Logits, Probs):
        assert form(x).data is x
    array = np.full((2, 2), 0.5, dtype=np.float32)
    assert Logits(array).data.data_ptr() == array.__array_interface__["data"][0]


EVERY_FORM = {
    "Counts": lambda: kullback.Counts([1, 2]),
    "Density": lambda: kullback.Density(lambda x: -x, support=(0.0, math.inf)),
    "Drawn": lambda: kullback.Drawn([[0, 1]], [[-1.0, -1.0]], 2),
    "Labels": lambda: Labels([0, 1], 2),
    "LinearLogits": lambda: kullback.LinearLogits(torch.zeros(1, 3), torch.zeros(2, 3)),
    "LogProbs": lambda: LogProbs([0.0, -math.inf]),
    "LogRatios": lambda: kullback.LogRatios([0.1], [0.2], drawn_from="p"),
    "Logits": lambda: Logits([0.0, 1.0]),
    "Points": lambda: kullback.Points([0.0, 1.0], [1.0, 3.0]),
    "Probs": lambda: Probs([0.5, 0.5]),
    "Samples": lambda: kullback.Samples([0.0, 1.0]),
    "TopK": lambda: kullback.TopK([[0, 1]], [[-1.0, -1.0]], 3, tail="even"),
    "DiagonalGaussian": lambda: losses.DiagonalGaussian(torch.zeros(2), torch.zeros(2)),
    "FullGaussian": lambda: losses.FullGaussian(torch.zeros(2), torch.eye(2)),
}


@pytest.mark.parametrize("name", EVERY_FORM)
def test_forms_are_frozen_and_told_apart_as_objects(name):
    """Equality of tensors is a tensor: two forms of the same numbers are two, and each can be a key."""
    form, other = EVERY_FORM[name](), EVERY_FORM[name]()
    field = dataclasses.fields(form)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(form, field, None)
    assert form == form
    assert form != other
    assert len({form, other}) == 2


@pytest.mark.parametrize("name", EVERY_FORM)
def test_a_form_is_printed_as_it_was_written(name):
    """What a form derives from its arguments (its data once more, say) is not printed beside them."""
    form = EVERY_FORM[name]()
    derived = [f.name for f in dataclasses.fields(form) if not f.init]
    assert not any(f"{attribute}=" in repr(form) for attribute in derived)
    assert repr(form).startswith(f"{name}(")


def test_every_public_form_is_among_them():
    public = {n for n in kullback.__all__ if dataclasses.is_dataclass(getattr(kullback, n))}
    assert public - {"Route", "Sharded"} <= set(EVERY_FORM)  # a plan, and a form that needs a process group


@pytest.mark.parametrize("integers", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_labels_of_every_integer_dtype(integers):
    labels = Labels(torch.tensor([0, 2], dtype=integers), 3)
    torch.testing.assert_close(kl(labels, Logits(torch.zeros(3))), torch.full((2,), math.log(3.0)))


def test_labels_from_a_list_an_array_and_a_number():
    q = Logits([0.0, 1.0, 2.0])
    want = kl(Labels(torch.tensor([2]), 3), q)
    assert torch.equal(kl(Labels([2], 3), q), want)
    assert torch.equal(kl(Labels(np.array([2]), 3), q), want)
    assert torch.equal(kl(Labels(2, 3), q), want[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 1.0])
def test_smoothing_over_all_classes_is_that_of_pytorch(smoothing):
    """F.cross_entropy's value is H(labels, softmax); ours minus the labels' entropy is KL."""
    x, y = normal(6, 5, seed=3).requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 0])
    labels = Labels(y, 5, smoothing)
    truth = F.cross_entropy(x, y, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(labels, Logits(x)), truth, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(kl(labels, Logits(x)) + entropy(labels), truth, rtol=1e-6, atol=0, check_dtype=False)
    ours, theirs = (torch.autograd.grad(v.sum(), x)[0] for v in (cross_entropy(labels, Logits(x)), truth))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 1.0])
def test_smoothing_over_the_other_classes(smoothing):
    """As WeNet and ESPnet write it: 1 - ε at the label, ε/(V-1) elsewhere, and the KL to that."""
    x, y, v = normal(6, 5, seed=4), torch.tensor([0, 1, 2, 3, 4, 0]), 5
    p = torch.full((6, v), smoothing / (v - 1), dtype=torch.float64)
    p[torch.arange(6), y] = 1.0 - smoothing
    terms = torch.where(p > 0, p * (torch.where(p > 0, p, 1.0).log() - torch.log_softmax(x, -1)), 0.0)
    torch.testing.assert_close(kl(Labels(y, v, smoothing, "others"), Logits(x)), terms.sum(-1), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("spread", ["all", "others"])
def test_no_smoothing_is_finite_with_finite_gradients(spread):
    """Known trap: 0·log 0 = NaN."""
    x = normal(2, 4, seed=5).requires_grad_()
    value = kl(Labels([0, 3], 4, 0.0, spread), Logits(x))
    torch.testing.assert_close(value, -torch.log_softmax(x, -1)[[0, 1], [0, 3]], rtol=1e-13, atol=0)
    (grad,) = torch.autograd.grad(value.sum(), x)
    one_hot = F.one_hot(torch.tensor([0, 3]), 4)
    torch.testing.assert_close(grad, torch.softmax(x.detach(), -1) - one_hot, rtol=1e-12, atol=1e-15)


def test_a_single_class():
    assert kl(Labels([0, 0], 1), Logits([[3.0], [-2.0]])).tolist() == [0.0, 0.0]
    assert kl(Labels([0], 1, 0.3), Probs([[1.0]])).tolist() == [0.0]


@pytest.mark.parametrize(
    "shapes", [((3,), (3,)), ((1, 3), (4, 3)), ((4, 1, 3), (5, 3)), ((0, 3), (3,)), ((0, 3), (1, 3))]
)
def test_batch_shapes_broadcast(shapes):
    left, right = normal(*shapes[0], seed=6), normal(*shapes[1], seed=7)
    want = torch.broadcast_shapes(shapes[0][:-1], shapes[1][:-1])
    value = kl(Logits(left), Logits(right))
    assert value.shape == want
    a, b = left.expand(*want, 3), right.expand(*want, 3)
    assert torch.equal(value, kl(Logits(a.contiguous()), Logits(b.contiguous())))


def test_strides_do_not_matter():
    a, b = normal(6, 8, seed=8), normal(6, 8, seed=9)
    want = kl(Logits(a[::2, ::2].contiguous()), Logits(b.T[:3, :4].contiguous()))
    # a strided row may be summed in another order
    torch.testing.assert_close(kl(Logits(a[::2, ::2]), Logits(b.T[:3, :4])), want, rtol=1e-14, atol=0)
    x = a.T.requires_grad_()
    kl(Logits(x), Logits(b.T)).sum().backward()
    y = a.T.contiguous().detach().requires_grad_()
    kl(Logits(y), Logits(b.T.contiguous())).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-13, atol=1e-16)


def test_meta_tensors_carry_shapes_and_dtypes():
    p, q = (torch.empty(2, 3, 4, device="meta", dtype=torch.bfloat16) for _ in range(2))
    for row in TABLE:
        value = measure(row, Logits(p), Probs(q))
        assert (value.device.type, value.shape, value.dtype) == ("meta", (2, 3), torch.float32)


def test_every_verb_takes_its_forms_by_position_only():
    for name in ("kl", "js", "jeffreys", "tv", "hellinger", "chi2", "cross_entropy"):
        with pytest.raises(TypeError):
            getattr(kullback, name)(p=Probs([1.0]), q=Probs([1.0]))


def test_a_tempered_form_is_the_power_of_its_distribution():
    p = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    want = p**0.5 / (p**0.5).sum()
    for form in (Probs(p), LogProbs(p.log()), Logits(p.log() + 3.0)):
        reading = form.tempered(2.0)
        torch.testing.assert_close(reading.probabilities(), want, rtol=1e-14, atol=0)
    soft = Labels([1], 4, 0.2).tempered(2.0)
    w = torch.tensor([0.05, 0.85, 0.05, 0.05], dtype=torch.float64) ** 0.5
    torch.testing.assert_close(soft.probabilities()[0], w / w.sum(), rtol=1e-14, atol=0)


def test_a_detached_form_takes_no_gradient():
    x = normal(2, 3, seed=10).requires_grad_()
    for form in (Logits(x, 2.0), LogProbs(torch.log_softmax(x, -1)), Probs(torch.softmax(x, -1))):
        assert not form.detach().data.requires_grad
        assert kl(form, form.detach()).tolist() == [0.0, 0.0]
