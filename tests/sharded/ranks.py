"""What every rank of a process group checks: `python ranks.py RANK WORLD STORE REPORT` is one of them.

Every check runs on all ranks, which hold the columns between two neighbours of `cuts`, against the single process on
whole tensors. A report says of each what went wrong, or nothing.
"""

import json
import math
import os
import re
import sys
import traceback
import warnings
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from unittest import mock

import torch
import torch.distributed as dist

import kullback
from kullback import (
    FormError,
    Labels,
    LinearLogits,
    Logits,
    LogProbs,
    Probs,
    Sharded,
    TopK,
    contributions,
    draw,
    entropy,
    explain,
    js,
    kl,
    measure,
    renyi,
    top_k,
)
from kullback.divergences import CROSS_ENTROPY, HELLINGER, JEFFREYS, KL, TABLE, TV
from kullback.engines import use
from kullback.losses import GKD, Distillation, LabelSmoothing, PolicyKL, RDrop, SkewKL, average

V = 1100
CUTS = {2: [0, 700, V], 3: [0, 1, 1, V], 4: [0, 300, 300, 777, V]}  # with a rank that holds one class, or none
ENGINES = ("cpu", "eager")
CHECKS = {}


def check(*worlds):
    def add(function):
        for world in worlds:
            CHECKS.setdefault(world, {})[function.__name__] = function
        return function

    return add


# ---------------------------------------------------------------- this rank's part


def rank():
    return dist.get_rank()


def ends(v=V):
    """This rank's first column and the one behind its last."""
    cuts = CUTS[dist.get_world_size()]
    return cuts[rank()] * v // V, cuts[rank() + 1] * v // V


def here(x):
    """This rank's columns, as a leaf."""
    a, b = ends(x.shape[-1])
    return x.detach()[..., a:b].clone().requires_grad_(x.is_floating_point())


def sharded(form, v=V, **more):
    return Sharded(form, num_classes=v, start=ends(v)[0], **more)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def edge_rows():
    """Logits of p and q: usual, equal, nearly equal, far apart, an offset, -inf in p, in q, in both, on one rank."""
    p, q = normal(9, V, seed=1), normal(9, V, seed=2)
    q[1], q[2], q[3] = p[1], p[2] + 1e-6 * q[2], 40.0 * q[3]
    q[4] = p[4] - 1000.0 + 1e-2 * q[4]
    p[5, 3:] = -math.inf
    q[6, 650:750] = -math.inf
    p[7, ::2] = q[7, ::2] = -math.inf
    p[8, 700:] = q[8, 700:] = -math.inf
    return p, q


def kinds(p, q):
    """(name, form of p, form of q) as functions of the columns they hold, and of these tensors whole."""
    labels = torch.arange(len(p)) * V // len(p)
    soft = partial(torch.softmax, dim=-1)
    log_probs, ids = torch.log_softmax(p, -1).topk(5, -1)

    def listed(tail):
        return partial(TopK, log_probs=log_probs, num_classes=V, tail=tail, validate=False)

    yield "logits", (p, lambda x: Logits(x, 1.5)), (q, Logits)
    yield "at one temperature", (p, Logits), (q, Logits)
    yield "probs", (soft(p), partial(Probs, validate=False)), (soft(q), partial(Probs, validate=False))
    yield "log_probs", (torch.log_softmax(p, -1), partial(LogProbs, validate=False)), (q, Logits)
    yield "labels", (labels, labels_of), (q, Logits)
    for tail in ("bucket", "even", "renormalize"):
        yield f"top-k, {tail}", (ids, listed(tail)), (q, Logits)
    yield "a top-k of q", (q, Logits), (ids, listed("bucket"))


def here_of(x, form):
    """This rank's columns as a leaf, and their form; ids are whole on every rank."""
    if not x.is_floating_point():
        return x, form(x)
    part = here(x)
    return part, sharded(form(part), validate=False)


def labels_of(y, v=V):
    return Labels(y, v, 0.1, "others")


def close(got, want, tolerance=1e-12, what=""):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m: f"{what}: {m}")


