"""A teacher that knows one token back, texts without words, and the caches that it writes: run as a program, it writes
one slowly, to be killed.
"""

import sys
import time
from pathlib import Path

import torch

from kullback import draw, top_k
from kullback.language.caches.format import CacheSettings
from kullback.language.caches.writer import Task, write_cache
from kullback.language.fingerprints import Fingerprint
from kullback.language.windows import windows

V = 300
TEACHER = Fingerprint("bigrams", "7" * 64)


def scores(ids, temperature=1.0):
    """(n, V) float32, of the tokens after `ids`: Zipf in an order of each token's own, with noise."""
    rows = []
    for i in ids:
        g = torch.Generator().manual_seed(int(i))
        ranks = torch.randperm(V, generator=g) + 1
        rows.append(-1.2 * torch.log(ranks.float()) + 0.5 * torch.randn(V, generator=g))
    return torch.stack(rows)


def texts(many=30, seed=0):
    """Token ids of documents of 1 to 60 tokens; one token has nothing to describe."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(V, (int(torch.randint(1, 61, (), generator=g)),), generator=g).tolist() for _ in range(many)]


def tasks(documents=None, context=16, overlap=1):
    for number, ids in enumerate(texts() if documents is None else documents):
        for window in windows(ids, context, overlap):
            yield Task(f"text {number}", number, window)


def settings(policy="top-k", k=8, **given):
    plain = {"context": 16, "seed": 0 if policy == "drawn" else None, "shard_tokens": 200}
    return CacheSettings(TEACHER, "a" * 64, V, policy, k, **plain | given)


class Teacher:
    """Also counts the windows that it was asked about."""

    def __init__(self, of):
        self.settings, self.asked = of, 0

    def __call__(self, batch):
        self.asked += len(batch)
        return [[self.form(task)] for task in batch]

    def form(self, task):
        s = self.settings
        logits = scores(torch.tensor(task.window.ids)[torch.from_numpy(task.described)])
        if s.policy == "top-k":
            return top_k(logits, s.k, tail="bucket", temperature=s.temperature)
        return draw(logits, s.k, generator=task.generator(s.seed), temperature=s.temperature)


def write(folder, of=None, documents=None, teacher=None, **given):
    of = settings() if of is None else of
    return write_cache(folder, of, tasks(documents, of.context, of.overlap), teacher or Teacher(of), **given)


class Slow(Teacher):
    def __call__(self, batch):
        time.sleep(0.02)
        return super().__call__(batch)


if __name__ == "__main__":
    chosen = settings(sys.argv[2])
    write(Path(sys.argv[1]), chosen, teacher=Slow(chosen), batch=2)
