"""Statistics of comparisons of tiny models against sums written out in float64, and against llama.cpp's arithmetic."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from kullback import LinearLogits, Logits, top_k
from kullback._errors import BadInput
from kullback.models import base_file, pairs, slices, statistics
from kullback.models.base_file import BaseFile, BaseFileWriter
from kullback.models.clusters import Clusters, mean
from kullback.models.scores import join, score

V, WIDTH = 97, 16
LENGTHS = (40, 7, 90, 1, 23, 60, 31, 50, 52, 44, 17, 38)


class Tiny(nn.Module):
    """A causal transformer of one layer, random, in float64."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, V, bias=False)

    def forward(self, ids):
        mask = nn.Transformer.generate_square_subsequent_mask(len(ids), dtype=torch.float64)
        return self.layer(self.embed(ids)[None], src_mask=mask, is_causal=True)[0]


@pytest.fixture(scope="module")
def models():
    """A reference, and candidates whose weights are rounded to steps of 1/16 and 1/8."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = Tiny().double().eval()
    candidates = []
    for step in (16.0, 8.0):
        candidate = Tiny().double().eval()
        candidate.load_state_dict({name: (w * step).round() / step for name, w in reference.state_dict().items()})
        candidates.append(candidate)
    return reference, *candidates


@pytest.fixture(scope="module")
def texts():
    g = torch.Generator().manual_seed(1)
    return [torch.randint(V, (n + 1,), generator=g) for n in LENGTHS]


@pytest.fixture(scope="module")
def measured(models, texts):
    """Columns of each candidate, and of the reference against itself."""

    @torch.no_grad()
    def against(candidate):
        parts = []
        for k, ids in enumerate(texts):
            p, q = (LinearLogits(model(ids[:-1]), model.head.weight) for model in (models[0], candidate))
            parts.append(score(p, q, ids[1:], document=k, position=1))
        return join(parts).columns()

    return {"sixteenths": against(models[1]), "eighths": against(models[2]), "itself": against(models[0])}


@pytest.fixture(scope="module")
def rows(models, texts):
    """log p and log q of every token's row, and what came: by a log-softmax in float64."""
    with torch.no_grad():
        both = [
            torch.cat([model.head(model(ids[:-1])).log_softmax(-1) for ids in texts]).numpy() for model in models[:2]
        ]
    return *both, torch.cat([ids[1:] for ids in texts]).numpy(), np.repeat(np.arange(len(LENGTHS)), LENGTHS)


def leave_one_out(columns, document):
    """Covariance of the means of several columns, (K, K): each document left out in turn, by the textbook."""
    x, groups = np.stack(columns), np.unique(document)
    left = np.stack([x[:, document != g].mean(-1) for g in groups]) - x.mean(-1)
    return (len(groups) - 1) / len(groups) * left.T @ left


def llama_error(x):
    """As llama.cpp has it: of the sums of x and x²."""
    n = len(x)
    return math.sqrt((sum(v * v for v in x) / n - (sum(x) / n) ** 2) / (n - 1))


def close(found, value, iid=None, clustered=None):
    assert found.value == pytest.approx(value, rel=1e-9, abs=1e-12), found.name
    for mine, theirs in ((found.iid, iid), (found.clustered, clustered)):
        if theirs is None:
            assert mine is None, found.name
        else:
            assert mine == pytest.approx(theirs, rel=1e-7), found.name  # of sums of squares that cancel