def same_on_all(x):
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    bits = [part.view(torch.int64 if x.dtype == torch.float64 else torch.int32) for part in parts]
    assert all(torch.equal(bits[0], other) for other in bits), f"the ranks differ: {parts}"


@contextmanager
def collectives():
    """Counts what is sent, by name."""
    names = ["all_reduce", "all_gather", "broadcast", "reduce", "all_to_all", "reduce_scatter"]
    names += ["all_gather_into_tensor", "reduce_scatter_tensor", "all_gather_object", "barrier", "send", "recv"]
    seen = []

    def counted(name):
        function = getattr(dist, name)

        def call(*args, **kwargs):
            seen.append((name, args[0].numel() if args and isinstance(args[0], torch.Tensor) else None))
            return function(*args, **kwargs)

        return mock.patch.object(dist, name, call)

    patches = [counted(name) for name in names]
    for patch in patches:
        patch.start()
    try:
        yield seen
    finally:
        for patch in patches:
            patch.stop()


def refused(function, *words, error=FormError):
    said = None
    try:
        function()
    except error as found:
        said = str(found)
    assert said is not None, "nothing was raised"
    for word in words:
        assert re.search(word, said), f"{word!r} is not in {said}"


# ---------------------------------------------------------------- values and gradients


def compare(divergence, p, q, tolerance=1e-12, what=""):
    """Value and gradient of one divergence, as shards and whole; gives the value."""
    (x, of_x), (y, of_y) = p, q
    whole_x, whole_y = (t.detach().clone().requires_grad_(t.is_floating_point()) for t in (x, y))
    want = measure(divergence, of_x(whole_x), of_y(whole_y))
    (part_x, left), (part_y, right) = here_of(x, of_x), here_of(y, of_y)
    got = measure(divergence, left, right)
    close(got, want, tolerance, what)
    upstream = normal(*want.shape, seed=3).to(want.dtype)
    want.backward(torch.where(want.isnan(), 0.0, upstream))
    with collectives() as seen:
        got.backward(torch.where(got.isnan(), 0.0, upstream))
    assert not seen, f"the backward pass sends {seen}"
    a, b = ends()
    smooth = torch.ones(len(want), dtype=torch.bool)
    smooth[1:3] = divergence not in (TV, HELLINGER)  # which have a corner at p = q: rounding says on which side one is
    for part, whole in ((part_x, whole_x), (part_y, whole_y)):
        if whole.requires_grad:
            # a cell is the difference of terms that are about as large as the value
            size = torch.where(want.isfinite(), want.detach(), 0.0).abs().clamp(min=1.0).unsqueeze(-1)
            close((part.grad / size)[smooth], (whole.grad / size)[smooth, a:b], tolerance, what)
    return got


@check(2, 3)
def every_divergence_equals_the_single_process():
    p, q = edge_rows()
    # of three ranks, the one without a class goes by the definition anyway
    for engine in ENGINES[: 4 - dist.get_world_size()]:
        with use(engine):
            for name, left, right in kinds(p, q):
                for divergence in TABLE:
                    same_on_all(compare(divergence, left, right, what=f"{divergence.name} of {name} by {engine}"))


@check(2, 3)
def in_float32_within_the_law():
    p, q = (x.float() for x in edge_rows())
    q[2] = p[2] + 1e-4 * normal(V, seed=28).float()  # KL 5e-9
    for divergence in (KL, JEFFREYS, HELLINGER, CROSS_ENTROPY, js_of(0.5)):
        truth = measure(divergence, Logits(p.double()), Logits(q.double()))
        for engine in ENGINES:
            with use(engine):
                got = measure(divergence, sharded(Logits(here(p))), sharded(Logits(here(q))))
            assert got.dtype == torch.float32
            same_on_all(got)
            torch.testing.assert_close(
                got.double(), truth, rtol=1e-5, atol=1e-30, msg=lambda m, d=divergence: f"{d}: {m}"
            )


def js_of(weight):
    return kullback.divergences.js(weight)


