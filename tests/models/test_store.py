"""A reference's run that is kept, and compared with later without its model."""

import json

import numpy as np
import pytest

from kullback._errors import BadInput
from kullback.language.small import train_tokenizer
from kullback.models import compare
from kullback.models.base_file import BaseFile
from kullback.models.store import HEAD, META, Stored
from kullback.models.table import Columns

CONTEXT = 64


def kept(folders, text, path, candidates=(), **options):
    return compare(
        folders["reference"], [folders[name] for name in candidates], text=text, context=CONTEXT, noise=0,
        save_reference=path, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def hidden(folders, text_folder, tmp_path_factory):
    """A stored run of hidden states, and the comparison in which it was made."""
    path = tmp_path_factory.mktemp("stored") / "hidden"
    return path, kept(folders, text_folder, path, ["near"])


@pytest.fixture(scope="module")
def top(folders, text_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "top"
    kept(folders, text_folder, path, top_k=16)
    return path


@pytest.fixture(scope="module")
def base(folders, text_folder, tmp_path_factory):
    """llama.cpp's base file, and the comparison in which it was made."""
    path = tmp_path_factory.mktemp("stored") / "reference.kld"
    return path, kept(folders, text_folder, path, ["near"])


def test_hidden_states_give_the_same_bits_as_the_model(hidden, folders):
    path, live = hidden
    found = compare(path, [folders["near"], folders["reference"]])
    one, other = Columns(live.tokens("near")), Columns(found.tokens("near"))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert found["near"]["statistics"] == live["near"]["statistics"]
    assert (Columns(found.tokens("reference (2)"))["kl"] == 0.0).all()
    assert found.to_json()["reference"]["about"].startswith("stored run (hidden states and head)")


def test_a_stored_run_holds_its_text(hidden, folders, text_folder):
    path, live = hidden
    stored = Stored(path)
    assert list(stored.pieces()) == list(live.plan.text.pieces())
    assert list(stored.names()) == list(live.plan.text.names())
    assert compare(path, folders["near"], text=text_folder).measured == live.measured


def test_metadata_say_what_made_it(hidden):
    found = json.loads((hidden[0] / META).read_text())
    assert found["format"] == "kullback reference"
    assert found["kind"] == "hidden"
    assert found["name"] == "reference"
    assert len(found["model_hash"]) == len(found["tokenizer_hash"]) == 64
    assert found["text"]["scored"] == hidden[1].measured
    assert {each["name"] for each in found["files"]} >= {HEAD, "documents.parquet"}


def test_top_k_is_a_lower_bound_of_every_divergence(top, hidden, folders):
    """And what does not depend on the rest is exact."""
    found = compare(top, folders["near"])
    whole, part = Columns(hidden[1].tokens("near")), Columns(found.tokens("near"))
    for name in ("kl", "reverse", "js", "tv"):
        assert (part[name] <= whole[name] * (1 + 1e-5) + 1e-12).all(), name
        assert part[name].mean() < whole[name].mean(), name
        assert part[name].min() >= 0.0
    for name in ("log_p", "entropy", "confidence", "log_q"):
        np.testing.assert_allclose(part[name], whole[name], rtol=1e-6, atol=1e-7)
    for name in ("top_p", "top_q", "overlap", "token", "choices_p_ids"):
        np.testing.assert_array_equal(part[name], whole[name], err_msg=name)
    assert any("lower bound" in note for note in found.to_json()["notes"])
    assert "16 likeliest tokens" in found.to_json()["reference"]["about"]


def test_the_smaller_kind_is_smaller(top, hidden):
    sizes = [sum(p.stat().st_size for p in path.glob("part-*")) for path in (top, hidden[0])]
    tokens = hidden[1].measured
    assert sizes[0] < tokens * (16 * 8 + 24) * 1.1 + tokens * 8
    assert sizes[1] < tokens * 32 * 4 * 1.1 + tokens * 8


@pytest.mark.parametrize("where", ["part", HEAD])
def test_a_damaged_file_is_refused(hidden, folders, tmp_path, where):
    for path in hidden[0].iterdir():
        data = path.read_bytes()
        if path.name.startswith(where):
            data = data[:-1] + bytes([data[-1] ^ 1])
        (tmp_path / path.name).write_bytes(data)
    with pytest.raises(BadInput, match="SHA-256 differs"):
        compare(tmp_path, folders["near"])


def test_an_unfinished_folder_is_no_stored_run(hidden, tmp_path, folders):
    for path in hidden[0].iterdir():
        if path.name != META:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(BadInput, match=r"no config\.json"):
        compare(tmp_path, folders["near"])


def test_another_text_is_refused(hidden, folders, tmp_path):
    (tmp_path / "other.txt").write_text("Another text, with a few words.")
    with pytest.raises(BadInput, match="is not the text of"):
        compare(hidden[0], folders["near"], text=tmp_path)


def test_another_tokenizer_is_refused(hidden, models, texts, tmp_path):
    from kullback.language.small import save

    other = train_tokenizer([text[::-1] for text in texts], 400)
    path = save(models[1]["near"], other, tmp_path / "near")
    with pytest.raises(BadInput, match="another tokenizer than the one with which"):
        compare(hidden[0], path)


@pytest.mark.parametrize(
    ("options", "what"),
    [({"context": 32}, "--context 32"), ({"limit": 5}, "--limit 5"), ({"num_classes": 300}, "--num-classes 300")],
)
def test_what_the_run_was_stored_with_stays(hidden, folders, options, what):
    with pytest.raises(BadInput, match=what):
        compare(hidden[0], folders["near"], **options)


def test_a_stored_run_is_not_stored_again(hidden, folders, tmp_path):
    with pytest.raises(BadInput, match="a stored run already"):
        compare(hidden[0], folders["near"], save_reference=tmp_path / "again")


def test_nothing_is_overwritten(hidden, folders, text_folder):
    with pytest.raises(BadInput, match="not empty"):
        kept(folders, text_folder, hidden[0])


# ---------------------------------------------------------------- llama.cpp's base file


def test_a_base_file_is_read_as_llama_cpp_wrote_it(base, folders, text_folder, tokenizer):
    """Against the comparison with the model itself: up to what 16 bits cost."""
    path, live = base
    found = compare(path, folders["near"], text=text_folder)
    one, other = Columns(live.tokens("near")), Columns(found.tokens("near"))
    for name in ("document", "position", "token"):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    np.testing.assert_allclose(other["log_p"], one["log_p"], atol=1.3e-4)
    assert abs(other["kl"].mean() - one["kl"].mean()) < 1e-5
    assert other["kl"].min() >= 0.0
    assert any("16 bits" in note for note in found.to_json()["notes"])
    with BaseFile(path) as file:
        assert (file.n_ctx, file.n_vocab) == (CONTEXT, len(tokenizer))
        assert file.n_chunk * file.rows == live.measured == found.measured


def test_a_base_files_model_is_nearer_than_its_rounding(base, folders):
    found = compare(base[0], folders["reference"])
    kl = Columns(found.tokens("reference"))["kl"]
    assert kl.min() >= 0.0
    assert kl.mean() < 1e-8
    assert any("no tokenizer" in note for note in found.to_json()["notes"])


def test_a_base_file_of_another_text_is_refused(base, folders, tmp_path):
    (tmp_path / "other.txt").write_text("Another text, with a few words. " * 40)
    with pytest.raises(BadInput, match=r"token \d+ of chunk 0 differs"):
        compare(base[0], folders["near"], text=tmp_path)


def test_a_base_file_has_all_tokens(folders, text_folder, tmp_path):
    with pytest.raises(BadInput, match="--top-k"):
        kept(folders, text_folder, tmp_path / "a.kld", top_k=4)


def test_a_base_file_that_was_not_finished_is_none_and_is_gone_on_with(
    base, folders, text_folder, tmp_path, monkeypatch
):
    from kullback.models import job

    calls, measure = [], job.measure

    def stop(*given):
        calls.append(given[0].start)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(*given)

    monkeypatch.setattr(job, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        kept(folders, text_folder, tmp_path / "a.kld", ["near"], out=tmp_path / "run")
    assert not (tmp_path / "a.kld").exists()
    with pytest.raises(BadInput, match="another run of it is unfinished"):
        kept(folders, text_folder, tmp_path / "a.kld")
    found = job.resume(tmp_path / "run")
    assert calls[4] == calls[3]
    assert (tmp_path / "a.kld").read_bytes() == base[0].read_bytes()
    assert found.tokens("near").read_bytes() == base[1].tokens("near").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.kld", "run"]


def test_a_base_file_that_was_finished_before_the_run_stays(base, folders, text_folder, tmp_path, monkeypatch):
    from kullback.models import job

    with monkeypatch.context() as patch:
        patch.setattr(job, "_floors", lambda job: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            kept(folders, text_folder, tmp_path / "a.kld", ["near"], out=tmp_path / "run")
    written = (tmp_path / "a.kld").stat().st_mtime_ns
    found = job.resume(tmp_path / "run")
    assert (tmp_path / "a.kld").stat().st_mtime_ns == written
    assert found.measured == base[1].measured