def test_the_blocks_have_llama_cpps_names_in_its_order(measured):
    blocks = statistics.summarize(measured["sixteenths"]).blocks
    assert list(blocks) == ["Perplexity statistics", "KL divergence statistics", "Token probability statistics",
                            "Other divergences"]  # fmt: skip
    names = [[each.name for each in block] for block in blocks.values()]
    assert names[0] == ["Mean PPL(Q)", "Mean PPL(base)", "Cor(ln(PPL(Q)), ln(PPL(base)))",
                        "Mean ln(PPL(Q)/PPL(base))", "Mean PPL(Q)/PPL(base)", "Mean PPL(Q)-PPL(base)"]  # fmt: skip
    assert names[1] == ["Mean KLD", "Maximum KLD", "99.9% KLD", "99.0% KLD", "95.0% KLD", "90.0% KLD", "Median KLD",
                        "10.0% KLD", "5.0% KLD", "1.0% KLD", "0.1% KLD", "Minimum KLD"]  # fmt: skip
    assert names[2] == ["Mean Δp", "Maximum Δp", "99.9% Δp", "99.0% Δp", "95.0% Δp", "90.0% Δp", "75.0% Δp",
                        "Median Δp", "25.0% Δp", "10.0% Δp", "5.0% Δp", "1.0% Δp", "0.1% Δp", "Minimum Δp", "RMS Δp",
                        "Same top p"]  # fmt: skip


def test_perplexity_is_what_its_sums_say(measured, rows):
    a, b, token, document = rows
    at = np.arange(len(token))
    base, nll = -a[at, token], -b[at, token]
    found = statistics.summarize(measured["sixteenths"])
    assert (found.tokens, found.documents) == (sum(LENGTHS), len(LENGTHS))
    cov = leave_one_out([nll, base], document)
    n, m, m0 = len(nll), nll.mean(), base.mean()
    e, e0 = llama_error(nll), llama_error(base)
    between = (np.mean(nll * base) - m * m0) / (n - 1)
    ppl, ppl0 = math.exp(m), math.exp(m0)
    close(found["Mean PPL(Q)"], ppl, ppl * e, ppl * math.sqrt(cov[0, 0]))
    close(found["Mean PPL(base)"], ppl0, ppl0 * e0, ppl0 * math.sqrt(cov[1, 1]))
    close(found["Cor(ln(PPL(Q)), ln(PPL(base)))"], 100 * between / (e * e0))
    iid = math.sqrt(e * e + e0 * e0 - 2 * between)
    clustered = math.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])
    close(found["Mean ln(PPL(Q)/PPL(base))"], m - m0, iid, clustered)
    ratio = ppl / ppl0
    close(found["Mean PPL(Q)/PPL(base)"], ratio, ratio * iid, ratio * clustered)
    u, u0 = ppl * e, ppl0 * e0
    slope = np.array([ppl, -ppl0])
    close(
        found["Mean PPL(Q)-PPL(base)"],
        ppl - ppl0,
        math.sqrt(u * u + u0 * u0 - 2 * ppl * ppl0 * between),
        math.sqrt(slope @ cov @ slope),
    )


def test_means_of_divergences_are_what_their_sums_say(measured, rows):
    a, b, _, document = rows
    p, q = np.exp(a), np.exp(b)
    mixture = np.log((p + q) / 2)
    order = np.argsort(-a, axis=-1, kind="stable")[:, :10], np.argsort(-b, axis=-1, kind="stable")[:, :10]
    common = [len({*x} & {*y}) for x, y in zip(*(each.tolist() for each in order), strict=True)]
    want = {
        "Mean KLD": (p * (a - b)).sum(-1),
        "Mean KL(Q‖base)": (q * (b - a)).sum(-1),
        "Mean JS": (p * (a - mixture) + q * (b - mixture)).sum(-1) / 2,
        "Mean total variation": np.abs(p - q).sum(-1) / 2,
        "Mean entropy(base)": -(p * a).sum(-1),
        "Top-10 agreement": 10.0 * np.array(common),
        "Same top p": 100.0 * (order[0][:, 0] == order[1][:, 0]),
    }
    found = statistics.summarize(measured["sixteenths"])
    for name, x in want.items():
        close(found[name], x.mean(), llama_error(x), math.sqrt(leave_one_out([x], document)[0, 0]))