@check(2)
def many_short_rows_in_single_precision():
    v = 100  # whole, too wide to go side by side; 63 and 37 columns would
    p, q = normal(70, v, seed=34).float(), normal(70, v, seed=35).float().requires_grad_()
    q.data[:, 70:] += 30.0  # the largest of all are on one rank
    want = kl(Logits(p.double()), Logits(q.double()))
    want.sum().backward()
    for engine in ENGINES:
        with use(engine):
            part = here(q)
            got = kl(sharded(Logits(here(p)), v), sharded(Logits(part), v))
            got.sum().backward()
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0.0)
            a, b = ends(v)
            close(part.grad, q.grad[:, a:b], 1e-6)


@check(2)
def rows_longer_than_a_piece_and_of_all_dtypes():
    v = 40_000
    for dtype, tolerance in (
        (torch.float64, 1e-12),
        (torch.float32, 1e-5),
        (torch.bfloat16, 2e-2),
        (torch.float16, 2e-3),
    ):
        p, q = normal(2, v, seed=4, dtype=dtype), normal(2, v, seed=5, dtype=dtype).requires_grad_()
        want = kl(Logits(p), Logits(q))
        want.sum().backward()
        part = here(q)
        got = kl(sharded(Logits(here(p)), v), sharded(Logits(part), v))
        got.sum().backward()
        close(got, want, max(1e-12, min(tolerance, 1e-5)), str(dtype))
        a, b = ends(v)
        assert part.grad.dtype == dtype
        close(part.grad, q.grad[:, a:b], tolerance, str(dtype))


@check(3)
def shapes_broadcast_and_rows_may_lie_anywhere():
    p, q = normal(4, 1, V, seed=6), normal(V, 3, seed=7).T
    want = js(Logits(p), Logits(q))
    got = js(sharded(Logits(here(p))), sharded(Logits(here(q))))
    close(got, want)
    for engine in ENGINES:
        with use(engine):
            x = here(torch.zeros(0, V, dtype=torch.float64))
            none = renyi(sharded(Logits(x)), sharded(Logits(x)), 0.3)
            assert none.shape == (0,)
            none.sum().backward()
            assert x.grad.shape == x.shape
            one = kl(Labels(torch.tensor(V - 1), V), sharded(Logits(here(q[0]))))
            close(one, kl(Labels(torch.tensor(V - 1), V), Logits(q[0])))


@check(2, 3)
def nan_on_one_rank_is_nan_on_all():
    p, q = normal(3, V, seed=8), normal(3, V, seed=9)
    p[1, -1] = math.nan
    q[2, 0] = math.inf
    for engine in ENGINES:
        with use(engine):
            for divergence in TABLE:
                x, y = here(p), here(q)
                got = measure(divergence, sharded(Logits(x)), sharded(Logits(y)))
                assert got.isnan().tolist() == [False, True, True], f"{divergence.name} by {engine}: {got}"
                got.backward(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))  # as a mask would
                assert x.grad.isfinite().all(), f"{divergence.name} by {engine}"
                assert y.grad.isfinite().all()
                assert x.grad[1:].abs().sum() == 0


@check(2)
def the_graph_is_walked_twice():
    p, q = normal(5, V, seed=10), normal(5, V, seed=11)
    for engine in ENGINES:
        with use(engine):
            x = here(q)
            value = renyi(sharded(Logits(here(p))), sharded(Logits(x)), 0.5)
            value.sum().backward(retain_graph=True)
            once = x.grad.clone()
            value.sum().backward()
            assert torch.equal(x.grad, 2 * once)
            again = kl(sharded(Logits(here(p))), sharded(Logits(x)))
            refused(
                lambda y=again, x=x: torch.autograd.grad(y.sum(), x, create_graph=True),
                "second derivatives",
                error=NotImplementedError,
            )


# ---------------------------------------------------------------- what is sent


