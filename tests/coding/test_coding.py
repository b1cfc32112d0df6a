"""Real bits: what they cost, that they decode, and that a wrong KL would be seen."""

import json
import zlib

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kullback import Probs, cli, cross_entropy, kl
from kullback._errors import FormError
from kullback.coding import Adaptive, Fixed, bill, decode, encode, frequencies
from kullback.coding.sources import shipped

pytest.importorskip("constriction")
NEWS, OTHER = (0.5, 0.3, 0.2), (0.3, 0.6, 0.1)
WORDS = 64  # two words of 32 bits, which a range coder may need to end
METHODS = ["range", "ans"]


def stories(n):
    """n stories in exactly the first paper's proportions, in a random order."""
    return np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [n // 2, 3 * n // 10, n // 5]))


def bits(p, q):
    return kl(Probs(torch.tensor(p, dtype=torch.float64)), Probs(torch.tensor(q, dtype=torch.float64)), base=2).item()


@pytest.mark.parametrize("method", METHODS)
def test_the_news_desk_pays_what_kl_says_and_not_what_a_wrong_kl_says(method):
    n = 100_000
    found = bill(Fixed(NEWS), Fixed(OTHER), stories(n), method)
    assert found.same
    assert found.predicted == pytest.approx(n * 0.268483, abs=0.1)  # docs/learn/1-entropy-and-coding.md
    tolerance = WORDS + 2**-20 * n  # the end of two codes, and probabilities in multiples of 2^-24
    assert abs(found.extra - n * bits(NEWS, OTHER)) <= tolerance
    for wrong in (
        n * bits(OTHER, NEWS),  # the other direction
        n * bits(NEWS, OTHER) * np.log(2.0),  # nats taken for bits
        n * (bits(NEWS, OTHER) + bits(OTHER, NEWS)) / 2,  # symmetric
        n * cross_entropy(Probs(list(NEWS)), Probs(list(OTHER)), base=2).item(),  # without the entropy
        n * bits(NEWS, OTHER) / 3,  # a mean over the classes too
        n * sum(p * np.log2((p + 1e-2) / (q + 1e-2)) for p, q in zip(NEWS, OTHER, strict=True)),  # an epsilon
    ):
        assert abs(found.extra - wrong) > 5 * tolerance


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("adaptive", [False, True])
def test_texts_decode_to_the_same_bytes(method, adaptive):
    text = shipped("this") * 3
    model = Adaptive(256) if adaptive else frequencies(np.frombuffer(text, np.uint8).astype(np.int32), 256)
    coded = encode(text, model, method)
    assert decode(coded, model).astype(np.uint8).tobytes() == text
    assert 0 <= coded.bits - model.ideal(np.frombuffer(text, np.uint8).astype(np.int32)) <= WORDS + 1
    assert coded.bits < 8 * len(text)


@pytest.mark.parametrize("number", [0, 1, 2, 2047, 2048, 2049, 5000])
@pytest.mark.parametrize("method", METHODS)
def test_any_length_decodes(number, method):
    data = np.random.default_rng(number).integers(0, 5, number)
    for model in (Fixed([0.2] * 5), Adaptive(5)):
        assert np.array_equal(decode(encode(data, model, method), model), data)


@pytest.mark.parametrize("method", METHODS)
def test_a_real_text_in_the_code_of_another_costs_n_kl_more(method):
    text, other = shipped("topics")[:60_000], shipped("license")
    values, counted = (np.frombuffer(each, np.uint8).astype(np.int32) for each in (text, other))
    found = bill(frequencies(values, 256), frequencies(counted, 256, 0.5), text, method)
    assert found.same
    assert found.predicted == pytest.approx(found.exact, rel=1e-9)  # p is the data's own shares
    assert abs(found.extra - found.predicted) <= WORDS
    assert found.extra > 10_000


def test_the_data_decide_where_p_is_not_their_shares():
    found = bill(Fixed(NEWS), Fixed(OTHER), np.zeros(10_000, np.int64))
    assert found.exact == pytest.approx(10_000 * np.log2(0.5 / 0.3))
    assert abs(found.extra - found.exact) <= WORDS
    assert found.exact > 2 * found.predicted


def test_what_it_costs_to_learn_the_code():
    """Krichevsky & Trofimov: at most (V-1)/2·log2 n + V bits beyond the best fixed code."""
    n = 50_000
    data = stories(n)
    found = bill(frequencies(data, 3), Adaptive(3), data)
    assert found.predicted is None
    assert 0 < found.exact <= np.log2(n) + 3
    assert abs(found.extra - found.exact) <= WORDS


def test_the_ideal_of_a_learning_code_is_the_sum_of_its_steps():
    data, counts, total = np.array([2, 0, 2, 2, 1]), np.full(3, 0.5), 0.0
    for symbol in data:
        total -= np.log2(counts[symbol] / counts.sum())
        counts[symbol] += 1
    assert Adaptive(3).ideal(data) == pytest.approx(total, rel=1e-12)


def test_the_wrong_model_does_not_decode():
    data = stories(1000)
    assert not np.array_equal(decode(encode(data, Fixed(NEWS)), Fixed(OTHER)), data)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Fixed([0.5, 0.4]), "sum 0.9"),
        (lambda: Fixed([1.5, -0.5]), "needs two or more probabilities"),
        (lambda: Adaptive(1), "two symbols or more"),
        (lambda: encode([0, 3], Fixed(NEWS)), "symbols from 0 to 3, but the model has 0 to 2"),
        (lambda: encode([0.5], Fixed(NEWS)), "whole numbers in a row"),
        (lambda: encode([0, 1], Fixed([1.0, 0.0])), "symbol 1, to which the model gives probability 0"),
        (lambda: encode([0, 1], Fixed(NEWS), "huffman"), "write 'range' or 'ans'"),
        (lambda: bill(Fixed(NEWS), Adaptive(256), []), "p has 3 symbols but q has 256"),
    ],
)
def test_what_cannot_be_coded_is_refused(call, message):
    with pytest.raises(FormError, match=message):
        call()