def test_token_probabilities_are_what_their_sums_say(measured, rows):
    a, b, token, document = rows
    at = np.arange(len(token))
    x = 100.0 * (np.exp(b[at, token]) - np.exp(a[at, token]))
    found = statistics.summarize(measured["sixteenths"])
    close(found["Mean Δp"], x.mean(), llama_error(x), math.sqrt(leave_one_out([x], document)[0, 0]))
    rms = math.sqrt(np.mean(x**2))
    error = math.sqrt(leave_one_out([x**2], document)[0, 0])
    close(found["RMS Δp"], rms, 0.5 / rms * llama_error(x**2), 0.5 / rms * error)
    for name, share in (("Maximum", 1), ("99.9%", 0.999), ("75.0%", 0.75), ("Median", 0.5), ("0.1%", 0.001)):
        assert found[f"{name} Δp"].value == pytest.approx(np.quantile(x, share), rel=1e-9)
    assert found["Minimum Δp"].value == pytest.approx(x.min(), rel=1e-9)
    share = np.mean(found["Same top p"].value) / 100
    assert found["Same top p"].iid == pytest.approx(100 * math.sqrt(share * (1 - share) / (len(x) - 1)), rel=1e-9)


def test_percentiles_have_the_interval_of_woodruff(measured, rows):
    a, b, _, document = rows
    x = (np.exp(a) * (a - b)).sum(-1)
    found = statistics.summarize(measured["sixteenths"])
    clusters = Clusters.of(document)
    value = np.quantile(x, 0.9)
    error = math.sqrt(leave_one_out([(x <= value).astype(float)], document)[0, 0])
    ends = [0.9 + sign * clusters.quantile * error for sign in (-1, 1)]
    statistic = found["90.0% KLD"]
    assert statistic.value == pytest.approx(value, rel=1e-9)
    assert [statistic.low, statistic.high] == pytest.approx([np.quantile(x, end) for end in ends], rel=1e-9)
    assert statistic.iid is statistic.clustered is None
    top = found["99.9% KLD"]  # whose interval would reach beyond the largest
    assert top.low is top.high is None
    few = document < statistics.FEWEST - 1
    assert statistics.percentile("", x[few], np.sort(x[few]), 0.9, Clusters.of(document[few])).low is None


def test_a_percentile_among_equal_values_counts_them_all_below():
    g = np.random.default_rng(0)
    x, document = g.integers(0, 4, 300).astype(float), np.repeat(np.arange(10), 30)
    found = statistics.percentile("x", x, np.sort(x), 0.4, clusters := Clusters.of(document))
    assert found.value == 1.0
    half = clusters.quantile * math.sqrt(leave_one_out([x <= 1.0], document)[0, 0])
    assert (found.low, found.high) == (np.quantile(x, 0.4 - half), np.quantile(x, 0.4 + half))
    assert half != pytest.approx(clusters.quantile * math.sqrt(leave_one_out([x < 1.0], document)[0, 0]), rel=0.01)


def test_intervals_are_students_with_the_documents_effective_number(measured):
    found, clusters = statistics.summarize(measured["sixteenths"]), Clusters.of(measured["sixteenths"]["document"])
    lengths = np.array(LENGTHS)
    freedom = lengths.sum() ** 2 / (lengths**2).sum() - 1
    assert clusters.effective == pytest.approx(freedom + 1)
    t = stats.t.ppf(0.975, freedom)
    delta, kld = found["Mean Δp"], found["Mean KLD"]
    assert [delta.low, delta.high] == pytest.approx(
        [delta.value - t * delta.clustered, delta.value + t * delta.clustered]
    )
    factor = math.exp(t * kld.clustered / kld.value)
    assert [kld.low, kld.high] == pytest.approx([kld.value / factor, kld.value * factor])
    assert Clusters.of(np.repeat(np.arange(5), 8)).freedom == pytest.approx(4)
    agreement = found["Top-10 agreement"]
    assert 0.0 <= agreement.low < agreement.value < agreement.high <= 100.0


