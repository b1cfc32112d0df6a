"""What every loss refuses: shapes that do not fit, settings out of range, outputs of models, arguments without names.

The entries are compared with `kullback.losses.__all__` and with the signatures, so that a new loss, or a new tensor
argument of an old one, fails here until it is checked too.
"""

import inspect
import itertools
import math
import pickle
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kullback import FormError, Logits, js, kl, losses
from kullback.losses import (
    DKD,
    FGAN,
    GKD,
    NWJ,
    UDA,
    AdaptiveKL,
    Consistency,
    DiagonalGaussian,
    Distillation,
    DonskerVaradhan,
    DoubleHalveKL,
    EarlyStop,
    ForwardKL,
    FullGaussian,
    LabelSmoothing,
    MutualLearning,
    PolicyKL,
    RDrop,
    ReverseKL,
    SkewKL,
    TrustRegion,
    VAELoss,
    average,
    fgan,
    gaussian_kl,
    gaussian_kl_per_dimension,
    reconstruction_nll,
)
from kullback.losses.base import Loss

ROWS, V, D = (2, 3), 4, 5


def scores(seed):
    return torch.randn(*ROWS, V, generator=torch.Generator().manual_seed(seed))


def per_row(seed):
    return -torch.rand(ROWS, generator=torch.Generator().manual_seed(seed)) - 0.1


LABELS, MASK = torch.tensor([[0, 3, 1], [2, 2, 1]]), torch.tensor([[True, False, True], [True, True, True]])
ITEMS = torch.tensor(6)
MU, LOGVAR, TRIL = torch.ones(3, D), torch.zeros(3, D), torch.eye(D).expand(3, D, D)


def one_number(shape):
    return math.prod(shape) == 1


def shared(*shape):
    return lambda given: given == shape


class Entry(NamedTuple):
    """A call that is right, and what else each argument may look like. A name such as "posterior.mu" is a tensor of
    the argument `posterior`."""

    call: Callable[..., Any]
    tensors: dict[str, torch.Tensor]
    also: dict[str, Callable[[tuple[int, ...]], bool]] = {}  # noqa: RUF012


def with_labels(loss, **forms):
    tensors = {**forms, "labels": LABELS, "mask": MASK, "num_items": ITEMS, "num_labels": ITEMS}
    known = inspect.signature(loss.parts).parameters
    tensors = {name: x for name, x in tensors.items() if name.partition("[")[0] in known}
    return Entry(loss, tensors, {"num_items": one_number, "num_labels": one_number})


def between(loss):
    tensors = {"student": scores(0), "teacher": scores(1), "mask": MASK, "num_items": ITEMS}
    return Entry(loss, tensors, {"num_items": one_number})


def mutual(**given):
    peers = [given.pop(f"peers[{k}]") for k in range(3)]
    return MutualLearning()(peers=peers, **given)


def vae(posterior, prior):
    def call(**given):
        parts = {name: given.pop(name) for name in list(given) if "." in name}
        made = {"posterior": None, "prior": None}
        for side, kind in (("posterior", posterior), ("prior", prior)):
            held = [x for name, x in parts.items() if name.startswith(side)]
            made[side] = kind(*held) if held else None
        return VAELoss()(**given, **made)

    return call


PIXELS = {"decoded": torch.zeros(3, 2, 7), "target": torch.full((3, 2, 7), 0.5), "mask": torch.ones(3).bool()}
PIXELS["num_items"] = torch.tensor(3)
DIAGONAL = {
    "posterior.mu": MU,
    "posterior.logvar": LOGVAR,
    "prior.mu": MU,
    "prior.logvar": LOGVAR,
}
FULL = {"posterior.mu": MU, "posterior.tril": TRIL, "prior.mu": torch.ones(3, D), "prior.tril": TRIL}
ONE_FOR_ALL = {"num_items": one_number, "posterior.logvar": shared(D), "posterior.tril": shared(D, D)}
ONE_FOR_ALL |= {"prior.logvar": shared(D), "prior.tril": shared(D, D)}
CRITIC = {"real": per_row(0), "fake": per_row(1), "real_mask": MASK, "fake_mask": MASK}
POLICY = {
    "log_prob": per_row(0),
    "reference_log_prob": per_row(1),
    "behaviour_log_prob": per_row(2),
    "logits": scores(0),
    "reference_logits": scores(1),
    "mask": MASK,
    "num_items": ITEMS,
}


