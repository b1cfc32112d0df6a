"""`explain`: a pure function of types, dtypes, devices and shapes, that says what is done."""

import dataclasses
import itertools
import math
from contextlib import nullcontext

import pytest
import torch

from cases import DATA, FORMS, normal
from kullback import Labels, Logits, Probs, Route, explain, kl
from kullback.engines import choice, cpu, use


@pytest.mark.parametrize("names", list(itertools.product(FORMS, FORMS)), ids="-".join)
def test_values_do_not_matter(names):
    def plan(seed, **kind):
        sides = (DATA[n](normal(3, 5, seed=seed + i), torch.float32) for i, n in enumerate(names))
        return explain(*(FORMS[n](x) for n, x in zip(names, sides, strict=True)))

    first, second = plan(1), plan(3)
    assert isinstance(first, Route)
    assert first == second
    assert hash(first) == hash(second)
    assert str(first) == str(second)


def test_not_even_nan_matters():
    good, bad = torch.zeros(2, 3), torch.full((2, 3), math.nan)
    assert explain(Logits(good), Logits(good)) == explain(Logits(bad), Logits(bad))


def test_it_reads_no_data():
    x = torch.empty(4, 7, device="meta", dtype=torch.bfloat16)
    plan = explain(Logits(x), Probs(x))
    assert (plan.batch_shape, plan.num_classes, plan.result_dtype) == ((4,), 7, "torch.float32")


def test_types_dtypes_and_shapes_do():
    x = torch.full((2, 4), 0.25)
    plans = [
        explain(Logits(x), Logits(x)),
        explain(Probs(x), Logits(x)),
        explain(Logits(x), Probs(x)),
        explain(Logits(x.double()), Logits(x)),
        explain(Logits(x.bfloat16()), Logits(x)),
        explain(Logits(x[:1]), Logits(x[:1])),
        explain(Labels([0, 1], 4), Logits(x)),
        explain(Logits(x.clone().requires_grad_()), Logits(x)),
    ]
    assert len(set(plans)) == len(plans)


@pytest.mark.parametrize(
    "dtypes", list(itertools.product([torch.float64, torch.float32, torch.bfloat16], repeat=2)), ids=str
)
def test_it_agrees_with_the_call(dtypes):
    p, q = Logits(normal(3, 1, 5, seed=1).to(dtypes[0])), Logits(normal(2, 5, seed=2).to(dtypes[1]))
    plan, value = explain(p, q), kl(p, q)
    assert plan.batch_shape == tuple(value.shape)
    assert plan.result_dtype == str(value.dtype)


def test_printing_it_gives_one_line_a_fact():
    with use("eager"):
        plan = explain(Labels([[1], [2]], num_classes=4), Logits(torch.zeros(3, 4, requires_grad=True)))
    text = str(plan)
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if not line.startswith((" ", "not taken")))
    assert lines["p"] == "Labels over V=4, batch (2, 1), torch.int64 on cpu"
    assert lines["q"] == "Logits over V=4, batch (3,), torch.float32 on cpu"
    assert lines["result"].startswith("(2, 3) torch.float32")
    assert "exact" in lines["method"]
    assert "eager" in lines["engine"]
    assert "temporaries" in lines["memory"]
    assert "none, class indices are integers" in lines["gradients"]
    assert "to the torch.float32 tensor inside Logits" in text
    assert "not taken  estimate" in text


@pytest.mark.parametrize("engine", [None, *choice.NAMES])
def test_every_engine_that_is_not_taken_has_a_reason(engine):
    x = Logits(torch.zeros(2, 3))
    with use(engine) if engine else nullcontext():
        plan = explain(x, x)
    reasons = dict(plan.not_taken)
    taken = [name for name in choice.NAMES if name not in reasons]
    assert len(taken) == 1
    assert plan.engine == taken[0]
    assert set(reasons) == {"estimate", *choice.NAMES} - set(taken)
    if engine == "eager":
        assert reasons["cpu"] == reasons["triton"] == "engines.use('eager') is in force"
    if engine in (None, "cpu"):
        assert reasons["triton"].startswith("the tensors are on cpu" if engine is None else "engines.use('cpu')")


def test_the_memory_it_states_grows_with_rows_only_up_to_a_block():
    with use("eager"):
        small, large, larger = (
            explain(Logits(torch.zeros(n, 1000)), Logits(torch.zeros(1000))) for n in (2, 5_000, 50_000)
        )
    assert small.temporary_bytes < large.temporary_bytes == larger.temporary_bytes
    assert larger.saved_bytes == 10 * large.saved_bytes


def test_an_empty_batch():
    assert explain(Logits(torch.zeros(0, 3)), Logits(torch.zeros(3))).batch_shape == (0,)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1 << 20, "1.0 MiB"),
        ((1 << 30) - 1, "1024.0 MiB"),
        (1 << 30, "1.0 GiB"),
        (5 << 29, "2.5 GiB"),
    ],
)
def test_memory_is_printed_in_the_unit_that_fits(count, said):
    plan = explain(Logits(torch.zeros(1, 2)), Logits(torch.zeros(1, 2)))
    text = str(dataclasses.replace(plan, temporary_bytes=count, saved_bytes=2))
    assert f"memory     {said} of temporaries; saved for backward: inputs and 2 B\n" in text


def test_a_plan_cannot_be_changed():
    x = Logits(torch.zeros(1, 2))
    d = torch.distributions.Normal(torch.tensor(0.0), 1.0)
    for plan in (explain(x, x), explain(d, d)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            plan.divergence = "js"
        assert hash(plan) == hash(dataclasses.replace(plan))


@pytest.mark.skipif(cpu.ABSENT is not None, reason=str(cpu.ABSENT))
def test_the_method_states_the_arithmetic():
    """float64 inputs are measured in float64; what the engine does with narrower ones, it says itself."""
    single, double = (Logits(torch.zeros(2, 3, dtype=dtype)) for dtype in (torch.float32, torch.float64))
    with use("cpu"):
        methods = [explain(p, q).method for p, q in ((single, single), (double, single), (double, double))]
    assert [method.rpartition("canonical terms, ")[2] for method in methods] == [
        "float32 with float64 normalisers and sums",
        "float64",
        "float64",
    ]