def test_a_model_against_itself_is_exactly_zero(measured):
    found = statistics.summarize(measured["itself"])
    for block, statistic in ((b, s) for b in found.blocks.values() for s in b):
        name = statistic.name
        if "KLD" in name or "Δp" in name or name in ("Mean JS", "Mean KL(Q‖base)", "Mean total variation"):
            assert statistic.value == 0.0, name
            assert not any((statistic.iid, statistic.clustered, statistic.low, statistic.high)), name
        assert block
    assert found["Mean PPL(Q)/PPL(base)"].value == 1.0
    assert found["Mean PPL(Q)-PPL(base)"].value == 0.0
    assert found["Same top p"].value == found["Top-10 agreement"].value == 100.0
    assert found["Cor(ln(PPL(Q)), ln(PPL(base)))"].value == pytest.approx(100.0)


def test_of_one_document_there_is_no_error_by_document(measured):
    columns = {name: column[measured["eighths"]["document"] == 2] for name, column in measured["eighths"].items()}
    found = statistics.summarize(columns)
    assert found.documents == 1
    for statistic in (s for b in found.blocks.values() for s in b):
        assert statistic.clustered is statistic.low is statistic.high is None, statistic.name
    assert found["Mean KLD"].iid > 0.0
    pair = pairs.paired(columns, columns)
    assert pair.p is pair.difference.clustered is None
    assert pairs.beside_floor(columns, columns).above is None


def test_an_infinite_token_makes_the_mean_infinite_and_leaves_percentiles(measured):
    columns = dict(measured["eighths"])
    columns["kl"] = np.where(np.arange(len(columns["kl"])) == 5, np.inf, columns["kl"])
    found = statistics.summarize(columns)
    kld = found["Mean KLD"]
    assert kld.value == found["Maximum KLD"].value == math.inf
    assert kld.iid is kld.clustered is kld.low is kld.high is None
    assert math.isfinite(found["Median KLD"].value)
    columns["log_q"] = np.where(np.arange(len(columns["kl"])) == 5, -np.inf, columns["log_q"])
    found = statistics.summarize(columns)
    for name in ("Mean PPL(Q)", "Mean ln(PPL(Q)/PPL(base))", "Mean PPL(Q)/PPL(base)", "Mean PPL(Q)-PPL(base)"):
        assert found[name].value == math.inf, name
        assert found[name].clustered is None
    assert found["Cor(ln(PPL(Q)), ln(PPL(base)))"].value is None
    assert found["Mean PPL(base)"].clustered > 0.0


def test_of_a_reference_known_in_part_only_what_exists_is_given(models, texts):
    parts = []
    for k, ids in enumerate(texts):
        with torch.no_grad():
            x, y = (model.head(model(ids[:-1])) for model in models[:2])
        parts.append(score(top_k(Logits(x), 5, tail="bucket"), Logits(y), ids[1:], document=k))
    found = statistics.summarize(join(parts).columns())
    missing = [s.name for b in found.blocks.values() for s in b if s.value is None]
    assert missing == [
        *(s.name for s in found.blocks["Perplexity statistics"][1:]),
        *(s.name for s in found.blocks["Token probability statistics"][:-1]),
        "Top-10 agreement",
    ]
    assert found["Mean KLD"].clustered > 0.0
    assert found["Same top p"].value > 0.0


# ---------------------------------------------------------------- llama.cpp