@check(2, 3)
def the_stated_number_of_collectives():
    n = 6
    p, q = normal(n, V, seed=12), normal(n, V, seed=13)
    soft = partial(Probs, validate=False)
    numbers = 3 * n + 2  # and two that tell the shards' places
    cases = (
        ("logits", KL, Logits(here(p)), Logits(here(q)), [2 * n, 2 * n, numbers]),
        ("labels", CROSS_ENTROPY, None, Logits(here(q)), [2 * n, 2 * n, numbers]),
        ("bucket", KL, None, Logits(here(q)), [2 * n, 2 * n, numbers + 2 * n]),
        ("probs", KL, soft(here(p.softmax(-1))), soft(here(q.softmax(-1))), [numbers]),
        (
            "renyi",
            kullback.divergences.renyi(0.3),
            Logits(here(p)),
            Logits(here(q)),
            [2 * n, 2 * n, n, numbers + 3 * n],
        ),
    )
    for engine in ENGINES:
        with use(engine):
            for name, divergence, left, right, sizes in cases:
                left_form = sharded(left, validate=False) if left else Labels(torch.arange(n), V)
                if name == "bucket":
                    left_form = top_k(p, 3, tail="bucket")
                with collectives() as seen:
                    right_form = sharded(right, validate=False)
                    value = measure(divergence, left_form, right_form)
                    value.sum().backward()
                assert seen == [("all_reduce", size) for size in sizes], f"{name} by {engine}: {seen}"
                said = explain(left_form, right_form, divergence)
                assert said.engine == "sharded"
                sent = sum(sizes)
                assert f"{len(sizes)} all-reduces forward, of {8 * sent} bytes" in said.manner, said.manner
    with collectives() as seen:  # rows that sum to one are asked of all ranks, once
        Sharded(soft(here(p.softmax(-1))), num_classes=V, start=ends()[0])
    assert seen == [("all_reduce", n)]


# ---------------------------------------------------------------- losses


def losses(p, q, r, labels, mask):
    """name -> (loss of forms as functions of tensors, tensors that get gradients)."""
    distil = Distillation(temperature=2.0, soft_weight=0.3, smoothing=0.1)
    distil_at_one = Distillation(temperature=1.0, soft_weight=0.3)
    yield "distillation", lambda f, x, y: distil(student=f(y), teacher=f(x), labels=labels, mask=mask)
    yield (
        "distillation by rows",
        lambda f, x, y: Distillation(soft_weight=1.0, reduction="none")(student=f(y), teacher=f(x), mask=mask).sum(),
    )
    yield (
        "hellinger",
        lambda f, x, y: Distillation(soft_weight=1.0, divergence=kullback.hellinger)(
            student=f(y), teacher=f(x), mask=mask
        ),
    )
    yield "gkd", lambda f, x, y: GKD(0.3)(student=f(y), teacher=f(x), mask=mask)
    yield "skew", lambda f, x, y: SkewKL(0.1, direction="reverse")(student=f(y), teacher=f(x), mask=mask)
    yield "rdrop", lambda f, x, y: RDrop(2.0)(first=f(x), second=f(y), labels=labels, mask=mask)
    yield (
        "policy",
        lambda f, x, y: PolicyKL(value="exact", gradient="exact")(logits=f(x), reference_logits=f(y), mask=mask),
    )
    teacher = draw(r, 50, generator=torch.Generator().manual_seed(0))
    yield "drawn", lambda f, x, y: GKD(0.0, scaled=True)(student=f(y), teacher=teacher, mask=mask)
    yield (
        "top-k",
        lambda f, x, y: distil_at_one(student=f(y), teacher=top_k(r, 7, tail="bucket"), labels=labels, mask=mask),
    )
    yield "label smoothing", lambda f, x, y: LabelSmoothing(V, -100, 0.1)(f(y), labels)


