"""KL(p‖q) of two rows of logits, side by side: value, and value with the gradient to q; time, memory, accuracy.

    python bench/engines.py [--quick] [--rounds 15]

Contenders of a group run once a round, in turn, so that whatever else the machine does hits all of them alike; reported
are medians over rounds and ratios of medians. Each shape and group runs in a process of its own:
`kullback` is in both, so that every ratio is of one run. Writes docs/performance.md, docs/images/performance.svg and
docs/performance.json. `pip install jax optax` adds optax's row.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812

from kullback import Logits, engines, kl
from kullback.engines import cpu

ROOT = Path(__file__).resolve().parent.parent
SHAPES = [(512, 32_000), (128, 128_256), (2_048, 1_000), (65_536, 10), (1, 262_144)]
DTYPES = ["float32", "bfloat16"]


def pytorch(a, b):
    return F.kl_div(F.log_softmax(b, -1), F.log_softmax(a, -1), log_target=True, reduction="none").sum(-1)


def pytorch_float32(a, b):
    """What one writes for bfloat16 logits to get a usable number."""
    return pytorch(a.float(), b.float())


GROUPS = ("main", "others")  # the others allocate gigabytes or keep threads of their own


def contenders(a, b, group):
    """name -> (forward, or None; forward and backward, or None)."""
    out = torch.empty_like(a)
    found = {}

    def both(name, function):
        def forward():
            with torch.no_grad():
                return function(a, b.detach())

        def backward():
            b.grad = None
            function(a, b).sum().backward()

        found[name] = (forward, backward)

    both("kullback", lambda x, y: kl(Logits(x), Logits(y)))

    def eager(x, y):
        with engines.use("eager"):
            return kl(Logits(x), Logits(y))

    if group == "others":
        both("kullback, eager engine", eager)
        for name, function in peers().items():
            both(name, function)
        return found
    both("PyTorch eager", pytorch)
    both("PyTorch compiled", torch.compile(pytorch))
    if a.dtype == torch.bfloat16:
        both("PyTorch eager, upcast", pytorch_float32)
        both("PyTorch compiled, upcast", torch.compile(pytorch_float32))
    d = b.detach()
    found["floor: read both"] = (lambda: (a.sum(), d.sum()), None)
    found["floor: torch.add, fresh"] = (None, lambda: torch.add(a, d))
    found["floor: torch.add(out=)"] = (None, lambda: torch.add(a, d, out=out))
    return found


def peers():
    """Optional: what else computes this on a CPU."""
    found = {}
    with contextlib.suppress(ImportError):
        import jax
        import jax.numpy as jnp
        import optax

        @jax.jit
        def value(x, y):
            return optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(y), jax.nn.log_softmax(x))

        gradient = jax.jit(jax.grad(lambda y, x: value(x, y).sum()))

        class Optax(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, y):
                ctx.x, ctx.y = jnp.from_dlpack(x), jnp.from_dlpack(y.detach())
                return torch.from_dlpack(value(ctx.x, ctx.y).block_until_ready())

            @staticmethod
            def backward(ctx, up):
                return None, torch.from_dlpack(gradient(ctx.y, ctx.x).block_until_ready())

        found["optax, jit"] = Optax.apply
    return found


def measure(shape, dtype, group, rounds):
    torch.manual_seed(0)
    torch.set_num_threads(2)
    a = torch.randn(*shape)
    b = a + 0.1 * torch.randn(*shape)
    a, b = a.to(dtype), b.to(dtype).requires_grad_()
    people = contenders(a, b, group)
    times = {name: ([], []) for name in people}
    for round_ in range(rounds + 2):
        for name, work in people.items():
            for which, function in enumerate(work):
                if function is None:
                    continue
                if group == "others":
                    time.sleep(0.02)  # until the threads of the one before are asleep
                start = time.perf_counter()
                result = function()
                stop = time.perf_counter()
                del result
                if round_ >= 2:
                    times[name][which].append(1e3 * (stop - start))
    rows = {}
    for name, (forward, backward) in times.items():
        rows[name] = {
            "forward_ms": statistics.median(forward) if forward else None,
            "backward_ms": statistics.median(backward) if backward else None,
        }
    return rows


def accuracy(dtype):
    """Worst relative error of a row's value, and of the gradient by its norm, at V = 32,000, by true KL."""
    found = {}
    for exponent in (-9, -7, -5, -3, -1):
        g = torch.Generator().manual_seed(1)
        a = torch.randn(4, 32_000, generator=g)
        b = a + (2.0 * 10.0**exponent) ** 0.5 * torch.randn(4, 32_000, generator=g)
        if dtype == torch.bfloat16 and exponent < -5:
            continue
        a, b = a.to(dtype), b.to(dtype).requires_grad_()
        exact = b.detach().double().requires_grad_()
        with engines.use("eager"):
            truth = kl(Logits(a.double()), Logits(exact))
        (gradient,) = torch.autograd.grad(truth.sum(), exact)
        for name, function in {"kullback": lambda x, y: kl(Logits(x), Logits(y)), "PyTorch eager": pytorch}.items():
            value = function(a, b)
            (got,) = torch.autograd.grad(value.sum(), b)
            found.setdefault(name, {})[f"1e{exponent}"] = {
                "value": ((value.double() - truth).abs() / truth).max().item(),
                "gradient": ((got.double() - gradient).norm() / gradient.norm()).item(),
            }
    return found


