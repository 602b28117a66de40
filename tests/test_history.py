"""History: what is written is read back, and a file cut at any byte loses at most the record being written."""

import base64
import json
import sys
import warnings

import numpy as np
import pytest

from sgdkern.history import (
    SCHEMA_VERSION,
    GroupRecord,
    History,
    HistoryWriter,
    NewerSchemaError,
    Record,
    SpectrumRecord,
)


def record(step, rng):
    cosines = tuple(tuple(float(x) for x in row) for row in rng.uniform(-1, 1, (3, 3)))
    return Record(
        step=step,
        epoch=step / 3,
        values={"A": float(rng.random()), "sigma_lambda2": float("inf"), "R": float("nan")},
        metrics={"test_error": float(rng.random())},
        groups={"given": GroupRecord(("c", "w"), (4, 1), (1.0, 2.0), (0.25, float("-inf")), cosines)},
        spectrum=SpectrumRecord((3.0, 2.0), 5.5, 2.0, "gram", True, "hidden"),
        losses=rng.random(5, dtype=np.float32),
        margins=rng.normal(size=5).astype(np.float32),
        predictions=rng.integers(0, 10, 5).astype(np.int64),
    )


def example(steps=(0, 1, 4)):
    rng = np.random.default_rng(0)
    history = History({"num_samples": 5, "given_labels": np.arange(5), "config": {"lr": 0.1, "hidden": [64, 64]}})
    for step in steps:
        history.append(record(step, rng))
    return history


def contents(one):
    """Everything a record holds, in a form that compares NaN and arrays by what they print."""
    arrays = {name: getattr(one, name) for name in ("losses", "margins", "predictions")}
    bits = {k: None if a is None else (a.dtype.str, a.shape, a.tobytes()) for k, a in arrays.items()}
    return repr((one.step, one.epoch, dict(one.values), dict(one.metrics), dict(one.groups), one.spectrum, bits))


def same(first, second):
    return [contents(one) for one in first] == [contents(one) for one in second]


def test_save_and_load_give_back_every_bit(tmp_path):
    history = example()
    history.append(Record(step=9))
    history.save(tmp_path / "history.jsonl")
    loaded = History.load(tmp_path / "history.jsonl")
    assert same(history, loaded)
    assert loaded.damage is None
    assert np.array_equal(loaded.header.pop("given_labels"), np.arange(5))
    assert loaded.header == {"num_samples": 5, "config": {"lr": 0.1, "hidden": [64, 64]}}


def test_every_line_is_strict_json_with_a_schema_version_and_little_endian_arrays(tmp_path):
    path = tmp_path / "history.jsonl"
    example().save(path)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["header", "record", "record", "record"]
    assert {line["schema_version"] for line in lines} == {SCHEMA_VERSION}
    assert lines[1]["values"]["sigma_lambda2"] == "inf"
    assert lines[1]["values"]["R"] == "nan"
    losses = lines[1]["losses"]
    assert (losses["dtype"], losses["shape"]) == ("<f4", [5])
    assert np.array_equal(np.frombuffer(base64.b64decode(losses["base64"]), "<f4"), example().records[0].losses)


def test_big_endian_and_strided_arrays_are_the_same_bytes(tmp_path):
    values = np.arange(10, dtype=np.float32)
    for name, losses in (("a", values[::2].astype(">f4")), ("b", values[::2]), ("c", values[::2].copy())):
        history = History()
        history.append(Record(step=0, losses=losses))
        history.save(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1


def test_the_writer_and_save_write_the_same_bytes(tmp_path):
    history = example()
    history.save(tmp_path / "saved")
    with HistoryWriter(tmp_path / "written", history.header) as writer:
        for one in history:
            writer.append(one)
            assert same(History.load(tmp_path / "written"), history.records[: len(History.load(tmp_path / "written"))])
    assert (tmp_path / "saved").read_bytes() == (tmp_path / "written").read_bytes()


def test_a_file_cut_at_any_byte_of_the_last_record_loses_that_record_only(tmp_path):
    history, path = example(), tmp_path / "history.jsonl"
    history.save(path)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = History.load(path)
        assert same(loaded, history.records[:-1])
        assert len(caught) == (end > start)
        assert (loaded.damage is not None) == (end > start)
        assert loaded.damage is None or "line 4" in loaded.damage
        with HistoryWriter.resume(path, last_step=100) as writer:
            writer.append(history.records[-1])
        assert path.read_bytes() == whole


def test_a_garbled_last_line_is_dropped_though_it_ends_in_a_newline(tmp_path):
    path = tmp_path / "history.jsonl"
    example().save(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for garbage in (b"\0" * 40 + b"\n", b"\n", b"[]\n", lines[1], lines[-1].replace(b'"<f4"', b'"|O"', 1)):
        path.write_bytes(b"".join([*lines[:-1], garbage]))
        with pytest.warns(UserWarning, match="damaged last line 4"):
            assert len(History.load(path)) == 2


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_damaged_earlier_line_is_an_error_that_names_it(tmp_path, number):
    path = tmp_path / "history.jsonl"
    example().save(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1][:-20] + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=f"line {number} of"):
        History.load(path)
    with pytest.raises(ValueError, match=f"line {number} of"):
        HistoryWriter.resume(path, last_step=10)


def test_a_file_without_a_whole_header_is_an_error(tmp_path):
    path = tmp_path / "history.jsonl"
    for text in (b"", b'{"schema_version":1,"kind":"hea'):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"header|line 1"):
            History.load(path)


