"""`torch_compat` against PyTorch itself, and where PyTorch gives NaN."""

import itertools
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from kullback._errors import FormError
from kullback.torch_compat import KLDivLoss, kl_div

SHAPES = [
    ((4, 7), (4, 7)),
    ((2, 3, 5), (2, 3, 5)),
    ((3, 5), (1, 5)),
    ((5,), (4, 5)),
    ((6,), (6,)),
    ((), ()),
    ((0, 4), (0, 4)),
    ((3, 1), (3, 1)),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
REDUCTIONS = ["none", "mean", "sum", "batchmean"]


def rows(shape_q, shape_p, dtype, log_target, seed=0):
    g = torch.Generator().manual_seed(seed)
    log_q = torch.randn(shape_q, generator=g, dtype=torch.float64).sub(1).to(dtype)
    log_p = torch.randn(shape_p, generator=g, dtype=torch.float64).log_softmax(-1)
    return log_q, (log_p if log_target else log_p.exp()).to(dtype)


def call(f, *args, **kwargs):
    """Value and the text of every warning."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        value = f(*args, **kwargs)
    return value, sorted(str(w.message) for w in seen)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_same_values_dtypes_shapes_gradients_and_warnings(shapes, dtype, log_target, reduction):
    log_q, target = rows(*shapes, dtype, log_target)
    ours_in, theirs_in = ([x.clone().requires_grad_() for x in (log_q, target)] for _ in range(2))
    ours, our_warnings = call(kl_div, *ours_in, reduction=reduction, log_target=log_target)
    theirs, their_warnings = call(F.kl_div, *theirs_in, reduction=reduction, log_target=log_target)
    assert our_warnings == their_warnings
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    # the same terms, in an order of operations that may round differently: a few eps of the largest term
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=8 * eps, atol=8 * eps, equal_nan=True)
    ours.sum().backward()
    theirs.sum().backward()
    for a, b in zip(ours_in, theirs_in, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=16 * eps, atol=16 * eps)


@pytest.mark.parametrize(("size_average", "reduce"), list(itertools.product([None, True, False], repeat=2))[1:])
@pytest.mark.parametrize("as_module", [False, True])
def test_the_deprecated_pair(size_average, reduce, as_module):
    log_q, target = rows((4, 7), (4, 7), torch.float64, False)
    if as_module:
        ours, our_warnings = call(lambda: KLDivLoss(size_average, reduce)(log_q, target))
        theirs, their_warnings = call(lambda: torch.nn.KLDivLoss(size_average, reduce)(log_q, target))
    else:
        ours, our_warnings = call(kl_div, log_q, target, size_average, reduce)
        theirs, their_warnings = call(F.kl_div, log_q, target, size_average, reduce)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-15)
    assert our_warnings == their_warnings


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_module(log_target, reduction):
    log_q, target = rows((4, 7), (4, 7), torch.float32, log_target)
    ours, our_warnings = call(KLDivLoss(reduction=reduction, log_target=log_target), log_q, target)
    theirs, their_warnings = call(torch.nn.KLDivLoss(reduction=reduction, log_target=log_target), log_q, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert our_warnings == their_warnings


def test_the_module_is_one_of_pytorchs_and_can_be_pickled():
    loss = pickle.loads(pickle.dumps(KLDivLoss(reduction="sum", log_target=True)))
    assert isinstance(loss, torch.nn.KLDivLoss)
    assert (loss.reduction, loss.log_target) == ("sum", True)
    edge = torch.tensor([-math.inf, 0.0])
    assert loss(edge, edge).item() == 0  # and not PyTorch's NaN


@pytest.mark.parametrize(
    ("q_dtype", "p_dtype"),
    [(torch.float32, torch.float64), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)],
)
def test_mixed_dtypes_promote_as_in_pytorch(q_dtype, p_dtype):
    log_q, target = rows((4, 7), (4, 7), torch.float64, False)
    ours = kl_div(log_q.to(q_dtype), target.to(p_dtype), reduction="sum")
    theirs = F.kl_div(log_q.to(q_dtype), target.to(p_dtype), reduction="sum")
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_unnormalised_inputs_keep_pytorchs_signed_values():
    log_q, p = torch.tensor([0.3, -2.0]), torch.tensor([0.1, 0.2])
    ours = kl_div(log_q, p, reduction="none")
    torch.testing.assert_close(ours, F.kl_div(log_q, p, reduction="none"))
    assert ours[0] < 0


# (input, target, log_target) -> value, gradient to input, gradient to target; None where PyTorch is already right
EDGES = {
    "target 0, input -inf": (-math.inf, 0.0, False, 0.0, 0.0, 0.0),
    "target 0, input finite": (-1.5, 0.0, False, 0.0, 0.0, 0.0),
    "target 1, input 0": (0.0, 1.0, False, 0.0, -1.0, 1.0),
    "log_target -inf, input -inf": (-math.inf, -math.inf, True, 0.0, 0.0, 0.0),
    "log_target -inf, input finite": (-1.5, -math.inf, True, 0.0, 0.0, 0.0),
    "target > 0, input -inf": (-math.inf, 0.25, False, math.inf, -0.25, math.inf),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_finite_where_the_mathematics_is(name, dtype):
    log_q, target, log_target, value, to_input, to_target = EDGES[name]
    q = torch.tensor([log_q, -1.0], dtype=dtype, requires_grad=True)
    p = torch.tensor([target, 0.0 if not log_target else -math.inf], dtype=dtype, requires_grad=True)
    out = kl_div(q, p, reduction="none", log_target=log_target)
    assert out[0].item() == value
    out.sum().backward()
    assert q.grad[0].item() == to_input
    assert p.grad[0].item() == to_target
    assert not q.grad.isnan().any()
    assert not p.grad.isnan().any()


def test_pytorch_still_needs_the_replacement():
    """The reason for this module; when it fails, PyTorch has been mended and the documentation should say so."""
    q, p = torch.tensor([-math.inf, 0.0]), torch.tensor([0.0, 1.0])
    assert F.kl_div(q, p, reduction="sum").isnan()
    assert kl_div(q, p, reduction="sum").item() == 0.0


@pytest.mark.parametrize("log_target", [False, True])
def test_nan_is_not_repaired(log_target):
    nan = torch.tensor([math.nan])
    p = torch.tensor([-math.inf if log_target else 0.0])
    assert kl_div(nan, p, reduction="sum", log_target=log_target).isnan()
    assert kl_div(torch.tensor([-1.0]), nan, reduction="sum", log_target=log_target).isnan()


def test_gradcheck_and_double_backward():
    q, p = [x.requires_grad_() for x in rows((3, 4), (3, 4), torch.float64, False)]
    assert torch.autograd.gradcheck(lambda a, b: kl_div(a, b, reduction="batchmean"), (q, p))
    assert torch.autograd.gradgradcheck(lambda a, b: kl_div(a, b, reduction="batchmean"), (q, p))


def test_compiles_whole():
    log_q, p = rows((4, 7), (4, 7), torch.float32, False)
    compiled = torch.compile(lambda a, b: kl_div(a, b, reduction="batchmean"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(log_q, p), kl_div(log_q, p, reduction="batchmean"))


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match=r"not a valid value for reduction.*batchmean"):
        kl_div(torch.zeros(2), torch.ones(2), reduction="average")


def with_a_zero(x):
    return x.index_fill(-1, torch.tensor(1), -math.inf)


CHECKED = {
    "fine": (lambda x, y: (x.log_softmax(-1), y.softmax(-1), False), None),
    "fine in logarithms": (lambda x, y: (x.log_softmax(-1), y.log_softmax(-1), True), None),
    "fine with zeros": (lambda x, y: (with_a_zero(x).log_softmax(-1), y.softmax(-1), False), None),
    "a class left out of input": (lambda x, y: (x.log_softmax(-1)[..., :-1], y[..., :-1].softmax(-1), False), None),
    "probabilities as input": (lambda x, y: (x.softmax(-1), y.softmax(-1), False), "KLB003.*probabilities .row 0"),
    "logits as input": (lambda x, y: (x + 3, y.softmax(-1), False), "KLB003: input holds no log-probabilities"),
    "nan in input": (lambda x, y: (x.log_softmax(-1) * math.nan, y.softmax(-1), False), "KLB003"),
    "log-probabilities as target": (lambda x, y: (x.log_softmax(-1), y.log_softmax(-1), False), "KLB004.*target=True"),
    "logits as target": (lambda x, y: (x.log_softmax(-1), y, False), "KLB004: target holds a negative number in row 0"),
    "weights as target": (lambda x, y: (x.log_softmax(-1), y.exp() + 1, False), "KLB004: target is no distribution"),
    "probabilities as log_target": (lambda x, y: (x.log_softmax(-1), y.softmax(-1), True), "KLB004.*log_target=False"),
    "one row of many": (
        lambda x, y: (torch.cat([x[:3].log_softmax(-1), x[3:]]), y.softmax(-1), False), "KLB003.*exp of row 3 "
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_check_is_off_unless_asked_for_and_then_says_what_is_wrong(name, dtype):
    make, message = CHECKED[name]
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(4, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    log_q, p, log_target = make(x, y)
    log_q, p = log_q.to(dtype), p.to(dtype)
    options = {"reduction": "batchmean", "log_target": log_target}
    kl_div(log_q, p, **options)
    if message is None:
        checked = kl_div(log_q, p, **options, check=True)
        torch.testing.assert_close(checked, kl_div(log_q, p, **options), equal_nan=True, rtol=0, atol=0)
        KLDivLoss(**options, check=True)(log_q, p)
        return
    for call in (lambda: kl_div(log_q, p, **options, check=True), lambda: KLDivLoss(**options, check=True)(log_q, p)):
        with pytest.raises(FormError, match=message):
            call()


def test_the_check_leaves_values_and_gradients_alone():
    log_q, p = rows((4, 7), (4, 7), torch.float64, False)
    log_q = log_q.log_softmax(-1).requires_grad_()
    kl_div(log_q, p, reduction="batchmean", check=True).backward()
    torch.testing.assert_close(log_q.grad, -p / 4)


def test_empty_batches_and_single_numbers_pass():
    kl_div(torch.zeros(0, 4), torch.zeros(0, 4), reduction="sum", check=True)
    kl_div(torch.tensor(0.0), torch.tensor(1.0), reduction="sum", check=True)


def test_the_module_keeps_its_setting():
    assert not KLDivLoss(reduction="sum").check
    assert pickle.loads(pickle.dumps(KLDivLoss(reduction="sum", check=True))).check
