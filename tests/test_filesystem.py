"""`bundle://`: a bundle as a file system of fsspec, and the libraries that people read it with."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pandas as pd
import pyarrow.dataset
import pyarrow.fs
import pytest

from sidecar.store import Bundle, Store, open_store
from sidecar.store.filesystem import BundleFileSystem

TABLE = pd.DataFrame({"day": range(50_000), "sky": ["blue", "grey"] * 25_000})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Bundle, Bundle]:
    """A store with two bundles of weather; the label `old` is on the first."""
    top = tmp_path_factory.mktemp("filesystem")
    tree = top / "tree"
    (tree / "2026" / "deep").mkdir(parents=True)
    store = open_store(f"file://{top}/store")
    (tree / "note").write_text("first")
    old = store.save(tree, "weather", label="old")
    (tree / "note").write_text("one\ntwo\nthree")
    TABLE.to_csv(tree / "2026" / "table.csv", index=False)
    TABLE.to_parquet(tree / "2026" / "table.parquet")
    for name, target in {
        "to-file": "../table.csv",
        "to-directory": "..",
        "absolute": "/etc/passwd",
        "above": "../../../../etc/passwd",
        "nowhere": "nope",
        "circle": "circle",
    }.items():
        os.symlink(target, tree / "2026" / "deep" / name)
    return store, old, store.save(tree, "weather", label="latest")


@pytest.fixture
def options(made: tuple[Store, Bundle, Bundle]) -> dict[str, str]:
    return {"store": made[0].url}


@pytest.fixture
def fs(options: dict[str, str]) -> Any:
    BundleFileSystem.clear_instance_cache()
    return fsspec.filesystem("bundle", **options)


# --- which bundle ------------------------------------------------------------------------------------------------------


def test_fsspec_finds_it_by_its_protocol() -> None:
    assert fsspec.get_filesystem_class("bundle") is BundleFileSystem


def test_a_bundle_is_named_by_label_by_id_or_is_the_latest(fs: Any, made: tuple[Store, Bundle, Bundle]) -> None:
    assert fs.cat("bundle://weather@old/note") == b"first"
    assert fs.cat(f"bundle://weather@{made[1].id}/note") == b"first"
    assert fs.cat("bundle://weather@latest/note") == fs.cat("bundle://weather/note") == b"one\ntwo\nthree"


def test_one_program_sees_one_bundle_although_the_label_moves(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("1")
    store.save(tmp_path / "in", "r", label="latest")
    fs = fsspec.filesystem("bundle", store=store.url)
    assert fs.cat("r@latest/a") == b"1"
    (tmp_path / "in" / "a").write_text("22")
    store.save(tmp_path / "in", "r", label="latest")
    assert fs.cat("r@latest/a") == b"1"
    fs.invalidate_cache()
    assert fs.cat("r@latest/a") == b"22"


@pytest.mark.parametrize(
    ("path", "told"),
    [("nope/x", "weather"), ("weather@nope/x", "latest, old"), ("weather/nope", "No such file"), ("weather/note/x", "directory")],
)
def test_what_does_not_exist_is_told_with_what_does(path: str, told: str, fs: Any) -> None:
    with pytest.raises((FileNotFoundError, NotADirectoryError), match=told):
        fs.open(path)
    assert not fs.exists(path)


def test_without_the_option_the_store_is_the_users(made: tuple[Store, Bundle, Bundle], tmp_path: Path) -> None:
    code = "import fsspec; print(fsspec.open('bundle://weather@old/note').open().read())"
    environment = os.environ | {"SIDECAR_STORE": made[0].url}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "b'first'\n"


# --- what is in it -----------------------------------------------------------------------------------------------------


def test_it_lists_what_is_there(fs: Any) -> None:
    assert fs.ls("", detail=False) == ["weather"]
    assert sorted(fs.ls("bundle://weather", detail=False)) == ["weather/2026", "weather/note"]
    assert fs.isdir("weather/2026")
    assert fs.isfile("weather/note")
    assert fs.size("weather/note") == 13
    assert fs.glob("bundle://weather/**/*.csv") == ["weather/2026/table.csv"]
    assert fs.du("weather/2026") == sum(
        fs.size(f"weather/2026/{name}") for name in ("table.csv", "table.parquet", "deep/to-file")
    )


def test_times_and_modes_are_those_of_what_was_saved(fs: Any, made: tuple[Store, Bundle, Bundle]) -> None:
    entry = next(each for each in made[0].manifest(made[2]) if each.path == "note")
    told = fs.info("weather/note")
    assert (told["mode"], told["mtime"]) == (entry.mode, entry.mtime / 1e9)
    assert fs.modified("weather/note").timestamp() == entry.mtime // 1_000_000_000


def test_a_walk_comes_to_an_end_where_links_go_in_circles(fs: Any) -> None:
    assert len(fs.find("weather")) == 9


# --- links -------------------------------------------------------------------------------------------------------------


def test_links_inside_the_bundle_are_followed(fs: Any) -> None:
    assert fs.cat("weather/2026/deep/to-file") == fs.cat("weather/2026/table.csv")
    assert fs.cat("weather/2026/deep/to-directory/table.csv") == fs.cat("weather/2026/table.csv")
    assert fs.info("weather/2026/deep/to-file")["destination"] == "../table.csv"


@pytest.mark.parametrize("name", ["absolute", "above", "nowhere", "circle"])
def test_links_that_lead_out_or_nowhere_are_listed_and_not_followed(name: str, fs: Any) -> None:
    assert f"weather/2026/deep/{name}" in fs.ls("weather/2026/deep", detail=False)
    assert fs.info(f"weather/2026/deep/{name}")["type"] == "other"
    with pytest.raises(OSError, match=r"leads out|No such file|symbolic links"):
        fs.cat(f"weather/2026/deep/{name}")


@pytest.mark.parametrize("path", ["weather/../../etc/passwd", "weather/2026/../../x", "weather/.."])
def test_no_path_leads_out_of_the_bundle(path: str, fs: Any) -> None:
    with pytest.raises(OSError, match="leads out"):
        fs.cat(path)


# --- bytes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), [(None, None), (0, 3), (4, None), (-5, None), (-5, -2), (5, 100), (50, 60), (6, 4)])
def test_a_range_is_read_as_python_slices(start: int | None, end: int | None, fs: Any) -> None:
    assert fs.cat_file("weather/note", start, end) == b"one\ntwo\nthree"[start:end]


def test_an_open_file_is_a_file(fs: Any) -> None:
    with fs.open("weather/note") as file:
        assert file.readline() == b"one\n"
        assert file.readline(2) == b"tw"
        assert next(file) == b"o\n"
        assert file.read() == b"three"
        assert file.seek(-5, 2) == 8
        assert file.read(2) == b"th"
    with pytest.raises(ValueError, match="closed"):
        file.read()
    with fs.open("weather/note", "r") as file:
        assert file.read().split() == ["one", "two", "three"]


def test_a_tree_is_fetched_with_its_links(fs: Any, tmp_path: Path) -> None:
    fs.get("weather/2026", str(tmp_path / "got"), recursive=True)
    assert (tmp_path / "got" / "table.csv").read_bytes() == fs.cat("weather/2026/table.csv")
    assert os.readlink(tmp_path / "got" / "deep" / "absolute") == "/etc/passwd"


@pytest.mark.parametrize("write", ["open", "rm", "pipe_file", "mkdir", "touch", "mv"])
def test_it_cannot_be_written(write: str, fs: Any) -> None:
    arguments = {"open": ("weather/x", "wb"), "pipe_file": ("weather/x", b""), "mv": ("weather/note", "weather/x")}
    with pytest.raises(OSError, match="never changed"):
        getattr(fs, write)(*arguments.get(write, ("weather/note",)))


def test_damage_is_told_and_not_handed_out(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(os.urandom(1000))
    store.save(tmp_path / "in", "r")
    (damaged,) = (path for path in (tmp_path / "store" / "objects").rglob("*") if path.is_file())
    damaged.chmod(0o600)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(OSError, match="file 'a': objects/"):
        fsspec.filesystem("bundle", store=store.url).cat("r/a")


def test_it_can_be_sent_to_another_process(fs: Any) -> None:
    assert pickle.loads(pickle.dumps(fs)).cat("weather@old/note") == b"first"


# --- the libraries -----------------------------------------------------------------------------------------------------


def test_pandas_reads_it(options: dict[str, str]) -> None:
    assert pd.read_csv("bundle://weather@latest/2026/table.csv", storage_options=options).equals(TABLE)
    read = pd.read_parquet("bundle://weather/2026/table.parquet", storage_options=options, columns=["sky"])
    assert read.equals(TABLE[["sky"]])


def test_pyarrow_reads_it(fs: Any) -> None:
    arrow = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    found = pyarrow.dataset.dataset("weather/2026/table.parquet", filesystem=arrow)
    assert found.to_table(filter=pyarrow.dataset.field("sky") == "blue").num_rows == 25_000


def test_duckdb_reads_it(fs: Any) -> None:
    with duckdb.connect() as connection:
        connection.register_filesystem(fs)
        query = "select sky, count(*) from 'bundle://weather@latest/2026/*.parquet' group by sky order by sky"
        assert connection.sql(query).fetchall() == [("blue", 25_000), ("grey", 25_000)]
        assert connection.sql("select max(day) from read_csv('bundle://weather/2026/table.csv')").fetchall() == [(49_999,)]
