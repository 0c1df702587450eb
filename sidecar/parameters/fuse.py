"""What a user says of the fuse battery, from every place where it can be said, as FuseOptions.

    flags         -c -s -b -a -i, and -d 'config create …', -d 'bundle mount|download|upload …'
    environment   dm_fuse_opts (c S b a n e i) and dm_fuse_bd_<name> (sp sr sl sb, dp dr dm dl dif)
    file          YAML in dm_fuse_params: the path of a file, or the document itself
    defaults

The strongest comes first, and counts value by value: `dm_fuse_bd_input=';:sl:v2'` replaces the label of the bundle `input` in the
file and leaves the rest of it. Bundles of -d commands have names of their own and come on top of the others. Only commands can
say that a source is a part of its bundle or is downloaded, and that an upload skips what it cannot read: datamon's files and
variables have no words for it.

The rules: each bundle is a source or a destination; a source has a path, a repository, and either a label or a bundle id (only a
command may leave out both and takes the latest, as datamon did); a destination has a path, a repository and a message.
Sources do not lie in each other, and nothing that is written lies in a source: a source is read-only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sidecar.errors import Fault
from sidecar.parameters import settings as of
from sidecar.parameters.commands import read_commands
from sidecar.parameters.document import Document, ReadFile, is_inline, read_text
from sidecar.parameters.environment import read_environment
from sidecar.parameters.settings import (
    Configured,
    Field,
    Layer,
    Section,
    Setting,
    Values,
    by_name,
    contributor,
    merge,
    merge_named,
    read,
)


@dataclass(frozen=True)
class Source:
    """A bundle that is in directory `path` before the application starts; the latest where neither label nor id is given.

    `name_filter`, a regular expression to be found in paths, and `files`, paths of files and directories, ask for a part of it;
    see sidecar.store.selection. `populate`: it is downloaded, never mounted.
    """

    name: str
    path: str
    repo: str
    label: str = ""
    bundle: str = ""
    name_filter: str = ""
    files: tuple[str, ...] = ()
    populate: bool = False


@dataclass(frozen=True)
class Destination:
    """A directory that is kept as a bundle after the application has ended; its id is written to `bundle_id_file`.

    `skip_on_error`: what cannot be kept in it, a file that cannot be read or a socket, is left out and counted.
    """

    name: str
    path: str
    repo: str
    message: str
    label: str = ""
    bundle_id_file: str = ""
    skip_on_error: bool = False


@dataclass(frozen=True)
class FuseOptions:
    """What the fuse battery does. `contributor` is "Name <email>"; text that is not given is "".

    Sources and destinations of -d commands come first and in their order, the others in that of their names.
    """

    coordination: str
    stay: bool = False
    config_bucket: str = ""
    context: str = ""
    contributor: str = ""
    sources: tuple[Source, ...] = ()
    destinations: tuple[Destination, ...] = ()


@dataclass(frozen=True)
class FuseFlags:
    """What stands on the command line of wrap_datamon: -c, -s, -b, -a, -i, and each -d; "" is not given."""

    coordination: str = ""
    stay: bool = False
    config_bucket: str = ""
    context: str = ""
    bundle_id_file: str = ""
    commands: Sequence[str] = ()


POD = (
    Field("coordPoint", "c", of.path, "-c"),
    Field("sleepInsteadOfExit", "S", of.boolean, "-s", default="false", switch=True),
    Field("configBucketName", "b", of.text, "-b"),
    Field("contextName", "a", of.text, "-a"),
    Field("contributor.name", "n", of.text, "--name"),
    Field("contributor.email", "e", of.email, "--email"),
    Field("bundleID", "i", of.file_path, "-i"),
)
_SOURCE = (
    Field("srcPath", "sp", of.path, "--mount"),
    Field("srcRepo", "sr", of.store_name, "--repo"),
    Field("srcLabel", "sl", of.store_name, "--label"),
    Field("srcBundle", "sb", of.store_name, "--bundle"),
)
_DESTINATION = (
    Field("destPath", "dp", of.path, "--path"),
    Field("destRepo", "dr", of.store_name, "--repo"),
    Field("destMessage", "dm", of.message, "--message"),
    Field("destLabel", "dl", of.store_name, "--label"),
    Field("destBundleID", "dif", of.file_path, "--bundle-id-file"),
)
BUNDLE = (*_SOURCE, *_DESTINATION)
_NAME = Field("name", "", of.thing_name)
_SOURCE_OF_COMMANDS = (
    Field("srcNameFilter", "", of.regular_expression, "--name-filter"),
    Field("srcFiles", "", of.bundle_paths, "--files"),
    Field("srcPopulate", "", of.boolean),
)
_DESTINATION_OF_COMMANDS = (Field("destSkipOnError", "", of.boolean, "--skip-on-error"),)
_ANY = (*_SOURCE, *_SOURCE_OF_COMMANDS, *_DESTINATION, *_DESTINATION_OF_COMMANDS)
_SOURCE_KEYS = [each.key for each in (*_SOURCE, *_SOURCE_OF_COMMANDS)]
_DESTINATION_KEYS = [each.key for each in (*_DESTINATION, *_DESTINATION_OF_COMMANDS)]


def fuse_options(flags: FuseFlags, environment: Mapping[str, str], read_file: ReadFile) -> Configured[FuseOptions]:
    """Return what is configured, and where each value came from. ParametersError with every fault there is."""
    faults: list[Fault] = []
    notes: list[str] = []
    layers = (
        _flags(flags, notes, faults),
        read_environment(environment, "dm_fuse_", "bd_", POD, BUNDLE, ["dm_fuse_params"], faults),
        _file(environment.get("dm_fuse_params", ""), read_file, faults),
    )
    return _configured(layers, notes, faults)


def fuse_document(text: str, name: str) -> Configured[FuseOptions]:
    """Return what a YAML document alone configures; `name` is what faults call it. ParametersError with every fault."""
    faults: list[Fault] = []
    return _configured((_document(text, name, faults),), [], faults)


# --- the places ----------------------------------------------------------------------------------------------------


def _flags(flags: FuseFlags, notes: list[str], faults: list[Fault]) -> Layer:
    layer = Layer(Section("-c", "flag"))
    given = {
        "coordPoint": flags.coordination,
        "sleepInsteadOfExit": "true" if flags.stay else "",
        "configBucketName": flags.config_bucket,
        "contextName": flags.context,
        "bundleID": flags.bundle_id_file,
    }
    spelled = {each.key: each.flag for each in POD}
    for key, value in given.items():
        layer.pod.put(Setting(key, value, spelled[key], ""), faults)
    read_commands(flags.commands, layer, notes, faults)
    return layer


def _file(parameters: str, read_file: ReadFile, faults: list[Fault]) -> Layer:
    if not parameters.strip():
        return Layer(Section("dm_fuse_params", "key"))
    if is_inline(parameters):
        return _document(parameters, "dm_fuse_params", faults)
    text = read_text(parameters.strip(), "dm_fuse_params", read_file, faults)
    return _document(text, parameters.strip(), faults)


def _document(text: str, name: str, faults: list[Fault]) -> Layer:
    document = Document(text, name, faults)
    layer = Layer(Section(name, "key", torn=document.torn))
    top = document.top(("globalOpts", "bundles"))
    if "globalOpts" in top:
        layer.pod = document.section(top["globalOpts"], POD)
    if "bundles" in top:
        sections = [document.section(node, (_NAME, *BUNDLE)) for node in document.sequence(top["bundles"], "bundles")]
        layer.named = by_name(sections, faults)
    return layer


# --- the options ---------------------------------------------------------------------------------------------------


def _configured(layers: Sequence[Layer], notes: list[str], faults: list[Fault]) -> Configured[FuseOptions]:
    pod = read(merge([layer.pod for layer in layers]), POD, "", notes, faults)
    bundles = {
        name: read(section, _ANY, f"bundles.{name}.", notes, faults) for name, section in merge_named(layers, faults).items()
    }
    sources = [_source(name, values, faults) for name, values in bundles.items() if _is_source(values)]
    destinations = [_destination(name, values, faults) for name, values in bundles.items() if values.given(_DESTINATION_KEYS)]
    for name, values in bundles.items():
        _check_kind(name, values, faults)
    _check_pod(pod, bundles, faults)
    _check_paths(bundles, faults)
    options = FuseOptions(
        coordination=pod["coordPoint"],
        stay=pod["sleepInsteadOfExit"],
        config_bucket=pod["configBucketName"],
        context=pod["contextName"],
        contributor=contributor(pod, faults),
        sources=tuple(sources),
        destinations=_with_bundle_id_file(destinations, pod, faults),
    )
    of.raise_any(faults)
    return Configured(options, (*pod.settings, *(each for values in bundles.values() for each in values.settings)), tuple(notes))


def _is_source(values: Values) -> bool:
    return bool(values.given(_SOURCE_KEYS))


def _source(name: str, values: Values, faults: list[Fault]) -> Source:
    for key, what in (("srcPath", "path"), ("srcRepo", "repository")):
        values.require(key, f"the {what} of source {name!r}", faults)
    if values["srcLabel"] and values["srcBundle"]:
        problem = f"source {name!r} has a bundle id and also the label {values['srcLabel']!r}: expected one of the two"
        faults.append(values.wrong("srcBundle", problem))
    elif not values["srcBundle"] and values.section.dialect != "flag":
        values.require("srcLabel", f"a label or a bundle id of source {name!r}", faults)
    return Source(
        name,
        values["srcPath"],
        values["srcRepo"],
        values["srcLabel"],
        values["srcBundle"],
        name_filter=values["srcNameFilter"],
        files=tuple(values["srcFiles"]),
        populate=values["srcPopulate"] is True,
    )


def _destination(name: str, values: Values, faults: list[Fault]) -> Destination:
    for key, what in (("destPath", "path"), ("destRepo", "repository"), ("destMessage", "message")):
        values.require(key, f"the {what} of destination {name!r}", faults)
    return Destination(
        name,
        values["destPath"],
        values["destRepo"],
        values["destMessage"],
        values["destLabel"],
        values["destBundleID"],
        skip_on_error=values["destSkipOnError"] is True,
    )


def _check_kind(name: str, values: Values, faults: list[Fault]) -> None:
    source, destination = values.given(_SOURCE_KEYS), values.given(_DESTINATION_KEYS)
    if not source and not destination and not values.section.torn:
        faults.append(Fault(values.section.where, "", f"bundle {name!r} is neither a source nor a destination: expected one"))
    elif source and destination:
        problem = f"bundle {name!r} is a source and also a destination: expected one, and another name for the other"
        faults.append(values.wrong(destination[0], problem))


def _check_pod(pod: Values, bundles: Mapping[str, Values], faults: list[Fault]) -> None:
    if pod.section.torn:
        return
    if not pod["coordPoint"]:
        expected = "expected -c DIR, the option c of dm_fuse_opts, or globalOpts.coordPoint"
        faults.append(Fault("coordination directory", "", f"not configured: {expected}"))
    if not bundles:
        expected = "expected -d 'bundle mount|download|upload …', a variable dm_fuse_bd_<name>, or bundles in dm_fuse_params"
        faults.append(Fault("bundles", "", f"neither a source nor a destination is configured: {expected}"))


def _with_bundle_id_file(destinations: Sequence[Destination], pod: Values, faults: list[Fault]) -> tuple[Destination, ...]:
    """Return the destinations, the only one with the file that -i gives; a fault where there is not one, or it has its own."""
    path = pod["bundleID"]
    if not path:
        return tuple(destinations)
    if len(destinations) != 1:
        problem = f"there are {len(destinations)} destinations: expected one where a file for its bundle id is given"
        faults.append(pod.wrong("bundleID", problem))
        return tuple(destinations)
    own = destinations[0].bundle_id_file
    if own not in ("", path):
        problem = f"the destination {destinations[0].name!r} has the bundle id file {own!r} already: expected one"
        faults.append(pod.wrong("bundleID", problem))
    return (replace(destinations[0], bundle_id_file=path),)


def _check_paths(bundles: Mapping[str, Values], faults: list[Fault]) -> None:
    tops: dict[str, str] = {}
    files: dict[str, str] = {}
    for name, values in bundles.items():
        tops.setdefault(values["srcPath"], name)
    for name, values in bundles.items():
        for key in ("srcPath", "destPath", "destBundleID"):
            # Of two sources on one path the second is told, of two that are nested the inner one.
            top = next((top for top in of.lineage(values[key]) if tops.get(top, name) != name), "")
            if top:
                faults.append(values.wrong(key, f"{values[key]} is or lies in {top}, which source {tops[top]!r} has for itself"))
        if values["destBundleID"] and (other := files.setdefault(values["destBundleID"], name)) != name:
            faults.append(values.wrong("destBundleID", f"the bundle id of {other!r} is written there: expected another file"))
