import html
import json
import math
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from kullback import Logits, Probs, kl
from kullback.distill import BadInput, Settings, job, load_student, measures, pictures, run, teachers, training
from kullback.distill.data import digits
from kullback.distill.report import table_rows, verdict
from kullback.distill.results import MEASURES
from kullback.distill.training import KINDS

from .conftest import TINY, blobs

FILES = {"predictions.parquet", "report.html", "results.json", "settings.json", "student.safetensors", "summary.svg"}


def test_the_folder_holds_every_file_and_says_complete(finished):
    assert {path.name for path in finished.folder.iterdir()} == FILES
    document = json.loads((finished.folder / "results.json").read_text())
    assert document["status"] == "complete"
    assert document == json.loads(json.dumps(finished.to_json()))
    assert json.loads((finished.folder / "settings.json").read_text())["labels"] == 30


def test_results_are_shaped_as_documented(finished):
    document = finished.to_json()
    assert document["data"]["labelled_rows"] == 30
    assert set(document["students"]) == set(KINDS)
    for student in document["students"].values():
        assert student["finished_seeds"] == [0, 1]
        assert student["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
        assert [len(curve) for curve in student["curves"]["accuracy"]] == [2, 2]
        assert [len(curve) for curve in student["curves"]["nll"]] == [2, 2]
        assert len(student["kl_per_class"]) == 10
        for measure in MEASURES:
            assert len(student[measure]["values"]) == 2
    assert [point["temperature"] for point in document["temperature_sweep"]] == [1.0, 2.0]
    assert [len(point["accuracy"]["values"]) for point in document["temperature_sweep"]] == [1, 1]
    assert document["teacher"]["parameters"] == 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10


def test_means_errors_and_paired_differences_are_those_of_the_values(finished):
    first, second = (finished.of("both")[i].accuracy for i in (0, 1))
    summary = finished.summary("both", "accuracy")
    assert summary.mean == pytest.approx((first + second) / 2, rel=1e-12)
    assert summary.stderr == pytest.approx(abs(first - second) / 2, rel=1e-9)
    gains = [b.accuracy - a.accuracy for a, b in zip(finished.of("labels only"), finished.of("both"), strict=True)]
    difference = finished.difference("both", "labels only", "accuracy")
    assert difference.values == pytest.approx(gains)
    assert difference.stderr == pytest.approx(np.std(gains, ddof=1) / math.sqrt(2))


def test_the_last_epoch_of_the_curve_is_the_result(finished):
    for outcome in finished.outcomes:
        assert outcome.curve.accuracy[-1] == outcome.accuracy
        assert outcome.curve.nll[-1] == pytest.approx(outcome.nll, rel=1e-5)


def test_measures_are_those_of_the_saved_predictions(finished):
    frame = pl.read_parquet(finished.folder / "predictions.parquet")
    assert frame.height == 1797
    assert frame["label_seen_by_student"].sum() == 30
    assert frame.filter(pl.col("label_seen_by_student"))["split"].unique().to_list() == ["train"]
    held_out = frame.filter(pl.col("split") == "held-out")
    p, q = (
        Probs(held_out.select(f"{who}_{c}" for c in range(10)).to_torch(dtype=pl.Float64))
        for who in ("teacher", "student")
    )
    labels = torch.tensor(held_out["label"].cast(pl.Int64).to_list())
    kept = finished.of("both")[0]
    assert kl(p, q).mean().item() == pytest.approx(kept.kl, rel=1e-5)
    assert measures.accuracy(q, labels) == kept.accuracy
    assert measures.accuracy(p, labels) == finished.teacher_measures["accuracy"]
    assert measures.calibration_error(q, labels) == pytest.approx(kept.ece, rel=1e-4)


def test_the_student_comes_back_and_predicts_what_was_saved(finished):
    student = load_student(finished.folder)
    frame = pl.read_parquet(finished.folder / "predictions.parquet")
    saved = frame.select(f"student_{c}" for c in range(10)).to_numpy()
    np.testing.assert_array_equal(student.predict_proba(digits().features), saved)
    assert student.class_names == tuple(map(str, range(10)))
    assert student.feature_names[9] == "pixel_1_1"
    assert student.predict(digits().features[:5]) == [str(c) for c in saved[:5].argmax(-1)]
    with pytest.raises(BadInput, match=r"needs \(N, 64\)"):
        student.predict_proba(np.zeros((2, 3)))
    with pytest.raises(BadInput, match="no such file"):
        load_student(finished.folder / "elsewhere")


def test_the_report_asks_for_nothing_from_outside_and_names_its_pictures(finished):
    page = (finished.folder / "report.html").read_text()
    assert "src=" not in page
    assert "@import" not in page
    assert "<link" not in page
    assert page.count("<svg") == page.count('<svg role="img" aria-label=') == 5 + 6
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)
    assert "KL(teacher‖student)" in page
    assert f"{finished.summary('both', 'accuracy').mean * 100:.2f}" in page