def llama_pass_two(raw, scores, tokens, n_vocab):
    """What llama.cpp accumulates over the rows of a file: float32 terms, double sums; by row, as arrays."""
    f = np.float32
    head = 20 + 4 * tokens.size
    file = np.frombuffer(raw, "<u2", offset=head).reshape(len(scores), -1)
    n_ctx = tokens.shape[1]
    came = tokens[:, n_ctx // 2 + 1 :].reshape(-1)
    nll, nll_base, kld, p_diff, same = [], [], [], [], []
    for row, x, token in zip(file, scores, came, strict=True):
        scale, least = np.ascontiguousarray(row[:4]).view("<f4")
        log_base = row[4 : 4 + n_vocab].astype(f) * scale + least
        top = x.max()
        log_sum = f(math.log(np.exp(x - top).sum(dtype=np.float64)))
        nll.append(f(f(top + log_sum) - x[token]))
        nll_base.append(-log_base[token])
        kept = log_base > f(-16)
        terms = np.exp(log_base[kept]) * ((log_base[kept] - x[kept]) + f(top + log_sum))
        kld.append(float(terms.sum(dtype=np.float64)))
        p_diff.append(f(np.exp(-nll[-1]) - np.exp(-nll_base[-1])))
        same.append(int(np.argmax(x)) == int(np.argmax(log_base)))
    return (np.array(x, np.float64) for x in (nll, nll_base, kld, p_diff, same))


@pytest.fixture(scope="module")
def llama(models, tmp_path_factory):
    """A base file of the reference on chunks of text, and the first candidate's scores of the rows."""
    n_ctx, n_chunk = 64, 6
    tokens = torch.randint(V, (n_chunk, n_ctx), generator=torch.Generator().manual_seed(4))
    path = tmp_path_factory.mktemp("llama") / "base.kld"
    candidate = []
    with torch.no_grad(), BaseFileWriter(path, tokens.numpy(), V) as writer:
        for ids in tokens:
            inside = slice(n_ctx // 2, n_ctx - 1)
            writer.append(LinearLogits(models[0](ids)[inside], models[0].head.weight))
            candidate.append(models[1].head(models[1](ids)[inside]).float())
    return path, tokens.numpy(), candidate


def test_numbers_of_a_base_file_are_llama_cpps_up_to_its_rounding(llama):
    path, tokens, candidate = llama
    parts = []
    with BaseFile(path, V) as file:
        for c, y in enumerate(candidate):
            parts.append(
                score(
                    file.logits(c), Logits(y), file.tokens(c)[file.positions()], document=c, position=file.positions()
                )
            )
    found = statistics.summarize(join(parts).columns())
    nll, base, kld, p_diff, same = llama_pass_two(path.read_bytes(), torch.cat(candidate).numpy(), tokens, V)
    n = len(nll)
    assert found.tokens == n == 6 * base_file.scored(64)
    e, e0 = llama_error(nll), llama_error(base)
    between = (np.mean(nll * base) - nll.mean() * base.mean()) / (n - 1)
    ratio_error = math.sqrt(e * e + e0 * e0 - 2 * between)
    ppl, ppl0 = math.exp(nll.mean()), math.exp(base.mean())
    mse, mse_error = np.mean(p_diff**2), llama_error(p_diff**2)
    share = same.mean()
    want = {
        "Mean PPL(Q)": (ppl, ppl * e),
        "Mean PPL(base)": (ppl0, ppl0 * e0),
        "Cor(ln(PPL(Q)), ln(PPL(base)))": (100 * between / (e * e0), None),
        "Mean ln(PPL(Q)/PPL(base))": (nll.mean() - base.mean(), ratio_error),
        "Mean PPL(Q)/PPL(base)": (ppl / ppl0, ppl / ppl0 * ratio_error),
        "Mean PPL(Q)-PPL(base)": (ppl - ppl0, math.sqrt((ppl * e) ** 2 + (ppl0 * e0) ** 2 - 2 * ppl * ppl0 * between)),
        "Mean KLD": (kld.mean(), llama_error(kld)),
        "Maximum KLD": (kld.max(), None),
        "Median KLD": (np.median(kld), None),
        "95.0% KLD": (np.quantile(kld, 0.95), None),
        "0.1% KLD": (np.quantile(kld, 0.001), None),
        "Minimum KLD": (kld.min(), None),
        "Mean Δp": (100 * p_diff.mean(), 100 * llama_error(p_diff)),
        "25.0% Δp": (100 * np.quantile(p_diff, 0.25), None),
        "RMS Δp": (100 * math.sqrt(mse), 100 * 0.5 / math.sqrt(mse) * mse_error),
        "Same top p": (100 * share, 100 * math.sqrt(share * (1 - share) / (n - 1))),
    }
    # rows of the file sum to 1 up to V half steps of 16/65535 nats, weighed by p: below 3e-5; float32 adds less
    for name, (value, error) in want.items():
        scale = {"nats": 1.0, "%": 100.0}.get(found[name].unit, ppl)
        assert found[name].value == pytest.approx(value, abs=3e-5 * scale), name
        if error is None:
            assert found[name].iid is None
        else:
            assert found[name].iid == pytest.approx(error, rel=1e-3, abs=1e-6), name
    assert found["Same top p"].value == 100 * share


# ---------------------------------------------------------------- pairs


def test_a_pair_is_tested_by_the_differences_of_its_tokens(measured):
    one, other = measured["sixteenths"], measured["eighths"]
    found = pairs.paired(one, other, ("16", "8"))
    d = one["kl"] - other["kl"]
    error = math.sqrt(leave_one_out([d], one["document"])[0, 0])
    close(found.difference, d.mean(), llama_error(d), error)
    lengths = np.array(LENGTHS)
    freedom = lengths.sum() ** 2 / (lengths**2).sum() - 1
    assert found.p == pytest.approx(2 * stats.t.sf(abs(d.mean()) / error, freedom), rel=1e-9)
    t = stats.t.ppf(0.975, freedom)
    assert [found.difference.low, found.difference.high] == pytest.approx([d.mean() - t * error, d.mean() + t * error])
    assert found.better.value == pytest.approx(100 * np.mean(d < 0))
    assert found.worse.value == pytest.approx(100 * np.mean(d > 0))
    assert found.equal.value == pytest.approx(100 * np.mean(d == 0))
    assert found.better.clustered == pytest.approx(100 * math.sqrt(leave_one_out([d < 0], one["document"])[0, 0]))
    back = pairs.paired(other, one)
    assert (back.difference.value, back.p) == (-found.difference.value, found.p)
    assert (back.better.value, back.worse.value) == (found.worse.value, found.better.value)


def test_a_candidate_against_its_copy_is_no_difference(measured):
    found = pairs.paired(measured["eighths"], measured["eighths"])
    assert (found.difference.value, found.difference.low, found.difference.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert (found.better.value, found.worse.value, found.equal.value) == (0.0, 0.0, 100.0)


def test_every_pair_is_tested_and_p_adjusted_for_their_number(measured):
    found = pairs.every_pair(measured)
    assert [(each.one, each.other) for each in found] == [
        ("sixteenths", "eighths"), ("sixteenths", "itself"), ("eighths", "itself")
    ]  # fmt: skip
    p = [each.p for each in found]
    assert [each.adjusted for each in found] == pytest.approx(pairs.holm(p))
    ordered = sorted(p)
    assert min(each.adjusted for each in found) == pytest.approx(min(3 * ordered[0], 1.0))


def test_an_infinite_divergence_on_both_sides_has_no_difference(measured):
    columns = dict(measured["eighths"])
    columns["kl"] = np.where(np.arange(len(columns["kl"])) == 5, np.inf, columns["kl"])
    found = pairs.paired(columns, columns)
    assert found.difference.value is found.p is None
    assert found.equal.value == 100.0
    against_finite = pairs.paired(columns, measured["eighths"])
    assert against_finite.difference.value == math.inf
    assert against_finite.p is None
    assert pairs.every_pair({"a": columns, "b": columns})[0].adjusted is None


@pytest.mark.parametrize("name", ["document", "position", "token"])
def test_a_pair_of_other_tokens_is_refused(measured, name):
    columns = dict(measured["eighths"])
    columns[name] = columns[name] + (np.arange(len(columns[name])) == 3)
    with pytest.raises(BadInput, match=f"row 3 is {name} .* of a and .* of b; a pair is of the same tokens"):
        pairs.paired(measured["eighths"], columns, ("a", "b"))
    with pytest.raises(BadInput, match=f"a has {sum(LENGTHS)} tokens and b has {sum(LENGTHS) - 1}"):
        pairs.paired(measured["eighths"], {n: c[1:] for n, c in columns.items()}, ("a", "b"))


def test_a_mean_stands_beside_its_floor(measured):
    found = pairs.beside_floor(measured["eighths"], measured["sixteenths"])
    a, b = (measured[name]["kl"] for name in ("eighths", "sixteenths"))
    assert found.mean.value == pytest.approx(b.mean())
    assert found.times == pytest.approx(a.mean() / b.mean())
    assert found.excess.difference.value == pytest.approx((a - b).mean())
    assert found.above is (found.excess.difference.low > 0.0) is True
    assert pairs.beside_floor(measured["eighths"], measured["itself"]).times is None
    assert pairs.beside_floor(measured["itself"], measured["itself"]).above is False


# ---------------------------------------------------------------- slices


def test_slices_are_of_the_tokens_that_they_name(measured):
    columns = measured["sixteenths"]
    kl, document = columns["kl"], columns["document"]
    found = slices.by_confidence(columns, (0.0, 0.02, 0.05, 0.1))
    assert [each.label for each in found] == ["0.02-0.05", "0.05-0.1"]  # the others are empty
    assert sum(each.tokens for each in found) == len(kl)
    assert sum(each.of_total for each in found) == pytest.approx(100.0)
    assert sum(each.share for each in found) == pytest.approx(100.0)
    here = (columns["confidence"] >= 0.05) & (columns["confidence"] < 0.1)
    one = next(each for each in found if each.label == "0.05-0.1")
    assert (one.tokens, one.documents) == (here.sum(), len({*document[here]}))
    close(one.mean, kl[here].mean(), llama_error(kl[here]), math.sqrt(leave_one_out([kl[here]], document[here])[0, 0]))
    assert one.of_total == pytest.approx(100 * kl[here].sum() / kl.sum())


def test_positions_are_binned_by_powers(measured):
    found = slices.by_position(measured["eighths"])
    assert [each.label for each in found] == ["0-7", "8-31", "32-127"]
    position = measured["eighths"]["position"]
    assert [each.tokens for each in found] == [
        np.sum(position < 8), np.sum((position >= 8) & (position < 32)), np.sum(position >= 32)
    ]  # fmt: skip
    assert slices.by_position(measured["eighths"], (0, 16))[1].label == "16 and more"


def test_classes_of_tokens_are_asked_once_for_each_id(measured):
    asked = []

    def class_of(i):
        asked.append(i)
        return "word" if i % 2 else "of my own"

    found = slices.by_class(measured["eighths"], class_of)
    token = measured["eighths"]["token"]
    assert sorted(asked) == sorted({*token.tolist()})
    assert [(each.label, each.tokens) for each in found] == [
        ("word", np.sum(token % 2 == 1)), ("of my own", np.sum(token % 2 == 0))
    ]  # fmt: skip


def test_empty_groups_and_tokens_of_none_are_left_out(measured):
    columns = measured["eighths"]
    group = np.where(columns["document"] == 0, 2, -1)
    (found,) = slices.by_group(columns, group, ["a", "b", "c"])
    assert (found.label, found.tokens, found.documents) == ("c", LENGTHS[0], 1)
    assert found.mean.clustered is None
    assert slices.by_group(measured["itself"], group, ["a", "b", "c"])[0].of_total is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" the", "word"), ("_x1", "word"), ("été", "word"), ("東京", "word"), (" 42", "number"), ("3d", "number"),
        ("½", "number"), ("):", "punctuation"), (" ==", "punctuation"), ("€", "punctuation"), ("\n\n    ", "space"),
        (" ", "space"), ("", "space"), ("self.", "other"), ("\ufffd", "other"), ("🙂", "punctuation"),
    ],
)  # fmt: skip
def test_a_text_has_its_class(text, kind):
    assert slices.token_class(text) == kind
    assert slices.token_class(text, special=True) == "special"
    assert kind in slices.CLASSES


