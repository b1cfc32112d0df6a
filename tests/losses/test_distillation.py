import functools

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from kullback import FormError, LogProbs, Probs, js, kl, renyi, tv
from kullback.losses import Distillation


@pytest.fixture
def batch():
    torch.manual_seed(0)
    student = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    return student, 3 * torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 4, 2, 2, 1, 3])


def hinton(student, teacher, labels, t, t_teacher, w, t_squared=True):
    """Hinton, Vinyals & Dean 2015, written out: KL(p^T‖q^T) T² and the cross-entropy."""
    p, log_p = (teacher / t_teacher).softmax(-1), (teacher / t_teacher).log_softmax(-1)
    log_q = (student / t).log_softmax(-1)
    soft = (p * (log_p - log_q)).sum(-1).mean() * (t * t if t_squared else 1.0)
    hard = F.cross_entropy(student, labels)
    return w * soft + (1 - w) * hard


@pytest.mark.parametrize("t", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("t_teacher", [None, 3.0])
@pytest.mark.parametrize("w", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t_squared", [True, False])
def test_equals_the_source_in_value_and_gradient(batch, t, t_teacher, w, t_squared):
    student, teacher, labels = batch
    loss = Distillation(t, teacher_temperature=t_teacher, soft_weight=w, t_squared=t_squared)
    ours = loss(student=student, teacher=teacher, labels=labels)
    source = hinton(student, teacher, labels, t, t_teacher or t, w, t_squared)
    assert ours.item() == pytest.approx(source.item(), rel=1e-12)
    (g,), (g_source,) = torch.autograd.grad(ours, student), torch.autograd.grad(source, student)
    torch.testing.assert_close(g, g_source, rtol=1e-10, atol=1e-14)


def test_t_squared_keeps_the_gradient_norm_about_constant():
    torch.manual_seed(0)
    student, teacher = torch.randn(64, 10, requires_grad=True), torch.randn(64, 10)

    def norm(t, **options):
        loss = Distillation(t, soft_weight=1.0, **options)(student=student, teacher=teacher)
        return torch.autograd.grad(loss, student)[0].norm().item()

    with_factor = [norm(t) for t in (1.0, 2.0, 4.0, 8.0)]
    assert max(with_factor) / min(with_factor) < 1.15
    assert norm(1.0, t_squared=False) / norm(8.0, t_squared=False) > 50


def test_the_teacher_is_the_reference_and_takes_no_gradient(batch):
    student, teacher, _ = batch
    teacher.requires_grad_()
    loss = Distillation(1.0, soft_weight=1.0)(student=student, teacher=teacher)
    loss.backward()
    assert teacher.grad is None
    # the gradient of KL(p‖q) with respect to the logits of q is q - p; of KL(q‖p) it is not
    expected = (student.softmax(-1) - teacher.softmax(-1)) / 6
    torch.testing.assert_close(student.grad, expected.detach(), rtol=1e-10, atol=1e-14)


def test_the_teacher_may_be_any_form(batch):
    student, teacher, _ = batch
    loss = Distillation(2.0, soft_weight=1.0)
    expected = loss(student=student, teacher=teacher).item()
    assert loss(student=student, teacher=LogProbs(teacher.log_softmax(-1))).item() == pytest.approx(expected, rel=1e-12)
    assert loss(student=student, teacher=Probs(teacher.softmax(-1))).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "divergence",
    [js, tv, functools.partial(renyi, order=0.5), lambda p, q: kl(q, p)],
    ids=["js", "tv", "renyi", "reverse"],
)
def test_any_divergence_of_two_forms_may_stand_in(batch, divergence):
    student, teacher, _ = batch
    from kullback import Logits

    loss = Distillation(2.0, soft_weight=1.0, divergence=divergence)(student=student, teacher=teacher)
    expected = 4 * divergence(Logits(teacher, 2.0), Logits(student, 2.0)).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.autograd.grad(loss, student)[0].abs().sum() > 0


@pytest.mark.parametrize("w", [0.0, 0.4, 1.0])
def test_rows_without_a_label_leave_both_terms(batch, w):
    """-100 marks padding and prompts in every trainer: the student does not learn from what the teacher says there."""
    student, teacher, labels = batch
    partly = torch.where(torch.arange(6) < 3, labels, -100)
    poisoned = torch.where((partly == -100)[:, None], float("nan"), teacher)
    ours = Distillation(2.0, soft_weight=w)(student=student, teacher=poisoned, labels=partly)
    expected = hinton(student[:3], teacher[:3], labels[:3], 2.0, 2.0, w)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-12)
    (g,), (g_expected,) = torch.autograd.grad(ours, student), torch.autograd.grad(expected, student)
    torch.testing.assert_close(g, g_expected, rtol=1e-10, atol=1e-14)
    # the denominators agree too: three rows of a step of twelve
    part = Distillation(2.0, soft_weight=w)(student=student, teacher=teacher, labels=partly, num_items=12)
    assert part.item() == pytest.approx(expected.item() / 4, rel=1e-12)


