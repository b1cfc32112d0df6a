"""Planted faults: each is one mistake that a transcription invites, and the comparison with `core` must see it."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install 'kullback[triton]'")

from triton_common import compare, edge_rows, scores, with_tile

from kullback import Logits, LogProbs
from kullback.divergences import CHI2, KL, TV
from kullback.engines.triton import generators, kernels, launch, readings

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")


def on_edges(total, temperatures=(1.0, 1.0)):
    a, b = edge_rows()
    compare(total, Logits(a.float(), temperatures[0]), Logits(b.float(), temperatures[1]))


def on_log_probs():
    a, b = (torch.log_softmax(s, -1).float() for s in scores(3, 9))
    compare(KL.sums[0], LogProbs(a), LogProbs(b))


def on_small_values():
    a = scores(3, 200, seed=11)[0]
    b = a + 2e-5 * scores(3, 200, seed=13)[0]
    compare(KL.sums[0], Logits(a.float()), Logits((b + 1000.0).float()), floor=1e-18)


NARROW = {"T": kernels.tl.float32, "NORMALIZER": kernels.tl.float32}
SETTINGS = {
    "p and q exchanged": (lambda: on_edges(KL.sums[0]), {"GENERATOR": generators.reverse_kl}),
    "the edges exchanged": (lambda: on_edges(KL.sums[0]), {"AT_P_ZERO": float("inf"), "AT_Q_ZERO": 1.0}),
    "an edge forgotten": (lambda: on_edges(TV.sums[0]), {"AT_Q_ZERO": 0.0}),
    "q's temperature forgotten": (lambda: on_edges(KL.sums[0], (1.0, 2.0)), {"UNIT_Q": True}),
    "two temperatures taken for one": (lambda: on_edges(KL.sums[0], (1.0, 2.0)), {"SAME": True}),
    "the textbook gradient forgotten": (on_log_probs, {"PLAIN_P": 0.0}),
    "too narrow for chi2": (
        lambda: on_edges(CHI2.sums[0]),
        {"T": kernels.tl.float32, "NORMALIZER": kernels.tl.float32},
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_setting_is_seen(name, monkeypatch):
    with_tile(monkeypatch, 128, 32)
    act, fault = SETTINGS[name]
    settings = launch.settings
    monkeypatch.setattr(launch, "settings", lambda *a: settings(*a) | fault)
    with pytest.raises(AssertionError):
        act()


def lossy_two_sum(a, b):
    return a + b, 0.0 * a


def forgetful_scaled(hi, lo, scale_hi, scale_lo, UNIT):  # noqa: N803
    return hi, lo


def unweighted_mass(coefficient, mass, where):
    return kernels.tl.where(where, mass, 0.0)


KERNELS = {
    "digits of a difference dropped": (on_small_values, readings, "two_sum", lossy_two_sum),
    "temperature dropped": (lambda: on_edges(KL.sums[0], (2.0, 2.0)), readings, "scaled", forgetful_scaled),
    "an edge's constant dropped": (lambda: on_edges(TV.sums[0]), kernels, "_mass_times", unweighted_mass),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_wrong_kernel_is_seen(name, monkeypatch):
    with_tile(monkeypatch, 128, 32)
    act, module, function, fault = KERNELS[name]
    monkeypatch.setattr(module, function, fault)
    with pytest.raises(AssertionError):
        act()