def test_two_runs_give_the_same_numbers(tmp_path, table_file):
    settings = replace(TINY, data=table_file, target="kind")
    first, second = (run(replace(settings, out=tmp_path / name)).to_json() for name in ("one", "two"))
    for document in (first, second):
        for key in ("folder", "started", "seconds"):
            del document[key]
        del document["teacher"]["seconds"]
        for student in document["students"].values():
            del student["seconds"]
    assert first == second
    weights = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_students_of_a_seed_start_alike_and_learn_from_what_they_should(tmp_path, table_file):
    """A teacher that names the wrong class everywhere misleads exactly those who listen to it."""
    wrong = np.eye(3)[(np.arange(60) + 1) % 3] * 0.98 + 0.02 / 3
    np.save(tmp_path / "wrong.npy", wrong)
    settings = replace(
        TINY,
        data=table_file,
        target="kind",
        teacher=str(tmp_path / "wrong.npy"),
        epochs=12,
        labels=20,
        sweep=(),
        out=tmp_path / "out",
        learning_rate=0.02,
    )
    results = run(settings)
    assert results.summary("labels only", "accuracy").mean > 0.9
    assert results.summary("teacher only", "accuracy").mean < 0.1
    assert results.teacher_measures["accuracy"] == 0.0


@pytest.mark.parametrize(
    "divergence", ["reverse-kl", "js", "jeffreys", "tv", "hellinger", "chi2", "renyi:0.5", "alpha:2"]
)
def test_every_divergence_pulls_the_student_to_the_teacher(tmp_path, table_file, divergence):
    settings = replace(
        TINY,
        data=table_file,
        target="kind",
        epochs=8,
        seeds=1,
        sweep=(),
        out=tmp_path / "out",
        divergence=divergence,
        teacher="LogisticRegression",
        learning_rate=0.02,
    )
    results = run(settings)
    assert results.of("teacher only")[0].kl < 0.3
    assert results.of("teacher only")[0].accuracy > 0.9


