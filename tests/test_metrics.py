"""A metric's summary is that of all its rows, however they were split over batches, metrics and ranks."""

import importlib
import math
import subprocess
import sys
import textwrap

import pytest
import torch

import kullback.metrics
from kullback import FormError, Labels, Logits, divergences, js, kl
from kullback.divergences import CROSS_ENTROPY

MISSING = None if kullback.metrics._Base is not kullback.metrics._Alone else "torchmetrics is not installed"


@pytest.fixture(params=["alone", "torchmetrics"])
def make(request, monkeypatch):
    """The class as it is with and without torchmetrics."""
    if request.param == "torchmetrics":
        pytest.importorskip("torchmetrics", reason="torchmetrics is not installed: pip install torchmetrics")
        return kullback.metrics.Divergence
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "kullback.metrics")
    module = importlib.import_module("kullback.metrics")
    assert module._Base is module._Alone
    return module.Divergence


def pairs(batches, rows=100, scale=1.0):
    for seed in range(batches):
        g = torch.Generator().manual_seed(seed)
        a = torch.randn(rows, 8, generator=g, dtype=torch.float64)
        yield Logits(a), Logits(a + scale * torch.randn(rows, 8, generator=g, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
def test_the_summary_is_that_of_all_rows(make, scale):
    metric, seen = make(quantiles=(0.0, 0.25, 0.5, 0.99, 1.0)), []
    for p, q in pairs(7, scale=scale):
        metric.update(p, q)
        seen.append(kl(p, q))
    x, found = torch.cat(seen), metric.compute()
    assert found.rows == 700
    torch.testing.assert_close(found.mean, x.mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(found.standard_error, x.std() / math.sqrt(700), rtol=1e-12, atol=0)
    assert found.maximum == x.max()
    ranks = [0, 174, 349, 692, 699]  # ceil(q n) - 1
    torch.testing.assert_close(found.quantiles, x.sort().values[ranks], rtol=0.0101, atol=0)


def test_batches_metrics_and_calls_merge_to_the_same(make):
    whole, parts, batches = make(), [make(), make()], list(pairs(6))
    for k, (p, q) in enumerate(batches):
        whole.update(p, q)
        batch = parts[k % 2](p, q)
        torch.testing.assert_close(batch.mean, kl(p, q).mean(), rtol=1e-13, atol=0)
        assert batch.rows == 100
    one, other = parts
    one.merge_state(other)
    for a, b in zip(one.compute(), whole.compute(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    one.reset()
    assert one.compute().rows == 0


def test_any_divergence_and_forms(make):
    metric = make(CROSS_ENTROPY)
    scores, y = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 5
    metric.update(Labels(y, 5), Logits(scores))
    want = torch.nn.functional.cross_entropy(scores, y)
    torch.testing.assert_close(metric.compute().mean.float(), want)
    for divergence in (divergences.js(0.3), lambda p, q: js(p, q, weight=0.3)):
        metric = make(divergence, quantiles=())
        metric.update(Logits(scores), Logits(scores.flip(0)))
        assert metric.compute().quantiles.shape == (0,)
        torch.testing.assert_close(
            metric.compute().mean.float(), js(Logits(scores), Logits(scores.flip(0)), weight=0.3).mean()
        )


def test_dropped_rows_may_hold_nan_and_kept_ones_may_not_in_silence(make):
    (p, q), keep = next(pairs(1)), torch.arange(100) % 2 == 0
    broken = p.data.clone()
    broken[1] = math.nan
    metric = make()
    metric.update(Logits(broken), q, mask=keep)
    torch.testing.assert_close(metric.compute().mean, kl(p, q)[keep].mean(), rtol=1e-13, atol=0)
    metric.update(Logits(broken), q)
    found = metric.compute()
    assert found.mean.isnan()
    assert found.quantiles.isnan().all()
    assert found.rows == 150


def test_zero_and_infinity_are_values(make):
    p = Logits([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    q = Logits([[0.0, 0.0], [0.0, 0.0], [0.0, -math.inf]])
    metric = make(quantiles=(0.5, 1.0))
    metric.update(p, q)
    found = metric.compute()
    assert found.mean == math.inf
    assert found.maximum == math.inf
    assert found.quantiles.tolist() == [0.0, math.inf]
    metric.update(p, q)
    assert metric.compute().mean == math.inf


def test_nothing_counted_is_nan_and_one_row_has_no_error(make):
    metric = make()
    assert metric.compute().mean.isnan()
    metric.update(Logits(torch.zeros(0, 3)), Logits(torch.zeros(0, 3)))
    assert metric.compute().rows == 0
    metric.update(Logits(torch.zeros(1, 3)), Logits(torch.ones(1, 3)))
    assert metric.compute().mean == 0.0
    assert metric.compute().standard_error.isnan()


def test_settings_are_checked(make):
    with pytest.raises(FormError, match="shares from 0 to 1"):
        make(quantiles=(50,))
    with pytest.raises(FormError, match=r"mask.bool\(\)"):
        make().update(*next(pairs(1)), mask=torch.ones(100))
    with pytest.raises(FormError, match="divergence="):
        make("kl")


@pytest.mark.parametrize("alone", [True, False])
def test_two_ranks_bring_their_rows_together(tmp_path, alone):
    if not alone and MISSING:
        pytest.skip(f"{MISSING}: pip install torchmetrics")
    script = tmp_path / "ranks.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            if {alone}:
                sys.modules["torchmetrics"] = None
            import torch, torch.distributed as dist, torch.multiprocessing as mp
            from kullback import Logits
            from kullback.metrics import Divergence

            def work(rank):
                if {alone}:
                    assert Divergence.__mro__[1].__name__ == "_Alone"
                dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=rank, world_size=2)
                metric = Divergence()
                for k in range(rank, 5, 2):
                    g = torch.Generator().manual_seed(k)
                    metric.update(Logits(torch.randn(10, 4, generator=g)), Logits(torch.randn(10, 4, generator=g)))
                found = metric.compute()
                told = (found.mean, found.rows, found.maximum)
                sys.stdout.write(" ".join(f"{{x.item():.12f}}" for x in told) + "\\n")
                dist.destroy_process_group()

            if __name__ == "__main__":
                mp.spawn(work, nprocs=2)
            """
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = []
    for k in range(5):
        g = torch.Generator().manual_seed(k)
        seen.append(kl(Logits(torch.randn(10, 4, generator=g)), Logits(torch.randn(10, 4, generator=g))))
    x = torch.cat(seen).double()
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        mean, count, largest = line.split()
        assert float(count) == 50
        assert float(mean) == pytest.approx(x.mean().item(), rel=1e-9)
        assert float(largest) == pytest.approx(x.max().item(), rel=1e-9)
