import multiprocessing
import os
import signal
import sqlite3
from pathlib import Path

import pytest
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.profiler import Entry, Lut, differences

HERE = {"onnxruntime": "1.2.3", "threads": 1, "cpu_flags": "avx avx2 sse"}


def entry(key: str, *samples: float) -> Entry:
    return Entry(key, {"type": "unit", "note": key}, samples)


def test_what_was_added_is_there_after_reopening(tmp_path: Path) -> None:
    with Lut.open(tmp_path / "t.lut", HERE) as lut:
        lut.add([entry("a", 3.0, 5.0, 11.0), entry("b", 2.0)])
    with Lut.open(tmp_path / "t.lut", HERE) as lut:
        assert lut.get("a") == entry("a", 3.0, 5.0, 11.0)
        assert lut.get("a").statistic_us == 5.0
        assert lut.get("missing") is None
        assert [e.key for e in lut.entries("unit")] == ["a", "b"]
        assert lut.entries("network") == ()


def test_the_file_holds_the_columns_of_the_contract(tmp_path: Path) -> None:
    with Lut.open(tmp_path / "t.lut", HERE) as lut:
        lut.add([entry("a", 3.0)])
    db = sqlite3.connect(tmp_path / "t.lut")
    assert db.execute("SELECT key, attributes, samples, statistic_us FROM unit").fetchall() == [
        ("a", '{"note":"a","type":"unit"}', "[3.0]", 3.0)
    ]
    assert "20" in db.execute("SELECT measured_at FROM unit").fetchone()[0]
    assert db.execute("SELECT count(*) FROM target").fetchone() == (1,)
    db.close()


def test_adding_again_keeps_all_samples() -> None:
    with Lut.open(":memory:", HERE) as lut:
        lut.add([entry("a", 3.0)])
        lut.add([entry("a", 7.0, 4.0)])
        assert lut.get("a").samples_us == (3.0, 7.0, 4.0)


def test_a_table_of_another_target_is_refused_with_the_differences(tmp_path: Path) -> None:
    Lut.open(tmp_path / "t.lut", HERE).close()
    other = {**HERE, "threads": 2, "cpu_flags": "avx avx512f sse"}
    with pytest.raises(InputError) as error:
        Lut.open(tmp_path / "t.lut", other)
    assert "threads: 1 | 2" in str(error.value)
    assert "cpu_flags: avx2 | avx512f" in str(error.value)
    assert "onnxruntime" not in str(error.value)


def test_differences_of_equal_fingerprints_are_none() -> None:
    assert differences(HERE, dict(HERE)) == ()
    assert differences({}, {"threads": 1}) == ("threads: None | 1",)


def test_without_a_fingerprint_only_an_existing_table_opens(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Lut.open(tmp_path / "none.lut")
    assert not (tmp_path / "none.lut").exists()
    Lut.open(tmp_path / "t.lut", HERE).close()
    with Lut.open(tmp_path / "t.lut") as lut:
        assert lut.fingerprint == HERE


@pytest.mark.parametrize("content", [b"this is not a database, but it is long enough" * 9, b"\x00" * 4096])
def test_a_file_that_is_no_table_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx"):
        Lut.open(path, HERE)
    assert path.read_bytes() == content


def test_merging_takes_over_what_is_new_once(tmp_path: Path) -> None:
    with Lut.open(":memory:", HERE) as ours, Lut.open(tmp_path / "t.lut", HERE) as theirs:
        ours.add([entry("a", 1.0), entry("b", 2.0)])
        theirs.add([entry("b", 2.0, 6.0), entry("c", 3.0)])
        assert ours.merge(theirs) == 2
        assert ours.get("b").samples_us == (2.0, 6.0)
        assert len(ours) == 3
        assert ours.merge(theirs) == 0


def test_merging_keeps_what_a_table_holds_and_costs_one_transaction(tmp_path: Path) -> None:
    with Lut.open(tmp_path / "a.lut", HERE) as ours, Lut.open(":memory:", HERE) as theirs:
        ours.add([entry("a", 1.0, 2.0)])
        theirs.add([entry("a", 2.0, 5.0), *(entry(f"n{i}", float(i)) for i in range(500))])
        statements: list[str] = []
        ours._db.set_trace_callback(statements.append)
        assert ours.merge(theirs) == 501
        assert ours.get("a").samples_us == (1.0, 2.0, 5.0)
        assert sum(s.startswith("BEGIN") for s in statements) == 1
        assert sum(s.startswith("SELECT") for s in statements) < 5  # not one for each entry


def _merge(path: Path, other: Path) -> None:
    with Lut.open(path, HERE) as lut, Lut.open(other, HERE) as theirs:
        lut.merge(theirs)


def test_two_processes_that_merge_the_same_table_double_nothing(tmp_path: Path) -> None:
    path, other = tmp_path / "t.lut", tmp_path / "other.lut"
    with Lut.open(other, HERE) as lut:
        lut.add([entry(f"n{i}", float(i)) for i in range(2000)])
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_merge, args=(path, other)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    with Lut.open(path, HERE) as lut:
        assert len(lut) == 2000
        assert {len(e.samples_us) for e in lut.entries()} == {1}


def test_merging_another_target_is_refused(tmp_path: Path) -> None:
    with Lut.open(":memory:", HERE) as ours, Lut.open(tmp_path / "t.lut", {**HERE, "threads": 4}) as theirs:
        theirs.add([entry("a", 1.0)])
        with pytest.raises(InputError, match="threads"):
            ours.merge(theirs)
        assert len(ours) == 0


def _add_many(path: Path, name: str) -> None:
    with Lut.open(path, HERE) as lut:
        for i in range(40):
            lut.add([entry(f"{name}{i}", 1.0), entry("shared", float(i))])


def test_two_processes_fill_one_table(tmp_path: Path) -> None:
    path = tmp_path / "t.lut"
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_add_many, args=(path, name)) for name in "ab"]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    with Lut.open(path, HERE) as lut:
        assert len(lut) == 81
        assert sorted(lut.get("shared").samples_us) == sorted([float(i) for i in range(40)] * 2)


def _die_while_adding(path: Path) -> None:
    with Lut.open(path, HERE) as lut:

        def entries():
            yield entry("half", 1.0)
            os.kill(os.getpid(), signal.SIGKILL)

        lut.add(entries())


def test_a_kill_in_the_middle_of_a_write_leaves_the_table_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "t.lut"
    with Lut.open(path, HERE) as lut:
        lut.add([entry("before", 1.0)])
    process = multiprocessing.get_context("spawn").Process(target=_die_while_adding, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with Lut.open(path, HERE) as lut:
        assert [e.key for e in lut.entries()] == ["before"]
        lut.add([entry("after", 1.0)])
        assert len(lut) == 2
