"""What a factory.yaml defines, and what is wrong with one."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ParametersError, SourceMissing
from sidecar.factory.definition import Definition, read_definition
from sidecar.factory.model import Provider

FOUND = {"app": "Containerfile", "web": "Dockerfile", "runtimes/php": "Dockerfile"}


def read(text: str, found: dict[str, str] | None = None) -> Definition:
    return read_definition(text, "/top/images", FOUND if found is None else found)


def faults(text: str, found: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ParametersError) as raised:
        read(text, found)
    return [str(fault) for fault in raised.value.faults]


def test_each_folder_with_a_containerfile_is_an_image_without_being_named() -> None:
    images = read("").images
    assert list(images) == ["app", "runtimes-php", "web"]
    assert images["runtimes-php"].file == "/top/images/runtimes/php/Dockerfile"
    assert images["runtimes-php"].context == "/top/images/runtimes/php"
    assert images["app"].target == "oci"


def test_an_entry_says_what_cannot_be_seen() -> None:
    definition = read(
        """
        repository: sidecar/{image}
        tag: 0.1.0
        timestamp: 315532800
        store: ../build/containers
        volumes: {../build/apt.conf: /etc/apt/apt.conf}
        images:
          app: {context: .., base: web, arguments: {LEVEL: 3, MODE: on}, target: docker}
        """
    )
    app = definition.images["app"]
    assert (app.file, app.context) == ("/top/images/app/Containerfile", "/top")
    assert (app.base, app.of_ours, app.target) == ("web", True, "docker")
    assert app.arguments == {"LEVEL": "3", "MODE": "on"}
    assert definition.volumes == (("/top/build/apt.conf", "/etc/apt/apt.conf"),)
    assert (definition.timestamp, definition.store) == (315532800, "/top/build/containers")
    assert definition.local("app") == "localhost/sidecar/app:0.1.0"


def test_an_entry_may_give_its_directory_another_name() -> None:
    definition = read("images: {runtime-php-8.2: {directory: runtimes/php, base: debian:12}}")
    assert list(definition.images) == ["app", "runtime-php-8.2", "web"]
    assert definition.images["runtime-php-8.2"].context == "/top/images/runtimes/php"
    assert not definition.images["runtime-php-8.2"].of_ours


def test_one_folder_may_be_several_images() -> None:
    definition = read("images: {one: {directory: app, base: 'debian:12'}, two: {directory: app, base: 'debian:11'}}")
    assert list(definition.images) == ["one", "runtimes-php", "two", "web"]
    assert {definition.images[name].base for name in ("one", "two")} == {"debian:12", "debian:11"}


def test_images_are_built_after_those_that_they_are_built_on() -> None:
    definition = read("images: {app: {base: web}, web: {base: runtimes-php}}")
    assert definition.bases("app") == ["runtimes-php", "web"]
    assert definition.bases("runtimes-php") == []


def test_no_image_is_built_on_itself() -> None:
    assert faults("images:\n  app: {base: web}\n  web: {base: app}") == [
        "factory.yaml line 2: images.app.base: built on itself: app on web on app",
        "factory.yaml line 3: images.web.base: built on itself: web on app on web",
    ]
    assert faults("images: {app: {base: app}}") == ["factory.yaml line 1: images.app.base: built on itself: app on app"]
    # What hangs on a circle is not at fault.
    assert len(faults("images: {runtimes-php: {base: app}, app: {base: web}, web: {base: app}}")) == 2


def test_a_provider_is_a_registry_or_a_layout() -> None:
    definition = read(
        'repository: team/{image}\nproviders:\n  here: {registry: "localhost:5000", plain: true, authfile: auth.json}\n'
        "  archive: {layout: some/folder}\n"
    )
    assert definition.providers == {
        "here": Provider("here", registry="localhost:5000", plain=True, authfile="/top/images/auth.json"),
        "archive": Provider("archive", layout="/top/images/some/folder"),
    }
    assert definition.reference("app", definition.provider("here")) == "localhost:5000/team/app:latest"
    assert definition.reference("app", definition.provider("archive")) == "team/app:latest"


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("nothing: here", "nothing: unknown key"),
        ("repository: Team/{image}", "repository: expected a repository with {image} in it, not 'Team/{image}'"),
        ("repository: team/app", "repository: expected a repository with {image} in it, not 'team/app'"),
        ("tag: a b", "tag: expected a tag: letters, digits, . _ and -, not 'a b'"),
        ("tag: -x", "tag: expected a tag"),
        ("timestamp: yesterday", "timestamp: expected seconds since 1970, not 'yesterday'"),
        ("images: [app]", "images: expected a mapping from names of images"),
        ("images: {other: }", "images.other: expected its directory: none of the name other has one"),
        ("images: {other: {directory: ../elsewhere}}", "images.other: there is no Containerfile in ../elsewhere"),
        ("images: {--x: {directory: app}}", "images.--x: expected a name of small letters and digits"),
        ("images: {app: {target: rpm}}", "images.app.target: expected oci or docker, not 'rpm'"),
        ("images: {app: {base: --help}}", "images.app.base: expected an image of ours or a reference, not '--help'"),
        ("images: {app: {arguments: {A B: c}}}", "images.app.arguments: expected the name of an argument, not 'A B'"),
        ("images: {app: {base: web, arguments: {BASE: x}}}", "images.app.base: given twice: it is the argument BASE"),
        ("images: {web: {directory: app}}", "images.web: web has this name too: give that another one"),
        ("providers: {here: }", "providers.here: expected one of registry and layout"),
        ("providers: {here: {registry: a, layout: b}}", "providers.here: expected one of registry and layout"),
        ("providers: {here: {registry: 'http://a'}}", "providers.here.registry: expected HOST[:PORT][/PATH], not 'http://a'"),
        ("providers: {here: {registry: 'me:secret@a'}}", "providers.here.registry: expected HOST[:PORT][/PATH]"),
        ("providers: {here: {registry: a, plain: maybe}}", "providers.here.plain: expected true or false, not 'maybe'"),
        ("providers: {here: {layout: 'a:b'}}", "providers.here.layout: expected a path without a colon"),
        ("providers: {here: {layout: a, plain: true}}", "providers.here: plain and authfile are for a registry"),
        ("volumes: {a: b}", "volumes.a: expected PATH: /PATH/IN/THE/BUILD, without colons"),
        ("volumes: {a: '/b:rw'}", "volumes.a: expected PATH: /PATH/IN/THE/BUILD, without colons"),
        ("images: {app: ", "no YAML"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(said: str, fault: str) -> None:
    found = faults(f"# a comment\n{said}")
    assert len(found) == 1
    assert found[0].startswith("factory.yaml line 2: ")
    assert fault in found[0]


def test_a_folder_without_a_name_for_an_image_is_to_be_given_one() -> None:
    assert "'My App' has no name that an image may have" in faults("", {"My App": "Containerfile"})[0]
    assert list(read("images: {app: {directory: My App}}", {"My App": "Containerfile"}).images) == ["app"]


ALIKE = {"a-b": "Containerfile", "a/b": "Containerfile"}


def test_no_two_folders_are_one_image_unless_only_one_of_them_is_left_with_the_name() -> None:
    assert faults("", ALIKE) == [
        "factory.yaml line 1: images: the folders a-b and a/b have the same name: give them others, with `directory`"
    ]
    assert faults("images:\n  a-b: {target: docker}", ALIKE) == [
        "factory.yaml line 2: images.a-b: expected its directory: a-b and a/b have this name"
    ]
    assert faults("images:\n  a-b: {directory: a/b}", ALIKE) == [
        "factory.yaml line 2: images.a-b: a-b has this name too: give that another one"
    ]
    for other, left in (("a/b", "a-b"), ("a-b", "a/b")):
        for more in ("", ", a-b: {target: docker}"):
            images = read(f"images: {{other: {{directory: {other}}}{more}}}", ALIKE).images
            assert {name: recipe.context for name, recipe in images.items()} == {
                "a-b": f"/top/images/{left}",
                "other": f"/top/images/{other}",
            }


def test_a_base_that_is_called_something_else_is_told_with_its_line() -> None:
    assert faults("images:\n  php: {directory: runtimes/php}\n  app: {base: runtimes-php}") == [
        "factory.yaml line 3: images.app.base: runtimes-php is called php here"
    ]
    assert read("images: {php: {directory: runtimes/php}, app: {base: php}}").bases("app") == ["php"]
    # A folder may be several images, one of them by its own name.
    both = read("images: {php: {directory: runtimes/php}, runtimes-php: {target: docker}, app: {base: runtimes-php}}")
    assert both.bases("app") == ["runtimes-php"]


def test_what_is_not_there_is_told_with_what_is() -> None:
    definition = read("")
    with pytest.raises(SourceMissing, match="there is no image other; there is app, runtimes-php, web") as raised:
        definition.image("other")
    assert list(raised.value.exist) == ["app", "runtimes-php", "web"]
    with pytest.raises(SourceMissing, match="there is no provider here; there is none at all"):
        definition.provider("here")


@given(st.text(max_size=200))
def test_any_text_is_read_or_its_faults_are_told(text: str) -> None:
    with suppress(ParametersError):
        assert read(text).images
