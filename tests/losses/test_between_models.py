"""R-Drop, mutual learning, GKD, skew KL, decoupled distillation: against their sources, written out."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from kullback import FormError, Labels, Logits, LogProbs, Probs, js, kl, skew
from kullback.losses import DKD, GKD, MutualLearning, RDrop, SkewKL


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    a, b, c = (2 * torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    return a.requires_grad_(), b.requires_grad_(), c.requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 0, 1])


def plain_kl(p, q):
    """KL(softmax p ‖ softmax q), in plain float64."""
    return (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)


def same(ours, source, *inputs):
    assert ours.item() == pytest.approx(source.item(), rel=1e-12)
    for x in inputs:
        (g,), (s,) = (torch.autograd.grad(v, x, retain_graph=True) for v in (ours, source))
        torch.testing.assert_close(g, s, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("nll", ["sum", "mean"])
def test_rdrop_equals_liang(batch, nll):
    a, b, _, y = batch
    ours = RDrop(alpha=5.0, nll=nll)(first=a, second=b, labels=y)
    ce = F.cross_entropy(a, y) + F.cross_entropy(b, y)
    agree = (plain_kl(a, b) + plain_kl(b, a)).mean() / 2
    same(ours, (ce if nll == "sum" else ce / 2) + 5.0 * agree, a, b)


def test_rdrop_is_symmetric_and_pulls_both_sides(batch):
    a, b, _, y = batch
    one, other = RDrop()(first=a, second=b, labels=y), RDrop()(first=b, second=a, labels=y)
    assert one.item() == other.item()
    unlabelled = torch.full_like(y, -100)
    agree = RDrop(unlabelled="kl")(first=a, second=b, labels=unlabelled)
    same(agree, (plain_kl(a, b) + plain_kl(b, a)).mean() / 2, a, b)
    assert all(g.abs().sum() > 0.1 for g in torch.autograd.grad(agree, (a, b)))


def test_a_term_of_weight_zero_counts_for_nothing_even_where_it_is_infinite():
    """0·∞ would be NaN."""
    a, b = torch.tensor([[0.0, 0.0]], requires_grad=True), torch.tensor([[0.0, -math.inf]])
    y = torch.tensor([0])
    for loss in (RDrop(0.0)(first=a, second=b, labels=y), MutualLearning(0.0)(peers=[a, b], labels=y).sum()):
        assert loss.item() == pytest.approx(math.log(2), rel=1e-6)
        torch.testing.assert_close(torch.autograd.grad(loss, a)[0], torch.tensor([[-0.5, 0.5]]))
    nothing = DKD(0.0, 0.0)(student=a, teacher=b, labels=y)
    assert nothing.item() == 0
    assert (torch.autograd.grad(nothing, a)[0] == 0).all()


@pytest.mark.parametrize("nll", ["sum", "mean"])
def test_rows_without_a_label_leave_both_terms_of_rdrop(batch, nll):
    """As in the paper's own code, which masks padding in its KL; `unlabelled="kl"` keeps them there."""
    a, b, _, y = batch
    partly, labelled = torch.where(torch.arange(7) < 4, y, -100), slice(4)
    ce = F.cross_entropy(a[:4], y[:4]) + F.cross_entropy(b[:4], y[:4])
    ce = ce if nll == "sum" else ce / 2
    for where, rows in (("drop", labelled), ("kl", slice(7))):
        loss = RDrop(2.0, nll=nll, unlabelled=where)
        agree = (plain_kl(a[rows], b[rows]) + plain_kl(b[rows], a[rows])).mean() / 2
        same(loss(first=a, second=b, labels=partly), ce + 2.0 * agree, a, b)
        parts = loss.parts(first=a, second=b, labels=partly)
        assert (parts.nll.item(), parts.kl.item()) == pytest.approx((ce.item(), agree.item()), rel=1e-12)


def test_rows_without_a_label_leave_both_terms_of_mutual_learning(batch):
    a, b, c, y = batch
    partly = torch.where(torch.arange(7) < 4, y, -100)
    for where, rows in (("drop", slice(4)), ("kl", slice(7))):
        parts = MutualLearning(0.5, unlabelled=where).parts(peers=[a, b, c], labels=partly)
        for k, (learner, others) in enumerate(((a, (b, c)), (b, (a, c)), (c, (a, b)))):
            nll = F.cross_entropy(learner[:4], y[:4])
            taught = sum(plain_kl(o.detach()[rows], learner[rows]).mean() for o in others) / 2
            same(parts.loss[k], nll + 0.5 * taught, learner)
            assert (parts.nll[k].item(), parts.kl[k].item()) == pytest.approx((nll.item(), taught.item()), rel=1e-12)


