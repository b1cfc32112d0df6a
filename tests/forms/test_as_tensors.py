"""Forms have a shape, a dtype, a device; they move, are cut into rows and saved; odd tensors are refused by name."""

import io
import warnings

import pytest
import torch

from kullback import FormError, Labels, Logits, LogProbs, Probs, contributions, divergences, js, kl, measure, top_k

X = torch.randn(2, 3, 4)
FORMS = {
    "Logits": lambda: Logits(X, 2.0),
    "LogProbs": lambda: LogProbs(X.log_softmax(-1)),
    "Probs": lambda: Probs(X.softmax(-1)),
    "Labels": lambda: Labels(torch.tensor([[0, 1, 2], [3, 0, 1]]), 4, 0.1),
    "TopK": lambda: top_k(X, 2, tail="bucket"),
}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]()


def test_shape_dtype_device(form):
    assert form.shape == (2, 3, 4)
    assert form.batch_shape == (2, 3)
    assert form.dtype == (torch.int64 if isinstance(form, Labels) else torch.float32)
    assert form.device == torch.device("cpu")
    assert not form.requires_grad
    assert len(form) == 2
    assert form.probabilities().shape == form.shape


@pytest.mark.parametrize(
    "index", [0, -1, slice(1), (0, 2), (slice(None), 1), (..., 0), None, torch.tensor([1, 0])], ids=str
)
def test_rows_are_cut_as_a_tensor_is(form, index):
    torch.testing.assert_close(form[index].probabilities(), form.probabilities()[_with_classes(index)])


def _with_classes(index):
    return (*index, slice(None)) if isinstance(index, tuple) and Ellipsis in index else index


def test_a_mask_of_rows(form):
    keep = torch.tensor([[True, False, True], [False, False, True]])
    assert form[keep].shape == (3, 4)


def test_the_class_axis_stays_whole(form):
    with pytest.raises(FormError, match="The class axis stays whole"):
        form[0, 1, 2]
    with pytest.raises(FormError, match="no such rows"):
        form[5]


def test_it_moves_and_casts_and_labels_stay_integers(form):
    moved = form.to(torch.float64)
    torch.testing.assert_close(moved.probabilities(), form.probabilities(), rtol=1e-6, atol=1e-7)
    assert moved.dtype == (torch.int64 if isinstance(form, Labels) else torch.float64)
    assert form.to("meta").device.type == "meta"


def test_it_is_saved_and_loaded_safely(form):
    file = io.BytesIO()
    torch.save(form, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True).probabilities(), form.probabilities())


@pytest.mark.filterwarnings("ignore")
def test_odd_tensors_are_refused_by_name():
    dense = torch.eye(3)
    with pytest.raises(FormError, match="to_dense"):
        Logits(dense.to_sparse())
    with pytest.raises(FormError, match="to_dense"):
        Probs(dense.to_sparse_csr())
    with pytest.raises(FormError, match="nested"):
        Logits(torch.nested.nested_tensor([dense[0], dense[1, :2]]))
    with pytest.raises(FormError, match="uint16"):
        Labels(torch.tensor([0, 1], dtype=torch.uint16), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.masked import masked_tensor

        with pytest.raises(FormError, match="MaskedTensor"):
            Logits(masked_tensor(dense, dense > 0))
    with pytest.raises(FormError, match="to_dense"):
        Logits(dense.to_mkldnn())


def test_a_models_output_is_told_where_its_scores_are():
    class Output:
        logits = X

    with pytest.raises(FormError, match=r"Logits\(p.logits\)"):
        kl(Output(), Logits(X))


def test_probabilities_rounded_to_float32_are_recognised():
    rounded = torch.softmax(torch.randn(1, 1000, generator=torch.Generator().manual_seed(3)), -1).double()
    rounded = rounded * (1.0 + 3e-8)
    with pytest.raises(FormError, match=r"looks rounded to float32, where Probs\(x.float\(\)\) is right"):
        Probs(rounded)
    Probs(rounded.float())


@pytest.mark.parametrize("row", [row for row in divergences.TABLE if row.linear is not None], ids=lambda r: r.name)
def test_contributions_add_up(row):
    a, b = torch.randn(3, 6).double(), torch.randn(3, 6).double()
    parts = contributions(Logits(a), Logits(b), row)
    assert parts.shape == (3, 6)
    torch.testing.assert_close(parts.sum(-1), measure(row, Logits(a), Logits(b)), rtol=1e-10, atol=1e-14)
    assert (parts >= 0).all()


def test_contributions_of_a_root_are_refused():
    with pytest.raises(FormError, match="no sum over classes"):
        contributions(Logits(X), Logits(X), divergences.HELLINGER)
    bits = contributions(Probs([1.0, 0.0]), Probs([0.5, 0.5]), base=2)
    assert bits.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_js_at_the_ends_of_its_weight_is_zero_far_apart(weight):
    """The C++ engine gave NaN, value and gradient, at a gap of 1000."""
    x = torch.tensor([0.0, -1000.0], requires_grad=True)
    value = js(Logits(x), Logits([0.0, 0.0]), weight=weight)
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(x.grad, torch.zeros(2))


def test_scores_beyond_1e305_at_a_tiny_temperature():
    """They overflowed when divided by it; the maximum leaves first."""
    from kullback.engines import use

    x = torch.tensor([[1e305, 0.0, -1e305]], dtype=torch.float64)
    for engine in ("eager", "cpu"):
        with use(engine):
            value = kl(Logits(x, 1e-6), Logits(torch.zeros(1, 3, dtype=torch.float64)))
        assert value.item() == pytest.approx(1.0986122886681098, rel=1e-12)


def test_log_probabilities_of_16_bits_beside_logits():
    """A normaliser in single precision cost 5e-5 here: rounded log-probabilities do not sum to one."""
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        q = (3.0 * torch.randn(2, 1000, generator=g)).bfloat16()
        p = torch.log_softmax(q.double() / 3.0, -1).half()
        got = kl(LogProbs(p, validate=False), Logits(q, 3.0)).double()
        truth = kl(LogProbs(p.double(), validate=False), Logits(q.double(), 3.0))
        torch.testing.assert_close(got, truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("offset", [0.0, 8.0, -1000.0, 1000.0, -10_000.0])
@pytest.mark.parametrize("moved", [0, 1])
def test_bfloat16_rows_near_uniform_with_a_common_offset(offset, moved):
    """Scores near 0 beside a large offset: their difference lost digits (8e-5 at an offset of 10,000)."""
    g = torch.Generator().manual_seed(1)
    near = (1e-3 * torch.randn(3, 700, generator=g)).bfloat16()
    flat = torch.full((3, 700), offset).bfloat16()
    p, q = (flat, near) if moved == 0 else (near, flat)
    got = kl(Logits(p), Logits(q)).double()
    truth = kl(Logits(p.double()), Logits(q.double()))
    torch.testing.assert_close(got, truth, rtol=1e-5, atol=0)
