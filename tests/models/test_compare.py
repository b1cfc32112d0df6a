"""A whole comparison against the formulas written out in float64 on real tiny models."""

import copy
import gc
import json

import numpy as np
import pytest
import torch

from kullback._errors import BadInput
from kullback.language.windows import token_ids, windows
from kullback.models import compare
from kullback.models.summary import texts as texts_of
from kullback.models.table import Columns
from kullback.models.text import Cut, before

CONTEXT = 64


def log_probs(model, tokenizer, texts, context=CONTEXT, num_classes=None):
    """(N, V) float64 log-probabilities of every scored token, piece by piece; (N,) tokens and documents."""
    rows, tokens, documents = [], [], []
    for number, text in enumerate(texts):
        for window in windows(token_ids(tokenizer, text), context):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([window.ids])).logits[0].double()
            rows.append(logits[window.scored - 1 : -1, :num_classes].log_softmax(-1))
            tokens += window.ids[window.scored :]
            documents += [number] * (len(window.ids) - window.scored)
    return torch.cat(rows), np.array(tokens), np.array(documents)


@pytest.fixture(scope="module")
def wide(models):
    """The models in float64."""
    reference, others = models
    return copy.deepcopy(reference).double(), {name: copy.deepcopy(m).double() for name, m in others.items()}


@pytest.fixture(scope="module")
def found(wide, texts, tokenizer):
    reference, others = wide
    candidates = {**others, "itself": reference}
    return compare(reference, candidates, text=texts, tokenizer=tokenizer, context=CONTEXT, noise=300)


@pytest.fixture(scope="module")
def written_out(wide, texts, tokenizer):
    """{name: (log p, log q, tokens, documents)}."""
    reference, others = wide
    a, tokens, documents = log_probs(reference, tokenizer, texts)
    return {name: (a, log_probs(m, tokenizer, texts)[0], tokens, documents) for name, m in others.items()}


def of(found, candidate, name):
    return next(s for block in found[candidate]["statistics"].values() for s in block if s["name"] == name)


def by_hand(a, b, tokens, documents):
    """{name: (value, error as if independent, error by document)} of llama.cpp's block and of what goes with it."""
    p, q = a.exp(), b.exp()
    m = (p + q) / 2
    kl = (p * (a - b)).sum(-1).numpy()
    js = (0.5 * (p * (a - m.log())).sum(-1) + 0.5 * (q * (b - m.log())).sum(-1)).numpy()
    i = torch.from_numpy(tokens)[:, None]
    log_p, log_q = a.gather(-1, i)[:, 0].numpy(), b.gather(-1, i)[:, 0].numpy()
    delta = np.exp(log_q) - np.exp(log_p)
    means = {
        "Mean KLD": kl,
        "Mean KL(Q‖base)": (q * (b - a)).sum(-1).numpy(),
        "Mean JS": js,
        "Mean total variation": 0.5 * (p - q).abs().sum(-1).numpy(),
        "Mean entropy(base)": -(p * a).sum(-1).numpy(),
        "Mean ln(PPL(Q)/PPL(base))": log_p - log_q,
        "Mean Δp": 100 * delta,
        "Same top p": 100.0 * (a.argmax(-1) == b.argmax(-1)).numpy(),
    }
    made = {}
    n, groups = len(tokens), np.unique(documents)
    for name, x in means.items():
        without = [x[documents != g].mean() for g in groups]  # the jackknife by document
        jackknife = np.sqrt((len(groups) - 1) / len(groups) * np.sum((np.array(without) - x.mean()) ** 2))
        made[name] = x.mean(), np.sqrt((np.mean(x**2) - x.mean() ** 2) / (n - 1)), jackknife
    made["Mean PPL(Q)"] = (np.exp(-log_q.mean()), None, None)
    made["Mean PPL(base)"] = (np.exp(-log_p.mean()), None, None)
    made["RMS Δp"] = (100 * np.sqrt(np.mean(delta**2)), None, None)
    made["Cor(ln(PPL(Q)), ln(PPL(base)))"] = (100 * np.corrcoef(log_q, log_p)[0, 1], None, None)
    shares = {"Maximum": 1, "99.9%": 0.999, "99.0%": 0.99, "Median": 0.5, "1.0%": 0.01, "Minimum": 0}
    for name, share in shares.items():
        made[f"{name} KLD"] = (np.quantile(kl, share), None, None)
    made["Minimum Δp"] = (100 * delta.min(), None, None)
    return made


@pytest.mark.parametrize("name", ["near", "far"])
def test_every_statistic_is_the_formula_written_out_in_float64(found, written_out, name):
    for statistic, (value, iid, clustered) in by_hand(*written_out[name]).items():
        ours = of(found, name, statistic)
        assert ours["value"] == pytest.approx(value, rel=1e-9, abs=1e-12), statistic
        if iid is not None:
            assert ours["iid"] == pytest.approx(iid, rel=1e-7), statistic
            assert ours["clustered"] == pytest.approx(clustered, rel=1e-7), statistic


