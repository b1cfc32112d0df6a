"""What a teacher cache takes, and what float16 does to it; docs/caches.md quotes it.

    python bench/caches.py [--tokens 2048]

Rows are as language models have them, by rank to the power -1.2 with noise, in an order of classes that is drawn anew
for each row: ids are as hard to compress as they can be. Bytes are those of the files, all columns and metadata
included, for each token. `error` is the largest |log p read - log p| / |log p|; `KL` the mean over tokens of
|KL(read‖student) - KL(live‖student)| beside the mean of the latter, of the live teacher's top k with a bucket, or of
the same draws, and a student that is the teacher with noise of size 0.7. Times are of the process, writing (without the
teacher) and reading.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from kullback import Logits, draw, estimate, kl, top_k
from kullback.language.caches import TeacherCache
from kullback.language.caches.format import CacheSettings
from kullback.language.caches.writer import Task, write_cache
from kullback.language.fingerprints import Fingerprint
from kullback.language.windows import windows

CONTEXT = 128


def scores(rows, v, generator):
    ranks = torch.stack([torch.randperm(v, generator=generator) for _ in range(rows)]) + 1
    return -1.2 * torch.log(ranks.float()) + 0.7 * torch.randn(rows, v, generator=generator)


def kept(task, of):
    """(what a cache keeps of a window, the student's scores)."""
    generator = torch.Generator().manual_seed(task.window.start)
    logits = scores(int(task.described.sum()), of.num_classes, generator)
    student = logits + 0.7 * torch.randn(logits.shape, generator=generator)
    if of.policy == "top-k":
        return top_k(logits, of.k, tail="bucket"), student
    return draw(logits, of.k, generator=task.generator(of.seed)), student


def divergence(form, student, of):
    return kl(form, Logits(student)) if of.policy == "top-k" else estimate.kl(form, Logits(student)).raw


def measure(of, tokens):
    ids = torch.randint(of.num_classes, (tokens + 1,), generator=torch.Generator().manual_seed(0)).tolist()
    tasks = [Task("text", 0, window) for window in windows(ids, CONTEXT)]
    live = {task.window.start: kept(task, of) for task in tasks}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        found = write_cache(Path(folder), of, tasks, lambda batch: [[live[task.window.start][0]] for task in batch])
        wrote = time.process_time()
        cache = TeacherCache(folder, tail="bucket" if of.policy == "top-k" else None)
        rows = list(cache.rows())
        read = time.process_time()
    worst, off, mean = 0.0, [], []
    for row in rows:
        form, (sent, student) = cache.form(row), live[row.start]
        if of.policy == "top-k":
            worst = max(worst, float(((form.log_probs - sent.log_probs) / sent.log_probs).abs().max()))
        else:
            got = form.counts > 0
            a, b = form.log_probs[got], sent.log_probs[sent.counts > 0]
            worst = max(worst, float(((a - b) / b).abs().max()))
        exact = divergence(sent, student, of)
        off.append((divergence(form, student, of) - exact).abs())
        mean.append(exact)
    each = 1e6 / found.tokens
    times = (wrote - begin) * each, (read - wrote) * each
    return found, worst, torch.cat(off).mean().item(), torch.cat(mean).mean().item(), times


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=2048)
    tokens = parser.parse_args().tokens
    torch.set_num_threads(1)
    print("| V | kept | bytes a token | dense float16 | share | left out | error | KL, off by | write, read, µs |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for v in (2048, 32000):
        for policy, k in (("top-k", 8), ("top-k", 64), ("top-k", 256), ("drawn", 50)):
            seed = 0 if policy == "drawn" else None
            of = CacheSettings(Fingerprint("", ""), "", v, policy, k, context=CONTEXT, seed=seed)
            found, worst, off, mean, (write, read) = measure(of, tokens)
            left = "—" if found.left_out is None else f"{found.left_out:.2f}"
            what = f"top {k}" if policy == "top-k" else f"drawn {k}"
            share = found.bytes_per_token / found.dense_bytes_per_token
            size = f"{found.bytes_per_token:.0f} | {found.dense_bytes_per_token:,} | {share:.2%}"
            print(
                f"| {v} | {what} | {size} | {left} | {worst:.1e} | {mean:.3f} ± {off:.0e} | {write:.0f}, {read:.0f} |"
            )


if __name__ == "__main__":
    main()