def reverse_kl(mu, log_p):
    q = DiagonalGaussian(mu, torch.zeros(D))
    return ReverseKL(2)(q, lambda z: log_p, generator=torch.Generator().manual_seed(0))


def gaussians(function, kind, *, log_prob=False):
    def call(mu, scale, **other):
        return kind(mu, scale).log_prob(other["z"]) if log_prob else function(kind(mu, scale), kind(*other.values()))

    return call


def diagonal_pair(function):
    tensors = {"mu": MU, "scale": LOGVAR, "p.mu": MU, "p.logvar": LOGVAR}
    return Entry(gaussians(function, DiagonalGaussian), tensors, {"scale": shared(D), "p.logvar": shared(D)})


def measured(controller):
    return lambda observed: controller(observed)


ENTRIES = {
    "Distillation": [
        with_labels(Distillation(), student=scores(0), teacher=scores(1)),
        with_labels(Distillation(soft_weight=0.0), student=scores(0), teacher=scores(1)),
        with_labels(Distillation(soft_weight=1.0), student=scores(0), teacher=scores(1)),
        with_labels(Distillation(unlabelled="soft", divergence=js), student=scores(0), teacher=scores(1)),
    ],
    "DKD": [with_labels(DKD(), student=scores(0), teacher=scores(1))],
    "RDrop": [with_labels(RDrop(), first=scores(0), second=scores(1))],
    "MutualLearning": [
        with_labels(MutualLearning(), **{f"peers[{k}]": scores(k) for k in range(3)})._replace(call=mutual)
    ],
    "GKD": [between(GKD()), between(GKD(0.0, scaled=True)), between(GKD(reduction="mean"))],
    "SkewKL": [between(SkewKL()), between(SkewKL(direction="reverse"))],
    "LabelSmoothing": [
        Entry(LabelSmoothing(V, -1), {"x": scores(0), "target": LABELS, "num_items": ITEMS}, {"num_items": one_number})
    ],
    "Consistency": [
        Entry(
            Consistency(threshold=0.3, denominator=denominator),
            {"original": scores(0), "augmented": scores(1), "mask": MASK, "num_items": ITEMS},
            {"num_items": one_number},
        )
        for denominator in ("all", "kept")
    ],
    "UDA": [
        Entry(
            UDA(),
            {
                "logits": scores(0),
                "labels": LABELS,
                "original": scores(1),
                "augmented": scores(2),
                "mask": MASK,
                "num_items": ITEMS,
                "num_labels": ITEMS,
            },
            {"num_items": one_number, "num_labels": one_number},
        )
    ],
    "PolicyKL": [
        Entry(PolicyKL(value, gradient), POLICY, {"num_items": one_number})
        for value, gradient in (("k1", "k2"), ("k3", "ratio_k3"), ("exact", "exact"), ("exact", "k2"), ("k1", "exact"))
    ],
    "VAELoss": [
        Entry(vae(DiagonalGaussian, DiagonalGaussian), {**PIXELS, **DIAGONAL}, {**ONE_FOR_ALL}),
        Entry(vae(FullGaussian, FullGaussian), {**PIXELS, **FULL}, {**ONE_FOR_ALL}),
        Entry(
            VAELoss(),
            {**PIXELS, "kl": torch.ones(3, D)},
            {"num_items": one_number, "kl": lambda shape: shape == (3,) or (len(shape) == 2 and shape[0] == 3)},
        ),
    ],
    "reconstruction_nll": [Entry(reconstruction_nll, {name: PIXELS[name] for name in ("decoded", "target", "mask")})],
    "ReverseKL": [Entry(reverse_kl, {"mu": MU, "log_p": torch.zeros(2, 3)})],
    "ForwardKL": [Entry(ForwardKL(), {"log_q": per_row(0), "log_weights": per_row(1), "mask": MASK})],
    "FGAN": [Entry(FGAN(c), CRITIC) for c in (fgan.KL, fgan.js(0.3))],
    "NWJ": [Entry(NWJ(), CRITIC)],
    "DonskerVaradhan": [Entry(DonskerVaradhan(), CRITIC), Entry(DonskerVaradhan(moving_average=0.1), CRITIC)],
    "average": [Entry(average, {"values": per_row(0), "mask": MASK, "num_items": ITEMS}, {"num_items": one_number})],
    "DiagonalGaussian": [
        Entry(
            gaussians(None, DiagonalGaussian, log_prob=True),
            {"mu": MU, "scale": LOGVAR, "z": torch.zeros(3, D)},
            {"scale": shared(D), "z": lambda shape: shape[-2:] == (3, D)},
        )
    ],
    "FullGaussian": [
        Entry(
            gaussians(None, FullGaussian, log_prob=True),
            {"mu": MU, "scale": TRIL, "z": torch.zeros(3, D)},
            {"scale": shared(D, D), "z": lambda shape: shape[-2:] == (3, D)},
        )
    ],
    "gaussian_kl": [
        diagonal_pair(gaussian_kl),
        Entry(
            gaussians(gaussian_kl, FullGaussian),
            {"mu": MU, "scale": TRIL, "p.mu": MU, "p.tril": TRIL},
            {"scale": shared(D, D), "p.tril": shared(D, D)},
        ),
        Entry(  # one prior for all rows
            gaussians(gaussian_kl, DiagonalGaussian),
            {"mu": MU, "scale": LOGVAR, "p.mu": MU[0], "p.logvar": LOGVAR[0]},
            {"scale": shared(D)},
        ),
    ],
    "gaussian_kl_per_dimension": [diagonal_pair(gaussian_kl_per_dimension)],
    "AdaptiveKL": [Entry(measured(AdaptiveKL().update), {"observed": torch.tensor(0.1)}, {"observed": one_number})],
    "DoubleHalveKL": [
        Entry(measured(DoubleHalveKL().update), {"observed": torch.tensor(0.1)}, {"observed": one_number})
    ],
    "EarlyStop": [Entry(measured(EarlyStop()), {"observed": torch.tensor(0.1)}, {"observed": one_number})],
    "TrustRegion": [
        Entry(
            lambda kl, improvement: TrustRegion().allows(kl, improvement),
            {"kl": torch.tensor(0.1), "improvement": torch.tensor(1.0)},
            {"kl": one_number, "improvement": one_number},
        )
    ],
}
# these take no tensors, or are verbs, whose batch shapes broadcast by contract
EXCUSED = {"fgan", "linear", "cyclical", "training_signal"}
NO_TENSOR = {"step", "beta", "generator", "validate", "likelihood", "scale", "reduction", "self"}
LOSSES = {name: entries for name, entries in ENTRIES.items() if isinstance(getattr(losses, name), type(Loss))}
CASES = [
    pytest.param(entry, name, id=f"{owner}{number or ''}-{name}")
    for owner, entries in ENTRIES.items()
    for number, entry in enumerate(entries)
    for name in entry.tensors
]