@pytest.mark.parametrize("name", ["near", "far"])
def test_every_token_is_the_formula_written_out_in_float64(found, written_out, name):
    a, b, tokens, documents = written_out[name]
    columns = Columns(found.tokens(name))
    kl = (a.exp() * (a - b)).sum(-1).numpy()
    np.testing.assert_allclose(columns["kl"], kl, rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(columns["token"], tokens)
    np.testing.assert_array_equal(columns["document"], documents)
    np.testing.assert_array_equal(columns["top_p"], a.argmax(-1))
    np.testing.assert_array_equal(columns["top_q"], b.argmax(-1))
    np.testing.assert_allclose(columns["confidence"], a.exp().amax(-1), rtol=1e-12)
    values, ids = b.topk(3)
    np.testing.assert_array_equal(columns["choices_q_ids"], ids)
    np.testing.assert_allclose(columns["choices_q"], values.exp(), rtol=1e-6)
    common = [len({*x.tolist()} & {*y.tolist()}) for x, y in zip(a.topk(10)[1], b.topk(10)[1], strict=True)]
    np.testing.assert_array_equal(columns["overlap"], common)


def test_positions_count_the_documents_tokens(found, texts, tokenizer):
    columns = Columns(found.tokens("near"))
    for i, text in enumerate(texts):
        here = columns["document"] == i
        ids = token_ids(tokenizer, text)
        assert columns["position"][here].tolist() == list(range(1, len(ids)))  # the first is the beginning of text
        assert columns["token"][here].tolist() == ids[1:]


def test_a_model_against_itself_is_exactly_0(found):
    columns = Columns(found.tokens("itself"))
    for name in ("kl", "reverse", "js", "tv"):
        assert (columns[name] == 0.0).all(), name
    assert (columns["overlap"] == 10).all()
    assert of(found, "itself", "Mean KLD")["value"] == 0.0
    assert of(found, "itself", "Same top p")["value"] == 100.0
    assert of(found, "itself", "Mean ln(PPL(Q)/PPL(base))")["value"] == 0.0


def test_nothing_is_ever_negative(found):
    for name in ("near", "far", "itself"):
        columns = Columns(found.tokens(name))
        assert min(columns[each].min() for each in ("kl", "reverse", "js", "tv")) >= 0.0


def test_a_float32_model_against_itself_is_exactly_0_in_any_batch(models, texts, tokenizer):
    reference, _ = models
    for batch_size in (1, 3):
        found = compare(
            reference, {"again": copy.deepcopy(reference)}, text=texts[:4], tokenizer=tokenizer, context=CONTEXT,
            batch_size=batch_size, noise=0,
        )  # fmt: skip
        assert (Columns(found.tokens("again"))["kl"] == 0.0).all()
        assert found.noise_floor == []


def test_the_noise_floor_is_the_reference_run_otherwise(models, texts, tokenizer):
    reference, others = models
    found = compare(
        reference, others, text=texts, tokenizer=tokenizer, context=CONTEXT, noise=300, noise_dtype="bfloat16"
    )
    batches, half = found.noise_floor
    mean = lambda floor: next(s for s in floor["statistics"]["KL divergence statistics"])["value"]  # noqa: E731
    assert 0.0 <= mean(batches) < 1e-10
    near = of(found, "near", "Mean KLD")["value"]
    assert 1e-7 < mean(half) < near
    assert batches["about"].startswith("pieces of text in batches of 1 against 4")
    assert "bfloat16 against float32" in half["about"]


def test_pairs_say_who_is_nearer_at_the_same_tokens(found, written_out):
    kl = {name: (a.exp() * (a - b)).sum(-1).numpy() for name, (a, b, _, _) in written_out.items()}
    pair = next(p for p in found.pairs if (p["first"], p["second"]) == ("near", "far"))
    assert pair["difference"]["value"] == pytest.approx((kl["near"] - kl["far"]).mean(), rel=1e-9)
    assert pair["first_better"] == pytest.approx((kl["near"] < kl["far"]).mean())
    assert pair["p_adjusted"] < 1e-3
    assert pair["difference"]["high"] < 0.0


def test_the_worst_tokens_are_the_largest(found, written_out, texts, tokenizer):
    a, b, tokens, documents = written_out["far"]
    kl = (a.exp() * (a - b)).sum(-1).numpy()
    order = np.argsort(-kl)[:20]
    worst = found["far"]["worst"]
    assert [w["token"] for w in worst] == tokens[order].tolist()
    assert [w["document"] for w in worst] == documents[order].tolist()
    assert worst[0]["name"] == f"text {documents[order[0]]}"
    assert token_ids(tokenizer, texts[worst[0]["document"]])[worst[0]["position"]] == worst[0]["token"]


def test_slices_share_out_all_tokens(found):
    for name in ("by_confidence", "by_position", "by_class"):
        parts = found["far"][name]
        assert sum(part["tokens"] for part in parts) == found.measured
        assert sum(part["share"] for part in parts) == pytest.approx(1.0)
        whole = sum(part["tokens"] * part["mean"]["value"] for part in parts) / found.measured
        assert whole == pytest.approx(of(found, "far", "Mean KLD")["value"])


def test_a_callable_is_the_model_that_it_calls(wide, texts, tokenizer):
    reference, others = wide
    near = others["near"]
    found = compare(
        reference, {"model": near, "callable": lambda ids: near(input_ids=ids).logits}, text=texts[:3],
        tokenizer=tokenizer, context=CONTEXT, noise=0,
    )  # fmt: skip
    one, other = (Columns(found.tokens(name))["kl"] for name in ("model", "callable"))
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-14)


