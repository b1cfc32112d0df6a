"""llama.cpp's base file against its byte layout, written out here with struct and scalars."""

import math
import struct

import numpy as np
import pytest
import torch

from kullback import LinearLogits, Logits, kl
from kullback._errors import BadInput
from kullback.models import base_file
from kullback.models.base_file import BaseFile, BaseFileWriter, row_bytes, scored, size

F = np.float32
SHAPES = [(8, 10, 3), (9, 11, 2), (3, 1, 1), (64, 257, 2)]  # n_ctx even and odd, n_vocab even and odd


def some(n_ctx, n_vocab, n_chunk, seed=0, spread=3.0):
    g = np.random.default_rng(seed)
    tokens = g.integers(0, n_vocab, (n_chunk, n_ctx))
    scores = (spread * g.standard_normal((n_chunk, n_ctx - 1 - n_ctx // 2, n_vocab))).astype(F)
    return tokens, scores


def row_by_scalars(scores):
    """One row as the format has it: float32 arithmetic, step by step, but the sum of exponentials in double."""
    top, bottom = scores[0], scores[0]
    for x in scores:
        top, bottom = max(top, x), min(bottom, x)
    bottom = max(bottom, F(top - F(16)))
    total = 0.0
    for x in scores:
        total += float(np.exp(F(x - top)))
    log_sum = F(math.log(total))
    least = F(F(bottom - top) - log_sum)
    scale = F(F(top - bottom) / F(65535))
    codes = []
    for x in scores:
        code = round(float(F(F(F(1) / scale) * F(x - bottom)))) if scale and x > bottom else 0
        codes.append(code)
    if len(codes) % 2:
        codes.append(0)
    return struct.pack("<ff", scale, least) + struct.pack(f"<{len(codes)}H", *codes)


def file_by_scalars(tokens, scores):
    n_chunk, n_ctx = tokens.shape
    raw = b"_logits_" + struct.pack("<iii", n_ctx, scores.shape[-1], n_chunk)
    raw += b"".join(struct.pack("<i", t) for chunk in tokens for t in chunk)
    return raw + b"".join(row_by_scalars(row) for chunk in scores for row in chunk)


def written(path, tokens, scores):
    with BaseFileWriter(path, tokens, scores.shape[-1]) as writer:
        for chunk in scores:
            writer.append(Logits(torch.from_numpy(chunk)))
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_the_writer_makes_the_bytes_of_the_layout(tmp_path, shape):
    tokens, scores = some(*shape)
    raw = written(tmp_path / "b.kld", tokens, scores).read_bytes()
    want = file_by_scalars(tokens, scores)
    assert len(raw) == len(want) == size(*shape)
    head = 20 + 4 * tokens.size
    assert raw[:head] == want[:head]
    ours, theirs = (np.frombuffer(x, "<u2", offset=head).reshape(-1, row_bytes(shape[1]) // 2) for x in (raw, want))
    assert np.array_equal(ours[:, :2], theirs[:, :2])  # scale
    assert np.array_equal(ours[:, 4:], theirs[:, 4:])  # codes
    a, b = (np.ascontiguousarray(x[:, 2:4]).view("<f4") for x in (ours, theirs))
    np.testing.assert_allclose(a, b, rtol=3e-7)  # the order in which exponentials are added moves its last bit


@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_of_the_layout_is_read_to_the_bit(tmp_path, shape):
    n_ctx, n_vocab, n_chunk = shape
    tokens, scores = some(*shape)
    path = tmp_path / "b.kld"
    path.write_bytes(file_by_scalars(tokens, scores))
    with BaseFile(path, n_vocab) as file:
        assert (file.n_ctx, file.n_vocab, file.n_chunk, file.rows) == (*shape, scored(n_ctx))
        assert file.positions().tolist() == list(range(n_ctx // 2 + 1, n_ctx))
        for c in range(n_chunk):
            assert file.tokens(c).tolist() == tokens[c].tolist()
            found = file.logits(c).data.numpy()
            for k in range(file.rows):
                raw = row_by_scalars(scores[c, k])
                scale, least = (F(x) for x in struct.unpack("<ff", raw[:8]))
                codes = struct.unpack(f"<{n_vocab}H", raw[8 : 8 + 2 * n_vocab])
                assert found[k].tolist() == [F(F(scale * F(code)) + least) for code in codes]
            np.testing.assert_array_equal(file.logits(c, 1, file.rows).data.numpy(), found[1:])


def test_the_size_is_that_of_the_formula():
    assert size(512, 128256, 1) == 20 + 4 * 512 + 2 * (128256 + 4) * 255
    assert size(512, 151937, 3) == 20 + 4 * 512 * 3 + 2 * (151938 + 4) * 255 * 3


def test_a_step_is_at_most_16_nats_over_65535():
    _, scores = some(64, 300, 1, spread=6.0)
    exact = torch.from_numpy(scores[0]).double().log_softmax(-1)
    raw = base_file.encode(scores[0])
    scale, least = np.ascontiguousarray(raw[:, :4]).view("<f4").T.astype(np.float64)
    decoded = scale[:, None] * raw[:, 4:304] + least[:, None]
    floor = exact.amax(-1, keepdim=True) - 16.0
    assert (exact < floor).any()
    # half a step, and float32 rounding of numbers up to 32
    assert np.abs(decoded - torch.maximum(exact, floor).numpy()).max() <= 0.5 * 16 / 65535 + 4e-6


def test_a_reference_against_its_own_file_is_a_billionth_of_a_nat_and_never_negative(tmp_path):
    tokens, scores = some(512, 2048, 1, spread=2.0)
    with BaseFile(written(tmp_path / "b.kld", tokens, scores)) as file:
        found = kl(file.logits(0), Logits(torch.from_numpy(scores[0])))
    assert (found >= 0.0).all()
    assert 1e-10 < found.mean() < 5e-9


def test_hidden_states_and_pieces_of_chunks_are_written_as_their_scores(tmp_path):
    tokens, _ = some(10, 30, 3)
    g = torch.Generator().manual_seed(0)
    p = LinearLogits(torch.randn(12, 4, generator=g), torch.randn(30, 4, generator=g), softcap=3.0)
    with BaseFileWriter(tmp_path / "a.kld", tokens, 30) as writer:
        for at in (slice(0, 1), slice(1, 9), slice(9, 12)):
            writer.append(p[at])
    scores = p.logits().data.numpy().reshape(3, 4, 30)
    assert (tmp_path / "a.kld").read_bytes() == written(tmp_path / "b.kld", tokens, scores).read_bytes()


def test_rows_are_encoded_alike_however_many_fit(tmp_path, monkeypatch):
    tokens, scores = some(64, 33, 2)
    whole = written(tmp_path / "a.kld", tokens, scores).read_bytes()
    monkeypatch.setattr(base_file, "_BLOCK", 100)
    assert written(tmp_path / "b.kld", tokens, scores).read_bytes() == whole


def test_a_temperature_is_applied_before_writing(tmp_path):
    tokens, scores = some(10, 30, 1)
    with BaseFileWriter(tmp_path / "a.kld", tokens, 30) as writer:
        writer.append(Logits(torch.from_numpy(scores[0]), 2.0))
    assert (tmp_path / "a.kld").read_bytes() == written(tmp_path / "b.kld", tokens, scores / 2).read_bytes()


def test_rows_of_equal_scores_and_classes_without_mass(tmp_path):
    tokens, scores = some(10, 30, 1)
    scores[0, 0] = 4.0
    scores[0, 1, 3:] = -np.inf
    with BaseFile(written(tmp_path / "b.kld", tokens, scores)) as file:
        found = file.logits(0).data.double()
    assert (found[0] == found[0, 0]).all()
    assert found[0, 0].item() == pytest.approx(-math.log(30), rel=1e-6)
    top = found[1].max()
    np.testing.assert_allclose((top - found[1, 3:]).numpy(), 16.0, atol=1e-5)  # -inf comes back with mass


# ---------------------------------------------------------------- going on


def test_an_interrupted_writer_is_gone_on_with(tmp_path):
    tokens, scores = some(10, 31, 3)
    rows = torch.from_numpy(scores.reshape(-1, 31))
    whole = written(tmp_path / "b.kld", tokens, scores).read_bytes()
    path = tmp_path / "a.kld"
    assert base_file.recorded(path) == 0

    def interrupted():
        with BaseFileWriter(path, tokens, 31) as writer:
            writer.append(Logits(rows[:7]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not path.exists()
    assert base_file.recorded(path) == 7
    with pytest.raises(BadInput, match="has other tokens or classes, of which 7 rows were to be kept"):
        BaseFileWriter(path, tokens[:, ::-1].copy(), 31, keep=7)
    with pytest.raises(BadInput, match="has 7 rows, of which 8 rows were to be kept"):
        BaseFileWriter(path, tokens, 31, keep=8)
    with BaseFileWriter(path, tokens, 31, keep=4) as writer:
        writer.append(Logits(rows[4:]))
    assert path.read_bytes() == whole
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.kld", "b.kld"]
    with pytest.raises(BadInput, match="there is nothing to go on with"):
        BaseFileWriter(path, tokens, 31, keep=1)


def test_a_file_with_missing_rows_gets_no_name(tmp_path):
    tokens, scores = some(10, 31, 2)
    writer = BaseFileWriter(tmp_path / "a.kld", tokens, 31)
    writer.append(Logits(torch.from_numpy(scores[0])))
    with pytest.raises(BadInput, match="is unfinished, 4 of its rows are missing"):
        writer.close()
    assert not (tmp_path / "a.kld").exists()


def test_what_cannot_be_written_is_refused(tmp_path):
    tokens, scores = some(10, 31, 2)
    path, rows = tmp_path / "a.kld", torch.from_numpy(scores[0])
    with pytest.raises(BadInput, match=r"tokens have shape \(2,\)"):
        BaseFileWriter(path, [1, 2], 31)
    with pytest.raises(BadInput, match="n_ctx of at least 3"):
        BaseFileWriter(path, [[1, 2]], 31)
    with pytest.raises(BadInput, match="integers from 0 to 4"):
        BaseFileWriter(path, tokens, 5)
    with pytest.raises(BadInput, match="integers from 0 to 30"):
        BaseFileWriter(path, tokens / 2, 31)
    writer = BaseFileWriter(path, tokens, 31)
    with pytest.raises(BadInput, match=r"write \(n, 31\)"):
        writer.append(Logits(rows[:, :30]))
    with pytest.raises(BadInput, match="9 rows are given where 8 are left"):
        writer.append(Logits(rows[:1].expand(9, -1)))
    for bad in (math.nan, math.inf):
        with pytest.raises(BadInput, match="row 2 of 4 has NaN"):
            writer.append(Logits(torch.where(torch.arange(4)[:, None] == 2, bad, rows)))
    with pytest.raises(BadInput, match="unfinished"):
        writer.close()


# ---------------------------------------------------------------- files that are damaged


@pytest.fixture
def good(tmp_path):
    tokens, scores = some(10, 31, 3)
    return written(tmp_path / "b.kld", tokens, scores)


def patched(path, at, raw):
    held = bytearray(path.read_bytes())
    held[at : at + len(raw)] = raw
    path.write_bytes(bytes(held))
    return path


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (8, 2, "byte 8 says that n_ctx is 2; at least 3"),
        (8, -5, "byte 8 says that n_ctx is -5"),
        (12, 0, "byte 12 says that n_vocab is 0"),
        (16, -1, "byte 16 says that n_chunk is -1"),
        (16, 2, "byte 676 goes on for 328 bytes after the last row of 2 chunks"),
        (16, 4, "byte 1004 ends, where 4 chunks of 10 tokens and 31 classes take 1332 bytes: it has 2 whole chunks"),
        (12, 2**31 - 1, "ends, where 3 chunks of 10 tokens and 2147483647 classes take"),
        (20, -1, "byte 20 is the id -1 of token 0 of chunk 0"),
        (20 + 4 * 9, 31, "byte 56 is the id 31 of token 9 of chunk 0, but n_vocab is 31"),
    ],
)
def test_an_absurd_number_is_named_by_its_byte(good, at, value, message):
    with pytest.raises(BadInput, match=message), BaseFile(patched(good, at, struct.pack("<i", value))) as file:
        file.tokens(0)


def test_another_vocabulary_is_refused_at_its_byte(good):
    with pytest.raises(BadInput, match="byte 12 says that n_vocab is 31, but the tokenizer has 32 classes"):
        BaseFile(good, 32)


def test_another_kind_of_file_is_refused_at_byte_0(good, tmp_path):
    with pytest.raises(BadInput, match="byte 0 begins with b'GGUF"):
        BaseFile(patched(good, 0, b"GGUF\3\0\0\0"))
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(BadInput, match="byte 0 begins with b''"):
        BaseFile(tmp_path / "empty")
    with pytest.raises(BadInput, match="none: cannot be read"):
        BaseFile(tmp_path / "none")


@pytest.mark.parametrize("held", [8, 19, 20, 100, 140, 141, 1000])
def test_a_file_that_was_cut_is_refused_at_its_end(good, held):
    good.write_bytes(good.read_bytes()[:held])
    with pytest.raises(BadInput, match=f"byte {held} ends"):
        BaseFile(good)


@pytest.mark.parametrize(
    "head",
    [(math.nan, -3.0), (-1e-4, -3.0), (1e-4, math.nan), (1e-4, 1.0), (1e-2, -3.0), (math.inf, -3.0), (0.0, -math.inf)],
)
def test_a_row_that_is_no_log_probability_is_named_by_its_byte(good, head):
    at = 20 + 4 * 30 + row_bytes(31) * 9  # the second row of the third chunk
    with BaseFile(patched(good, at, struct.pack("<ff", *head))) as file:
        assert file.logits(1).shape == (4, 31)
        with pytest.raises(BadInput, match=f"byte {at} begins row 1 of chunk 2"):
            file.logits(2)
        with pytest.raises(BadInput, match=f"byte {at} begins row 1 of chunk 2"):
            file.logits(2, 1, 3)


def test_a_file_that_shrinks_under_the_reader_is_noticed(tmp_path):
    good = written(tmp_path / "b.kld", *some(10, 3000, 3))
    with BaseFile(good) as file:
        good.write_bytes(good.read_bytes()[:300])
        with pytest.raises(BadInput, match="the last one that can be read"):
            file.logits(2)


def test_chunks_and_rows_that_are_not_there(good):
    with BaseFile(good) as file:
        for call in (lambda: file.tokens(3), lambda: file.logits(-1), lambda: file.logits(0, 2, 5)):
            with pytest.raises(IndexError):
                call()