def test_every_public_name_is_tried():
    assert set(ENTRIES) | EXCUSED == set(losses.__all__)


@pytest.mark.parametrize("name", [name for name in ENTRIES if issubclass(type(getattr(losses, name)), type)])
def test_every_tensor_argument_is_tried(name):
    found = getattr(losses, name)
    if not issubclass(found, Loss) or name == "ReverseKL":
        return
    call = found.parts if hasattr(found, "parts") else found.forward
    wanted = set(inspect.signature(call).parameters) - NO_TENSOR
    tried = {key.partition(".")[0].partition("[")[0] for entry in ENTRIES[name] for key in entry.tensors}
    assert wanted <= tried


@pytest.mark.parametrize("owner", ENTRIES)
def test_the_entries_are_right_as_they_stand(owner):
    for entry in ENTRIES[owner]:
        entry.call(**entry.tensors)


def near(shape):
    """Shapes that are easily given by mistake."""
    axes = range(len(shape))
    found = {(), (1,), shape[::-1], (math.prod(shape),), (2, *shape), (*shape, 2)}
    found |= {(*shape[:i], 1, *shape[i:]) for i in range(len(shape) + 1)}
    found |= {(*shape[:i], *shape[i + 1 :]) for i in axes}
    found |= {(*shape[:i], n, *shape[i + 1 :]) for i in axes for n in (0, 1, shape[i] + 1)}
    found |= set(itertools.permutations(shape))
    return (found | {(2,), (3, 1), (0,), (2, 2)}) - {shape}


