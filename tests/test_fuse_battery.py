"""What the battery `fuse` does with its sources and destinations, on a store of real files."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidecar.batteries import find
from sidecar.batteries.fuse import KIND, Destination, FuseBattery, FuseBatteryOptions, Source, open_battery
from sidecar.errors import ConfigurationError, NotSaved, SidecarError, SourceMissing, Unreachable
from sidecar.mount import is_mounted
from sidecar.store import Bundle, Stopped, Store, open_store
from sidecar.testing import check_battery, read_tree

# Another file system than that of /, as a volume in a container is.
VOLUME = Path("/dev/shm")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def weather(store: Store, tmp_path: Path) -> Bundle:
    """The bundle weather@latest."""
    tree = tmp_path / "weather"
    (tree / "2026").mkdir(parents=True)
    (tree / "2026" / "february.csv").write_text("3,4\n")
    (tree / "2026" / "january.csv").write_text("1,2\n")
    (tree / "large").write_bytes(b"0123456789abcdef" * (1 << 16) * 3)
    return store.save(tree, "weather", label="latest")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A directory with what an application made."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "table").write_text("42")
    return out


def battery(store: Store, *what: Source | Destination, earlier: Mapping[str, Any] | None = None) -> FuseBattery:
    sources = tuple(each for each in what if isinstance(each, Source))
    destinations = tuple(each for each in what if isinstance(each, Destination))
    return open_battery(FuseBatteryOptions(store.url, sources, destinations, "someone", earlier, populate=True), lambda *_: None)


def source(path: Path, label: str = "latest", bundle: str = "") -> Source:
    return Source("input", str(path), "weather", label, bundle)


def destination(path: Path, label: str = "", bundle_id_file: str = "") -> Destination:
    return Destination("output", str(path), "results", "made by a test", label, bundle_id_file)


def files_below(path: Path) -> set[str]:
    return {str(each.relative_to(path)) for each in path.rglob("*") if not each.is_dir()}


# --- the contract, and being found -----------------------------------------------------------------------------------


def test_it_keeps_the_contract_of_a_battery(store: Store, weather: Bundle, tmp_path: Path) -> None:
    check_battery(lambda: battery(store, source(tmp_path / "in"), destination(tmp_path / "made")))


def test_with_nothing_to_bring_and_nothing_to_keep_it_keeps_the_contract(store: Store) -> None:
    check_battery(lambda: battery(store))


def test_it_is_found_by_its_name() -> None:
    assert find("fuse") is KIND


def test_a_store_of_no_known_kind_is_refused_before_anything_is_done() -> None:
    with pytest.raises(ConfigurationError, match="nosuch"):
        open_battery(FuseBatteryOptions("nosuch://x"), lambda *_: None)


# --- sources ---------------------------------------------------------------------------------------------------------


def test_a_source_is_in_its_directory_when_the_application_may_start(store: Store, weather: Bundle, tmp_path: Path) -> None:
    told = battery(store, source(tmp_path / "deep" / "in")).ready()
    assert read_tree(str(tmp_path / "deep" / "in")) == read_tree(str(tmp_path / "weather"))
    expected = {"name": "input", "path": str(tmp_path / "deep" / "in"), "repo": "weather", "label": "latest", "mode": "populate"}
    assert told == {"sources": [expected | {"bundle": weather.id, "files": 3, "bytes": weather.bytes}]}


def test_a_source_may_be_named_by_its_bundles_id_or_be_the_latest(
    store: Store, weather: Bundle, out: Path, tmp_path: Path
) -> None:
    store.save(out, "weather")
    battery(store, source(tmp_path / "by-id", "", weather.id)).ready()
    battery(store, source(tmp_path / "by-time", "")).ready()
    assert sorted(os.listdir(tmp_path / "by-id")) == ["2026", "large"]
    assert os.listdir(tmp_path / "by-time") == ["table"]


@pytest.mark.parametrize(
    ("repo", "label", "exist"), [("weather", "lastest", ["latest"]), ("whether", "latest", ["weather"]), ("weather", "", None)]
)
def test_a_source_that_does_not_exist_is_told_with_what_does(
    repo: str, label: str, exist: list[str] | None, store: Store, weather: Bundle, tmp_path: Path
) -> None:
    wrong = Source("input", str(tmp_path / "in"), repo, label, "" if label else "0" * 26)
    with pytest.raises(SourceMissing) as caught:
        battery(store, source(tmp_path / "first"), wrong).ready()
    assert caught.value.status == 66
    assert list(caught.value.exist) == (exist or [weather.id])
    assert (exist or [weather.id])[0] in str(caught.value)
    assert not (tmp_path / "first").exists(), "nothing is fetched where anything is missing"


def test_a_restart_rewrites_nothing(store: Store, weather: Bundle, tmp_path: Path) -> None:
    battery(store, source(tmp_path / "in")).ready()
    before = {path: (path.stat().st_ino, path.stat().st_ctime_ns) for path in (tmp_path / "in").rglob("*")}
    battery(store, source(tmp_path / "in")).ready()
    assert {path: (path.stat().st_ino, path.stat().st_ctime_ns) for path in (tmp_path / "in").rglob("*")} == before


def test_a_restart_keeps_to_its_bundle_although_the_label_has_moved(
    store: Store, weather: Bundle, out: Path, tmp_path: Path
) -> None:
    told = battery(store, source(tmp_path / "in")).ready()
    store.save(out, "weather", label="latest")
    again = battery(store, source(tmp_path / "in"), earlier=told).ready()
    assert again == told
    assert sorted(os.listdir(tmp_path / "in")) == ["2026", "large"]


def test_what_an_earlier_life_told_of_another_source_does_not_count(
    store: Store, weather: Bundle, out: Path, tmp_path: Path
) -> None:
    told = battery(store, source(tmp_path / "in")).ready()
    new = store.save(out, "weather", label="other")
    assert battery(store, source(tmp_path / "in2", "other"), earlier=told).ready()["sources"][0]["bundle"] == new.id


@pytest.mark.parametrize(
    "bundle", [None, "", "latest", "../../x", 5, {}, "0" * 26], ids=["none", "empty", "label", "path", "number", "object", "gone"]
)
def test_a_planted_story_of_an_earlier_life_leads_nowhere(bundle: Any, store: Store, weather: Bundle, tmp_path: Path) -> None:
    told = {"name": "input", "path": str(tmp_path / "in"), "repo": "weather", "label": "latest", "bundle": bundle}
    ours = battery(store, source(tmp_path / "in"), earlier={"sources": [5, None, told]})
    if bundle == "0" * 26:
        with pytest.raises(SourceMissing):
            ours.ready()
    else:
        assert ours.ready()["sources"][0]["bundle"] == weather.id
    battery(store, source(tmp_path / "in"), earlier={"sources": 5}).ready()


def test_what_a_life_that_was_ended_left_half_done_the_next_completes(store: Store, weather: Bundle, tmp_path: Path) -> None:
    ended = battery(store, source(tmp_path / "in"))
    ended.close()
    with pytest.raises(Stopped):
        ended.ready()
    battery(store, source(tmp_path / "in")).ready()
    assert read_tree(str(tmp_path / "in")) == read_tree(str(tmp_path / "weather"))


# --- parts of bundles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "there"),
    [
        ({"name_filter": "january"}, {"2026/january.csv"}),
        ({"name_filter": r"\.csv$"}, {"2026/january.csv", "2026/february.csv"}),
        ({"files": ("large",)}, {"large"}),
        ({"files": ("2026", "large"), "name_filter": "a(ry|$)"}, {"2026/january.csv", "2026/february.csv"}),
    ],
)
def test_of_a_source_in_part_only_what_is_asked_for_is_there(
    part: dict[str, Any], there: set[str], store: Store, weather: Bundle, tmp_path: Path
) -> None:
    told = battery(store, replace(source(tmp_path / "in"), **part)).ready()["sources"][0]
    assert files_below(tmp_path / "in") == there
    assert (told["bundle"], told["files"], told["selected"]) == (weather.id, 3, len(there))


def test_a_part_that_holds_nothing_is_told(
    store: Store, weather: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = battery(store, replace(source(tmp_path / "in"), name_filter="december")).ready()["sources"][0]
    assert told["selected"] == 0
    assert os.listdir(tmp_path / "in") == []
    assert f"source 'input': nothing of weather@{weather.id} is wanted" in caplog.text


@pytest.mark.parametrize("missing", ["list.txt", "2026/jan", "../weather/large", "2026/../large", ""])
def test_a_file_that_is_not_in_the_bundle_is_told_before_anything_is_fetched(
    missing: str, store: Store, weather: Bundle, tmp_path: Path
) -> None:
    wrong = replace(source(tmp_path / "in"), files=("large", missing))
    with pytest.raises(SourceMissing) as caught:
        battery(store, source(tmp_path / "first"), wrong).ready()
    ref = f"weather@{weather.id}"
    assert str(caught.value) == f"source 'input': {ref} has no file or directory {missing!r}; see sidecar bundle files {ref}"
    assert sorted(os.listdir(tmp_path)) == ["store", "weather"]


def test_an_expression_that_does_not_compile_is_refused_before_anything_is_done(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"source 'input': '\(' is no regular expression"):
        battery(store, replace(source(tmp_path / "in"), name_filter="("))


def test_names_with_lines_in_them_are_found(store: Store, tmp_path: Path) -> None:
    (tmp_path / "odd" / "a\nb").mkdir(parents=True)
    for name in ("a\nb/c\n", "a", "b"):
        (tmp_path / "odd" / name).touch()
    store.save(tmp_path / "odd", "weather", label="latest")
    battery(store, replace(source(tmp_path / "by-name"), files=("a\nb",))).ready()
    battery(store, replace(source(tmp_path / "by-filter"), name_filter="^b$")).ready()
    assert files_below(tmp_path / "by-name") == {"a\nb/c\n"}
    assert files_below(tmp_path / "by-filter") == {"b"}


def test_of_a_link_that_leads_out_nothing_is_written_behind(store: Store, weather: Bundle, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "2026").symlink_to(tmp_path / "victim")
    with pytest.raises(Unreachable):
        battery(store, replace(source(tmp_path / "in"), files=("2026/january.csv",))).ready()
    assert os.listdir(tmp_path / "victim") == []


# --- destinations ----------------------------------------------------------------------------------------------------


def test_a_destination_exists_before_the_application_starts_and_is_a_bundle_after(store: Store, tmp_path: Path) -> None:
    ours = battery(store, destination(tmp_path / "deep" / "out", "latest"))
    ours.ready()
    assert os.listdir(tmp_path / "deep" / "out") == []
    (tmp_path / "deep" / "out" / "table").write_text("42")
    told = ours.save()
    saved = store.resolve("results", label="latest")
    assert (saved.message, saved.contributor, saved.files) == ("made by a test", "someone", 1)
    expected = {"name": "output", "path": str(tmp_path / "deep" / "out"), "repo": "results", "label": "latest"}
    assert told == {"destinations": [expected | {"bundle": saved.id, "files": 1, "bytes": 2}]}


def test_what_cannot_be_kept_is_left_out_where_that_was_asked_for(
    store: Store, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(out / "pipe")
    with pytest.raises(NotSaved, match="'pipe'"):
        battery(store, destination(out)).save()
    told = battery(store, replace(destination(out), skip_on_error=True)).save()["destinations"][0]
    assert (told["files"], told["skipped"]) == (1, 1)
    assert store.resolve("results").skipped == 1
    assert "'pipe'" in caplog.text


def test_a_destination_that_is_gone_is_not_left_out(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotSaved, match="gone"):
        battery(store, replace(destination(tmp_path / "gone"), skip_on_error=True)).save()
    assert store.bundles("results") == []


def test_the_bundles_id_is_written_to_its_file(store: Store, out: Path, tmp_path: Path) -> None:
    told = battery(store, destination(out, bundle_id_file=str(tmp_path / "ids" / "bundle"))).save()
    assert (tmp_path / "ids" / "bundle").read_text() == told["destinations"][0]["bundle"] + "\n"
    assert os.listdir(tmp_path / "ids") == ["bundle"]
    assert (tmp_path / "ids" / "bundle").stat().st_mode & 0o111 == 0


def test_saving_again_after_a_kill_makes_no_second_bundle(store: Store, out: Path) -> None:
    first = battery(store, destination(out, "latest")).save()
    assert battery(store, destination(out, "latest")).save() == first
    assert len(store.bundles("results")) == 1


def test_the_destinations_beside_one_that_cannot_be_kept_are_kept(store: Store, out: Path, tmp_path: Path) -> None:
    gone = Destination("gone", str(tmp_path / "gone"), "results", "m")
    with pytest.raises(NotSaved, match=r"'gone'.*; 'output' is saved as results@") as caught:
        battery(store, gone, destination(out)).save()
    assert caught.value.status == 73
    assert store.resolve("results").id in str(caught.value)


def test_a_destination_that_cannot_be_written_is_told_before_the_application_starts(
    store: Store, weather: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for wrong in (destination(tmp_path / "file" / "out"), destination(tmp_path / "o", "", str(tmp_path / "file" / "id"))):
        with pytest.raises(Unreachable, match="cannot be written"):
            battery(store, source(tmp_path / "in"), wrong).ready()
    assert not (tmp_path / "in").exists()


def test_an_id_that_cannot_be_written_is_no_success(store: Store, out: Path, tmp_path: Path) -> None:
    (tmp_path / "id").mkdir()
    with pytest.raises(NotSaved, match="id"):
        battery(store, destination(out, bundle_id_file=str(tmp_path / "id"))).save()
    assert len(store.bundles("results")) == 1
    assert sorted(os.listdir(tmp_path)) == ["id", "out", "store"]


# --- being closed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ready", "save"])
def test_closing_ends_what_is_under_way(method: str, store: Store, weather: Bundle, tmp_path: Path) -> None:
    def progress(what: str, done: int, total: int) -> None:
        assert done < total, "it was told to end before"
        ours.close()

    what = source(tmp_path / "in"), destination(tmp_path / "weather")
    ours = open_battery(FuseBatteryOptions(store.url, what[:1], what[1:], populate=True), progress)
    with pytest.raises(Stopped):
        getattr(ours, method)()
    assert not (tmp_path / "store" / "repos" / "results" / "bundles").exists()
    assert not (tmp_path / "in" / "2026" / "january.csv").exists()


# --- hostile paths ---------------------------------------------------------------------------------------------------


@pytest.fixture
def volume(tmp_path: Path) -> Any:
    if not VOLUME.is_dir() or VOLUME.stat().st_dev == Path("/").stat().st_dev:
        pytest.skip(f"{VOLUME} is no file system of its own")
    volume = VOLUME / f"sidecar-{os.urandom(8).hex()}"
    volume.mkdir()
    yield volume
    for path in sorted(volume.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    volume.rmdir()


@pytest.mark.parametrize("place", ["volume", "volume/sub"])
def test_a_destination_that_was_swapped_for_a_link_is_not_saved(place: str, store: Store, out: Path, volume: Path) -> None:
    (volume / "planted").symlink_to(out.parent if place == "volume/sub" else out)
    wanted = volume / "planted" / out.name if place == "volume/sub" else volume / "planted"
    with pytest.raises(NotSaved, match="'planted' is a symbolic link that others may have put there"):
        battery(store, destination(wanted)).save()
    assert store.bundles("results") == []


def test_a_source_is_not_populated_through_a_link_on_a_volume(
    store: Store, weather: Bundle, tmp_path: Path, volume: Path
) -> None:
    (tmp_path / "victim").mkdir()
    (volume / "in").symlink_to(tmp_path / "victim")
    for path in (volume / "in", volume / "in" / "deeper"):
        with pytest.raises(Unreachable, match="symbolic link"):
            battery(store, source(path)).ready()
        with pytest.raises(Unreachable, match="symbolic link"):
            battery(store, destination(path)).ready()
    assert os.listdir(tmp_path / "victim") == []


def test_an_id_is_not_written_through_a_link_on_a_volume(store: Store, out: Path, tmp_path: Path, volume: Path) -> None:
    (tmp_path / "victim").mkdir()
    (volume / "ids").symlink_to(tmp_path / "victim")
    (volume / "id").symlink_to(tmp_path / "victim" / "id")
    with pytest.raises(NotSaved, match="symbolic link"):
        battery(store, destination(out, bundle_id_file=str(volume / "ids" / "id"))).save()
    battery(store, destination(out, bundle_id_file=str(volume / "id"))).save()
    assert os.listdir(tmp_path / "victim") == []
    assert not (volume / "id").is_symlink()


def test_links_of_the_root_file_system_are_followed(store: Store, weather: Bundle, out: Path, tmp_path: Path) -> None:
    if tmp_path.stat().st_dev != Path("/").stat().st_dev:
        pytest.skip("temporary files are on a volume here")
    (tmp_path / "real" / "in").mkdir(parents=True)
    (tmp_path / "relative").symlink_to("real/../real")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative")
    (tmp_path / "round").symlink_to("round")
    battery(store, source(tmp_path / "absolute" / "in")).ready()
    assert sorted(os.listdir(tmp_path / "real" / "in")) == ["2026", "large"]
    with pytest.raises(NotSaved):
        battery(store, destination(tmp_path / "round")).save()


def test_a_link_in_a_destination_is_kept_as_a_link(store: Store, out: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hidden")
    (out / "link").symlink_to(tmp_path / "secret")
    battery(store, destination(out)).save()
    entries = {entry.path: entry for entry in store.manifest(store.resolve("results"))}
    assert entries["link"].type == "link"
    assert entries["link"].target == str(tmp_path / "secret")


@pytest.mark.parametrize("repo", ["../../etc", "/etc", "a/b", "", ".hidden", "a\nb"])
def test_a_repository_whose_name_would_lead_elsewhere_is_refused(repo: str, store: Store, out: Path, tmp_path: Path) -> None:
    with pytest.raises(SidecarError) as caught:
        battery(store, Source("input", str(tmp_path / "in"), repo)).ready()
    assert caught.value.status == 65
    with pytest.raises(SidecarError) as caught:
        battery(store, Destination("output", str(out), repo, "m")).save()
    assert caught.value.status == 65
    assert not (tmp_path / "store").exists()


# --- mounting --------------------------------------------------------------------------------------------------------
# The battery serves from this process, which therefore reads what is mounted through others only.


@pytest.fixture
def mounting(store: Store) -> Iterator[Callable[..., FuseBattery]]:
    """Makes batteries that mount; at the end they are closed."""
    made: list[FuseBattery] = []

    def make(*sources: Source, **options: Any) -> FuseBattery:
        made.append(open_battery(FuseBatteryOptions(store.url, sources, **options), lambda *_: None))
        return made[-1]

    yield make
    for each in made:
        each.close()


def shell(command: str) -> str:
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False).stdout


Mounting = Callable[..., FuseBattery]


def test_a_source_is_mounted_until_the_battery_lets_go(store: Store, weather: Bundle, mounting: Mounting, tmp_path: Path) -> None:
    ours = mounting(source(tmp_path / "deep" / "in"))
    told = ours.ready()["sources"][0]
    expected = {"name": "input", "path": str(tmp_path / "deep" / "in"), "repo": "weather", "label": "latest"}
    assert told == expected | {"mode": "mount", "bundle": weather.id, "files": 3, "bytes": weather.bytes}
    assert is_mounted(str(tmp_path / "deep" / "in"))
    assert shell(f"diff -r {tmp_path}/weather {tmp_path}/deep/in && echo same") == "same\n"
    ours.close()
    assert os.listdir(tmp_path / "deep" / "in") == []


def test_a_mounting_battery_keeps_the_contract(store: Store, weather: Bundle, mounting: Mounting, tmp_path: Path) -> None:
    check_battery(lambda: mounting(source(tmp_path / "in")))


def test_several_sources_are_mounted_side_by_side(store: Store, weather: Bundle, mounting: Mounting, tmp_path: Path) -> None:
    sources = [Source(name, str(tmp_path / name), "weather", "latest") for name in ("a", "b", "c")]
    told = mounting(*sources).ready()["sources"]
    assert [each["mode"] for each in told] == ["mount"] * 3
    assert shell(f"cat {tmp_path}/?/2026/january.csv") == "1,2\n" * 3


def test_where_others_would_not_see_a_mount_the_source_is_populated_and_says_why(
    store: Store, weather: Bundle, mounting: Mounting, caplog: pytest.LogCaptureFixture
) -> None:
    with tempfile.TemporaryDirectory(dir=VOLUME) as folder:
        told = mounting(source(Path(folder, "in"))).ready()["sources"][0]
        if Path("/proc/self/mountinfo").read_text().partition(f" {VOLUME} ")[2].split()[1].startswith("shared:"):
            assert told["mode"] == "mount"
            return
        assert told["mode"] == "populate"
        assert "mountPropagation: Bidirectional" in told["not_mounted"]
        assert Path(folder, "in", "2026", "january.csv").read_text() == "1,2\n"
    assert "source 'input' is populated, not mounted: " in caplog.text


def test_a_directory_with_something_in_it_is_populated_and_says_why(
    store: Store, weather: Bundle, mounting: Mounting, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "mine").write_text("")
    told = mounting(source(tmp_path / "in")).ready()["sources"][0]
    assert told["mode"] == "populate"
    assert "is not empty" in told["not_mounted"]
    assert sorted(os.listdir(tmp_path / "in")) == ["2026", "large", "mine"]


@pytest.mark.parametrize("part", [{"name_filter": "jan"}, {"files": ("2026/january.csv",)}])
def test_a_source_in_part_is_populated_and_says_why(
    part: dict[str, Any], store: Store, weather: Bundle, mounting: Mounting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    what = replace(source(tmp_path / "in"), **part)
    told = mounting(what).ready()
    assert told["sources"][0]["mode"] == "populate"
    assert told["sources"][0]["not_mounted"] == "only a part of the bundle is wanted"
    assert "source 'input' is populated, not mounted: only a part" in caplog.text
    assert files_below(tmp_path / "in") == {"2026/january.csv"}
    assert not is_mounted(str(tmp_path / "in"))
    assert mounting(what, earlier=told).ready() == told


def test_a_source_that_is_to_be_downloaded_is_not_mounted(
    store: Store, weather: Bundle, mounting: Mounting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = mounting(replace(source(tmp_path / "in"), populate=True), source(tmp_path / "mounted")).ready()["sources"]
    assert [each["mode"] for each in told] == ["populate", "mount"]
    assert "not_mounted" not in told[0]
    assert read_tree(str(tmp_path / "in")) == read_tree(str(tmp_path / "weather"))
    assert caplog.text == ""


def test_what_an_earlier_life_populated_is_not_mounted_over(
    store: Store, weather: Bundle, mounting: Mounting, tmp_path: Path
) -> None:
    earlier = battery(store, source(tmp_path / "in")).ready()
    before = (tmp_path / "in" / "large").stat().st_ino
    told = mounting(source(tmp_path / "in"), earlier=earlier).ready()["sources"][0]
    assert told["mode"] == "populate"
    assert "earlier life" in told["not_mounted"]
    assert (tmp_path / "in" / "large").stat().st_ino == before


KILLED = """
import os, sys
from sidecar.batteries.fuse import FuseBatteryOptions, Source, open_battery
what = Source("input", sys.argv[2], "weather", "latest")
open_battery(FuseBatteryOptions(sys.argv[1], (what,)), lambda *_: None).ready()
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("populate", [False, True])
def test_what_a_killed_life_left_mounted_is_taken_away(
    populate: bool, store: Store, weather: Bundle, mounting: Mounting, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-c", KILLED, store.url, tmp_path / "in"], check=False)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(tmp_path / "in")
    ours = battery(store, source(tmp_path / "in")) if populate else mounting(source(tmp_path / "in"))
    assert ours.ready()["sources"][0]["mode"] == ("populate" if populate else "mount")
    assert shell(f"cat {tmp_path}/in/2026/january.csv") == "1,2\n"


def test_a_restart_mounts_its_bundle_again_although_the_label_has_moved(
    store: Store, weather: Bundle, out: Path, mounting: Mounting, tmp_path: Path
) -> None:
    first = mounting(source(tmp_path / "in"))
    told = first.ready()
    first.close()
    store.save(out, "weather", label="latest")
    assert mounting(source(tmp_path / "in"), earlier=told).ready() == told
    assert shell(f"ls {tmp_path}/in").split() == ["2026", "large"]


def test_a_link_of_the_image_is_mounted_behind(store: Store, weather: Bundle, mounting: Mounting, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in").symlink_to("elsewhere")
    assert mounting(source(tmp_path / "in")).ready()["sources"][0]["mode"] == "mount"
    assert is_mounted(str(tmp_path / "elsewhere"))


# Run in a mount namespace of its own: a volume that is shared, as with mountPropagation Bidirectional, with a link in it.
PLANTED = """
set -e
mount -t tmpfs tmpfs "$1"
mount --make-rshared "$1"
mkdir "$1"/elsewhere
ln -s elsewhere "$1"/in
mkdir "$1"/plain
exec "$2" -c "$CODE" "$3" "$1"
"""
TRY = """
import sys
from sidecar.batteries.fuse import FuseBatteryOptions, Source, open_battery
from sidecar.errors import Unreachable
for name in ("plain", "in"):
    what = Source("input", f"{sys.argv[2]}/{name}", "weather", "latest")
    battery = open_battery(FuseBatteryOptions(sys.argv[1], (what,)), lambda *_: None)
    try:
        print(name, battery.ready()["sources"][0]["mode"])
    except Unreachable as error:
        print(name, error)
    battery.close()
"""


def test_a_link_that_was_planted_in_a_volume_is_not_followed(store: Store, weather: Bundle, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    inside = ["sh", "-c", PLANTED, "sh", str(tmp_path / "volume"), sys.executable, store.url]
    command = ["unshare", "-m", "--propagation", "private", *inside]
    done = subprocess.run(command, env=os.environ | {"CODE": TRY}, capture_output=True, text=True, check=True)
    plain, planted = done.stdout.splitlines()
    assert plain == "plain mount"
    assert "symbolic link that others may have put there" in planted


def test_a_battery_that_was_closed_mounts_nothing_any_more(
    store: Store, weather: Bundle, mounting: Mounting, tmp_path: Path
) -> None:
    ours = mounting(source(tmp_path / "in"))
    ours.close()
    with pytest.raises(Stopped):
        ours.ready()
    assert not is_mounted(str(tmp_path / "in"))