@check(2, 3)
def losses_take_shards_by_name():
    p, q = normal(2, 4, V, seed=14), normal(2, 4, V, seed=15)
    labels = torch.tensor([[5, V - 1, 700, -100], [699, 0, 3, 1]])
    mask = torch.tensor([[True, True, False, True], [True, False, True, True]])
    p[~mask], q[~mask] = math.nan, math.nan
    labels[~mask] = -100
    a, b = ends()
    for engine in ENGINES:
        with use(engine):
            for name, loss in losses(p, q, normal(2, 4, V, seed=29), labels, mask):
                x, y = p.clone().requires_grad_(), q.clone().requires_grad_()
                with use("eager"):  # the definition
                    want = loss(Logits, x, y)
                    want.backward()
                u, w = here(p), here(q)
                got = loss(lambda t: sharded(Logits(t)), u, w)
                got.backward()
                what = f"{name} by {engine}"
                close(got, want, what=what)
                same_on_all(got)
                for part, whole in ((u, x), (w, y)):
                    if whole.grad is None:
                        assert part.grad is None, what
                    else:
                        close(part.grad, whole.grad[..., a:b], what=what)


@check(2)
def heads_whose_weight_is_split_by_rows():
    hidden, weight, bias, p = normal(7, 5, seed=30), normal(V, 5, seed=31), normal(V, seed=32), normal(7, V, seed=33)
    a, b = ends()
    loss = Distillation(temperature=2.0)
    labels = torch.arange(7) * 150
    for memory in (1, 1 << 28):  # one row at a time: as often on every rank, however wide its shard is
        whole = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        parts = [hidden.clone().requires_grad_(), *(x[a:b].clone().requires_grad_() for x in (weight, bias))]
        for divergence in (KL, kullback.divergences.renyi(0.5), None):

            def value(form, teacher, of=divergence):
                if of is None:
                    return loss(student=form, teacher=teacher, labels=labels)
                return measure(of, teacher, form.tempered(2.0)).sum()

            want = value(LinearLogits(*whole, memory=memory), Logits(p))
            got = value(sharded(LinearLogits(*parts, memory=memory)), sharded(Logits(here(p))))
            close(got, want)
            want.backward()
            got.backward()
            close(parts[0].grad, whole[0].grad)
            close(parts[1].grad, whole[1].grad[a:b])
            close(parts[2].grad, whole[2].grad[a:b])
            for x in (*whole, *parts):
                x.grad = None


@check(2)
def a_total_of_terms():
    p, q = normal(5, V, seed=16), normal(5, V, seed=17)
    weights = torch.tensor([1.0, 0.0, 0.5, 2.0, 0.0], dtype=torch.float64)
    p[1], q[4] = math.nan, math.nan
    a, b = ends()

    def total(form, x, y):
        terms = [
            kullback.Term(KL, form(Logits(x, 2.0)), form(Logits(y, 2.0)), weights),
            kullback.Term(CROSS_ENTROPY, Labels(torch.arange(5), V), form(Logits(y)), 0.5 * weights),
        ]
        return kullback.total(terms)

    x, u = q.clone().requires_grad_(), here(q)
    want, got = total(lambda f: f, p, x), total(sharded, here(p), u)
    close(got, want)
    want.backward()
    got.backward()
    close(u.grad, x.grad[:, a:b])


@check(3)
def what_stands_beside_the_divergences():
    p, q = normal(4, V, seed=18), normal(4, V, seed=19)
    a, b = ends()
    close(entropy(sharded(Logits(here(p)))), entropy(Logits(p)))
    refused(lambda: sharded(Logits(here(p))).probabilities(), "whole distributions", "Gather the logits")
    close(
        contributions(sharded(Logits(here(p))), sharded(Logits(here(q)))), contributions(Logits(p), Logits(q))[:, a:b]
    )
    labels = Labels(torch.tensor([0, 5, 700, V - 1]), V, 0.2)
    close(contributions(labels, sharded(Logits(here(q)))), contributions(labels, Logits(q))[:, a:b])
    form = sharded(Logits(here(p)))
    assert (form.shape, len(form), form.batch_shape) == ((4, V), 4, (4,))
    close(kl(form[1:3], form[[0, 3]].tempered(2.0)), kl(Logits(p)[1:3], Logits(p)[[0, 3]].tempered(2.0)))
    assert not form.detach().requires_grad
    assert form.requires_grad