def test_the_worst_tokens_come_first():
    g = np.random.default_rng(0)
    kl = g.integers(0, 50, 400).astype(float)
    kl[7], kl[9] = np.nan, np.inf
    want = sorted((i for i in range(400) if i != 7), key=lambda i: (-kl[i], i))
    for count in (1, 5, 100, 399, 1000):
        assert slices.worst(kl, count).tolist() == want[:count]
    assert slices.worst(np.array([]), 3).tolist() == []
    assert slices.worst(kl, 0).tolist() == []


def test_a_histogram_counts_every_token_once(measured):
    kl = measured["sixteenths"]["kl"]
    found = slices.histogram(kl)
    assert found.zeros + found.below + sum(found.counts) + found.above == len(kl)
    want, _ = np.histogram(kl, np.array(found.edges))
    assert found.counts == tuple(want)
    found = slices.histogram(np.array([0.0, 1e-12, 1e-10, 100.0, np.inf, np.nan]))
    assert (found.zeros, found.below, found.counts[0], found.above) == (1, 1, 1, 2)


# ---------------------------------------------------------------- pieces


def test_an_error_beyond_its_mean_gives_an_interval_from_zero():
    # a noise floor: one document of many differs at all, and there by rounding
    x, clusters = np.zeros(400), Clusters.of(np.repeat(np.arange(4), 100))
    x[7] = 1e-13
    found = mean("Mean KLD", x, clusters, symmetric="log")
    half = clusters.quantile * found.clustered
    assert half > found.value
    assert (found.low, found.high) == (0.0, pytest.approx(found.value + half))
    assert found.high < 5 * found.value
    share = mean("Same top p", 1.0 * (x == 0), clusters, unit="%", scale=100.0, symmetric="odds")
    assert share.high == 100.0
    assert share.low == pytest.approx(share.value - clusters.quantile * share.clustered)
    few = mean("Better", 1.0 * (x > 0), clusters, symmetric="odds")
    assert (few.low, few.high) == (0.0, pytest.approx(few.value + clusters.quantile * few.clustered))