def test_one_seed_has_no_standard_error_and_many_classes_no_pictures(tmp_path, table_file):
    results = run(replace(TINY, data=table_file, target="kind", seeds=1, sweep=(), out=tmp_path / "out"))
    assert results.to_json()["students"]["both"]["accuracy"]["stderr"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "one seed, so no standard error" in page
    assert "Some held-out pictures" not in page
    assert "Accuracy against temperature" not in page
    assert not re.search(r"\bnan\b", page + verdict(results) + str(table_rows(results)), re.IGNORECASE)


def test_the_headline_names_the_best_student_and_its_lead_over_each_other(finished):
    text = verdict(finished)
    best = max(KINDS, key=lambda kind: finished.summary(kind, "accuracy").mean)
    assert text.startswith(f"Best student: {best}, right on {finished.summary(best, 'accuracy').mean * 100:.2f} % ")
    for other in set(KINDS) - {best}:
        lead = finished.difference(best, other, "accuracy")
        assert f"{lead.mean * 100:.2f} ± {lead.stderr * 100:.2f} points over {other}" in text
    assert finished.to_json()["best_student"] == best
    assert text in html.unescape((finished.folder / "report.html").read_text())


def test_a_lead_within_its_error_is_not_called_one(finished):
    def with_accuracies(**values):
        outcomes = [
            replace(o, accuracy=values[o.kind.split()[0]][o.seed]) for o in finished.outcomes if o.seed in (0, 1)
        ]
        return verdict(replace(finished, outcomes=outcomes))

    apart = with_accuracies(labels=(0.5, 0.52), teacher=(0.9, 0.91), both=(0.7, 0.72))
    assert apart.startswith("Best student: teacher only, right on 90.50 %")
    assert "19.50 ± 0.50 points over both and by 39.50 ± 0.50 points over labels only" in apart
    assert "each is more than two standard errors" in apart
    close = with_accuracies(labels=(0.5, 0.52), teacher=(0.9, 0.8), both=(0.8, 0.85))
    assert "not beyond two standard errors over both" in close


def test_terminal_report_and_document_use_the_same_words(finished):
    names = [row[0] for row in table_rows(finished)[2:]]
    assert names == list(KINDS) == list(finished.to_json()["students"])
    page = (finished.folder / "report.html").read_text()
    for name in names:
        assert f'<th scope="row">{name}</th>' in page
    assert "teacher and labels" not in page


def test_settings_are_shown_and_kept_as_they_took_effect(tmp_path, table_file):
    settings = replace(
        TINY, data=table_file, target="kind", labels=None, epochs=None, teacher_epochs=1, seeds=1, sweep=()
    )
    run(replace(settings, out=tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (written["labels"], written["epochs"], written["batch_size"]) == (18, 40, 64)
    page = (tmp_path / "out" / "report.html").read_text()
    for text in ("labels</code> = 18", "epochs</code> = 40", "batch_size</code> = 64", "sweep</code> = none"):
        assert f"<code>{text}" in page
    assert "= –" not in page


def test_batches_grow_with_the_root_of_the_rows_and_epochs_fall():
    filled = {n: Settings().filled_in(n, 80) for n in (1_000, 20_000, 60_000, 320_000, 10_000_000)}
    assert [s.batch_size for s in filled.values()] == [64, 256, 448, 1_088, 6_272]
    assert [(s.epochs, s.teacher_epochs) for s in filled.values()] == [(40, 25), (40, 25), (23, 14), (20, 6), (20, 6)]
    asked = Settings(epochs=3, batch_size=7, labels=9, teacher_epochs=2)
    assert asked.filled_in(1_000_000, 80) == asked


@pytest.mark.filterwarnings("error")
def test_names_are_text_in_pictures_and_page(tmp_path):
    names = ["$5 % $9", "$\\frac{$", "<b>"]
    frame = blobs().rename({"x": "$\\frac{$", "y": "<script>"})
    frame = frame.with_columns(kind=pl.col("kind").replace_strict(dict(zip("abc", names, strict=True))))
    frame.write_parquet(tmp_path / "t.parquet")
    settings = replace(TINY, data=tmp_path / "t.parquet", target="kind", seeds=1, sweep=(), teacher="GaussianNB")
    results = run(replace(settings, out=tmp_path / "<i>out"))
    assert results.complete
    assert sorted(results.table.class_names) == sorted(names)
    page = (tmp_path / "<i>out" / "report.html").read_text()
    assert "<b>" not in page
    assert "<script>" not in page
    assert "<i>" not in page
    assert load_student(tmp_path / "<i>out").class_names == results.table.class_names


def test_a_table_with_text_columns_is_learned_and_its_student_takes_frames(tmp_path):
    frame = blobs(90).with_columns(colour=pl.Series(["red", "green", "blue"] * 30))
    frame.write_csv(tmp_path / "t.csv")
    settings = replace(TINY, data=tmp_path / "t.csv", target="kind", drop=("x", "y"), teacher="LogisticRegression")
    results = run(replace(settings, seeds=1, sweep=(), epochs=30, learning_rate=0.02, out=tmp_path / "out"))
    assert results.summary("teacher only", "accuracy").mean == 1.0  # the colour is the class
    student = load_student(tmp_path / "out")
    assert student.feature_names == ("flat", "colour=blue", "colour=green", "colour=red")
    assert student.predict(frame.head(3)) == ["a", "b", "c"]
    assert "colour (3)" in (tmp_path / "out" / "report.html").read_text()


def test_a_bounded_teacher_learns_from_as_many_rows_as_it_says(tmp_path, table_file, monkeypatch):
    monkeypatch.setitem(teachers.BOUNDED, "KNeighborsClassifier", 12)
    settings = replace(TINY, data=table_file, target="kind", teacher="KNeighborsClassifier", seeds=1, sweep=())
    seen = []
    fit = KNeighborsClassifier.fit
    monkeypatch.setattr(KNeighborsClassifier, "fit", lambda self, x, y: seen.append(len(x)) or fit(self, x, y))
    results = run(replace(settings, out=tmp_path / "bound"))
    assert (seen, results.teacher.saw_labels) == ([12], 12)
    assert "learned from 12 of the 36 training rows" in (tmp_path / "bound" / "report.html").read_text()
    assert run(replace(settings, teacher_rows=36, out=tmp_path / "all")).teacher.saw_labels == seen[-1] == 36
    with pytest.raises(BadInput, match=r"--teacher-rows is 37, .* write a number from 3 to 36"):
        run(replace(settings, teacher_rows=37))


def test_curves_of_many_rows_look_at_some_of_them_and_say_so(tmp_path, table_file, monkeypatch):
    monkeypatch.setattr(job, "CURVE_ROWS", 10)
    monkeypatch.setattr(pictures, "CURVE_ROWS", 10)
    seen = []
    look = training._look
    monkeypatch.setattr(training, "_look", lambda model, rows: seen.append(len(rows.labels)) or look(model, rows))
    settings = replace(TINY, data=table_file, target="kind", seeds=1, sweep=(), teacher="GaussianNB")
    results = run(replace(settings, out=tmp_path / "out"))
    assert set(seen) == {10}
    assert sum(b.count for b in results.of("both")[0].bins) == 24
    assert "curves are measured on 10 held-out rows" in (tmp_path / "out" / "report.html").read_text()


def test_a_scikit_learn_teacher_is_measured_as_it_predicts(tmp_path, table_file):
    results = run(replace(TINY, data=table_file, target="kind", teacher="GaussianNB", out=tmp_path / "out"))
    assert "GaussianNB" in results.teacher.description
    assert results.teacher_measures["accuracy"] > 0.9
    assert results.teacher.parameters is None


def test_teacher_files_of_probabilities_and_of_logits_mean_the_same(tmp_path, table_file):
    logits = np.random.default_rng(0).normal(size=(60, 3)) * 2
    p = torch.softmax(torch.from_numpy(logits), -1).numpy()
    np.save(tmp_path / "logits.npy", logits)
    pl.DataFrame({"c": p[:, 2], "a": p[:, 0], "b": p[:, 1]}).write_csv(tmp_path / "p.csv")  # by name, not position
    pl.DataFrame(p, schema=["u", "v", "w"]).write_parquet(tmp_path / "p.parquet")
    settings = replace(TINY, data=table_file, target="kind", sweep=())
    runs = {
        name: run(replace(settings, teacher=str(tmp_path / name), out=tmp_path / f"out-{name}"))
        for name in ("logits.npy", "p.csv", "p.parquet")
    }
    assert isinstance(runs["logits.npy"].teacher.said, Logits)
    assert "taken as logits: row" in runs["logits.npy"].teacher.description
    assert "taken as probabilities" in runs["p.csv"].teacher.description
    assert "by their names" in runs["p.csv"].teacher.description
    assert "by position, as a, b, c" in runs["p.parquet"].teacher.description
    expected = runs["logits.npy"].teacher_measures
    for results in runs.values():
        assert results.teacher_measures == pytest.approx(expected, rel=1e-9)
        assert results.of("teacher only")[0].kl == pytest.approx(runs["logits.npy"].of("teacher only")[0].kl, rel=1e-3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.full((59, 3), 1 / 3), r"has shape \(59, 3\), but .* has 60 rows and 3 classes"),
        (np.full((60, 2), 0.5), r"has shape \(60, 2\)"),
        (np.where(np.arange(180).reshape(60, 3) == 9, np.nan, 0.0), "row 3 holds NaN"),
        (np.full((60, 3), -np.inf), "row 0 is -inf everywhere"),
        (np.array([["x"] * 3] * 60), "cannot be read as an array of numbers"),
    ],
)
def test_teacher_files_that_do_not_fit(tmp_path, table_file, content, message):
    np.save(tmp_path / "t.npy", content)
    settings = replace(TINY, data=table_file, target="kind", teacher=str(tmp_path / "t.npy"), out=tmp_path / "out")
    with pytest.raises(BadInput, match=message):
        run(settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": "RandomForest"}, "did you mean .*RandomForestClassifier"),
        ({"teacher": "RidgeClassifier"}, "has no predict_proba"),
        ({"teacher": "none.csv"}, "no such file"),
        ({"divergence": "kll"}, "choose one of kl, reverse-kl, js"),
        ({"divergence": "renyi"}, "needs its order"),
        ({"divergence": "renyi:-1"}, "needs its order"),
        ({"temperature": 0.0}, "--temperature is 0"),
        ({"soft_weight": 1.0}, "--soft-weight is 1"),
        ({"labels": 2}, "--labels is 2, .*write a number from 3 to 36"),
        ({"labels": 0}, "--labels is 0, but it must be at least 1"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"test_size": 1.0}, "--test-size is 1"),
        ({"device": "cuda:99"}, "--device 'cuda:99' cannot be used"),
        ({"device": "gpu"}, "--device 'gpu' cannot be used"),
        ({"target": None}, "write --target COLUMN"),
        ({"data": None}, "--target and --drop name columns of a file"),
        ({"drop": ("nope",)}, "--drop 'nope' is not a column"),
    ],
)
def test_settings_that_cannot_run_leave_nothing_behind(tmp_path, table_file, change, message):
    settings = replace(TINY, data=table_file, target="kind", out=tmp_path / "out")
    with pytest.raises(BadInput, match=message) as caught:
        run(replace(settings, **change))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_divergence_that_a_zero_makes_infinite_is_refused(tmp_path, table_file):
    np.save(tmp_path / "t.npy", np.eye(3)[np.arange(60) % 3])
    settings = replace(TINY, data=table_file, target="kind", teacher=str(tmp_path / "t.npy"), out=tmp_path / "out")
    with pytest.raises(BadInput, match="exactly zero, as in 60 rows here; choose kl"):
        run(replace(settings, divergence="reverse-kl"))
    assert math.isfinite(run(settings).of("both")[0].kl)


