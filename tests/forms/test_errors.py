"""Every refusal says what was given, what is needed, and what to write instead."""

import dataclasses
import math

import pytest
import torch

import kullback
from kullback import (
    FormError,
    KullbackError,
    Labels,
    Logits,
    LogProbs,
    NoExactMethod,
    Probs,
    alpha,
    explain,
    js,
    kl,
    renyi,
)

NAN = math.nan
GOOD = Probs([0.5, 0.5])

# what is called, and pieces of the message in order
REFUSED = {
    "not normalised": (
        lambda: Probs([[0.5, 0.5], [0.5, 0.6]]),
        ["Probs: row 1 sums to 1.1", "not 1", "x / x.sum(-1, keepdim=True)"],
    ),
    "counts": (lambda: Probs([[3.0, 4.0]]), ["row 0 sums to 7", "counts"]),
    "several rows": (lambda: Probs([[1.0, 0.0], [1.0, 1.0], [2.0, 1.0]]), ["row 1 sums to 2", "(2 such rows)"]),
    "row of a deeper batch": (
        lambda: Probs(torch.tensor([[[0.5, 0.5]], [[0.9, 0.9]]])),
        ["row (1, 0) sums to 1.79999"],
    ),
    "no batch axis": (lambda: Probs([0.5, 0.6]), ["the row sums to 1.1"]),
    "negative": (lambda: Probs([[1.25, -0.25]]), ["row 0", "negative entry -0.25", "Logits(x)"]),
    "NaN in probabilities": (lambda: Probs([[0.5, 0.5], [NAN, 0.5]]), ["row 1 holds NaN"]),
    "NaN in log-probabilities": (lambda: LogProbs([[NAN, 0.0]]), ["LogProbs: row 0 holds NaN"]),
    "scores as log-probabilities": (
        lambda: LogProbs([[0.0, 1.0]]),
        ["row 0 exp(x) sums to 3.71828", "Logits(x) if these are scores"],
    ),
    "infinite probability": (lambda: Probs([[math.inf, 0.0]]), ["row 0 sums to inf"]),
    "empty V, probabilities": (lambda: Probs(torch.zeros(2, 0)), ["Probs", "(2, 0)", "V=0", "at least one class"]),
    "empty V, scores": (lambda: kl(Logits(torch.zeros(0)), Logits(torch.zeros(0))), ["Logits", "(0,)", "V=0"]),
    "a single number": (lambda: Logits(1.0), ["a single number", "(..., V)", "unsqueeze(-1)"]),
    "integers as scores": (
        lambda: Logits(torch.tensor([1, 2])),
        ["torch.int64", "Logits(x.float())", "Labels(x, num_classes)"],
    ),
    "booleans": (lambda: Probs(torch.tensor([True, False])), ["torch.bool", "floating"]),
    "complex": (lambda: Logits(torch.zeros(2, dtype=torch.complex64)), ["torch.complex64"]),
    "temperature zero": (lambda: Logits([0.0], temperature=0), ["temperature is 0", "above 0"]),
    "temperature negative": (lambda: Logits([0.0], temperature=-1.0), ["temperature is -1.0", "above 0"]),
    "temperature NaN": (lambda: Logits([0.0], temperature=NAN), ["temperature is nan"]),
    "temperature infinite": (lambda: Logits([0.0], temperature=math.inf), ["temperature is inf"]),
    "temperature tensor": (
        lambda: Logits([0.0], temperature=torch.tensor(2.0)),
        ["is a tensor", "Logits(x / temperature)"],
    ),
    "label too large": (
        lambda: Labels([0, 3], 3),
        ["Labels: row 1 holds 3", "num_classes=3 allows 0 to 2", "ignore_index"],
    ),
    "label negative": (lambda: Labels([-100, 0], 3), ["row 0 holds -100"]),
    "label of no batch axis": (lambda: Labels(7, 3), ["the row holds 7"]),
    "floating labels": (lambda: Labels(torch.tensor([0.0]), 3), ["torch.float32", "integers", "y.long()", "Probs(y)"]),
    "boolean labels": (lambda: Labels(torch.tensor([True]), 2), ["torch.bool", "integers"]),
    "no classes": (lambda: Labels(torch.tensor([], dtype=torch.long), 0), ["num_classes is 0", "at least one class"]),
    "classes not an integer": (lambda: Labels([0], 2.5), ["num_classes is 2.5", "integer"]),
    "smoothing above one": (lambda: Labels([0], 2, 1.5), ["smoothing is 1.5", "from 0 to 1"]),
    "smoothing negative": (lambda: Labels([0], 2, -0.1), ["smoothing is -0.1"]),
    "smoothing NaN": (lambda: Labels([0], 2, NAN), ["smoothing is nan"]),
    "unknown spread": (lambda: Labels([0], 2, 0.1, "rest"), ["spread is 'rest'", "'all'", "'others'"]),
    "nobody to smooth to": (lambda: Labels([0], 1, 0.1, "others"), ["num_classes=1", "spread='all'"]),
    "bare tensor as p": (
        lambda: kl(torch.zeros(2), GOOD),
        ["kl: p is a bare Tensor", "Logits(p)", "LogProbs(p)", "Probs(p)", "Labels(p, num_classes)"],
    ),
    "bare tensor as q": (lambda: js(GOOD, torch.zeros(2)), ["js: q is a bare Tensor", "Logits(q)"]),
    "bare list": (lambda: renyi([0.5, 0.5], GOOD, 2.0), ["renyi: p is a bare list"]),
    "bare tensor in entropy": (lambda: kullback.entropy(torch.zeros(2)), ["entropy: p is a bare Tensor"]),
    "bare tensor in explain": (lambda: explain(GOOD, torch.zeros(2)), ["explain: q is a bare Tensor"]),
    "different V, q padded": (
        lambda: kl(Logits(torch.zeros(151936)), Logits(torch.zeros(152064))),
        ["p has V=151936 but q has V=152064", "q's vocabulary is padded", "Logits(q[..., :151936])"],
    ),
    "different V, p padded": (
        lambda: kl(Logits(torch.zeros(152064)), Logits(torch.zeros(151936))),
        ["p has V=152064 but q has V=151936", "p's vocabulary is padded", "Logits(p[..., :151936])"],
    ),
    "different V, labels": (lambda: kl(Labels([0], 3), GOOD), ["p has V=3 but q has V=2"]),
    "V=1 does not broadcast": (lambda: kl(Probs([1.0]), GOOD), ["p has V=1 but q has V=2"]),
    "batches that do not broadcast": (
        lambda: kl(Logits(torch.zeros(2, 4)), Logits(torch.zeros(3, 4))),
        ["p has batch shape (2,) but q has (3,)", "do not broadcast", "unsqueeze"],
    ),
    "different devices": (
        lambda: kl(Logits(torch.zeros(2)), Logits(torch.zeros(2, device="meta"))),
        ["p is on cpu but q is on meta", ".to('cpu')"],
    ),
    "base one": (lambda: kl(GOOD, GOOD, base=1), ["base is 1", "base=2 for bits"]),
    "base below one": (lambda: kl(GOOD, GOOD, base=0.5), ["base is 0.5"]),
    "base as text": (lambda: kl(GOOD, GOOD, base="2"), ["base is '2'"]),
    "weight above one": (lambda: js(GOOD, GOOD, weight=1.5), ["js: weight is 1.5", "from 0 to 1"]),
    "weight NaN": (lambda: js(GOOD, GOOD, weight=NAN), ["js: weight is nan"]),
    "negative order": (lambda: renyi(GOOD, GOOD, -0.5), ["renyi: order is -0.5", ">= 0"]),
    "infinite order": (lambda: renyi(GOOD, GOOD, math.inf), ["renyi: order is inf", "finite"]),
    "NaN order": (lambda: alpha(GOOD, GOOD, NAN), ["alpha: order is nan", "finite"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name):
    call, pieces = REFUSED[name]
    with pytest.raises(FormError) as caught:
        call()
    message, at = str(caught.value), 0
    for piece in pieces:
        at = message.find(piece, at)
        assert at >= 0, f"{piece!r} is missing (in this order) from: {message}"
    assert "\n" not in message
    assert message.endswith((".", ")"))


def test_the_tree_of_errors():
    assert issubclass(FormError, KullbackError)
    assert issubclass(FormError, ValueError)
    assert issubclass(NoExactMethod, KullbackError)
    assert issubclass(NoExactMethod, TypeError)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_tolerance_on_sums_is_the_root_of_eps(dtype):
    eps = torch.finfo(dtype).eps
    start = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    Probs((start * (1.0 + 0.5 * eps**0.5)).to(dtype))
    with pytest.raises(FormError, match="sums to"):
        Probs((start * (1.0 + 2.0 * eps**0.5)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_softmax_over_a_large_vocabulary_is_accepted(dtype):
    x = torch.randn(2, 128_256, generator=torch.Generator().manual_seed(0))
    Probs(
        torch.softmax(x, -1, dtype=torch.float32).to(dtype) if dtype != torch.float64 else torch.softmax(x.double(), -1)
    )
    LogProbs(torch.log_softmax(x.double(), -1).to(torch.float32 if dtype.itemsize == 2 else dtype))


def test_checks_can_be_left_out():
    assert kl(Probs([2.0, 0.0], validate=False), Probs([1.0, 0.0])).isfinite()
    Labels([7], 3, validate=False)
    LogProbs([5.0], validate=False)


@pytest.mark.parametrize("support", [(1.0, 0.0), (1.0, 1.0), (math.inf, -math.inf), (0.0, NAN)])
def test_a_density_needs_a_support_with_low_below_high(support):
    with pytest.raises(FormError, match=r"the support .* is empty; write \(low, high\) with low < high"):
        kullback.Density(lambda x: x, support=support)
    ends = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0])
    with pytest.raises(FormError, match="is empty"):
        kullback.Density(lambda x: x, support=ends, batch_shape=(2,))
    assert kullback.Density(lambda x: x, support=(0.0, 1.0)).support == (0.0, 1.0)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, NAN, torch.tensor([1.0, 0.0])])
def test_a_density_needs_a_finite_scale_above_0(scale):
    with pytest.raises(FormError, match="must be a finite number above 0"):
        kullback.Density(lambda x: x, scale=scale)
    assert kullback.Density(lambda x: x, scale=1e-300).scale == 1e-300


def test_a_density_is_frozen_and_centred_at_0():
    density = kullback.Density(lambda x: -x)
    assert (density.center, density.scale, density.support) == (0.0, 1.0, (-math.inf, math.inf))
    with pytest.raises(dataclasses.FrozenInstanceError):
        density.center = 1.0


def test_samples_count_their_rows():
    assert len(kullback.Samples(torch.zeros(5, 2))) == 5
    assert len(kullback.Samples(torch.zeros(7))) == 7


def test_what_is_no_array_is_advised_of_its_scores_only_if_it_has_some():
    class Output:
        logits = torch.zeros(1, 2)

    with pytest.raises(FormError, match=r"which is no array of numbers .*Write Logits\(x.logits\)\.$"):
        Logits(Output())
    with pytest.raises(FormError, match=r"which is no array of numbers \(.*\)\.$"):
        Logits(object())
