"""clean_data_set: every kind of file in, ranked labels beside it, the data untouched, words for what cannot be read."""

import csv
import hashlib
import json

import numpy as np
import pytest

from sgdkern.label_files import clean_data_set, read_labelled
from sgdkern.label_files.page import page_is_possible

CLASSES = np.array(["ant", "bee", "cat"])


def blobs(num_samples=150, seed=0):
    """Clusters with 15 % wrong labels: inputs, given and true class numbers."""
    rng = np.random.default_rng(seed)
    truth = np.arange(num_samples) % 3
    inputs = np.eye(3)[truth] * 6 + rng.normal(size=(num_samples, 3))
    given = np.where(rng.random(num_samples) < 0.15, (truth + 1) % 3, truth)
    return inputs, given, truth


def digest(path):
    """A fingerprint of a file, or of all files of a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    whole = hashlib.sha256()
    for file in files:
        whole.update(str(file).encode() + (file.read_bytes() if file.is_file() else b""))
    return whole.hexdigest()


def write_csv(path, inputs, given):
    """A table with two features of three named, a label, an annotator and an id."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "a", "b", "c", "label", "annotator"])
        for row, (x, y) in enumerate(zip(inputs, given)):
            writer.writerow([f"s{row}", *(f"{value:.6f}" for value in x), CLASSES[y], "xy"[row % 2]])
    return path


@pytest.fixture
def table(tmp_path):
    inputs, given, _ = blobs()
    return write_csv(tmp_path / "animals.csv", inputs, given)


def clean_csv(path, **options):
    return clean_data_set(path, mode="fast", ignore=["id", "annotator"], **options)