def call(*arguments):
    return CliRunner().invoke(cli.app(), ["code", *arguments])


def test_the_command_prints_a_table():
    result = call("0.5,0.3,0.2", "0.3,0.6,0.1", "draw:20000", "--seed", "1")
    assert result.exit_code == 0
    assert "n·KL(P‖Q)  5,369.7 bits" in result.stdout
    assert "both to the same data" in result.stdout
    assert "20,000 of an alphabet of 3, range coder" in result.stdout


def test_the_command_counts_files_and_prints_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_bytes(shipped("this"))
    (tmp_path / "b.txt").write_bytes(zlib.compress(shipped("license")))
    found = json.loads(call("a.txt", "b.txt", "a.txt", "--coder", "ans", "--json").stdout)
    assert found["decoded_back"] is True
    assert found["symbols"] == len(shipped("this"))
    assert found["n_kl_bits"] == pytest.approx(found["exact_extra_bits"], rel=1e-9)
    assert abs(found["extra_bits"] - found["n_kl_bits"]) <= WORDS
    (tmp_path / "s.txt").write_text("0 1 2\n2 1 0")
    assert json.loads(call("0.5,0.3,0.2", "kt", "s.txt", "--json").stdout)["symbols"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "kt", "python:this"], "nowhere: No such file or directory; write a file, python:NAME"),
        (["python:zen", "kt", "python:this"], "there is no such text"),
        (["0.5,0.5", "0.3,0.6,0.1", "draw:9"], "has 3 probabilities, but the other side 2"),
        (["0.5,0.5", "python:this", "draw:9"], "is a text of bytes, but the other side are 2 probabilities"),
        (["0.5,0.6", "kt", "draw:9"], "sum 1.1"),
        (["0.5,0.5", "kt", "draw:x"], "write draw:N"),
        (["0.5,0.5", "kt", "0.5,0.5"], "DATA is a file"),
        (["0.5,0.5", "kt", "python:this"], "DATA holds numbers 0 to 1"),
        (["0.5,0.5", "kt", "draw:9", "--coder", "zip"], "--coder 'zip' is unknown"),
        (["0.5,0.5", "kt", "draw:9", "--prior", "-1"], "--prior is -1"),
        (["python:this", "python:this", "python:license", "--prior", "0"], "count the model with a prior"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message.lower() in result.stderr.lower()
    assert result.stderr.count("\n") == 1
