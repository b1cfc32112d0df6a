"""Caches of DistillKit and axolotl, written here by what is known of their formats, come out as they went in."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kullback import FormError, TopK
from kullback._errors import BadInput
from kullback.language.caches.foreign import Axolotl, DistillKit
from kullback.language.windows import IGNORED

V, K = 1000, 6


def rows(many, k=K, seed=0):
    """(ids, log-probabilities) of many positions, likeliest first, with mass left over."""
    g = torch.Generator().manual_seed(seed)
    log_p = (3.0 * torch.randn(many, V, generator=g)).log_softmax(-1)
    values, ids = log_p.topk(k, -1)
    return ids.tolist(), values.tolist()


def of(row):
    """{position: (ids, log-probabilities)} of a row that was read."""
    there = (row.teacher_ids[:, 0] != -1).nonzero().flatten().tolist()
    return {j: (row.teacher_ids[j].tolist(), row.teacher_log_probs[j].tolist()) for j in there}


def bits(number, many):
    return format(number, f"0{many}b")


def packed(text):
    """Bytes of a text of 0 and 1, filled up on the right."""
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


# ---------------------------------------------------------------- DistillKit


def raw(values, dtype):
    return np.array(values, dtype=dtype).tobytes()


def bfloat16(value):
    return np.float32(value).view(np.uint32).item() + 0x8000 >> 16


IDS = [[5, 6, 7, 8], [9, 10]]  # sequences of 4 and of 2 tokens
ANSWERS = [rows(3, seed=1), rows(1, seed=2)]


def write_current(folder, config, encode, name="data_0.parquet"):
    width = math.ceil(math.log2(config["d"]))
    table = {
        "input_ids": pa.array(IDS, pa.list_(pa.uint64())),
        "compressed_logprobs": pa.array(
            [[list(encode(values)) for values in answer[1]] for answer in ANSWERS],
            pa.list_(pa.list_(pa.uint8())),
        ),
        "bytepacked_indices": pa.array(
            [[packed("".join(bits(i, width) for i in ids)) for ids in answer[0]] for answer in ANSWERS],
            pa.list_(pa.list_(pa.uint8())),
        ),
    }
    pq.write_table(pa.table(table), folder / name)


EXACT = {"d": V, "k": K, "exact_k": K, "exact_dtype": "float32", "residual_bins": [], "delta_encoding": False}


def test_distillkits_exact_values_come_back(tmp_path):
    write_current(tmp_path, EXACT, lambda values: raw(values, "<f4"))
    read = DistillKit(tmp_path, tail="bucket", config=EXACT)
    assert (len(read), read.num_classes, read.tokenizer_hash) == (2, V, None)
    for place in range(2):
        row, (ids, values) = read.row(place), ANSWERS[place]
        assert row.input_ids.tolist() == IDS[place]
        assert row.labels.tolist() == [IGNORED, *IDS[place][1:]]  # row j is of input_ids[j + 1]
        assert of(row) == {j: (ids[j], pytest.approx(values[j], rel=1e-7)) for j in range(len(ids))}
        form = read.form(row)
        assert isinstance(form, TopK)
        assert form.batch_shape == (len(ids),)
    batch = read.collator(pad_token_id=3)([read.dataset()[0], read.dataset()[1]])
    assert read(batch).batch_shape == (2, 4)


def test_distillkits_differences_terms_and_residuals_come_back(tmp_path):
    """Two exact float16, a line over four places in bfloat16, three residuals of 4 bits and a sign, of differences."""
    config = {
        "d": V,
        "k": 6,
        "exact_k": 2,
        "exact_dtype": "float16",
        "polynomial_terms": [0, 1, "sqrt"],
        "term_dtype": "bfloat16",
        "residual_bins": [
            {"scale_dtype": "float16", "element_bits": 4, "num_elements": 2},
            {"scale_dtype": "float32", "element_bits": 1, "num_elements": 1},
        ],
        "delta_encoding": True,
        "error_diffusion": True,
    }
    exact, terms = [-1.5, -0.25], [-0.5, -0.125, 0.25]
    scales, codes, sign = [0.03125, 0.5], [3, 12], 1

    def encode(values):
        found = raw(exact, "<f2") + b"".join(bfloat16(x).to_bytes(2, "little") for x in terms)
        found += raw([scales[0]], "<f2") + bytes(packed(bits(codes[0], 4) + bits(codes[1], 4)))
        return found + raw([scales[1]], "<f4") + bytes(packed(bits(sign, 1)))

    write_current(tmp_path, config, encode)
    (tmp_path / "compression_config.yaml").write_text(
        "d: 1000\nk: 6\nexact_k: 2\nexact_dtype: float16\npolynomial_terms: [0, 1, sqrt]\nterm_dtype: bfloat16\n"
        "delta_encoding: true\nerror_diffusion: true\nresidual_bins:\n"
        "- {scale_dtype: float16, element_bits: 4, num_elements: 2}\n"
        "- {scale_dtype: float32, element_bits: 1, num_elements: 1}\n"
    )
    line = [terms[0] + terms[1] * t + terms[2] * math.sqrt(t) for t in range(4)]
    residuals = [(codes[0] - 8) * scales[0], (codes[1] - 8) * scales[0], (2 * sign - 1) * scales[1], 0.0]
    differences = [*exact, *(a + b for a, b in zip(line, residuals, strict=True))]
    expected = np.cumsum(differences)
    for config_given in (config, None):
        read = DistillKit(tmp_path, tail="renormalize", config=config_given)
        found = of(read.row(0))
        assert list(found) == [0, 1, 2]
        for j, (ids, values) in found.items():
            assert ids == ANSWERS[0][0][j]
            shift = values[0] - expected[0]
            np.testing.assert_allclose(values, expected + shift, atol=2e-3)  # bfloat16 of the root of 2 and of 3
            assert np.exp(values).sum() == pytest.approx(1.0)


LEGACY = {"k": 7, "exact_k": 3, "polynomial_degree": 2, "vocab_size": V, "invert_polynomial": True}


def write_legacy(folder, config, exact, coefficients, ids):
    """ids: of one sequence of 3 tokens with 2 rows."""
    width = math.ceil(math.log2(config["vocab_size"]))
    each = 64 // width
    words = [
        [sum(i << (width * n) for n, i in enumerate(row[a : a + each])) for a in range(0, len(row), each)]
        for row in ids
    ]
    floats = pa.list_(pa.list_(pa.float32()))
    table = {
        "input_ids": pa.array([[5, 6, 7]], pa.list_(pa.uint64())),
        "packed_indices": pa.array([words], pa.list_(pa.list_(pa.uint64()))),
        "exact_values": pa.array([[exact] * 2], floats),
        "coeffs": pa.array([[coefficients] * 2], floats),
    }
    pq.write_table(pa.table(table), folder / "data_0.parquet")


@pytest.mark.parametrize("inverted", [True, False])
@pytest.mark.parametrize("root", [True, False])
def test_distillkits_legacy_rows_come_back(tmp_path, inverted, root):
    ids = rows(2, 7)[0]
    config = LEGACY | {"invert_polynomial": inverted, "with_sqrt_term": root}
    exact, coefficients = [-1.0, -2.0, -3.0], [-4.0, 0.5, -0.25, -0.125][: 3 + root]
    write_legacy(tmp_path, config, exact, coefficients, ids)
    sign = -1 if inverted else 1
    last = coefficients[3] if root else 0.0
    powers = [sum(c * a ** (sign * i) for i, c in enumerate(coefficients[:3])) for a in range(1, 5)]
    tail = [x + last * math.sqrt(a) for a, x in enumerate(powers, 1)]
    read = DistillKit(tmp_path, tail="even", config=config, holds="log-probs")
    assert of(read.row(0)) == {j: (ids[j], pytest.approx([*exact, *tail], rel=1e-6)) for j in range(2)}
    scores = DistillKit(tmp_path, tail="renormalize", config=config, holds="scores").row(0)
    logits = torch.tensor([*exact, *tail]).log_softmax(-1).tolist()
    assert of(scores) == {j: (ids[j], pytest.approx(logits, rel=1e-5)) for j in range(2)}


def test_distillkits_plain_rows_come_back_without_what_has_no_mass(tmp_path):
    """vLLM may give fewer classes than were asked for: what is not there has -inf and any id."""
    ids, values = rows(2)
    values[1][4:] = [-math.inf] * 2
    ids[1][4:] = [ids[1][0], 10**12]
    table = {"input_ids": [[5, 6, 0]], "token_ids": [ids], "top_values": [values]}
    pq.write_table(pa.table(table), tmp_path / "data_0.parquet")
    found = of(DistillKit(tmp_path, tail="bucket", num_classes=V).row(0))
    assert found[0] == (ids[0], pytest.approx(values[0], rel=1e-6))
    assert found[1][0][:4] == ids[1][:4]
    assert len(set(found[1][0])) == K
    assert found[1][1][4:] == [-math.inf] * 2
    padded = DistillKit(tmp_path, tail="bucket", num_classes=V, pad_token_id=0).row(0)
    assert list(of(padded)) == [0]
    assert padded.labels.tolist() == [IGNORED, 6, IGNORED]


def test_distillkits_files_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 0):
        table = {"input_ids": [[number, 1]], "token_ids": [rows(1)[0]], "top_values": [rows(1)[1]]}
        pq.write_table(pa.table(table), tmp_path / f"data_{number}.parquet")
    read = DistillKit(tmp_path, tail="bucket", num_classes=V)
    assert [int(row.input_ids[0]) for row in read.rows()] == [0, 2, 10]
    assert sorted(int(row.input_ids[0]) for row in read.rows(seed=1)) == [0, 2, 10]


def test_what_distillkit_leaves_open_is_asked_for(tmp_path):
    write_current(tmp_path, EXACT, lambda values: raw(values, "<f4"))
    with pytest.raises(BadInput, match=r"do not say how they are compressed, .* write config="):
        DistillKit(tmp_path, tail="bucket")
    with pytest.raises(FormError, match="no tail is given"):
        DistillKit(tmp_path, tail=None, config=EXACT)
    for changed, said in (
        ({"exact_dtype": "float16"}, "compressed_logprobs has 24 values a row, but the config makes 12"),
        ({"d": 5000}, "bytepacked_indices has 8 values a row, but the config makes 10"),
        ({"d": 600}, "holds the id"),
    ):
        with pytest.raises(BadInput, match=f"data_0.parquet, sequence 0: .*{said}"):
            DistillKit(tmp_path, tail="bucket", config=EXACT | changed).row(0)
    for changed, said in (
        ({"k": "6"}, "k='6'"),
        ({"exact_dtype": "int8"}, "the dtype 'int8'"),
        ({"polynomial_terms": ["log"]}, "the term 'log'"),
        ({"exact_k": 7}, "more values than k=6"),
    ):
        with pytest.raises(BadInput, match=said):
            DistillKit(tmp_path, tail="bucket", config=EXACT | changed)
    legacy = tmp_path / "legacy"
    legacy.mkdir()
    write_legacy(legacy, LEGACY, [-1.0] * 3, [0.0] * 3, rows(2, 7)[0])
    with pytest.raises(BadInput, match="does not say what it holds"):
        DistillKit(legacy, tail="bucket", config=LEGACY)
    with pytest.raises(FormError, match="scores of k classes do not say what they leave"):
        DistillKit(legacy, tail="bucket", config=LEGACY, holds="scores")
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(BadInput, match="holds no Parquet file"):
        DistillKit(other, tail="bucket")
    pq.write_table(pa.table({"input_ids": [[1]]}), other / "data_0.parquet")
    with pytest.raises(BadInput, match="which no layout of DistillKit has"):
        DistillKit(other, tail="bucket")
    table = {"input_ids": [[5, 6, 7, 8]], "token_ids": [rows(2)[0]], "top_values": [rows(2)[1]]}
    pq.write_table(pa.table(table), other / "data_0.parquet")
    with pytest.raises(BadInput, match="write num_classes=V"):
        DistillKit(other, tail="bucket")
    with pytest.raises(BadInput, match="2 rows describe 4 tokens"):
        DistillKit(other, tail="bucket", num_classes=V).row(0)
    table = {"input_ids": [[5, 6]], "token_ids": [rows(1)[0]], "top_values": [[[0.0] * K]]}
    pq.write_table(pa.table(table), other / "data_0.parquet")
    with pytest.raises(BadInput, match=r"sequence 0: .* has the mass 6"):
        DistillKit(other, tail="bucket", num_classes=V).row(0)


# ---------------------------------------------------------------- axolotl


def write_axolotl(path, columns):
    pq.write_table(pa.table(columns), path)


PROMPT = [3, 4, 5, 6, 7]  # the last three are an answer


@pytest.mark.parametrize("legacy", [True, False])
def test_axolotls_rows_describe_the_last_tokens(tmp_path, legacy):
    """Three rows beside five tokens: of tokens 2, 3 and 4, which come after positions 1, 2 and 3."""
    ids, values = rows(3)
    if legacy:
        columns = {
            "field": [
                [
                    [{"token": f"token_id:{i}", "logprob": x} for i, x in zip(*row, strict=True)]
                    for row in zip(ids, values, strict=True)
                ]
            ]
        }
    else:
        columns = {"field": [values], "target_token_ids": [ids]}
    labels = [-100, -100, 5, 6, 7]
    write_axolotl(tmp_path / "a.parquet", {"input_ids": [PROMPT], "labels": [labels], **columns})
    row = Axolotl(tmp_path, V, tail="bucket", logprobs_field="field").row(0)
    assert row.labels.tolist() == labels
    assert of(row) == {j + 1: (ids[j], pytest.approx(values[j], rel=1e-6)) for j in range(3)}


def test_axolotls_row_of_the_first_token_and_rows_behind_the_end_are_left_out(tmp_path):
    ids, values = rows(7)
    columns = {"field": [values], "target_token_ids": [ids], "input_ids": [PROMPT]}
    write_axolotl(tmp_path / "a.parquet", columns)
    row = Axolotl(tmp_path, V, tail="bucket", logprobs_field="field").row(0)
    assert row.labels.tolist() == [IGNORED, *PROMPT[1:]]
    assert {j: got[0] for j, got in of(row).items()} == {j: ids[j + 1] for j in range(4)}


def test_axolotls_empty_rows_and_masked_tokens_have_no_teacher_and_k_is_theirs(tmp_path):
    ids, values = rows(4, 6)
    ids[0], values[0] = None, None
    ids[2], values[2] = ids[2][:5], values[2][:5]  # one of 5, two of 6: the smaller of most and least common
    columns = {"field": [values], "target_token_ids": [ids], "input_ids": [PROMPT]}
    write_axolotl(tmp_path / "a.parquet", columns | {"labels": [[3, 4, 5, 6, -100]]})
    row = Axolotl(tmp_path, V, tail="bucket", logprobs_field="field").row(0)
    assert {j: got[0] for j, got in of(row).items()} == {1: ids[1][:5], 2: ids[2]}
    assert row.labels.tolist() == [IGNORED, IGNORED, 5, 6, IGNORED]


def test_axolotls_preprocessed_rows_describe_the_next_token(tmp_path):
    ids, values = rows(5)
    values = torch.tensor(values).log_softmax(-1).tolist()
    mask = [[0] * K, [1] * K, [1] * K, [1] * 4 + [0] * 2, [0] * K]
    columns = {"target_logprobs": [values], "target_token_ids": [ids], "target_mask": [mask]}
    write_axolotl(tmp_path / "a.parquet", columns | {"input_ids": [PROMPT], "labels": [[-100, -100, 5, 6, 7]]})
    with pytest.raises(FormError, match="normalised these rows over their k classes"):
        Axolotl(tmp_path, V, tail="bucket")
    found = of(Axolotl(tmp_path / "a.parquet", V, tail="renormalize").row(0))
    assert list(found) == [1, 2, 3]
    kept = torch.tensor(values[2][:4]).log_softmax(-1).tolist()
    assert found[2] == (ids[2][:4], pytest.approx(kept, rel=1e-5))


def test_axolotls_columns_that_do_not_fit_are_refused(tmp_path):
    ids, values = rows(3)
    path = tmp_path / "a.parquet"
    given = {"input_ids": [PROMPT], "field": [values], "target_token_ids": [ids]}
    write_axolotl(path, given)
    with pytest.raises(
        BadInput, match="has no column target_logprobs, target_mask, but field, input_ids, target_token_ids"
    ):
        Axolotl(path, V, tail="renormalize")
    with pytest.raises(BadInput, match="has no column other"):
        Axolotl(path, V, tail="bucket", logprobs_field="other")
    with pytest.raises(BadInput, match="6 classes are listed, but there are only 5"):
        Axolotl(path, 5, tail="bucket", logprobs_field="field").row(0)
    write_axolotl(path, given | {"target_token_ids": [ids[:2]]})
    with pytest.raises(BadInput, match="rows of different lengths"):
        Axolotl(path, V, tail="bucket", logprobs_field="field").row(0)
    write_axolotl(path, {"input_ids": [PROMPT], "field": [values]})
    with pytest.raises(BadInput, match="no column target_token_ids beside it"):
        Axolotl(path, V, tail="bucket", logprobs_field="field").row(0)
    write_axolotl(path, {"input_ids": [PROMPT], "field": [[[{"token": "the", "logprob": -1.0}]]]})
    with pytest.raises(BadInput, match="a token is 'the', but 'token_id:123' is needed"):
        Axolotl(path, V, tail="bucket", logprobs_field="field").row(0)
    write_axolotl(path, given | {"labels": [[1, 2]]})
    with pytest.raises(BadInput, match="5 input_ids and 2 labels"):
        Axolotl(path, V, tail="bucket", logprobs_field="field").row(0)