def test_rows_without_a_label_leave_dkd(batch):
    student, teacher, _, y = batch
    partly = torch.where(torch.arange(7) < 4, y, -100)
    ours = DKD(1.0, 8.0)(student=student, teacher=teacher, labels=partly)
    same(ours, zhao(student[:4], teacher.detach()[:4], y[:4], 1.0, 8.0, 4.0), student)


def test_mutual_learning_equals_zhang(batch):
    a, b, c, y = batch
    ours = MutualLearning()(peers=[a, b, c], labels=y)
    for k, (learner, others) in enumerate(((a, (b, c)), (b, (a, c)), (c, (a, b)))):
        source = F.cross_entropy(learner, y) + sum(plain_kl(o.detach(), learner).mean() for o in others) / 2
        same(ours[k], source, learner)
    (together,) = torch.autograd.grad(ours.sum(), a, retain_graph=True)
    torch.testing.assert_close(together, torch.autograd.grad(ours[0], a)[0], rtol=1e-12, atol=0)


def test_mutual_learning_swaps_with_its_peers_and_may_pull_both_sides(batch):
    a, b, _, y = batch
    assert MutualLearning()(peers=[a, b], labels=y).tolist() == MutualLearning()(peers=[b, a], labels=y).tolist()[::-1]
    both = MutualLearning(detach=False)(peers=[a, b], labels=y)
    same(both[0], F.cross_entropy(a, y) + plain_kl(b, a).mean(), a, b)


def agarwal(teacher, student, beta):
    m = beta * teacher.softmax(-1) + (1 - beta) * student.softmax(-1)
    left = (teacher.softmax(-1) * (teacher.log_softmax(-1) - m.log())).sum(-1)
    right = (student.softmax(-1) * (student.log_softmax(-1) - m.log())).sum(-1)
    return (beta * left + (1 - beta) * right).mean()


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_gkd_equals_agarwal(batch, beta):
    student, teacher, _, _ = batch
    same(GKD(beta)(student=student, teacher=teacher), agarwal(teacher.detach(), student, beta), student)
    tempered = GKD(beta, temperature=2.0)(student=student, teacher=teacher)
    same(tempered, agarwal(teacher.detach() / 2, student / 2, beta), student)
    assert torch.autograd.grad(tempered, teacher, allow_unused=True) == (None,)


def test_gkd_is_continuous_in_beta_to_both_ends(batch):
    """T15: as shipped elsewhere β = 0.999 gives a thousandth of β = 1."""
    student, teacher, _, _ = (x.detach() if x.is_floating_point() else x for x in batch)
    forward, reverse = kl(Logits(teacher), Logits(student)).mean(), kl(Logits(student), Logits(teacher)).mean()

    def value(beta, **options):
        return GKD(beta, **options)(student=student, teacher=teacher).item()

    assert value(0.0) == value(1.0) == 0
    assert value(1e-9) < 1e-8
    assert value(0.0, scaled=True) == pytest.approx(forward.item(), rel=1e-12)
    assert value(1.0, scaled=True) == pytest.approx(reverse.item(), rel=1e-12)
    for tiny in (1e-3, 1e-6, 1e-9):
        assert value(tiny, scaled=True) == pytest.approx(forward.item(), rel=100 * tiny + 1e-9)
        assert value(1 - tiny, scaled=True) == pytest.approx(reverse.item(), rel=100 * tiny + 1e-6)
    # the jump: inside, the shipped loss is our unscaled one, and at the end it is our scaled one
    assert value(0.999) < 0.002 * value(1.0, scaled=True)


def test_gkd_scaled_gradient_is_continuous_too(batch):
    student, teacher, _, _ = batch
    for end, near in ((0.0, 1e-7), (1.0, 1 - 1e-7)):
        g, limit = (
            torch.autograd.grad(GKD(b, scaled=True)(student=student, teacher=teacher), student)[0] for b in (near, end)
        )
        torch.testing.assert_close(g, limit, rtol=1e-5, atol=1e-6)


def skew_written_out(p, q, a):
    m = a * p.softmax(-1) + (1 - a) * q.softmax(-1)
    return (p.softmax(-1) * (p.log_softmax(-1) - m.log())).sum(-1)


