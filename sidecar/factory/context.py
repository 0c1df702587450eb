"""What an image is made of, as one digest; and which folders hold a Containerfile.

The digest is of all that a build can get from its context: paths, kinds, permissions, extended attributes, contents, and where
links lead; of the Containerfile and what else its recipe says; and of the digests of the images of ours that it is built on.
Never of times, owners and places: a copy of a context has the digest of the context. What a Containerfile fetches from elsewhere
is not seen.

What an ignore file leaves out is left out as buildah 1.28 does it, not as Docker does: see Ignore. Whoever changes that must not
leave out anything that a build might get, or an image is said to be up to date that is not. What is too much makes it stale.

A context may be anybody's. No link is followed, nothing is opened that is no regular file, nothing is read at once that has no
bound, and nothing is believed to be what it was a moment ago.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping

from blake3 import blake3

from sidecar.errors import Fault, ParametersError, SourceMissing, Unreachable
from sidecar.factory.definition import CONTAINERFILES, LOCAL, Definition, Recipe, read_definition

# Text that is read whole, and how deep folders are followed: each takes a descriptor.
_LIMIT = 1 << 20
_DEEPEST = 200
_CHUNK = 1 << 20
# All patterns are held against each path; of how many characters it is remembered what classes they are in.
_LONGEST = 1 << 16
_KNOWN = 1024
# What only a store of images, a folder of records, and a layout hold.
_KEPT = frozenset(("overlay-images", "vfs-images", "state.sqlite3", "oci-layout"))
_IGNORES = (".containerignore", ".dockerignore")
_LOCAL = re.compile(rf"^(?!\s*#).*(?<![\w./:-]){LOCAL}/", re.MULTILINE)
_MOUNT = re.compile(r"--mount=(\S+)")
_KINDS = {stat.S_IFIFO: b"p", stat.S_IFSOCK: b"s", stat.S_IFCHR: b"c", stat.S_IFBLK: b"b"}
_ATTRIBUTES = ("security.capability", "security.ima")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_definition(path: str) -> Definition:
    """Return what the file at `path` defines: SourceMissing where there is none, ParametersError with every fault."""
    path = os.path.abspath(path)
    try:
        text = _text(path).decode()
    except FileNotFoundError:
        raise SourceMissing(f"there is no {path}: it is the file that says which images there are") from None
    except UnicodeDecodeError:
        raise ParametersError([Fault(path, "", "expected text in UTF-8")]) from None
    folder = os.path.dirname(path)
    return read_definition(text, folder, containerfiles(folder), path, lambda at: _containerfile(os.path.join(folder, at)))


def containerfiles(folder: str) -> dict[str, str]:
    """Return the folders below that hold a Containerfile, by their relative path, and what it is called.

    Hidden folders are not looked into, nor those that hold what a factory keeps: the files of images may be anything.
    """
    found: dict[str, str] = {}
    kept: list[str] = []
    for at, _, names in _walk(folder, lambda path: _visible(path) and path.rpartition("/")[0] not in kept):
        if at and not _KEPT.isdisjoint(names):
            kept.append(at)
            continue
        for name in CONTAINERFILES:
            if at and name in names and stat.S_ISREG(names[name].st_mode):
                found.setdefault(at, name)
    return dict(sorted(found.items()))


def _containerfile(folder: str) -> str:
    return next((name for name in CONTAINERFILES if _is_file(os.path.join(folder, name))), "")


def digests(definition: Definition) -> dict[str, str]:
    """Return the content digest of each image; a context that several have in common is read once."""
    seen: dict[tuple[str, str], str] = {}
    return {name: _digest(definition, name, seen) for name in definition.images}


def digest(definition: Definition, name: str, target: str = "") -> str:
    """Return the content digest of one image, for its own target or another."""
    return _digest(definition, name, {}, target)


def ignore_file(recipe: Recipe) -> str:
    """Return the path of the file that says what of a context is left out: the Containerfile's or the context's; "" for none."""
    places = [recipe.file + each for each in _IGNORES] + [os.path.join(recipe.context, each) for each in _IGNORES]
    return next((path for path in places if _is_file(path)), "")


def names_local(recipe: Recipe) -> bool:
    """Tell whether a Containerfile, or what it is given, names an image that can only be of this machine."""
    said = [_text(recipe.file).decode(errors="replace"), *recipe.arguments.values()]
    return any(_LOCAL.search(each) for each in said)


def _digest(definition: Definition, name: str, seen: dict[tuple[str, str], str], target: str = "") -> str:
    recipe = definition.image(name)
    try:
        containerfile = _text(recipe.file)
    except FileNotFoundError:
        raise SourceMissing(f"there is no {recipe.file} any more") from None
    ignoring = ignore_file(recipe)
    trees = [_tree(recipe.context, ignoring, seen)]
    if ignoring:
        trees += [_tree(path, "", seen) for path in _mounted(containerfile.decode(errors="surrogateescape"), recipe.context)]
    base = _digest(definition, recipe.base, seen) if recipe.of_ours else recipe.base
    hash_ = blake3(b"sidecar image 1")
    for part in (
        containerfile,
        "".join(trees).encode(),
        base.encode(),
        (target or recipe.target).encode(),
        definition.local(name).encode(),
        str(definition.timestamp).encode(),
        *(f"{key}={value}".encode() for key, value in sorted(recipe.arguments.items())),
    ):
        _put(hash_, part)
    return f"blake3:{hash_.hexdigest()}"


def _tree(folder: str, ignoring: str, seen: dict[tuple[str, str], str]) -> str:
    place = folder, ignoring
    if place not in seen:
        ignore = Ignore(_text(ignoring).decode(errors="surrogateescape"), ignoring) if ignoring else None
        seen[place] = tree_digest(folder, ignore)
    return seen[place]


def _mounted(containerfile: str, context: str) -> list[str]:
    """Return the folders of a context that a build mounts. Nothing is left out of these, whatever an ignore file says."""
    found = set()
    for said in _MOUNT.findall(containerfile):
        options = dict(each.partition("=")[::2] for each in said.strip("\"'").split(","))
        if options.get("type", "bind") == "bind" and "from" not in options:
            source = os.path.normpath("/" + (options.get("source") or options.get("src") or ""))
            path = context + source.rstrip("/")
            # What is not plainly a folder in the context, as by a variable or a link, may be any of it.
            found.add(
                path
                if os.path.isdir(path) and os.path.realpath(path) == os.path.realpath(context) + source.rstrip("/")
                else context
            )
    return sorted(found)


# --- trees -------------------------------------------------------------------------------------------------------------


def tree_digest(folder: str, ignore: Ignore | None = None) -> str:
    """Return the digest of all below a folder, but for what is ignored."""
    hash_ = blake3(b"tree 1")
    for at, fd, names in _walk(folder, ignore.may_hold if ignore else _anything):
        for name in sorted(names):
            path = f"{at}/{name}" if at else name
            if ignore is None or not ignore.ignores(path):
                _put_entry(hash_, path, fd, name, names[name])
    return str(hash_.hexdigest())


def _put(hash_: blake3, part: bytes) -> None:
    hash_.update(b"%d:" % len(part))
    hash_.update(part)


def _put_entry(hash_: blake3, path: str, folder: int, name: str, about: os.stat_result) -> None:
    kind, mode = stat.S_IFMT(about.st_mode), b"%o" % stat.S_IMODE(about.st_mode)
    try:
        if kind == stat.S_IFREG:
            told = _file_digest(folder, name)
        elif kind == stat.S_IFLNK:
            # The permissions of links mean nothing, and differ between file systems.
            told, mode = (b"l", os.fsencode(os.readlink(name, dir_fd=folder))), b""
        elif kind == stat.S_IFDIR:
            told = _folder_digest(folder, name)
        else:
            told = _KINDS.get(kind, b"?"), b"%d" % about.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else b""
    except OSError as error:
        # Gone, or something else by now, of which whoever looks again is told: a file became a link, a link became a file.
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.EINVAL, errno.ENOTDIR):
            return
        raise Unreachable(f"{path} cannot be read: {error.strerror}") from None
    for part in (os.fsencode(path), mode, *told):
        _put(hash_, part)


def _file_digest(folder: int, name: str) -> tuple[bytes, bytes]:
    """Return the digest of a regular file. It may have become something else: what was opened counts."""
    try:
        fd = os.open(name, _FILE, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            return b"?", b""
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b"?", b""
        hash_ = blake3()
        while data := os.read(fd, _CHUNK):
            hash_.update(data)
        attributes = _attributes(fd)
        return b"fx" if attributes else b"f", hash_.digest() + attributes
    finally:
        os.close(fd)


def _folder_digest(folder: int, name: str) -> tuple[bytes, bytes]:
    fd = os.open(name, _FOLDER, dir_fd=folder)
    try:
        attributes = _attributes(fd)
        return b"dx" if attributes else b"d", attributes
    finally:
        os.close(fd)


def _attributes(fd: int) -> bytes:
    """Return the digest of the extended attributes that buildah copies; b"" where there are none."""
    hash_, found = blake3(), False
    try:
        for name in sorted(os.listxattr(fd)):
            if name.startswith("user.") or name in _ATTRIBUTES:
                _put(hash_, os.fsencode(name))
                _put(hash_, os.getxattr(fd, name))
                found = True
    except OSError as error:
        # A file system that has none; or one is gone by now, of which whoever looks again is told.
        if error.errno not in (errno.ENOTSUP, errno.ENODATA):
            raise
    return hash_.digest() if found else b""


Names = dict[str, os.stat_result]


def _anything(_: str) -> bool:
    return True


def _visible(path: str) -> bool:
    return not path.rpartition("/")[2].startswith(".")


def _walk(folder: str, enter: Mapping[str, bool] | object) -> Iterator[tuple[str, int, Names]]:
    """Yield each folder below that is to be entered: its relative path, a descriptor of it, and what it holds."""
    assert callable(enter)
    try:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SourceMissing(f"there is no {folder}") from None
    except OSError as error:
        raise Unreachable(f"{folder} cannot be read: {error.strerror}") from None
    # Each open folder, and those in it that were not entered yet.
    chain: list[tuple[int, str, list[str]]] = []
    try:
        yield "", top, (names := _names(top, folder))
        chain.append((top, "", _folders(names, "", enter)))
        top = -1
        while chain:
            fd, at, left = chain[-1]
            if not left:
                chain.pop()
                os.close(fd)
                continue
            path = f"{at}/{left[-1]}" if at else left[-1]
            if len(chain) > _DEEPEST:
                raise ParametersError([Fault(folder, path, f"nested more than {_DEEPEST} deep")])
            try:
                inner = os.open(left.pop(), _FOLDER, dir_fd=fd)
            except OSError as error:
                # It is gone, or something else by now: what it was has been told of.
                if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                    continue
                raise Unreachable(f"{path} cannot be read: {error.strerror}") from None
            chain.append((inner, path, []))
            yield path, inner, (names := _names(inner, path))
            chain[-1] = inner, path, _folders(names, path, enter)
    finally:
        for fd, _, _ in chain:
            os.close(fd)
        if top >= 0:
            os.close(top)


def _names(fd: int, path: str) -> Names:
    found: Names = {}
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    found[entry.name] = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
    except OSError as error:
        raise Unreachable(f"{path} cannot be read: {error.strerror}") from None
    return found


def _folders(names: Names, at: str, enter: object) -> list[str]:
    assert callable(enter)
    folders = (name for name in sorted(names, reverse=True) if stat.S_ISDIR(names[name].st_mode))
    return [name for name in folders if enter(f"{at}/{name}" if at else name)]


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _text(path: str) -> bytes:
    """Return what a regular file says; FileNotFoundError, Unreachable where it cannot be read, ParametersError if it is long."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Unreachable(f"{path} is no regular file")
            said = file.read(_LIMIT + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreachable(f"{path} cannot be read: {error.strerror}") from None
    if len(said) > _LIMIT:
        raise ParametersError([Fault(path, "", f"expected at most {_LIMIT} bytes")])
    return said


# --- what is ignored ---------------------------------------------------------------------------------------------------


class Ignore:
    """The patterns of an ignore file: the last that matches a path, or a folder that it is in, says whether it is left out.

    `*` and `?` match all but a slash, `**` that too, `[a-z]` one of these, and `!` takes back what was left out. A pattern with
    `n` parts is held against a path and against its first `n` parts: so buildah does it, where Docker tries all folders above.
    """

    def __init__(self, text: str, name: str = ".dockerignore") -> None:
        if len(text) > _LONGEST:
            raise ParametersError([Fault(name, "", f"expected at most {_LONGEST} characters")])
        self._patterns: list[tuple[_Pattern, int, bool]] = []
        # How those begin that take something back, up to their first wildcard.
        self._back: list[list[str]] = []
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
            if not line.startswith("#") and (pattern := line.strip()):
                self._add(pattern, f"{name} line {number}")

    def ignores(self, path: str) -> bool:
        """Tell whether what is at a path, relative to the context, is left out."""
        parts = path.split("/")
        ignored = False
        for pattern, length, back in self._patterns:
            if ignored == back and (pattern.matches(path) or (length < len(parts) and pattern.matches("/".join(parts[:length])))):
                ignored = not back
        return ignored

    def may_hold(self, path: str) -> bool:
        """Tell whether something below a folder may not be left out."""
        if not self.ignores(path):
            return True
        parts = path.split("/")
        return any(all(one == other for one, other in zip(parts, literal, strict=False)) for literal in self._back)

    def _add(self, pattern: str, where: str) -> None:
        back = pattern.startswith("!")
        if back:
            pattern = pattern[1:].strip()
        pattern = _clean(pattern)
        if not pattern:
            raise ParametersError([Fault(where, "", "expected a pattern after '!'")])
        try:
            compiled = _Pattern(pattern)
        except (re.error, IndexError):
            raise ParametersError([Fault(where, "", f"{pattern!r} is no pattern")]) from None
        parts = pattern.split("/")
        self._patterns.append((compiled, len(parts), back))
        if back:
            plain = next((at for at, part in enumerate(parts) if re.search(r"[*?[\]\\]", part)), len(parts))
            self._back.append(parts[:plain])


def _clean(pattern: str) -> str:
    """Return a pattern without what means nothing in a path: //, . and .. , and a slash at either end."""
    if not pattern:
        return ""
    cleaned = os.path.normpath(pattern)
    return cleaned.lstrip("/") or "."


class _Pattern:
    """A pattern: `matches` moves all places that a path may have come to in it, a bit for each, on by a character at a time.

    A regular expression tries all lengths of all wildcards in turn: with five of them it hangs whoever looks.
    """

    def __init__(self, pattern: str) -> None:
        # Places where a character leads to the next one: this one, one of these, all but a slash, a slash alone.
        self._literal: dict[str, int] = {}
        self._classes: list[tuple[int, re.Pattern[str]]] = []
        self._one = self._slash = 0
        # Places where all but a slash stays, and where anything does; and those that lead on by themselves, to one place or two.
        self._part = self._all = self._free = self._skipped = 0
        self._known: dict[str, int] = {}
        self._end, at, folders = 1, 0, 0
        while at < len(pattern):
            character = pattern[at]
            at += 1
            if character == "*" and pattern[at : at + 1] == "*":
                at += 1 + (pattern[at + 1 : at + 2] == "/")
                if at == len(pattern):
                    self._all |= self._end
                    self._free |= self._end
                elif folders == self._end:
                    continue  # Any folders in any folders are any folders.
                else:
                    self._skipped |= self._end
                    self._end <<= 1
                    self._all |= self._end
                    self._slash |= self._end
                    folders = self._end << 1
            elif character == "*":
                self._part |= self._end
                self._free |= self._end
            elif character == "?":
                self._one |= self._end
            elif character == "[":
                end = _class_end(pattern, at)
                self._classes.append((self._end, re.compile(f"[{pattern[at:end]}]".replace("[[", r"[\["), re.DOTALL)))
                at = end + 1
            else:
                if character == "\\":
                    character = pattern[at]
                    at += 1
                self._literal[character] = self._literal.get(character, 0) | self._end
            self._end <<= 1

    def matches(self, path: str) -> bool:
        """Tell whether all of a path is as the pattern says."""
        places = self._freely(1)
        for character in path:
            leads, stays = self._leads(character), self._all if character == "/" else self._all | self._part
            places = self._freely((places & leads) << 1 | places & stays)
            if not places:
                return False
        return bool(places & self._end)

    def _leads(self, character: str) -> int:
        """Return the places where a character leads on."""
        leads = self._literal.get(character, 0) | (self._slash if character == "/" else self._one)
        if self._classes:
            if character not in self._known:
                if len(self._known) == _KNOWN:
                    self._known.clear()
                self._known[character] = sum(place for place, one in self._classes if one.fullmatch(character))
            leads |= self._known[character]
        return leads

    def _freely(self, places: int) -> int:
        """Return these places and those that one gets to from them without a character: `**/*` is the longest such way."""
        places |= (places & self._skipped) << 1 | (places & self._skipped) << 2
        return places | (places & self._free) << 1


def _class_end(pattern: str, at: int) -> int:
    """Return where the class ends that begins before `at`; IndexError where it does not."""
    at += pattern[at] == "^"
    first = at
    while pattern[at] != "]" or at == first:
        at += 2 if pattern[at] == "\\" else 1
    return at