@check(2)
def compiled_code_leaves_its_graph_for_it():
    p, q = normal(4, V, seed=20), here(normal(4, V, seed=21))
    step = torch.compile(lambda x, y: 2.0 * kl(sharded(Logits(x)), sharded(Logits(y))).mean(), backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Dynamo looks at .grad of what is no leaf
        got = step(here(p), q)
    got.backward()
    x = normal(4, V, seed=21).requires_grad_()
    want = 2.0 * kl(Logits(p), Logits(x)).mean()
    want.backward()
    close(got, want)
    a, b = ends()
    close(q.grad, x.grad[:, a:b])


# ---------------------------------------------------------------- refusals


@check(2)
def shards_that_are_not_the_vocabulary():
    x = torch.zeros(2, 10)
    start = 10 * rank()
    for shard, words in (
        (lambda: Sharded(Logits(x), num_classes=20, start=0), "rank 0 0 to 10 of 20, rank 1 0 to 10 of 20"),
        (lambda: Sharded(Logits(x[:, :9]), num_classes=20, start=start), "sizes add up to 18"),
        (lambda: Sharded(Logits(x), num_classes=30, start=start), "sizes add up to 20"),
        (lambda: Sharded(Logits(x), num_classes=20 + rank(), start=start), "of 20, rank 1 10 to 20 of 21"),
        (lambda: Sharded(Logits(torch.zeros(2, 11 - rank())), num_classes=20, start=start), "sizes add up to 21"),
    ):
        for engine in ENGINES:
            with use(engine):
                refused(lambda shard=shard: kl(shard(), shard()), "each class once", words)


@check(2)
def what_is_no_shard():
    x = torch.zeros(2, 10)
    start = 10 * rank()
    form = Sharded(Logits(x), num_classes=20, start=start)
    refused(lambda: Sharded(x, num_classes=20, start=start), "bare Tensor", r"Sharded\(Logits\(x\)")
    refused(lambda: Sharded(form, num_classes=20, start=start), "already")
    refused(lambda: Sharded(Labels([1, 2], 10), num_classes=20, start=start), "by global id")
    refused(lambda: Sharded(Logits(x), num_classes=20, start=11), "columns 11 to 21", "num_classes=20")
    refused(lambda: Sharded(Logits(x), num_classes=20, start=-1), "start is -1")
    refused(lambda: Sharded(Logits(x), num_classes=20.0, start=0), "num_classes is 20.0")
    refused(lambda: Sharded(Logits(x), "model", num_classes=20, start=0), "group is a str")
    refused(lambda: kl(form, Logits(x)), "V=10", r"Sharded\(Logits|Sharded\(q", f"start={start}")
    refused(lambda: kl(Logits(torch.zeros(2, 20)), form), rf"p.data\[..., {start}:{start + 10}\]")
    refused(lambda: kl(form, Logits(torch.zeros(2, 15))), "V=15")
    refused(lambda: kl(form, Sharded(Logits(x[:, 1:]), num_classes=20, start=start + 1)), "the same columns")
    refused(lambda: kl(form, Labels([1, 2], 10)), "V=20 but q has V=10")
    refused(lambda: kl(Labels([1, 20], 20, validate=False), form), "class id 20 is outside", error=IndexError)
    refused(lambda: Sharded(Probs(torch.full((2, 10), 0.1), validate=False), num_classes=20, start=start), "sums? to 2")
    refused(lambda: kullback.wasserstein(form, form, positions=torch.zeros(20)), "Sharded", "Gather")
    refused(lambda: GKD()(student=x, teacher=form), "V=10|Sharded")
    refused(lambda: kl(Logits(torch.zeros(2, 0)), Logits(torch.zeros(2, 0))), "V=0")
    from kullback.losses import DKD, Consistency

    listed = TopK(torch.tensor([[0], [19]]), torch.zeros(2, 1).requires_grad_(), 20, tail="bucket")
    refused(lambda: kl(listed, form), "no gradient flows", r"log_probs.detach\(\)")
    refused(lambda: kullback.estimate.kl(draw(torch.zeros(2, 20), 3), form), "Gather")
    refused(lambda: DKD()(student=form, teacher=form, labels=torch.zeros(2, dtype=torch.long)), "whole", "Gather")
    refused(lambda: Consistency(threshold=0.5)(original=form, augmented=form), "threshold=None")
    refused(
        lambda: torch.func.grad(lambda y: kl(form, Sharded(Logits(y), num_classes=20, start=start)).sum())(x),
        "torch.func",
        error=NotImplementedError,
    )


@check(3)
def a_group_of_some_ranks():
    group = dist.new_group([0, 2])
    x = normal(3, 12, seed=22)
    if rank() == 1:
        refused(lambda: Sharded(Logits(x), group, num_classes=12, start=0), "rank, 1, is not in the group", "new_group")
        return
    a, b = (0, 5) if rank() == 0 else (5, 12)
    form = Sharded(Logits(x[:, a:b]), group, num_classes=12, start=a)
    close(entropy(form), entropy(Logits(x)))
    other = Sharded(Logits(x[:, a:b]), num_classes=12, start=a)
    refused(lambda: kl(form, other), "in group")


# ---------------------------------------------------------------- meshes of two by two


def mesh():
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))


