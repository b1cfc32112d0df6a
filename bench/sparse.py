"""What truncation costs, in time and in truth.

    python bench/sparse.py time [--rounds 21] [--threads 1] [--k 64] [--shape 512 32000]
    python bench/sparse.py bias

`time`: loss and gradient to a student's logits, float32, from listed classes of a teacher and from labels, which the
fused engine reads once forward and back. Contenders run once a round, in turn; a line is the median of the ratios to
the labels' cross-entropy of the same round, in processor time over all threads. Peers compute the same in PyTorch.

`bias`: KL(teacher‖student) by each tail, and the angle between its gradient and the dense one, of rows as language
models have them (Zipf scores with noise); docs/sparse.md quotes it.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F  # noqa: N812

from kullback import Labels, Logits, Term, TopK, divergences, draw, kl, losses, top_k, total


def backward(student, loss):
    def call():
        student.grad = None
        loss().backward()

    return call


def tail_bucket(student, ids, log_p):
    """The tail bucket as trainers write it, on log_softmax of the whole row."""
    log_q = F.log_softmax(student, -1).gather(-1, ids)
    rest_p, rest_q = -torch.expm1(log_p.logsumexp(-1)), -torch.expm1(log_q.logsumexp(-1).clamp(max=-1e-7))
    return ((log_p.exp() * (log_p - log_q)).sum(-1) + rest_p * (rest_p.log() - rest_q.log())).mean()


def contenders(shape, k):
    g = torch.Generator().manual_seed(0)
    n, v = shape
    student = (3.0 * torch.randn(shape, generator=g)).requires_grad_()
    kept = top_k(student.detach() + torch.randn(shape, generator=g), k, tail="bucket")
    ids, log_p = kept.tensors
    drawn = draw(student.detach(), k, generator=g)
    labels = Labels(torch.randint(v, (n,), generator=g), v)
    hard = Term(divergences.CROSS_ENTROPY, labels, Logits(student), 1.0 / n)
    calls = {"labels: cross-entropy": backward(student, lambda: total([hard]))}
    for tail in ("bucket", "renormalize", "even"):
        form = TopK(ids, log_p, v, tail=tail)
        soft = Term(divergences.KL, form, Logits(student), 1.0 / n)
        calls[f"top {k}, {tail}: KL"] = backward(student, lambda soft=soft: total([soft]))
        if tail == "bucket":
            calls[f"top {k}, {tail}: KL, and labels"] = backward(student, lambda soft=soft: total([soft, hard]))
            calls[f"top {k}, {tail}: KL by rows"] = backward(
                student, lambda form=form: kl(form, Logits(student)).mean()
            )
    loss = losses.Distillation(1.0, soft_weight=1.0)
    calls[f"drawn {k}: KL"] = backward(student, lambda: loss(student=student, teacher=drawn))
    calls["PyTorch: cross-entropy"] = backward(student, lambda: F.cross_entropy(student, labels.data))
    calls["PyTorch: tail bucket"] = backward(student, lambda: tail_bucket(student, ids, log_p))
    return calls


def measure(calls, rounds):
    ratios, times = {name: [] for name in calls}, {name: [] for name in calls}
    for round_ in range(rounds + 2):
        spent = {}
        for name, call in calls.items():
            start = time.process_time()
            call()
            spent[name] = time.process_time() - start
        if round_ >= 2:
            base = next(iter(spent.values()))
            for name, seconds in spent.items():
                ratios[name].append(seconds / base)
                times[name].append(1e3 * seconds)
    return {name: (statistics.median(ratios[name]), statistics.median(times[name])) for name in calls}


def run_time(args):
    torch.set_num_threads(args.threads)
    n, v = args.shape
    print(f"({n}, {v}) float32, k={args.k}, {args.threads} threads, {args.rounds} rounds: over cross-entropy of labels")
    for name, (ratio, milliseconds) in measure(contenders(args.shape, args.k), args.rounds).items():
        print(f"{name:34} {ratio:6.2f} {milliseconds:9.1f} ms")


# ---------------------------------------------------------------- what truncation does to the number


def zipf(rows, classes, noise, generator):
    """A teacher whose probabilities fall as 1/rank^1.2, each row in an order of its own, and a student beside it."""
    ranks = torch.argsort(torch.rand(rows, classes, generator=generator), -1) + 1
    teacher = -1.2 * torch.log(ranks.double())
    return teacher, teacher + noise * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


def gradient(value, student):
    return torch.autograd.grad(value, student)[0]


def run_bias(_):
    g = torch.Generator().manual_seed(0)
    teacher, student = zipf(64, 32_000, 0.7, g)
    student.requires_grad_()
    dense = kl(Logits(teacher), Logits(student)).mean()
    truth = torch.autograd.grad(dense, student, retain_graph=True)[0]

    def line(name, left, value, many=None):
        made = gradient(value, student) if many is None else many
        angle = torch.rad2deg(torch.acos(F.cosine_similarity(made.flatten(), truth.flatten(), 0).clamp(-1, 1)))
        print(f"| {name} | {left} | {value.item():.4f} | {value.item() / dense.item():.2f} | {angle.item():.0f}° |")

    print("| teacher | mass left out | value | over dense | angle of its gradient to the dense one |")
    print("| --- | --- | --- | --- | --- |")
    line("dense", "0", dense)
    for k in (8, 64, 512):
        for tail in ("bucket", "even", "renormalize"):
            kept = top_k(teacher, k, tail=tail)
            line(f"top {k}, {tail}", f"{kept.left_out.mean():.2f}", kl(kept, Logits(student)).mean())
    loss = losses.Distillation(1.0, soft_weight=1.0)
    for n in (64, 512):
        line(f"drawn {n}, once", "—", loss(student=student, teacher=draw(teacher, n, generator=g)))
        values, gradients = [], torch.zeros_like(truth)
        for _ in range(100):
            value = loss(student=student, teacher=draw(teacher, n, generator=g))
            gradients += gradient(value, student) / 100
            values.append(value.detach())
        line(f"drawn {n}, mean of 100", "—", torch.stack(values).mean(), gradients)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    timed = commands.add_parser("time")
    timed.add_argument("--rounds", type=int, default=21)
    timed.add_argument("--threads", type=int, default=1)
    timed.add_argument("--k", type=int, default=64)
    timed.add_argument("--shape", type=int, nargs=2, default=(512, 32_000))
    timed.set_defaults(run=run_time)
    commands.add_parser("bias").set_defaults(run=run_bias)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
