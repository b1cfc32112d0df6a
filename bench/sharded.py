"""KL of two rows of logits whose vocabulary is split over two gloo ranks, beside one rank's half alone.

    python bench/sharded.py [--rows 256] [--classes 32000] [--rounds 15]

Forward and backward to the second argument, float32, one thread a rank. Each round runs, in turn, one half alone on
rank 0 while the other rank waits, each rank's half as if it were whole (nothing is sent, but the ranks share the
processor's caches and memory), and both as shards of one vocabulary; reported are medians of wall time and of processor
time of the slower rank, and ratios to the first and to the second. With fewer free cores than ranks wall time says how
the ranks share them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from kullback import Logits, Sharded, explain, kl


def rank_main(rank, world, store, rows, classes, rounds):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    width = classes // world
    generator = torch.Generator().manual_seed(rank)
    p = torch.randn(rows, width, generator=generator)
    q = torch.randn(rows, width, generator=generator).requires_grad_()

    def whole(x):
        return Sharded(Logits(x), num_classes=width * world, start=width * rank)

    def half():
        kl(Logits(p), Logits(q)).sum().backward()

    def both():
        kl(whole(p), whole(q)).sum().backward()

    def timed(step):
        q.grad = None
        wall, used = time.perf_counter(), time.process_time()
        step()
        return time.perf_counter() - wall, time.process_time() - used

    alone, each, together = [], [], []
    for _ in range(rounds + 2):
        dist.barrier()
        alone.append(timed(half) if rank == 0 else (0.0, 0.0))
        for seen, step in ((each, half), (together, both)):
            dist.barrier()
            seen.append(timed(step))
    found = torch.tensor([alone[2:], each[2:], together[2:]], dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    if rank == 0:
        print(explain(whole(p), whole(q)).manner)
        for i, name in enumerate(("wall", "processor")):
            one, two, split = (statistics.median(found[k, :, i].tolist()) for k in range(3))
            print(
                f"{name:9}  one half alone {1e3 * one:6.2f} ms   a half on each {1e3 * two:6.2f} ms   "
                f"shards {1e3 * split:6.2f} ms   ratios {split / one:.2f} {split / two:.2f}"
            )
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--classes", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is not None:
        rank_main(int(given.rank), 2, given.store, given.rows, given.classes, given.rounds)
        return
    print(f"({given.rows}, {given.classes}) float32, forward and backward, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        more = [f"--rows={given.rows}", f"--classes={given.classes}", f"--rounds={given.rounds}"]
        command = [sys.executable, __file__, *more, f"--store={Path(folder) / 'store'}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ranks = [subprocess.Popen([*command, f"--rank={k}"], env=environment) for k in range(2)]
        if any(code != 0 for code in [process.wait() for process in ranks]):
            sys.exit("a rank failed")


if __name__ == "__main__":
    main()