def small():
    """Microseconds a call where there is hardly anything to compute: what a call costs."""

    def eager(x, y):
        with engines.use("eager"):
            return kl(Logits(x), Logits(y))

    functions = {
        "kullback": lambda x, y: kl(Logits(x), Logits(y)),
        "kullback, eager engine": eager,
        "PyTorch eager": pytorch,
    }
    found = {}
    for shape in ((1, 10), (32, 100), (1, 32_000), (128, 1_000), (512, 1_000)):
        a, b = torch.randn(shape), torch.randn(shape).requires_grad_()
        times = {name: ([], []) for name in functions}
        for round_ in range(220):
            for name, function in functions.items():
                for which in (0, 1):
                    b.grad = None
                    start = time.perf_counter()
                    if which:
                        function(a, b).sum().backward()
                    else:
                        with torch.no_grad():
                            function(a, b)
                    if round_ >= 20:
                        times[name][which].append(1e6 * (time.perf_counter() - start))
        found["{},{}".format(*shape)] = {name: [statistics.median(t) for t in both] for name, both in times.items()}
    return found


MEMORY = """
import resource, sys, torch
import torch.nn.functional as F
from kullback import Logits, kl
torch.set_num_threads(2)
name, n, v, dtype = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), getattr(torch, sys.argv[4])
def run(a, b):
    if name == "kullback":
        kl(Logits(a), Logits(b)).sum().backward()
    else:
        F.kl_div(F.log_softmax(b, -1), F.log_softmax(a, -1), log_target=True, reduction="none").sum().backward()
run(torch.ones(2, 64, dtype=dtype), torch.ones(2, 64, dtype=dtype).requires_grad_())
a, b = torch.randn(n, v).to(dtype), torch.randn(n, v).to(dtype).requires_grad_()
with open("/proc/self/clear_refs", "w") as f: f.write("5")
def high():
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
before = high()
run(a, b)
print(high() - before - b.grad.nbytes)
"""


