"""Scores of tokens against sums written out in float64, and their Parquet."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from kullback import LinearLogits, Logits, Probs, TopK, engines, kl, top_k
from kullback._errors import BadInput, FormError
from kullback.models import table
from kullback.models.scores import CHOICES, LIKELIEST, Scores, join, largest, likeliest, score

DIVERGENCES = ("kl", "reverse", "js", "tv")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SIZES = (2, 9, 11, 63, 64, 65, 1000, 8192, 8200)


def pair(num_classes, dtype=torch.float32, n=13, noise=0.3, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = 3.0 * torch.randn(n, num_classes, generator=g, dtype=torch.float64)
    y = x + noise * torch.randn(n, num_classes, generator=g, dtype=torch.float64)
    return x.to(dtype), y.to(dtype), torch.randint(num_classes, (n,), generator=g)


def written_out(x, y, token, temperature=1.0):
    """Every divergence by its textbook sum, of float64 log-softmaxes."""
    a, b = ((z.double() / temperature).log_softmax(-1) for z in (x, y))
    p, q = a.exp(), b.exp()
    m = ((p + q) / 2).log()
    at = torch.arange(len(token))
    found = {
        "kl": (p * (a - b)).sum(-1),
        "reverse": (q * (b - a)).sum(-1),
        "js": (p * (a - m) + q * (b - m)).sum(-1) / 2,
        "tv": (p - q).abs().sum(-1) / 2,
        "log_p": a[at, token],
        "log_q": b[at, token],
        "confidence": p.amax(-1),
        "entropy": -(p * a).sum(-1),
    }
    return {name: value.numpy() for name, value in found.items()}


def ordered(x, k):
    return x.sort(dim=-1, descending=True, stable=True).indices[:, :k]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", SIZES)
def test_every_number_is_what_its_sum_says(dtype, num_classes):
    x, y, token = pair(num_classes, dtype)
    found = score(Logits(x), Logits(y), token)
    # float32 terms below float64 sums, and results rounded to float32 unless an input is float64
    relative = 1e-11 if dtype == torch.float64 else 2e-6
    for name, value in written_out(x, y, token).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=relative, atol=1e-12, err_msg=name)
    k = min(LIKELIEST, num_classes)
    ids = [ordered(z, k) for z in (x, y)]
    common = [len({*map(int, a)} & {*map(int, b)}) for a, b in zip(*ids, strict=True)]
    assert found.overlap.tolist() == common
    for side, mine, chances, top in (
        (0, found.choices_p_ids, found.choices_p, found.top_p),
        (1, found.choices_q_ids, found.choices_q, found.top_q),
    ):
        few = min(CHOICES, num_classes)
        assert mine[:, :few].tolist() == ids[side][:, :few].tolist()
        assert (mine[:, few:] == -1).all()
        assert np.isnan(chances[:, few:]).all()
        assert (mine[:, 0] == top).all()
        want = (x, y)[side].double().softmax(-1).gather(-1, ids[side][:, :few]).numpy()
        np.testing.assert_allclose(chances[:, :few], want, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", SIZES)
def test_a_model_against_itself_is_exactly_zero(dtype, num_classes):
    x, _, token = pair(num_classes, dtype)
    found = score(Logits(x), Logits(x.clone()), token)
    for name in DIVERGENCES:
        assert (getattr(found, name) == 0.0).all(), name
    assert (found.log_p == found.log_q).all()
    assert (found.top_p == found.top_q).all()
    assert (found.overlap == min(LIKELIEST, num_classes)).all()
    np.testing.assert_array_equal(found.choices_p, found.choices_q)


@pytest.mark.parametrize("noise", [1e-4, 1e-2, 10.0])
def test_no_divergence_is_negative_and_small_ones_keep_their_digits(noise):
    x, y, token = pair(2000, noise=noise, n=64)
    found = score(Logits(x), Logits(y), token)
    for name, value in written_out(x, y, token).items():
        if name in DIVERGENCES:
            assert (getattr(found, name) > 0.0).all()
            np.testing.assert_allclose(getattr(found, name), value, rtol=1e-5, atol=1e-15, err_msg=name)


def test_hidden_states_give_what_their_scores_give_however_few_rows_fit():
    g = torch.Generator().manual_seed(1)
    hidden, other = torch.randn(2, 30, 8, generator=g)
    weight, bias = torch.randn(50, 8, generator=g), torch.randn(50, generator=g)
    token = torch.randint(50, (30,), generator=g)
    p, q = LinearLogits(hidden, weight, bias, softcap=5.0), LinearLogits(other, weight, scale=0.5)
    whole = score(p.logits(), q.logits(), token)
    for memory in (1, 2000, 1 << 20):
        found = score(p, q, token, memory=memory)
        for name, value in whole.columns().items():
            np.testing.assert_allclose(getattr(found, name), value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_temperature_counts():
    x, y, token = pair(40, torch.float64)
    found = score(Logits(x, 2.0), Logits(y, 2.0), token)
    for name, value in written_out(x, y, token, 2.0).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-10, err_msg=name)


def test_classes_without_mass_are_no_obstacle():
    x, y, token = pair(40, torch.float64)
    x[:, 7] = y[:, 7] = y[:, 8] = -math.inf
    token[:] = torch.where((token == 7) | (token == 8), 0, token)
    x[0, 8] = -math.inf
    found = score(Logits(x), Logits(y), token)
    assert found.kl[0] == pytest.approx(kl(Logits(x[0]), Logits(y[0])).item(), rel=1e-12)
    assert (found.kl[1:] == math.inf).all()
    assert (found.log_p[np.isfinite(found.log_p)] < 0.0).all()
    assert np.isfinite(found.reverse).all()


def test_a_row_that_is_no_distribution_is_nan_and_touches_no_other():
    x, y, token = pair(40)
    clean = score(Logits(x), Logits(y), token)
    y[3, 5] = math.nan
    x[4, 0] = math.inf
    found = score(Logits(x), Logits(y), token)
    assert np.isnan(found.kl[[3, 4]]).all()
    rest = np.delete(np.arange(13), [3, 4])
    for name, value in clean.columns().items():
        np.testing.assert_array_equal(getattr(found, name)[rest], value[rest], err_msg=name)


def test_the_eager_definition_gives_the_same():
    x, y, token = pair(700)
    compiled = score(Logits(x), Logits(y), token)
    with engines.use("eager"):
        eager = score(Logits(x), Logits(y), token)
    for name, value in eager.columns().items():
        np.testing.assert_allclose(getattr(compiled, name), value, rtol=2e-6, atol=1e-12, err_msg=name)


def test_documents_and_positions_are_as_given():
    x, y, token = pair(5, n=3)
    found = score(Logits(x), Logits(y), token, document=7, position=20)
    assert found.document.tolist() == [7, 7, 7]
    assert found.position.tolist() == [20, 21, 22]
    found = score(Logits(x), Logits(y), token, document=np.array([0, 1, 1]), position=np.array([9, 0, 1]))
    assert found.document.tolist() == [0, 1, 1]
    assert found.position.tolist() == [9, 0, 1]
    assert found.token.tolist() == token.tolist()


def test_no_tokens_are_no_rows():
    x, y, token = pair(5)
    assert len(score(Logits(x[:0]), Logits(y[:0]), token[:0])) == 0


def test_no_gradient_is_kept():
    x, y, token = pair(20)
    assert score(Logits(x.requires_grad_()), Logits(y.requires_grad_()), token).kl.shape == (13,)


# ---------------------------------------------------------------- a reference of which only the top is known


def test_of_a_truncated_reference_every_divergence_is_a_lower_bound():
    x, y, token = pair(200, torch.float64)
    whole, known = score(Logits(x), Logits(y), token), top_k(Logits(x), 20, tail="bucket")
    found = score(known, Logits(y), token)
    for name in (*DIVERGENCES, "entropy"):
        assert (getattr(found, name) >= 0.0).all()
        assert (getattr(found, name) <= getattr(whole, name) + 1e-12).all(), name
    np.testing.assert_allclose(found.kl, kl(known, Logits(y)).numpy(), rtol=1e-12)
    listed = (known.ids == token[:, None]).any(-1).numpy()
    assert listed.any()
    assert not listed.all()
    np.testing.assert_allclose(found.log_p[listed], whole.log_p[listed], rtol=1e-12)
    assert np.isnan(found.log_p[~listed]).all()
    for name in ("log_q", "top_p", "top_q", "overlap", "choices_p_ids", "choices_q_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name), err_msg=name)
    np.testing.assert_allclose(found.confidence, whole.confidence, rtol=1e-12)
    np.testing.assert_allclose(found.choices_p, whole.choices_p, rtol=1e-6)


def test_of_fewer_classes_than_are_compared_the_overlap_is_not_known():
    x, y, token = pair(200)
    found = score(top_k(Logits(x), 2, tail="bucket"), Logits(y), token)
    assert (found.overlap == -1).all()
    assert (found.choices_p_ids[:, 2] == -1).all()
    assert np.isnan(found.choices_p[:, 2]).all()


def test_of_all_classes_listed_nothing_is_lost():
    x, y, token = pair(30, torch.float64)
    whole, found = score(Logits(x), Logits(y), token), score(top_k(Logits(x), 30, tail="bucket"), Logits(y), token)
    for name, value in whole.columns().items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-6, atol=1e-12, err_msg=name)


# ---------------------------------------------------------------- the likeliest


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", [1, 5, 64, 700, 8192, 9001])
def test_of_equal_scores_the_lower_id_comes_first(dtype, num_classes):
    g = torch.Generator().manual_seed(3)
    few = torch.randint(-3, 3, (50, num_classes), generator=g).to(dtype)
    few[0] = 0.0
    few[1, ::2] = -0.0
    few[2] = -math.inf
    for k in (1, 3, 10):
        assert torch.equal(likeliest(few, k), ordered(few, min(k, num_classes)))
        assert torch.equal(largest(few[:, :40], min(k, num_classes)), ordered(few[:, :40], min(k, num_classes)))


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_scored_is_refused():
    x, y, token = pair(5)
    p, q = Logits(x), Logits(y)
    with pytest.raises(FormError, match="p is a Probs; a language model's scores are Logits or LinearLogits or TopK"):
        score(Probs(x.softmax(-1)), q, token)
    with pytest.raises(FormError, match="q is a TopK; a language model's scores are Logits or LinearLogits"):
        score(p, top_k(q, 3, tail="bucket"), token)
    with pytest.raises(FormError, match="V=5 but the candidate has V=4"):
        score(p, Logits(y[:, :4]), token)
    with pytest.raises(FormError, match=r"tokens \(12,\) for distributions \(13,\)"):
        score(p, q, token[1:])
    with pytest.raises(FormError, match="token 2 has the id 5, but V=5"):
        score(p, q, [0, 1, 5, *[0] * 10])
    with pytest.raises(FormError, match="Write tail='bucket'"):
        score(TopK(torch.zeros(13, 1, dtype=torch.long), torch.zeros(13, 1), 5, tail="renormalize"), q, token)


# ---------------------------------------------------------------- on disk


def some(documents=(4, 0, 3, 5), seed=0):
    found = []
    for k, n in enumerate(documents):
        x, y, token = pair(12, n=n, seed=seed + k)
        found.append(score(Logits(x), Logits(y), token, document=k))
    return found


def same(a: Scores, b: Scores):
    for name, value in a.columns().items():
        other = getattr(b, name)
        assert other.dtype == value.dtype, name
        np.testing.assert_array_equal(other, value, err_msg=name)


def test_a_file_gives_back_every_column(tmp_path):
    parts = some()
    with table.Writer(tmp_path / "s.parquet", {"name": "int4"}) as writer:
        for part in parts:
            writer.append(part)
        assert table.recorded(tmp_path / "s.parquet") == 12
        assert not (tmp_path / "s.parquet").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["s.parquet"]
    same(join(parts), table.read(tmp_path / "s.parquet"))
    columns = table.Columns(tmp_path / "s.parquet")
    assert columns.about == {"name": "int4"}
    assert columns.num_tokens == 12
    assert list(columns) == [field.name for field in dataclasses.fields(Scores)]
    same(join(parts)[[7, 1]], columns.rows([7, 1]))
    with pytest.raises(KeyError):
        columns["nothing"]


def test_rows_lie_in_groups_whatever_the_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "ROW_GROUP", 5)
    with table.Writer(tmp_path / "s.parquet") as writer:
        for part in some((1,) * 12):
            writer.append(part)
    file = table.Columns(tmp_path / "s.parquet")._file
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [5, 5, 2]


def test_a_file_without_rows_has_its_columns(tmp_path):
    table.Writer(tmp_path / "s.parquet").close()
    found = table.read(tmp_path / "s.parquet")
    assert len(found) == 0
    assert found.choices_p.shape == (0, CHOICES)
    assert found.kl.dtype == np.float64


def test_an_error_leaves_what_was_measured(tmp_path):
    parts = some()

    def run():
        with table.Writer(tmp_path / "s.parquet") as writer:
            writer.append(parts[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    same(parts[0], table.read(tmp_path / "s.parquet"))


@pytest.mark.parametrize("cut", [0, 1, 300])
def test_a_kill_leaves_whole_batches_and_a_later_writer_goes_on(tmp_path, cut):
    parts, path = some(), tmp_path / "s.parquet"
    killed = table.Writer(path)
    for part in parts:
        killed.append(part)
    (journal,) = tmp_path.iterdir()
    left = tmp_path / "left" / journal.name
    left.parent.mkdir()
    left.write_bytes(journal.read_bytes()[: -cut or None])
    killed.close()
    path = left.parent / "s.parquet"
    assert table.recorded(path) == (12 if cut == 0 else 7)
    with table.Writer(path, keep=7) as writer:
        assert table.recorded(path) >= 7
        writer.append(parts[3])
    same(join(parts), table.read(path))


def test_a_second_kill_loses_nothing_of_the_first(tmp_path):
    parts, path = some(), tmp_path / "s.parquet"
    with table.Writer(path) as writer:
        writer.append(join(parts[:3]))
    killed = table.Writer(path, keep=7)
    assert table.recorded(path) == 7
    killed.append(parts[3])
    assert table.recorded(path) == 12
    killed._file.close()
    with table.Writer(path, keep=12):
        pass
    same(join(parts), table.read(path))


def test_an_earlier_part_can_be_measured_anew(tmp_path):
    parts, path = some(), tmp_path / "s.parquet"
    with table.Writer(path) as writer:
        writer.append(join(parts))
    with table.Writer(path, keep=4) as writer:
        writer.append(parts[3])
    same(join([parts[0], parts[3]]), table.read(path))
    with table.Writer(path, keep=0) as writer:
        writer.append(parts[0])
    same(parts[0], table.read(path))


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "s.parquet"
    with pytest.raises(BadInput, match="has 0 rows, of which 3 were to be kept"):
        table.Writer(path, keep=3)
    table.Writer(path).close()
    with pytest.raises(BadInput, match="exists; nothing was overwritten"):
        table.Writer(path)
    with pytest.raises(BadInput, match="cannot be read as per-token scores"):
        table.Columns(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(BadInput, match="cannot be read as per-token scores"):
        table.Columns(tmp_path / "text.parquet")