@pytest.mark.parametrize("number", [0, -1])
def test_a_newer_schema_is_an_error_that_says_so_even_on_the_last_line(tmp_path, number):
    path = tmp_path / "history.jsonl"
    example().save(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = lines[number].replace(b'"schema_version":1', b'"schema_version":2')
    path.write_bytes(b"".join(lines))
    with pytest.raises(NewerSchemaError, match=r"got 2.*upgrade"):
        History.load(path)


def test_resume_cuts_records_after_the_checkpoint(tmp_path):
    history, path = example((0, 1, 4, 9)), tmp_path / "history.jsonl"
    history.save(path)
    whole = path.read_bytes()
    with HistoryWriter.resume(path, last_step=3) as writer:
        for one in history.records[2:]:
            writer.append(one)
    assert path.read_bytes() == whole
    with HistoryWriter.resume(path, last_step=-1) as writer:
        writer.append(history.records[0])
    assert same(History.load(path), history.records[:1])


def test_a_writer_never_overwrites(tmp_path):
    example().save(tmp_path / "history.jsonl")
    with pytest.raises(FileExistsError, match="resume"):
        HistoryWriter(tmp_path / "history.jsonl")


def test_steps_must_increase(tmp_path):
    history = example()
    with pytest.raises(ValueError, match="got 4 after 4"):
        history.append(Record(step=4))
    with HistoryWriter(tmp_path / "h") as writer:
        writer.append(Record(step=4))
        with pytest.raises(ValueError, match="got 3 after 4"):
            writer.append(Record(step=3))


def test_columns_come_from_values_then_metrics_then_the_named_partition():
    history = History()
    group = GroupRecord(("c", "w"), (3, 1), (1.0, 2.0), (3.0, 4.0), ((1, -0.5, 0.9), (-0.5, 1, 0.1), (0.9, 0.1, 1)))
    named = GroupRecord(("left", "right"), (3, 1), (1.0, 2.0), (3.0, 4.0), group.cosines)
    history.append(Record(step=0, epoch=0.0, values={"A": 1.0}, metrics={"A": 9.0, "e": 0.5}))
    history.append(Record(step=5, groups={"given": group, "source": named}))
    assert history.steps.tolist() == [0, 5]
    np.testing.assert_array_equal(history.epochs, [0.0, np.nan])
    np.testing.assert_array_equal(history.column("A"), [1.0, np.nan])
    np.testing.assert_array_equal(history.column("e"), [0.5, np.nan])
    for name, value in {"R_cw": -0.5, "R_ac": 0.9, "R_aw": 0.1, "A_w": 2.0, "A0_c": 3.0}.items():
        np.testing.assert_array_equal(history.column(name, "given"), [np.nan, value])
    assert history.column("R_left_right", "source")[1] == -0.5
    assert history.column("R_a_left", "source")[1] == 0.9
    assert history.has("A")
    assert not history.has("R_cw")
    assert history.has("R_cw", "given")
    with pytest.raises(KeyError, match="never measured"):
        history.column("B")


def test_per_sample_quantities_stack_over_the_records_that_carry_them():
    history = example()
    history.append(Record(step=20))
    rows, losses = history.per_sample("losses")
    assert rows.tolist() == [0, 1, 2]
    assert losses.shape == (3, 5)
    assert losses.dtype == np.float32
    with pytest.raises(KeyError, match="never measured"):
        History().per_sample("losses")


def test_to_pandas(monkeypatch):
    history = example()
    if pytest.importorskip("pandas"):
        frame = history.to_pandas()
        assert frame.index.tolist() == [0, 1, 4]
        assert frame.index.name == "step"
        assert frame["test_error"].tolist() == history.column("test_error").tolist()
        assert frame["given/R_cw"].tolist() == history.column("R_cw", "given").tolist()
        assert frame["effective_dimension"].tolist() == [2.0] * 3
        without = History()
        without.append(Record(step=0, values={"A": 1.0}))
        for table in (frame, without.to_pandas()):
            assert table["epoch"].dtype == np.float64
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install"):
        history.to_pandas()


def test_objects_are_not_written(tmp_path):
    history = History({"labels": np.array(["a", "b"])})
    with pytest.raises(TypeError, match="numbers or booleans"):
        history.save(tmp_path / "h")