def test_nothing_is_overwritten(tmp_path, table_file):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    settings = replace(TINY, data=table_file, target="kind", out=out)
    with pytest.raises(BadInput, match="exists and is not empty; nothing was overwritten"):
        run(settings)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    with pytest.raises(BadInput, match="is a file"):
        run(replace(settings, out=out / "mine.txt"))
    assert (out / "mine.txt").read_text() == "mine"


def test_unnamed_folders_do_not_collide(inside, table_file, monkeypatch):
    from datetime import datetime

    from kullback.kit.files import new_folder

    now = datetime(2026, 1, 2, 3, 4, 5)
    assert new_folder(None, now, "kullback-distill").name == "kullback-distill-20260102-030405"
    assert new_folder(None, now, "kullback-distill").name == "kullback-distill-20260102-030405-2"


@pytest.mark.slow
def test_the_default_run_beats_labels_alone_by_more_than_two_standard_errors(tmp_path):
    results = run(Settings(out=tmp_path / "out"))
    print(f"default run: {results.seconds:.0f} s")
    for kind in ("teacher only", "both"):
        gain = results.difference(kind, "labels only", "accuracy")
        assert gain.mean > 2 * gain.stderr
        assert results.difference(kind, "labels only", "nll").mean < 0
        assert results.difference(kind, "labels only", "kl").mean < 0
    assert results.summary("labels only", "accuracy").mean > 0.8  # the baseline is trained well, not a straw man
    assert results.student_parameters * 100 < results.teacher.parameters
