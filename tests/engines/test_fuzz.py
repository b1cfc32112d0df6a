"""Random calls of the C++ engine: shapes, strides, dtypes, readings, upstream gradients, NaN, ±inf, zero sizes,
threads, instruction sets. Each must agree with `core`, and none may crash.

The suite runs a fixed number of seeds. `make fuzz` goes on with new ones; a failure names the seed that repeats it:

    python tests/engines/test_fuzz.py --seconds 60 [--sum kl --seed 1234]
"""

import argparse
import math
import random
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from agreement import SUMS, compare

from cases import call_of
from kullback import Labels, Logits, LogProbs, Probs, TopK
from kullback.engines import cpu

pytestmark = pytest.mark.skipif(cpu.ABSENT is not None, reason=str(cpu.ABSENT))

WIDTHS = (1, 2, 3, 10, 15, 16, 17, 63, 64, 65, 100, 511, 512, 513, 1000, 1024, 2049)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def batch_shape(rng):
    kind = rng.randrange(6)
    if kind == 0:
        return ()
    if kind == 1:
        return (rng.choice((16, 40, 64, 65, 130)),)
    return tuple(rng.choice((0, 1, 1, 2, 3, 4)) for _ in range(rng.randrange(1, 4)))


def layout(rng, data):
    """The same numbers in other places: transposed, sliced, with a stride, broadcast, or as they are."""
    kind = rng.randrange(6)
    if kind == 0 and data.ndim >= 2:
        return data.transpose(0, 1).contiguous().transpose(0, 1)
    if kind == 1 and data.ndim >= 2:
        return torch.cat([data, data], -1)[..., : data.shape[-1]]
    if kind == 2:
        return data.repeat_interleave(2, -1)[..., ::2]
    if kind == 3 and data.ndim >= 2 and data.shape[0]:
        return data[:1].expand_as(data)
    if kind == 4 and data.ndim >= 2:
        return torch.cat([data[:1], data])[data[:1].shape[0] :]
    return data


def rows(rng, g, batch, width, near=None):
    """Scores in float64: ordinary, near other rows, far out, or with something that is no number in a few places."""
    scale = rng.choice((0.0, 1e-3, 1.0, 1.0, 5.0, 30.0))
    data = scale * torch.randn(*batch, width, generator=g, dtype=torch.float64)
    if near is not None and rng.random() < 0.5:
        data = near + rng.choice((0.0, 1e-5, 1e-2, 1.0)) * data
    if rng.random() < 0.3:
        data = data + rng.choice((-1e4, -300.0, 50.0, 3e3))
    if rng.random() < 0.3 and data.numel():
        places = torch.rand(data.shape, generator=g) < rng.choice((0.01, 0.2, 0.9))
        data[places] = -math.inf
    if rng.random() < 0.1 and data.numel():
        data.view(-1)[rng.randrange(data.numel())] = rng.choice((math.nan, math.inf, -math.inf))
    return data


def form(rng, scores, dtype):
    kind = rng.choice(("logits", "logits", "logits", "log_probs", "probs", "labels", "top_k"))
    width = scores.shape[-1]
    if kind == "top_k":
        k, tail = rng.choice((1, 2, 7, width // 2, width - 1, width)), rng.choice(("bucket", "even", "renormalize"))
        log_p, ids = torch.log_softmax(scores, -1).topk(max(1, min(k, width)), -1)
        order = torch.randperm(ids.shape[-1], generator=torch.Generator().manual_seed(width))
        temperature = 1.0 if tail == "bucket" else rng.choice((1.0, 0.5, 3.0))
        ids, log_p = layout(rng, ids[..., order]), log_p[..., order].to(dtype)
        return TopK(ids, log_p, width, tail=tail, temperature=temperature, validate=False)
    if kind == "labels":
        labels = scores.nan_to_num().argmax(-1) if scores.numel() else torch.zeros(scores.shape[:-1], dtype=torch.int64)
        smoothing, spread = rng.choice((0.0, 0.1, 1.0)), rng.choice(("all", "others"))
        return Labels(labels, width, smoothing if width > 1 else 0.0, spread)
    if kind == "logits":
        return Logits(layout(rng, scores.to(dtype)), rng.choice((1.0, 1.0, 0.5, 3.0)))
    if kind == "log_probs":
        return LogProbs(layout(rng, torch.log_softmax(scores, -1).to(dtype)), validate=False)
    return Probs(layout(rng, torch.softmax(scores, -1).to(dtype)), validate=False)


def one_call(name, seed):
    """A call of one sum; its seeds are its own, so that a new row of the table changes no other's."""
    own = zlib.crc32(f"{name} {seed}".encode())
    rng, g = random.Random(own), torch.Generator().manual_seed(own)
    batch, width = batch_shape(rng), rng.choice(WIDTHS)
    if rng.random() < 0.02:
        batch, width = rng.choice(((1,), (3,), ())), rng.choice((16_384, 16_385, 40_000))
    first = rows(rng, g, batch, width)
    left = form(rng, first, rng.choice(DTYPES))
    near = None if "tv" in name else first  # total variation has corners at p = q, where the sign of rounding decides
    right = form(rng, rows(rng, g, batch, width, near=near), rng.choice(DTYPES))
    if rng.random() < 0.5 and isinstance(left, Logits):  # the commonest call of all: one dtype, one temperature
        scores = rows(rng, g, batch, width, near=near)
        right = Logits(layout(rng, scores.to(left.data.dtype)), left.reading.temperature)
    sides = left.side(left.batch_shape), right.side(right.batch_shape)
    if cpu.why_not(call_of(SUMS[name], *sides, width)) is not None:
        right = Logits(rows(rng, g, batch, width, near=near).float())
    before = cpu.instruction_set(), torch.get_num_threads()
    try:
        cpu.use_instruction_set(rng.choice(cpu.instruction_sets()))
        torch.set_num_threads(rng.choice((1, 2, 3)))
        compare(SUMS[name], left, right, width, seed=own)
    except Exception as error:
        raise AssertionError(f"seed {seed}: {name} of {left!r}, {right!r}, batch {batch}: {error}") from error
    finally:
        cpu.use_instruction_set(before[0])
        torch.set_num_threads(before[1])


@pytest.mark.parametrize("name", SUMS)
def test_random_calls(name):
    for seed in range(50):
        one_call(name, seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--sum", choices=list(SUMS), help="this one alone")
    parser.add_argument("--seed", type=int, help="repeat this one alone; wants --sum")
    args = parser.parse_args()
    names = [args.sum] if args.sum else list(SUMS)
    if args.seed is not None:
        one_call(names[0], args.seed)
        return
    seed, stop = time.time_ns() % 2**40, time.monotonic() + args.seconds
    calls = 0
    while time.monotonic() < stop:
        print(seed, file=sys.stderr, flush=True) if calls % 1000 == 0 else None
        one_call(names[calls % len(names)], seed)
        seed, calls = seed + 1, calls + 1
    print(f"{calls} calls agreed")


if __name__ == "__main__":
    main()