def test_the_loss_and_its_terms_by_name(batch):
    student, teacher, labels = batch
    loss = Distillation(3.0, soft_weight=0.3)
    parts = loss.parts(student=student, teacher=teacher, labels=labels)
    assert parts._fields == ("loss", "soft", "hard")
    assert parts.hard.item() == pytest.approx(F.cross_entropy(student, labels).item(), rel=1e-12)
    assert parts.soft.item() == pytest.approx(hinton(student, teacher, labels, 3.0, 3.0, 1.0).item(), rel=1e-12)
    assert parts.loss.item() == pytest.approx((0.3 * parts.soft + 0.7 * parts.hard).item(), rel=1e-14)
    assert Distillation(soft_weight=1.0).parts(student=student, teacher=teacher).hard is None
    assert Distillation(soft_weight=0.0).parts(student=student, labels=labels).soft is None


def test_unlabelled_rows_stay_in_the_soft_term_if_asked(batch):
    student, teacher, labels = batch
    partly = labels.clone()
    partly[3:] = -100
    ours = Distillation(2.0, soft_weight=0.4, unlabelled="soft")(student=student, teacher=teacher, labels=partly)
    soft = Distillation(2.0, soft_weight=1.0)(student=student, teacher=teacher)
    hard = F.cross_entropy(student[:3], labels[:3])
    assert ours.item() == pytest.approx((0.4 * soft + 0.6 * hard).item(), rel=1e-12)


def test_smoothing_matches_pytorch(batch):
    student, _, labels = batch
    ours = Distillation(soft_weight=0.0, smoothing=0.1)(student=student, labels=labels)
    assert ours.item() == pytest.approx(F.cross_entropy(student, labels, label_smoothing=0.1).item(), rel=1e-12)


def test_masked_rows_may_hold_nan_and_ignored_labels(batch):
    student, teacher, labels = batch
    mask = torch.tensor([True, False, True, True, False, True])
    clean = Distillation()(student=student[mask], teacher=teacher[mask], labels=labels[mask])
    (g_clean,) = torch.autograd.grad(clean, student)
    dirty, dirty_labels = student.detach().clone(), labels.clone()
    dirty[1], teacher[4], dirty_labels[1] = float("nan"), float("inf"), 99
    dirty.requires_grad_()
    loss = Distillation()(student=dirty, teacher=teacher, labels=dirty_labels, mask=mask)
    loss.backward()
    assert loss.item() == pytest.approx(clean.item(), rel=1e-12)
    torch.testing.assert_close(dirty.grad, g_clean, rtol=1e-10, atol=1e-14)


def test_everything_masked_is_a_connected_zero(batch):
    student, teacher, labels = batch
    loss = Distillation()(student=student, teacher=teacher, labels=labels, mask=torch.zeros(6, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert (student.grad == 0).all()


def test_accumulated_parts_add_up(batch):
    student, teacher, labels = batch
    labels[1] = -100
    loss = Distillation(2.0, unlabelled="soft")
    whole = loss(student=student, teacher=teacher, labels=labels)
    parts = [
        loss(student=s, teacher=t, labels=y, num_items=6, num_labels=5)
        for s, t, y in zip(student.split([4, 2]), teacher.split([4, 2]), labels.split([4, 2]), strict=True)
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-12)


def test_shapes_with_a_time_axis_average_over_tokens(batch):
    student, teacher, labels = batch
    flat = Distillation()(student=student, teacher=teacher, labels=labels)
    shaped = Distillation()(
        student=student.reshape(2, 3, 5), teacher=teacher.reshape(2, 3, 5), labels=labels.reshape(2, 3)
    )
    assert shaped.item() == pytest.approx(flat.item(), rel=1e-12)


def test_gradcheck(batch):
    student, teacher, labels = batch
    mask = torch.tensor([True, False, True, True, True, True])
    loss = Distillation(3.0, teacher_temperature=2.0, divergence=js)
    assert torch.autograd.gradcheck(lambda s: loss(student=s, teacher=teacher, labels=labels, mask=mask), (student,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0.*above 0"),
        ({"temperature": torch.tensor(2.0)}, "temperature is a tensor"),
        ({"teacher_temperature": -1.0}, "teacher_temperature is -1.0"),
        ({"smoothing": 2.0}, "smoothing is 2.0"),
        ({"unlabelled": "hard"}, "unlabelled is 'hard'; write 'drop' or 'soft'"),
        ({"soft_weight": 1.5}, "soft_weight is 1.5.*0 to 1"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(FormError, match=message):
        Distillation(**options)


def test_bad_calls(batch):
    student, teacher, labels = batch
    with pytest.raises(FormError, match="teacher is missing"):
        Distillation()(student=student, labels=labels)
    with pytest.raises(FormError, match="labels are missing"):
        Distillation()(student=student, teacher=teacher)
    with pytest.raises(FormError, match=r"student has V=5 but teacher has V=4.*write student\[..., :4\]"):
        Distillation(soft_weight=1.0)(student=student, teacher=teacher[:, :4])
    with pytest.raises(TypeError, match="positional"):
        Distillation()(student, teacher, labels)
    with pytest.raises(FormError, match="label"):
        Distillation()(student=student, teacher=teacher, labels=labels + 10)


def test_repr_shows_the_settings():
    assert "temperature=2, teacher_temperature=3" in repr(Distillation(2.0, teacher_temperature=3.0))