def test_a_model_whose_head_cannot_be_read_gives_the_same(wide, texts, tokenizer):
    """Scores go through the head only if they are what the head makes; here they are not."""
    reference, others = wide
    bent = copy.deepcopy(others["near"])
    forward = bent.forward

    def other_scores(*args, **kwargs):
        found = forward(*args, **kwargs)
        found.logits = found.logits * 1.5
        return found

    other_scores.__signature__ = __import__("inspect").signature(forward)
    bent.forward = other_scores
    found = compare(reference, {"bent": bent}, text=texts[:2], tokenizer=tokenizer, context=CONTEXT, noise=0)
    a, tokens, _ = log_probs(reference, tokenizer, texts[:2])
    b, _, _ = log_probs(bent, tokenizer, texts[:2])
    expected = (a.exp() * (a - b)).sum(-1).numpy()
    np.testing.assert_allclose(Columns(found.tokens("bent"))["kl"], expected, rtol=1e-9)
    assert len(tokens) == found.measured


def test_padded_rows_are_left_out_and_said(models, texts, tokenizer):
    reference, others = models
    padded = copy.deepcopy(others["near"])
    padded.resize_token_embeddings(len(tokenizer) + 24, mean_resizing=False)
    with torch.no_grad():
        padded.get_output_embeddings().weight[len(tokenizer) :] = 1.0  # with mass, if it were not left out
    found = compare(
        reference, {"near": others["near"], "padded": padded}, text=texts[:3], tokenizer=tokenizer, context=CONTEXT,
        noise=0,
    )  # fmt: skip
    one, other = (Columns(found.tokens(name))["kl"] for name in ("near", "padded"))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-9)
    assert any("24 of padded" in note and "left out" in note for note in found.to_json()["notes"])


def test_a_limit_scores_so_many_tokens(models, texts, tokenizer):
    reference, others = models
    found = compare(reference, others, text=texts, tokenizer=tokenizer, context=CONTEXT, limit=137, noise=0)
    whole = compare(reference, others, text=texts, tokenizer=tokenizer, context=CONTEXT, noise=0)
    a, b = (Columns(x.tokens("near"))["kl"] for x in (found, whole))
    assert len(a) == 137 == found.measured
    np.testing.assert_allclose(a, b[:137], rtol=1e-3, atol=1e-9)


def test_bfloat16_against_float32(models, texts, tokenizer):
    reference, _ = models
    half = copy.deepcopy(reference).to(torch.bfloat16)
    found = compare(reference, {"half": half}, text=texts[:3], tokenizer=tokenizer, context=CONTEXT, noise=0)
    a, _, _ = log_probs(reference, tokenizer, texts[:3])
    b, _, _ = log_probs(half, tokenizer, texts[:3])
    expected = (a.exp() * (a - b)).sum(-1).mean().item()
    assert of(found, "half", "Mean KLD")["value"] == pytest.approx(expected, rel=0.05)


def test_the_document_is_strict_json_and_in_the_folder(models, texts, tokenizer, tmp_path, page):
    reference, others = models
    out = tmp_path / "run"
    found = compare(reference, others, text=texts[:3], tokenizer=tokenizer, context=CONTEXT, out=out, noise=0)
    document = json.loads((out / "results.json").read_text())
    assert document == json.loads(json.dumps(found.to_json()))
    assert document["status"] == "complete"
    assert [c["name"] for c in document["candidates"]] == ["near", "far"]
    assert all((out / c["tokens"]).is_file() for c in document["candidates"])
    assert 50_000 < (out / "report.html").stat().st_size < 500_000
    assert not (out / "unfinished").exists()
    with pytest.raises(BadInput, match="not empty"):
        compare(reference, others, text=texts[:3], tokenizer=tokenizer, out=out)


def test_without_a_folder_the_files_go_with_the_result(models, texts, tokenizer):
    reference, others = models
    found = compare(reference, others, text=texts[:2], tokenizer=tokenizer, context=CONTEXT, noise=0)
    folder = found.folder
    assert found.tokens("near").is_file()
    del found
    gc.collect()
    assert not folder.exists()


def test_ids_without_a_tokenizer_are_shown_as_numbers():
    assert texts_of(None)([3, 14]) == ["‹3›", "‹14›"]


def test_what_stands_before_a_token_reaches_over_pieces(texts, tokenizer):
    text = Cut(texts, tokenizer, 16)
    ids = token_ids(tokenizer, texts[1])
    places = [(1, 40), (1, 3), (0, 1), (1, 15), (1, 16)]
    found = before(text, places, 8)
    assert found[0] == ids[32:40]
    assert found[1] == ids[:3]
    assert found[2] == token_ids(tokenizer, texts[0])[:1]
    assert found[3:] == [ids[7:15], ids[8:16]]
