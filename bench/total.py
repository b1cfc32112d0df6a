"""A distillation's loss, soft and hard term, and its gradient: `kullback.total` beside the same in PyTorch.

    python bench/total.py [--rounds 15] [--threads 2]

KL(teacher ‖ student) at temperature 2 plus cross-entropy of labels at temperature 1, gradient to the student.
Contenders run once a round, in turn; printed are medians of processor time over all threads, and ratios of them. The
floor reads both inputs and writes one output into warm memory. `out` gives kullback a buffer for the gradient.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F  # noqa: N812

from kullback import Labels, Logits, Term, divergences, total

SHAPES = [(512, 32_000), (128, 128_256), (2_048, 1_000), (65_536, 10), (1, 262_144)]
TEMPERATURE = 2.0


def pytorch(teacher, student, labels):
    log_p, log_q = F.log_softmax(teacher / TEMPERATURE, -1), F.log_softmax(student / TEMPERATURE, -1)
    soft = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    return soft + F.cross_entropy(student, labels, reduction="sum")


def terms(teacher, student, labels):
    soft = Term(divergences.KL, Logits(teacher, TEMPERATURE), Logits(student, TEMPERATURE))
    hard = Term(divergences.CROSS_ENTROPY, Labels(labels, student.shape[-1]), Logits(student))
    return soft, hard


def contenders(shape, dtype):
    """name -> a call that computes a loss and its gradient."""
    g = torch.Generator().manual_seed(0)
    teacher = torch.randn(shape, generator=g).to(dtype)
    student = torch.randn(shape, generator=g).to(dtype).requires_grad_()
    labels = torch.randint(shape[1], shape[:1], generator=g)
    soft, hard = terms(teacher, student, labels)
    buffer, d = torch.empty_like(student), student.detach()
    compiled = torch.compile(pytorch)

    def with_gradient(loss):
        def call():
            student.grad = None
            loss().backward()

        return call

    def floor():
        teacher.sum(), d.sum()
        buffer.fill_(1.0)

    return {
        "kullback, both terms": with_gradient(lambda: total([soft, hard])),
        "kullback, both terms, out": with_gradient(lambda: total([soft, hard], out=[(student, buffer)])),
        "kullback, soft term": with_gradient(lambda: total([soft])),
        "kullback, soft term, out": with_gradient(lambda: total([soft], out=[(student, buffer)])),
        "PyTorch eager": with_gradient(lambda: pytorch(teacher, student, labels)),
        "PyTorch compiled": with_gradient(lambda: compiled(teacher, student, labels)),
        "floor: read both, write one": floor,
    }


def measure(calls, rounds):
    times = {name: [] for name in calls}
    for round_ in range(rounds + 2):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if round_ >= 2:
                times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(found) for name, found in times.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            if dtype != torch.float32 and shape[0] * shape[1] < 10_000_000:
                continue
            found = measure(contenders(shape, dtype), args.rounds)
            own = found["kullback, both terms"]
            print(f"\n{shape} {str(dtype).removeprefix('torch.')}: ms of processor time, and over kullback's")
            for name, ms in found.items():
                print(f"  {name:30} {ms:9.2f} {ms / own:7.2f}")


if __name__ == "__main__":
    main()