@pytest.mark.parametrize("value", [0.02, 0.5, 0.9, 0.999])
def test_an_interval_of_a_share_is_symmetric_in_the_log_odds(value):
    g = np.random.default_rng(0)
    x, clusters = (g.random(20_000) < value).astype(float), Clusters.of(np.repeat(np.arange(200), 100))
    found = mean("share", x, clusters, symmetric="odds")
    low, middle, high = (math.log(each / (1 - each)) for each in (found.low, found.value, found.high))
    half = clusters.quantile * found.clustered / (found.value * (1 - found.value))
    assert [middle - low, high - middle] == pytest.approx([half, half])


def test_a_mean_of_no_tokens_does_not_exist():
    found = mean("x", np.empty(0), Clusters.of(np.empty(0, np.int64)))
    assert replace(found, name="") == replace(found, name="", value=None, iid=None, clustered=None)


def test_documents_may_have_any_numbers():
    x = np.array([1.0, 5.0, 2.0, 2.0])
    one, other = (mean("x", x, Clusters.of(d)) for d in ([0, 0, 1, 2], [9, 9, -4, 1000]))
    assert one == other


def test_a_document_of_all_tokens_but_one_does_not_divide_by_zero():
    found = mean("x", np.arange(9.0), Clusters.of([0] * 8 + [1]))
    assert found.clustered > 0.0
    assert found.high > found.value > found.low