@check(4)
def an_uneven_vocabulary_over_four_ranks():
    p, q = edge_rows()
    for engine in ENGINES:
        with use(engine):
            same_on_all(compare(KL, (p, Logits), (q, Logits)))


@check(4)
def data_and_model_ranks_make_the_loss_of_one_process():
    grid = mesh()
    data, model = grid.get_group("data"), grid.get_group("model")
    v, rows = 50, slice(0, 2) if grid.get_local_rank("data") == 0 else slice(2, 7)
    cut = slice(0, 30) if grid.get_local_rank("model") == 0 else slice(30, v)
    p, q = normal(7, v, seed=23), normal(7, v, seed=24).requires_grad_()
    mask = torch.tensor([True, True, False, True, True, False, True])
    labels = torch.arange(7)
    loss = Distillation(temperature=2.0)
    want = loss(student=q, teacher=p, labels=labels, mask=mask, num_items=5)
    want.backward()
    part = q.detach()[rows, cut].clone().requires_grad_()
    shard = partial(Sharded, group=model, num_classes=v, start=cut.start)
    got = loss(
        student=shard(Logits(part)),
        teacher=shard(Logits(p[rows, cut])),
        labels=labels[rows],
        mask=mask[rows],
        num_items=5,
    )
    got.backward()
    whole = got.detach().clone()
    dist.all_reduce(whole, group=data)
    close(whole, want.detach())
    close(part.grad, q.grad[rows, cut])


def placed():
    """Meshes' placements of logits, and those of their rows."""
    from torch.distributed.tensor import Replicate, Shard

    yield [Shard(0), Shard(1)], [Shard(0), Replicate()]
    yield [Replicate(), Shard(1)], [Replicate(), Replicate()]
    yield [Shard(1), Shard(0)], [Replicate(), Shard(0)]
    yield [Shard(0), Replicate()], [Shard(0), Replicate()]
    yield [Replicate(), Replicate()], [Replicate(), Replicate()]