def wrong(entry, name, shape):
    return shape != tuple(entry.tensors[name].shape) and not entry.also.get(name, lambda shape: False)(shape)


def filled(entry, name, shape):
    """The argument in another shape; scores may be any number, and labels any class."""
    return torch.ones(shape, dtype=entry.tensors[name].dtype)


@pytest.mark.parametrize(("entry", "name"), CASES)
def test_nothing_broadcasts(entry, name):
    tried = [shape for shape in near(tuple(entry.tensors[name].shape)) if wrong(entry, name, shape)]
    assert len(tried) >= 4
    for shape in tried:
        with pytest.raises(FormError):
            entry.call(**{**entry.tensors, name: filled(entry, name, shape)})


@pytest.mark.parametrize("owner", ENTRIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_shapes_at_random_broadcast(owner, data):
    """Several arguments at once, so that two wrong ones may agree with each other."""
    entry = data.draw(st.sampled_from(ENTRIES[owner]))
    first, *others = entry.tensors
    shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
    one = data.draw(shapes)
    changed = {}
    for name in data.draw(st.sets(st.sampled_from(others or [first]), min_size=1)):
        shape = data.draw(st.one_of(st.just(one), shapes, st.sampled_from(sorted(near(ROWS)))))
        if wrong(entry, name, shape):
            changed[name] = filled(entry, name, shape)
    if "fake" in changed and "fake_mask" in changed:  # other draws than the real ones, in any number
        del changed["fake"]
    if changed:
        with pytest.raises(FormError):
            entry.call(**{**entry.tensors, **changed})


def test_the_error_names_both_shapes_and_what_to_write():
    student, teacher = torch.zeros(8, 10), torch.zeros(8, 10)
    labels, mask = torch.zeros(8, dtype=torch.long), torch.ones(8).bool()

    def call(**changed):
        Distillation()(**{"student": student, "teacher": teacher, "labels": labels, "mask": mask, **changed})

    expected = {
        r"student has rows of shape \(8,\) but labels has \(8, 1\); .* Write labels.reshape\(8\)": {
            "labels": labels[:, None]
        },
        r"student has rows of shape \(8, 1\) but teacher has \(8,\); .* Write teacher.reshape\(8, 1, 10\)": {
            "student": student[:, None]
        },
        r"teacher has \(1,\); .*write teacher.expand\(8, 10\)": {"teacher": teacher[:1]},
        r"mask has \(\); .*write mask.expand\(8\)": {"mask": mask[0]},
        r"labels has \(8, 10\); .*One-hot labels are .argmax\(-1\)": {"labels": torch.zeros(8, 10).long()},
        r"labels has dtype torch.float32.* labels.long\(\), or labels.argmax\(-1\)": {"labels": torch.zeros(8)},
        r"mask has dtype torch.int64.*Write mask.bool\(\)": {"mask": labels},
        r"student has V=10 but teacher has V=12. If teacher's vocabulary is padded, write teacher\[..., :10\]": {
            "teacher": torch.zeros(8, 12)
        },
        r"labels has \(2, 4\); .*labels.reshape\(8\), if the rows": {"labels": labels.reshape(2, 4)},
        r"labels has \(7,\); .*index or expand": {"labels": labels[1:]},
        r"Distillation: student is read as logits. .*torch.int64": {"student": student.long()},
        r"student is on cpu but teacher is on meta. Write teacher.to\('cpu'\)": {"teacher": teacher.to("meta")},
    }
    for message, changed in expected.items():
        with (
            pytest.raises(FormError, match="^Distillation: " + message.removeprefix("Distillation: "))
            if (message.startswith(("student", "Distillation")))
            else pytest.raises(FormError, match=message)
        ):
            call(**changed)
    turned = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(FormError, match=r"mask.transpose\(0, 1\)"):
        average(torch.zeros(3, 2), mask=turned)


def test_a_uint8_label_is_not_taken_for_the_ignored_one():
    """-100 wraps to 156 where labels are uint8, and class 156 would be padding."""
    x = torch.randn(2, 200, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([3, 156])
    loss = Distillation(soft_weight=0.0)
    assert loss(student=x, labels=labels.to(torch.uint8)).item() == loss(student=x, labels=labels).item()


def test_a_divergence_that_averages_by_itself_is_refused():
    """With num_items its mean would be divided once more."""
    loss = Distillation(soft_weight=1.0, divergence=lambda p, q: kl(p, q).mean())
    with pytest.raises(FormError, match=r"divergence returned \(\) for rows of shape \(2, 3\).*one number per row"):
        loss(student=scores(0), teacher=scores(1))


PER_ROW_LOSSES = [name for name, entries in ENTRIES.items() if "num_items" in entries[0].tensors]


@pytest.mark.parametrize("owner", PER_ROW_LOSSES)
def test_num_items_of_one_element_gives_one_number(owner):
    """A trainer's count comes as (), (1,) or (1, 1); the loss has the shape it always has, and the same value."""
    entry = ENTRIES[owner][0]
    names = [name for name in ("num_items", "num_labels") if name in entry.tensors]
    plain = entry.call(**{**entry.tensors, **dict.fromkeys(names, 6)})
    for shape in ((), (1,), (1, 1)):
        given = torch.full(shape, 6)
        loss = entry.call(**{**entry.tensors, **dict.fromkeys(names, given)})
        assert loss.shape == plain.shape == ((3,) if owner == "MutualLearning" else ())
        assert torch.equal(loss, plain)
    for bad, message in ((torch.tensor([3, 3]), r"num_items has shape \(2,\).*num_items.sum"), (torch.tensor(0), "0")):
        with pytest.raises(FormError, match=message):
            entry.call(**{**entry.tensors, **dict.fromkeys(names, bad)})


DIRECT = [
    pytest.param(entry, name, id=f"{owner}{number or ''}-{name}")
    for owner, entries in LOSSES.items()
    for number, entry in enumerate(entries)
    for name in entry.tensors
    if "." not in name and "num_" not in name and owner != "ReverseKL"
    if issubclass(getattr(losses, owner), Loss)
]


@pytest.mark.parametrize(("entry", "name"), DIRECT)
def test_a_models_output_is_told_where_its_scores_are(entry, name):
    output = types.SimpleNamespace(logits=entry.tensors[name], loss=None)
    with pytest.raises(FormError, match=r"is a SimpleNamespace.*\.logits"):
        entry.call(**{**entry.tensors, name: output})
    with pytest.raises(FormError, match=r"is a dict.*\['logits'\]"):
        entry.call(**{**entry.tensors, name: {"logits": entry.tensors[name]}})
    with pytest.raises(FormError, match="is a list"):
        entry.call(**{**entry.tensors, name: entry.tensors[name].tolist()})


MODULES = {
    name: build
    for name, build in {
        "LabelSmoothing": lambda: LabelSmoothing(V, -1),
        **{name: getattr(losses, name) for name in ENTRIES if name != "LabelSmoothing"},
    }.items()
    if isinstance(getattr(losses, name), type) and issubclass(getattr(losses, name), Loss)
}


def test_every_loss_with_tensors_is_a_loss():
    """One base for all modules: it types the call, names the keywords and prints the settings."""
    modules = {name for name in losses.__all__ if isinstance(getattr(losses, name), type)}
    modules = {name for name in modules if issubclass(getattr(losses, name), nn.Module)}
    assert modules == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_positional_arguments_are_asked_for_by_name(name):
    loss = MODULES[name]()
    for method in ("forward", "parts", "bound", "generator"):
        if not hasattr(loss, method):
            continue
        parameters = inspect.signature(getattr(loss, method)).parameters.values()
        named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        if not named:
            assert method == "forward"  # that of LossOfParts, which hands on to `parts`
            continue
        values = [scores(0)] * (len(parameters) - len(named) + 1)
        call = loss if method == "forward" else getattr(loss, method)
        with pytest.raises(TypeError, match=f"{name}: .*positional arguments.*{named[0]}=..."):
            call(*values)
    if hasattr(loss, "parts"):
        with pytest.raises(TypeError, match=f"{name}: 2 positional arguments, but it takes none"):
            loss(scores(0), scores(1))


def settings_of(made):
    return [
        p.name for p in inspect.signature(made).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


SETTINGS = [
    (name, setting)
    for name in [*MODULES, "AdaptiveKL", "DoubleHalveKL", "EarlyStop", "TrustRegion"]
    for setting in settings_of(getattr(losses, name))
]


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_settings_are_checked_when_the_loss_is_built(name, setting):
    needed = {"size": V} if name == "LabelSmoothing" else {}
    for bad in (object(), torch.tensor([2.0, 3.0]), "nonsense", [1.0]):
        with pytest.raises(FormError, match=f"{name}|conjugate"):
            getattr(losses, name)(**{**needed, setting: bad})


@pytest.mark.parametrize("make", [Distillation, Consistency, MutualLearning, lambda **x: LabelSmoothing(V, **x)])
def test_a_divergence_by_its_name_is_told_the_verb(make):
    with pytest.raises(FormError, match=r"divergence is 'js'. Write the verb itself: divergence=kullback.js"):
        make(divergence="js")
    with pytest.raises(FormError, match=r"divergence is 'wasserstein'. Write a verb"):
        make(divergence="wasserstein")


@pytest.mark.parametrize("make", [Distillation, GKD, SkewKL, PolicyKL])
def test_an_unknown_reduction_is_refused_when_built(make):
    with pytest.raises(FormError, match="reduction is 'batchmean'; write 'mean' or 'sum' or 'none'"):
        make(reduction="batchmean")


@pytest.mark.parametrize("name", MODULES)
def test_the_repr_shows_every_setting(name):
    loss = MODULES[name]()
    text = repr(loss)
    for setting in settings_of(type(loss)):
        assert f"{setting}=" in text or f"({setting}): " in text
    assert "0x" not in text


@pytest.mark.parametrize("name", [name for name in MODULES if hasattr(getattr(losses, name), "parts")])
def test_parts_hold_the_loss(name):
    """`parts` takes what the call takes, and its first item is what the call returns."""
    for entry in ENTRIES[name]:
        if not isinstance(entry.call, Loss):
            continue  # the call builds forms first
        parts = entry.call.parts(**entry.tensors)
        assert parts._fields[0] == "loss"
        assert torch.equal(parts.loss, entry.call(**entry.tensors))


CONJUGATES = [x for x in vars(fgan).values() if isinstance(x, fgan.Conjugate)] + [fgan.js(0.2), fgan.alpha(0.4)]


@pytest.mark.parametrize("name", MODULES)
def test_losses_can_be_pickled(name):
    loss = MODULES[name]()
    again = pickle.loads(pickle.dumps(loss))
    assert repr(again) == repr(loss)
    for entry in ENTRIES[name]:
        if isinstance(entry.call, Loss):
            copy = pickle.loads(pickle.dumps(entry.call))
            expected, found = entry.call(**entry.tensors), copy(**entry.tensors)
            assert torch.equal(expected, found)


@pytest.mark.parametrize("conjugate", CONJUGATES, ids=lambda c: c.name)
def test_conjugates_can_be_pickled(conjugate):
    again = pickle.loads(pickle.dumps(FGAN(conjugate)))
    assert again(real=per_row(0), fake=per_row(1)).item() == FGAN(conjugate)(real=per_row(0), fake=per_row(1)).item()


def test_forms_are_held_to_the_rows_too():
    with pytest.raises(FormError, match=r"student has rows of shape \(2, 3\) but teacher has \(3,\)"):
        Distillation(soft_weight=1.0)(student=Logits(scores(0)), teacher=Logits(scores(1)[0]))
