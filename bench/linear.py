"""KL(teacher‖student) from hidden states, forward and backward, beside peers: time over four bare matrix products, and
peak memory beyond inputs and gradients.

    python bench/linear.py                  every cell, in a process each, written to docs/performance-linear.md, .json
    python bench/linear.py --rounds 3 --only a-float32

The contenders of a cell take turns in one process. Time is that of the processor (user and system, one thread unless
--threads says otherwise), the median over the rounds; peak memory is the process's own (VmHWM), the least over the
rounds. Liger 0.8.5 and TRL 1.16 take part where they are installed.
"""

import argparse
import ctypes
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor

from kullback import Labels, LinearLogits, Logits, Term, kl, total
from kullback.divergences import CROSS_ENTROPY, KL

SHAPES = {"a": (2048, 512, 32000), "b": (1024, 1024, 128256)}  # tokens, H, V
DTYPES = ("float32", "bfloat16")
DOCS = Path(__file__).resolve().parents[1] / "docs"
GEMMS = "four bare products"
MIB = 1 << 20
LIBC = ctypes.CDLL(None)


def contenders(hidden, weight, teacher_hidden, teacher_weight, labels):
    """Name -> a function that returns the gradients to hidden states and weight."""
    n = hidden.shape[0]

    def gemms():
        z = hidden.detach() @ weight.detach().T
        teacher_hidden @ teacher_weight.T
        return z @ weight.detach(), z.T @ hidden.detach()

    def ours(hard=False, memory=None):
        def run():
            student = LinearLogits(hidden, weight, memory=memory)
            teacher = LinearLogits(teacher_hidden, teacher_weight, memory=memory)
            if not hard:
                return gradients(total([Term(KL, teacher, student, 1 / n)]))
            soft = Term(KL, teacher.tempered(2.0), student.tempered(2.0), 0.5 * 4.0 / n)
            return gradients(total([soft, Term(CROSS_ENTROPY, Labels(labels, weight.shape[0]), student, 0.5 / n)]))

        return run

    def gradients(value: Tensor):
        return torch.autograd.grad(value, (hidden, weight))

    def by_rows():
        return gradients(kl(LinearLogits(teacher_hidden, teacher_weight), LinearLogits(hidden, weight)).mean())

    def whole_logits():
        return gradients(kl(Logits(teacher_hidden @ teacher_weight.T), Logits(hidden @ weight.T)).mean())

    def formula(h, w, th, tw):
        log_p = torch.log_softmax((th @ tw.T).float(), -1)
        log_q = torch.log_softmax((h @ w.T).float(), -1)
        return torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True) / n

    compiled = torch.compile(formula)

    def eager():
        return gradients(formula(hidden, weight, teacher_hidden, teacher_weight))

    def fused():
        return gradients(compiled(hidden, weight, teacher_hidden, teacher_weight))

    found = {
        GEMMS: gemms,
        "kullback `total`, soft term": ours(),
        "kullback `total`, soft and hard term": ours(hard=True),
        "kullback `total`, soft term, memory=64 MiB": ours(memory=64 * MIB),
        "kullback `kl`, row by row": by_rows,
        "kullback `kl` of whole logits": whole_logits,
        "PyTorch eager": eager,
        "torch.compile": fused,
    }
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        liger = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, chunk_size=256)
        found["Liger 0.8.5 JSD, beta=0, chunk_size=256"] = lambda: gradients(
            liger(hidden, weight, teacher_hidden, teacher_weight, labels)
        )
    except ImportError:
        pass
    try:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction as Trl

        found["TRL 1.16 chunked divergence"] = lambda: gradients(
            Trl.apply(hidden, weight, None, teacher_hidden, teacher_weight, None, 0.0)[0].mean()
        )
    except ImportError:
        pass
    return found


def measure(cell: str, rounds: int, threads: int):
    torch.set_num_threads(threads)
    shape, name = cell.split("-")
    (n, h, v), dtype = SHAPES[shape], getattr(torch, name)
    g = torch.Generator().manual_seed(0)

    def made(*sizes, scale=1.0, grad=False):
        return (scale * torch.randn(*sizes, generator=g)).to(dtype).requires_grad_(grad)

    student = made(n, h, grad=True), made(v, h, scale=1 / math.sqrt(h), grad=True)
    teacher = made(n, h), made(v, h, scale=1 / math.sqrt(h))
    labels = torch.randint(v, (n,), generator=g)
    calls = contenders(*student, *teacher, labels)
    seconds = {name: [] for name in calls}
    peaks = {name: [] for name in calls}
    wanted = {}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            gc.collect()
            LIBC.malloc_trim(0)  # what earlier contenders freed does not count as theirs who come later
            Path("/proc/self/clear_refs").write_text("5")
            before, start = resident("VmRSS"), time.process_time()
            found = call()
            spent = time.process_time() - start
            peak = resident("VmHWM") - before - sum(x.nbytes for x in found)
            if turn:  # the first round warms up
                seconds[name].append(spent)
                peaks[name].append(peak)
            elif name != GEMMS and "hard" not in name:
                wanted[name] = [x.double().norm().item() for x in found]
            del found
    return {
        "cell": cell,
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "peak_mib": {name: min(found) / MIB for name, found in peaks.items()},
        "gradient_norms": wanted,
    }


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def page(results, command: str) -> str:
    lines = [
        "# From hidden states: time and memory",
        "",
        f"Made by `{command}`.",
        "",
        "KL(teacher‖student) with gradients to the student's hidden states and weight; the teacher's product is in it.",
        "Processor seconds over those of the four bare matrix products that any method needs, medians of contenders",
        "that take turns; in brackets, peak memory beyond inputs and gradients.",
        "",
        "| (tokens, H, V) | " + " | ".join(f"{SHAPES[r['cell'][0]]} {r['cell'][2:]}" for r in results) + " |",
        "| --- |" + " --- |" * len(results),
    ]
    for name in results[0]["seconds"]:
        cells = []
        for r in results:
            ratio = r["seconds"][name] / r["seconds"][GEMMS]
            first = f"{r['seconds'][name]:.2f} s" if name == GEMMS else f"{ratio:.2f}"
            cells.append(f"{first} ({max(r['peak_mib'][name], 0):.0f} MiB)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Liger rounds a value in bfloat16 to its scores' eight bits; TRL multiplies in float32 on a CPU. On a GPU",
        "nothing was measured.",
        "",
    ]
    return "\n".join(lines)


def main():
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="one cell, such as a-float32, printed as JSON")
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, given.rounds, given.threads)))
        return
    results = []
    for cell in (f"{shape}-{dtype}" for shape in SHAPES for dtype in DTYPES):
        options = ["--rounds", str(given.rounds), "--threads", str(given.threads), "--only", cell]
        done = subprocess.run(
            [sys.executable, __file__, *options],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MIB)},  # large blocks go back at once
        )
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(results[-1]), flush=True)
    command = f"python bench/linear.py --rounds {given.rounds} --threads {given.threads}"
    (DOCS / "performance-linear.json").write_text(json.dumps({"command": command, "results": results}, indent=1) + "\n")
    (DOCS / "performance-linear.md").write_text(page(results, command))


if __name__ == "__main__":
    main()