@pytest.mark.parametrize("a", [0.01, 0.1, 0.5, 0.99])
def test_skew_kl_equals_its_formula(batch, a):
    x, y, _, _ = batch
    same(skew(Logits(x), Logits(y), a).sum(), skew_written_out(x, y, a).sum(), x, y)
    same(SkewKL(a)(student=x, teacher=y), skew_written_out(y.detach(), x, a).mean(), x)
    reverse = SkewKL(a, direction="reverse", temperature=2.0)(student=x, teacher=y)
    same(reverse, skew_written_out(x / 2, y.detach() / 2, a).mean(), x)


def test_skew_kl_equals_distillm_up_to_the_teachers_entropy(batch):
    student, teacher, _, _ = batch
    p, q = teacher.detach().softmax(-1), student.softmax(-1)
    distillm = -(p * (0.1 * p + 0.9 * q).log()).sum(-1).mean()
    ours = SkewKL(0.1)(student=student, teacher=teacher)
    entropy = -(p * p.log()).sum(-1).mean()
    assert (ours + entropy).item() == pytest.approx(distillm.item(), rel=1e-12)
    (g,), (s,) = (torch.autograd.grad(v, student) for v in (ours, distillm))
    torch.testing.assert_close(g, s, rtol=1e-10, atol=1e-14)


def test_skew_kl_at_the_ends_and_edges():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    assert skew(Probs(p), Probs(q), 0.0).item() == math.inf
    assert skew(Probs(p), Probs(q), 1.0).item() == 0
    expected = 0.5 * math.log(1 / 0.25) + 0.5 * math.log(0.5 / 0.5)
    assert skew(Probs(p), Probs(q), 0.25).item() == pytest.approx(expected, rel=1e-6)
    assert skew(Probs(p), Probs(p), 0.3).item() == 0
    assert skew(Labels([0], 3), Probs(q), 0.25).item() == pytest.approx(math.log(4), rel=1e-6)
    with pytest.raises(FormError, match="weight is 2"):
        skew(Probs(p), Probs(q), 2.0)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 8.0])
def test_skew_kl_in_float32_against_fifty_digits(scale):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(40, generator=generator)
    y = x + scale * torch.randn(40, generator=generator) + 100.0
    with mpmath.workdps(50):
        p, q = ([mpmath.e ** mpmath.mpf(v) for v in row.tolist()] for row in (x, y))
        p, q = ([v / sum(row) for v in row] for row in (p, q))
        a = mpmath.mpf("0.1")
        truth = float(sum(u * mpmath.log(u / (a * u + (1 - a) * v)) for u, v in zip(p, q, strict=True)))
    ours = skew(Logits(x), Logits(y), 0.1)
    assert ours.dtype == torch.float32
    # 2e-7 is half a unit in the last digit of the float32 result, which log weights in float64 do not disturb
    assert ours.item() == pytest.approx(truth, rel=2e-7)


@pytest.mark.parametrize("form", [Logits, lambda x: LogProbs(x, validate=False), lambda x: Probs(x, validate=False)])
def test_skew_kl_gradients_in_every_coordinate(form):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    if form is not Logits:
        log_x, log_y = x.log_softmax(-1), y.log_softmax(-1)
        x, y = (log_x, log_y) if form(log_x).__class__ is LogProbs else (log_x.exp(), log_y.exp())

    def textbook(s, t):
        p, q = (form(v).reading.weights((v,)) for v in (s, t))
        return (p.w * (p.log_w - (0.2 * p.w + 0.8 * q.w).log())).sum(-1)

    x.requires_grad_(), y.requires_grad_()
    ours = torch.autograd.grad(skew(form(x), form(y), 0.2).sum(), (x, y))
    for g, s in zip(ours, torch.autograd.grad(textbook(x, y).sum(), (x, y)), strict=True):
        torch.testing.assert_close(g, s, rtol=1e-9, atol=1e-13)
    assert torch.autograd.gradgradcheck(lambda s, t: skew(Logits(s), Logits(t), 0.2), (x, y))


def zhao(student, teacher, y, alpha, beta, t):
    """mdistiller's dkd_loss, written out in float64: log of summed softmaxes, and the target masked by -1000."""
    gt = F.one_hot(y, student.shape[-1]).double()
    p, q = (teacher / t).softmax(-1), (student / t).softmax(-1)
    b_p, b_q = (torch.stack([(v * gt).sum(-1), (v * (1 - gt)).sum(-1)], -1) for v in (p, q))
    tckd = F.kl_div(b_q.log(), b_p, reduction="sum") * t * t / len(y)
    rest = F.kl_div((student / t - 1000 * gt).log_softmax(-1), (teacher / t - 1000 * gt).softmax(-1), reduction="sum")
    return alpha * tckd + beta * rest * t * t / len(y)


