"""Students that learn from a teacher cache: the same as from the teacher where the cache holds all of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("pyarrow")

from kullback._errors import BadInput
from kullback.language.documents import documents, split
from kullback.language.loading import load
from kullback.lm.cache import job as cache_job
from kullback.lm.distill import run
from kullback.lm.distill.material import Cached, Texts


def written(folder, settings, **choices):
    """A cache of the teacher on the whole text, held-out documents and all."""
    given = {"teacher": str(settings.teacher), "text": settings.text, "context": 16, "out": folder}
    cache_job.run(cache_job.Settings(**given | choices), lambda *_: None, lambda *_: None)
    return folder


@pytest.fixture(scope="module")
def settings_(settings):
    return replace(settings, seeds=1)


@pytest.fixture(scope="module")
def live(settings_, tmp_path_factory):
    return run(replace(settings_, out=tmp_path_factory.mktemp("live") / "out"))


@pytest.fixture(scope="module")
def full(settings_, tmp_path_factory):
    """All classes: what is lost is the rounding of float16."""
    classes = load(settings_.teacher).model.config.vocab_size
    return written(tmp_path_factory.mktemp("full") / "cache", settings_, k=classes)


def kl(results, arm="from the teacher"):
    return results.of(arm)[0].sums.kl


def test_a_cache_of_all_classes_is_the_teacher(settings_, live, full, tmp_path):
    found = run(replace(settings_, cache=full, out=tmp_path / "out"))
    assert kl(found) == pytest.approx(kl(live), rel=2e-3)
    assert kl(found, "from labels alone") == pytest.approx(kl(live, "from labels alone"), rel=1e-5)
    assert any("learns from a cache (top-k" in note for note in found.notes)


def test_held_out_documents_in_a_cache_are_not_learnt_from(settings_, full):
    texts = Texts.of(settings_)
    found = Cached.of(replace(settings_, cache=full), texts, load(settings_.teacher), Path())
    train, held_out = ({d.name for d in side} for side in split(list(documents(settings_.text)), 0.25))
    kept = {found.cache.row(place).document for place in found.places}
    assert kept == train
    assert {row.document for row in found.cache.rows()} == train | held_out


def test_a_few_classes_and_draws_teach_something_else(settings_, live, tmp_path):
    top = written(tmp_path / "top", settings_, k=2)
    tails = [run(replace(settings_, cache=top, tail=t, out=tmp_path / t)) for t in ("bucket", "renormalize")]
    drawn = run(replace(settings_, cache=written(tmp_path / "d", settings_, policy="drawn", k=8), out=tmp_path / "o"))
    numbers = [kl(each).sum() for each in (live, *tails, drawn)]
    assert len({round(x, 3) for x in numbers}) == 4
    assert numbers[2] > 1.05 * numbers[0]  # a tail of nothing is another teacher


def test_a_teacher_that_was_kept_at_a_temperature_is_compared_at_it(settings_, live, tmp_path):
    classes = load(settings_.teacher).model.config.vocab_size
    cache = written(tmp_path / "warm", settings_, k=classes, temperature=3.0)
    with pytest.raises(BadInput, match="keeps the teacher at temperature 3; write --temperature 3"):
        run(replace(settings_, cache=cache, out=tmp_path / "no"))
    found, same = (
        run(replace(settings_, temperature=3.0, cache=c, out=tmp_path / n)) for c, n in ((cache, "a"), (None, "b"))
    )
    assert kl(found) == pytest.approx(kl(same), rel=2e-3)
    assert kl(found) != pytest.approx(kl(live), rel=2e-3)


def test_a_cache_of_another_teacher_text_or_context_is_refused(settings_, full, tmp_path):
    other = Path(shutil.copytree(settings_.teacher, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(BadInput, match="is of another teacher"):
        run(replace(settings_, teacher=other, cache=full, out=tmp_path / "out"))
    text = tmp_path / "part.jsonl"
    text.write_text("".join(settings_.text.read_text().splitlines(True)[:8]))
    with pytest.raises(BadInput, match="give the same --text to both commands"):
        run(replace(settings_, text=text, cache=full, out=tmp_path / "out"))
    with pytest.raises(BadInput, match="the cache holds windows of 16 tokens; leave --context out"):
        run(replace(settings_, context=8, cache=full, out=tmp_path / "out"))
    assert run(replace(settings_, context=None, cache=full, steps=1, out=tmp_path / "out")).settings.context == 16