def test_csv_in_ranked_labels_out(table):
    _, given, truth = blobs()
    before, heard = digest(table), []
    report = clean_data_set(
        table,
        mode="fast",
        ignore=["id"],
        source_column="annotator",
        budget=20,
        copy=True,
        progress=lambda *at: heard.append(at),
    )
    assert digest(table) == before
    folder = table.with_name("animals-label-issues")
    with (folder / "label_issues.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == report.issues.ranking.tolist()
    found = {int(row["index"]) for row in rows if row["is_label_issue"] == "True"}
    wrong = set(np.flatnonzero(given != truth).tolist())
    assert len(found & wrong) > 0.8 * len(wrong)
    assert len(found & wrong) > 0.8 * len(found)
    keep = {int(line) for line in (folder / "keep.txt").read_text().splitlines()}
    assert keep == set(range(150)) - found
    with (folder / "review.csv").open() as file:
        assert [row["index"] for row in csv.DictReader(file)] == [row["index"] for row in rows[:20]]
    assert 0.5 < report.expected_precision <= 1
    with (folder / "cleaned.csv").open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == [f"s{row}" for row in sorted(keep)]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == report.as_dict()
    assert summary["source_noise_rates"].keys() == {"x", "y"}
    if page_is_possible():
        assert report.files["report"] == folder / "report.html"
        assert "Of the 20 worst labels" in (folder / "report.html").read_text(encoding="utf-8")
    assert summary["noise_rate"]["low"] <= summary["noise_rate"]["estimate"] <= summary["noise_rate"]["high"]
    shares = [share for share, _ in heard]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1


def test_npz_and_csv_agree(table, tmp_path):
    inputs, given, _ = blobs()
    stored = np.array([[float(f"{value:.6f}") for value in x] for x in inputs])
    path = tmp_path / "animals.npz"
    np.savez(path, X=stored, y=CLASSES[given], note=np.array(7))
    one = clean_csv(table, out=tmp_path / "one")
    two = clean_data_set(path, mode="fast", out=tmp_path / "two", copy=True)
    np.testing.assert_array_equal(one.issues.label_quality, two.issues.label_quality)
    with np.load(tmp_path / "two" / "cleaned.npz") as cleaned:
        assert len(cleaned["X"]) == len(cleaned["y"]) == 150 - two.issues.num_issues
        assert cleaned["note"] == 7


def test_parquet_is_read_like_csv(table, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.read_csv(table).to_parquet(tmp_path / "animals.parquet")
    one = clean_csv(table, out=tmp_path / "one")
    two = clean_csv(tmp_path / "animals.parquet", out=tmp_path / "two", copy=True)
    np.testing.assert_array_equal(one.issues.label_quality, two.issues.label_quality)
    assert len(pandas.read_parquet(tmp_path / "two" / "cleaned.parquet")) == 150 - two.issues.num_issues


def test_parquet_with_a_column_of_vectors(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    inputs, given, _ = blobs(num_samples=40)
    frame = pandas.DataFrame({"embedding": [row.tolist() for row in inputs], "age": 1.5, "label": CLASSES[given]})
    frame.to_parquet(tmp_path / "animals.parquet")
    data = read_labelled(tmp_path / "animals.parquet")
    assert data.features == ("embedding[0]", "embedding[1]", "embedding[2]", "age")
    np.testing.assert_array_equal(data.inputs[:, :3], inputs.astype(np.float32))
    frame.loc[3, "age"] = np.nan
    frame.to_parquet(tmp_path / "animals.parquet")
    with pytest.raises(ValueError, match="got nan in column 'age', row 3"):
        read_labelled(tmp_path / "animals.parquet")
    frame["embedding"] = [row.tolist()[: 2 + (index > 0)] for index, row in enumerate(inputs)]
    frame.to_parquet(tmp_path / "animals.parquet")
    with pytest.raises(ValueError, match=r"must have one length, got \[2, 3\]"):
        read_labelled(tmp_path / "animals.parquet")


def test_folder_of_images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    root = tmp_path / "pictures"
    for index in range(60):
        truth = index % 2
        pixels = rng.integers(0, 80, (10, 12, 3)).astype(np.uint8)
        pixels[:, 6 * truth : 6 * truth + 6] += 120
        given = 1 - truth if index in (4, 9) else truth
        folder = root / ("left", "right")[given]
        folder.mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).save(folder / f"{index:02}.png")
    before = digest(root)
    report = clean_data_set(root, mode="fast", image_size=8, copy=True)
    assert digest(root) == before
    assert set(report.names[report.issues.ranking[:2]]) == {"right/04.png", "left/09.png"}
    kept = sorted(
        file.relative_to(report.files["cleaned"]).as_posix() for file in report.files["cleaned"].rglob("*.png")
    )
    assert kept == sorted(report.files["keep"].read_text().splitlines())
    pytest.importorskip("matplotlib")
    assert report.files["gallery"].read_bytes()[:4] == b"\x89PNG"


def test_nothing_is_overwritten_or_mixed_into_the_data(table, tmp_path):
    (tmp_path / "animals-label-issues").mkdir()
    (tmp_path / "animals-label-issues" / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="holds something already"):
        clean_csv(table)
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="must not lie inside the data"):
        clean_data_set(tmp_path / "pictures", out=tmp_path / "pictures" / "out")


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("a,b,label\n1,2,x\n3,zwei,y\n", {}, "got 'zwei' in column 'b', row 1"),
        ("a,b,label\n1,nan,x\n3,4,y\n", {}, "got 'nan' in column 'b', row 0"),
        ("a,b,label\n1,2,x\n3,4,\n", {}, "row 1 has none"),
        ("a,b,label\n1,2,x\n3,4\n", {}, "line 3 .* has 2 cells for 3 columns"),
        ("a,b,c\n1,2,x\n", {}, "label column of data.csv must be named, found none"),
        ("a,label,y\n1,2,x\n", {}, "found label, y among"),
        ("a,b,label\n1,2,x\n", {"label_column": "species"}, "no label column 'species'"),
        ("a,b,label\n1,2,x\n", {"ignore": ["id"]}, "no column 'id' to ignore"),
        ("label\nx\ny\n", {}, "must have feature columns"),
        ("a,a,label\n1,2,x\n", {}, "must differ"),
        ("a,label\n", {}, "got 1 lines"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, text, options, words):
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_labelled(tmp_path / "data.csv", **options)


def test_paths_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        read_labelled(tmp_path / "nowhere")
    (tmp_path / "data.txt").touch()
    with pytest.raises(ValueError, match=r"got data\.txt"):
        read_labelled(tmp_path / "data.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found no images"):
        read_labelled(tmp_path / "empty")
    pytest.importorskip("PIL")
    (tmp_path / "empty" / "a").mkdir()
    (tmp_path / "empty" / "a" / "broken.png").write_text("no image")
    with pytest.raises(ValueError, match=r"broken\.png is no readable image"):
        read_labelled(tmp_path / "empty")


def test_npz_that_cannot_be_used(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, X=np.array([[1.0], [np.nan]]), y=[0, 1])
    with pytest.raises(ValueError, match="NaN or infinity in row 1"):
        read_labelled(path)
    np.savez(path, X=np.ones((3, 2)), y=[0, 1])
    with pytest.raises(ValueError, match="one row a label"):
        read_labelled(path)
    np.savez(path, X=np.array([["a"], ["b"]]), y=[0, 1])
    with pytest.raises(ValueError, match="must be numbers"):
        read_labelled(path)


def test_budget_must_fit(table):
    with pytest.raises(ValueError, match="between 1 and 150, got 151"):
        clean_csv(table, budget=151)


def test_labels_that_are_numbers_stay_numbers(tmp_path):
    (tmp_path / "data.csv").write_text("a,label\n0.5,10\n0.25,9\n")
    np.testing.assert_array_equal(read_labelled(tmp_path / "data.csv").labels, [10, 9])