@pytest.mark.parametrize("t", [1.0, 4.0])
def test_dkd_equals_zhao(batch, t):
    student, teacher, _, y = batch
    ours = DKD(1.0, 8.0, temperature=t)(student=student, teacher=teacher, labels=y)
    same(ours, zhao(student, teacher.detach(), y, 1.0, 8.0, t), student)
    assert torch.autograd.grad(ours, teacher, allow_unused=True) == (None,)


def test_dkd_splits_the_plain_kl(batch):
    """Their equation 5: KL = TCKD + (1 - p_target) NCKD, row by row."""
    student, teacher, _, y = (x.detach() if x.is_floating_point() else x for x in batch)
    for row in range(7):
        parts = DKD(temperature=1.0).parts(student=student[row], teacher=teacher[row], labels=y[row])
        p_target = teacher[row].softmax(-1)[y[row]]
        whole = parts.target_class + (1 - p_target) * parts.other_classes
        assert whole.item() == pytest.approx(kl(Logits(teacher[row]), Logits(student[row])).item(), rel=1e-12)


def test_dkd_where_the_student_is_sure():
    """The softmax of the others underflows to 0 there, and the source's logarithm of it is infinite."""
    student, teacher = torch.tensor([[120.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    y = torch.tensor([0])
    student.requires_grad_()
    ours = DKD(1.0, 0.0, temperature=1.0)(student=student, teacher=teacher, labels=y)
    b = teacher.double().softmax(-1)[0, 1:].sum().item()
    log_rest = math.log(1 + math.e) - 120.0
    expected = (1 - b) * math.log(1 - b) + b * (math.log(b) - log_rest)  # log q_target is 0 to 1e-51
    assert ours.item() == pytest.approx(expected, rel=1e-6)
    assert torch.autograd.grad(ours, student)[0].isfinite().all()
    assert zhao(student, teacher, y, 1.0, 0.0, 1.0).isinf()


def test_dkd_two_classes_have_nothing_to_share_and_masked_columns_count_for_nothing(batch):
    student, teacher, _, y = (x.detach() if x.is_floating_point() else x for x in batch)
    two = DKD(temperature=1.0).parts(student=student[:, :2], teacher=teacher[:, :2], labels=y % 2)
    assert two.other_classes.item() == 0
    out = torch.full((7, 1), -math.inf).double()
    wide = DKD()(student=torch.cat([student, out], -1), teacher=torch.cat([teacher, out], -1), labels=y)
    assert wide.item() == pytest.approx(DKD()(student=student, teacher=teacher, labels=y).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RDrop(-1.0), "alpha is -1.0"),
        (lambda: RDrop(nll="max"), "nll is 'max'"),
        (lambda: MutualLearning()(peers=[torch.zeros(1, 2)], labels=torch.tensor([0])), "nobody to learn from"),
        (lambda: GKD(1.5), "beta is 1.5"),
        (lambda: SkewKL(-0.1), "weight is -0.1"),
        (lambda: SkewKL(direction="both"), "direction is 'both'"),
        (lambda: DKD(temperature=0.0), "temperature is 0.0"),
        (
            lambda: DKD()(student=torch.zeros(1, 1), teacher=torch.zeros(1, 1), labels=torch.tensor([0])),
            "no other classes",
        ),
        (
            lambda: DKD()(student=torch.zeros(1, 2), teacher=torch.zeros(1, 2), labels=torch.tensor([2])),
            "holds 2",
        ),
        (lambda: js(torch.zeros(2), torch.zeros(2)), "bare Tensor"),
    ],
)
def test_errors(call, message):
    with pytest.raises(FormError, match=message):
        call()


@pytest.mark.parametrize("t", [2.0, 4.0])
def test_dkd_without_its_square_is_a_square_smaller(batch, t):
    student, teacher, _, y = batch
    values = [
        DKD(1.0, 8.0, temperature=t, t_squared=flag)(student=student, teacher=teacher, labels=y).item()
        for flag in (True, False)
    ]
    assert values[0] == pytest.approx(t * t * values[1], rel=1e-12)
    assert values[1] > 0.0