@check(4)
def dtensors_of_any_placement():
    from torch.distributed.tensor import DTensor, distribute_tensor

    grid, v = mesh(), 21
    p, q = normal(6, v, seed=25), normal(6, v, seed=26)
    q[1, 15:] = -math.inf
    labels, mask = torch.arange(6) * 3, torch.tensor([True, False, True, True, True, True])
    loss = Distillation(temperature=2.0, soft_weight=0.3)
    for engine in ENGINES:
        with use(engine):
            for placements, of_rows in placed():
                what = f"{placements} by {engine}"
                x, y = p.clone().requires_grad_(), q.clone().requires_grad_()
                want = renyi(Logits(x), Logits(y, 2.0), 0.3) + kl(Labels(labels, v), Logits(x))
                want.mean().backward()
                u, w = (distribute_tensor(t, grid, placements).requires_grad_() for t in (p, q))
                ids = distribute_tensor(labels, grid, of_rows)
                with collectives() as seen:
                    got = renyi(Logits(u), Logits(w, 2.0), 0.3) + kl(Labels(ids, v), Logits(u))
                split = any(a != b for a, b in zip(placements, of_rows, strict=True))
                assert len(seen) == (7 if split else 0), f"{what}: {seen}"
                assert isinstance(got, DTensor)
                assert list(got.placements) == of_rows, f"{what}: {got.placements}"
                close(got.full_tensor(), want, what=what)
                got.mean().backward()
                for part, whole in ((u, x), (w, y)):
                    assert list(part.grad.placements) == placements, f"{what}: {part.grad.placements}"
                    close(part.grad.full_tensor(), whole.grad, what=what)
                x.grad = u.grad = None
                keep = distribute_tensor(mask, grid, of_rows)
                want = loss(student=x, teacher=y, labels=labels, mask=mask)
                got = loss(student=u, teacher=w, labels=ids, mask=keep)
                close(got.full_tensor(), want, what=what)
                want.backward()
                got.backward()
                close(u.grad.full_tensor(), x.grad, what=what)
                of_all = torch.tensor(5.0)
                got = loss(student=u, teacher=w, labels=ids, mask=keep, num_items=of_all)
                close(got.full_tensor(), want, what=what)
                rows = average(kl(Logits(u), Logits(w)), mask=keep)
                close(rows.full_tensor(), average(kl(Logits(p), Logits(q)), mask=mask), what=what)


@check(4)
def dtensors_that_do_not_fit():
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    grid = mesh()
    p = normal(6, 20, seed=27)
    x = distribute_tensor(p, grid, [Shard(0), Shard(1)])
    line = r"DTensor.from_local\(.*distribute_tensor\("
    refused(lambda: kl(Logits(x), Logits(p)), "q is Logits of a plain tensor", line)
    refused(lambda: kl(Logits(p), Logits(x)), "p is Logits of a plain tensor", line)
    refused(lambda: kl(Labels(torch.arange(6), 20), Logits(x)), "p is Labels of a plain tensor", line)
    refused(lambda: kl(Logits(x.to_local()), Logits(x)), line)
    refused(lambda: GKD()(student=x, teacher=p), "teacher is a plain tensor", line)
    refused(lambda: GKD()(student=x, teacher=x, mask=p[:, 0] > 0), "mask is a plain tensor", line)
    refused(lambda: Distillation()(student=x, teacher=x, labels=torch.arange(6)), "labels is a plain tensor", line)
    refused(lambda: kl(Logits(x), Logits(distribute_tensor(p, grid, [Shard(0), Replicate()]))), "they lie alike")
    refused(lambda: kl(Logits(x), Logits(distribute_tensor(p, grid, [Replicate(), Shard(1)]))), "they lie alike")
    refused(lambda: kl(Logits(x), Logits(distribute_tensor(p, grid, [Shard(1), Shard(0)]))), "they lie alike")
    refused(lambda: entropy(Logits(distribute_tensor(p, grid, [Shard(1), Shard(1)]))), "class axis twice")
    refused(lambda: Sharded(Logits(x), num_classes=20, start=0), "DTensor", "without Sharded")
    from torch.distributed.tensor import DTensor

    refused(lambda: entropy(Logits(DTensor.from_local(p, grid, [Replicate(), Partial()]))), "Partial", "redistribute")
    shard = Sharded(Logits(p[:, 5 * rank() : 5 * rank() + 5]), num_classes=20, start=5 * rank())
    refused(lambda: kl(shard, Logits(x)), "Sharded")
    weights = kullback.Term(KL, Logits(x), Logits(x), torch.ones(6))
    refused(lambda: kullback.total([weights]), "weights", line)


# ---------------------------------------------------------------- one rank


def main(number, world, store, report):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=number, world_size=world, timeout=timedelta(seconds=120)
    )
    found = {}
    for name, function in CHECKS[world].items():
        dist.barrier()
        try:
            function()
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
        with open(report, "w") as file:
            json.dump(found, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