def memory(shape, dtype):
    """Peak bytes of forward and backward beyond the inputs and the gradient."""
    found = {}
    for name in ("kullback", "PyTorch eager"):
        command = [sys.executable, "-c", MEMORY, name, *map(str, shape), dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found[name] = int(done.stdout) if done.returncode == 0 else None
    return found


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": 2,
        "instruction_set": None if cpu.ABSENT else cpu.instruction_set(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg()[0],
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="three rounds, nothing written")
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.shape:
        n, v, dtype, group = args.shape.split(",")
        print(json.dumps(measure((int(n), int(v)), getattr(torch, dtype), group, args.rounds)))
        return
    rounds = 3 if args.quick else args.rounds
    report = {"machine": machine(), "times": {}, "memory": {}, "accuracy": {}}
    for shape in SHAPES:
        for dtype in DTYPES:
            if dtype != "float32" and shape[0] * shape[1] < 10_000_000:
                continue
            key = f"{shape[0]},{shape[1]},{dtype}"
            print(key, file=sys.stderr, flush=True)
            report["times"][key] = {}
            for group in GROUPS:
                few = str(rounds if group == "main" else max(3, rounds // 3))
                command = [sys.executable, __file__, "--shape", f"{key},{group}", "--rounds", few]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                report["times"][key][group] = json.loads(done.stdout.splitlines()[-1])
            if shape[0] * shape[1] > 10_000_000:
                report["memory"][key] = memory(shape, dtype)
    report["small"] = small()
    report["accuracy"] = {dtype: accuracy(getattr(torch, dtype)) for dtype in DTYPES}
    report["machine"]["load_after"] = os.getloadavg()[0]
    text = markdown(report)
    print(text)
    if not args.quick:
        (ROOT / "docs" / "performance.json").write_text(json.dumps(report, indent=1) + "\n")
        (ROOT / "docs" / "performance.md").write_text(text)
        picture(report, ROOT / "docs" / "images" / "performance.svg")


def number(x, digits=1):
    return "" if x is None else f"{x:.{digits}f}" if x >= 1 else f"{x:.2f}"


def markdown(report):
    m = report["machine"]
    lines = [
        "# Performance of the CPU engine",
        "",
        "![Time per call, relative to kullback](images/performance.svg)",
        "",
        f"Measured by `python bench/engines.py` on {m['date']}, commit {m['commit']}: {m['processor']}, "
        f"{m['threads']} threads on {m['cores']} cores, {m['instruction_set']} kernels, torch {m['torch']}; "
        f"load average {m['load_before']:.1f} before and {m['load_after']:.1f} after. "
        "Other work may share such a machine: ratios say more than milliseconds.",
        "",
        "KL(p‖q) of two rows of logits, one number per row; backward goes to q. Medians of interleaved rounds, "
        "milliseconds. The ratio is time over kullback's: above 1, kullback is faster. "
        "`PyTorch` is `F.kl_div` over two `log_softmax`; "
        "`upcast` converts bfloat16 logits to float32 first. The floors do no arithmetic to speak of: "
        "reading both inputs (`sum` of each), or reading both and writing one (`torch.add`). "
        "Liger and TRL compute on a CPU from hidden states only, which is other work. "
        "Every row is here, also those that kullback loses.",
    ]
    for key, groups in report["times"].items():
        n, v, dtype = key.split(",")
        lines += ["", f"## ({int(n):,}, {int(v):,}) {dtype}", ""]
        lines += ["| | forward | ratio | forward + backward | ratio |", "| --- | ---: | ---: | ---: | ---: |"]
        for group, rows in groups.items():
            own = rows["kullback"]
            for name, row in rows.items():
                if name == "kullback" and group != "main":
                    continue
                f, b = row["forward_ms"], row["backward_ms"]
                rf, rb = (f / own["forward_ms"] if f else None), (b / own["backward_ms"] if b else None)
                lines.append(f"| {name} | {number(f)} | {number(rf, 2)} | {number(b)} | {number(rb, 2)} |")
        for name, count in report["memory"].get(key, {}).items():
            if count is not None:
                lines += ["", f"Peak memory beyond inputs and gradient, {name}: {max(count, 0) / 2**20:.1f} MiB."]
    lines += [
        "",
        "## Small problems",
        "",
        "Microseconds a call, forward / forward and backward: what the call itself costs.",
        "",
    ]
    names = list(next(iter(report["small"].values())))
    lines += ["| float32 | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for key, row in report["small"].items():
        shape = "({}, {})".format(*key.split(","))
        lines.append(f"| {shape} | " + " | ".join(f"{row[name][0]:.0f} / {row[name][1]:.0f}" for name in names) + " |")
    lines += ["", "## Accuracy", ""]
    lines += ["Worst relative error of a row's value, and error of the gradient relative to its norm, at V = 32,000."]
    for dtype, contestants in report["accuracy"].items():
        columns = list(next(iter(contestants.values())))
        lines += ["", f"| {dtype}, true KL about | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
        for name, cells in contestants.items():
            for what in ("value", "gradient"):
                lines.append(f"| {name}, {what} | " + " | ".join(f"{cells[c][what]:.0e}" for c in columns) + " |")
    return "\n".join(lines) + "\n"


def picture(report, path):
    from kullback.kit.pictures import BLUE, INK, ORANGE, drawn

    shown = {"PyTorch eager": BLUE, "PyTorch compiled": ORANGE}
    keys = list(report["times"])

    def draw(figure):
        axes = figure.subplots(1, 2, sharey=True)
        whiches = (("forward_ms", "forward"), ("backward_ms", "forward + backward"))
        for axis, (which, title) in zip(axes, whiches, strict=True):
            for offset, (name, colour) in enumerate(shown.items()):
                mains = [report["times"][k]["main"] for k in keys]
                ratios = [main[name][which] / main["kullback"][which] for main in mains]
                places = [i + 0.36 * offset for i in range(len(keys))]
                axis.barh(places, ratios, height=0.34, label=name, color=colour)
            axis.axvline(1.0, color=INK, linewidth=1)
            axis.set(title=title, xlabel="time / kullback's time")
        axes[0].set_yticks([i + 0.18 for i in range(len(keys))])
        axes[0].set_yticklabels(["({}, {}) {}".format(*k.split(",")) for k in keys])
        axes[0].invert_yaxis()
        axes[1].legend(loc="center right")
        figure.suptitle("Right of the line kullback is faster", fontsize=11)

    path.parent.mkdir(exist_ok=True)
    path.write_bytes(drawn(draw, size=(10, 3.8), of="distill"))


if __name__ == "__main__":
    main()
