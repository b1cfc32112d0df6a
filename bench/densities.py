"""Speed of the exact values: a million Normal pairs against torch.distributions, and a thousand quadratures.

python bench/densities.py [--json FILE]         interleaved runs on one thread; medians; ratios of medians in one run
python bench/densities.py --neighbours          nearest neighbours in 20 dimensions, and their time in 10
"""

import argparse
import json
import math
import platform
import statistics
import time

import torch
import torch.distributions as td

from kullback import Samples, estimate, kl


def timed(function, repeats):
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times


def normal_pairs(dtype, grad):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1_000_000, generator=generator, dtype=dtype).requires_grad_(grad) for _ in range(2))
    s, t = ((torch.rand(1_000_000, generator=generator, dtype=dtype) + 0.1).requires_grad_(grad) for _ in range(2))
    p, q = td.Normal(a, s, validate_args=False), td.Normal(b, t, validate_args=False)

    def run(divergence):
        value = divergence(p, q)
        if grad:
            torch.autograd.grad(value.sum(), (a, b, s, t))

    ours, theirs = [], []
    for _ in range(7):
        ours += timed(lambda: run(kl), 1)
        theirs += timed(lambda: run(td.kl_divergence), 1)
    return statistics.median(ours), statistics.median(theirs)


def quadratures():
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(1000, generator=generator)
    p = td.Normal(loc, torch.rand(1000, generator=generator) + 0.1)
    q = td.StudentT(torch.tensor(3.0))
    return statistics.median(timed(lambda: kl(p, q), 3))


def neighbours():
    """The bullet on dimension in docs/estimators.md: values in 20 dimensions, and the time of 20,000 draws in 10."""
    for one, other in ((1.0, 1.5), (1.5, 1.0)):
        ratio = one / other
        truth = 20.0 * (0.5 * ratio**2 - 0.5 - math.log(ratio))
        values = []
        for seed in range(5):
            g = torch.Generator().manual_seed(seed)
            p, q = (Samples(scale * torch.randn(3000, 20, generator=g)) for scale in (one, other))
            values.append(estimate.kl(p, q, method=estimate.NearestNeighbours(replicates=0)).raw)
        spread = statistics.stdev(values)
        print(
            f"N(0, {one}² I)‖N(0, {other}² I), d = 20: {statistics.mean(values):.3f} ± {spread:.3f}, truth {truth:.3f}"
        )
    g = torch.Generator().manual_seed(0)
    p, q = (Samples(torch.randn(20_000, 10, generator=g) + shift) for shift in (0.0, 0.2))
    for method in (estimate.NearestNeighbours(replicates=0), estimate.NearestNeighbours()):
        start, cpu = time.perf_counter(), time.process_time()
        found = estimate.kl(p, q, method=method, generator=g)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(f"{found}\n    {wall:.1f} s, {cpu:.1f} s of CPU, on {torch.get_num_threads()} threads")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="also write the numbers here")
    parser.add_argument("--neighbours", action="store_true", help="nearest neighbours instead")
    arguments = parser.parse_args()
    if arguments.neighbours:
        neighbours()
        return
    torch.set_num_threads(1)
    rows = []
    for dtype in (torch.float32, torch.float64):
        for grad in (False, True):
            ours, theirs = normal_pairs(dtype, grad)
            what = f"1e6 Normal pairs, {dtype}, {'forward+backward' if grad else 'forward'}"
            rows.append({"case": what, "ours_ms": 1e3 * ours, "torch_ms": 1e3 * theirs, "ratio": ours / theirs})
    rows.append({"case": "1000 quadratures Normal‖StudentT, forward", "ours_ms": 1e3 * quadratures()})
    for row in rows:
        against = f"torch {row['torch_ms']:8.1f} ms   ratio {row['ratio']:.2f}" if "ratio" in row else ""
        print(f"{row['case']:55s} ours {row['ours_ms']:8.1f} ms   {against}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(
                {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "rows": rows}, file
            )


if __name__ == "__main__":
    main()
