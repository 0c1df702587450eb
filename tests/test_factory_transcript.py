"""What is made of what buildah says: progress that never falls, and the step that failed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.factory.transcript import LONGEST, BuildTranscript, PushTranscript, shown

ONE = """\
STEP 1/4: FROM scratch
STEP 2/4: COPY busybox /bin/busybox
--> ee0da6bae85
STEP 3/4: RUN make
compiling
--> 290c0319f1d
STEP 4/4: LABEL "a"="b"
COMMIT localhost/app:1
Successfully tagged localhost/app:1
sha256-of-something
"""


def percents(text: str) -> list[int]:
    transcript = BuildTranscript()
    found = []
    for line in text.splitlines(keepends=True):
        transcript.hear(line.encode())
        found.append(transcript.percent)
    return list(dict.fromkeys(found))


def after(text: str) -> BuildTranscript:
    transcript = BuildTranscript()
    transcript.hear(text.encode())
    return transcript


def test_a_step_that_begins_tells_how_many_are_over() -> None:
    assert percents(ONE) == [0, 25, 50, 75, 99]


def test_what_is_done_now_is_told_too() -> None:
    transcript = BuildTranscript()
    assert transcript.hear(b"STEP 1/2: FROM scr") is False
    assert transcript.hear(b"atch\n")
    assert transcript.activity == "STEP 1/2: FROM scratch"
    assert not transcript.hear(b"something\n")
    assert transcript.hear(b"STEP 2/2: RUN x\n")
    assert (transcript.percent, transcript.activity) == (50, "STEP 2/2: RUN x")


def test_stages_count_alike() -> None:
    text = "".join(
        f"[{stage}/2] STEP {step}/{steps}: RUN x\n" for stage, steps in ((1, 2), (2, 5)) for step in range(1, steps + 1)
    )
    assert percents(text) == [0, 25, 50, 60, 70, 80, 90]
    assert percents(f"{text}[2/2] COMMIT x\n")[-1] == 99


def test_stages_that_nothing_needs_are_passed_over() -> None:
    assert percents("[1/3] STEP 1/1: FROM a\n[3/3] STEP 1/2: FROM b\n[3/3] STEP 2/2: RUN x\n") == [0, 66, 83]


def test_what_a_step_says_is_no_step() -> None:
    assert percents("STEP 1/4: FROM x\nSTEP 4/4: fake\nSTEP 9/9: fake\n[2/2] STEP 1/1: x\nCOMMIT fake\nSTEP 2/4: RUN y\n") == [
        0,
        25,
    ]
    assert percents("STEP 1/2: FROM x\nSTEP 0/0: fake\nSTEP 3/2: fake\nSTEP 99999999/1: x\n") == [0]
    # Without an end of its own, as before the mark of a layer.
    assert percents("STEP 1/2: FROM x\npartial--> abc\nSTEP 2/2: RUN x\n") == [0, 50]


def test_the_step_that_failed_is_named_with_its_exit_status() -> None:
    transcript = after(
        '[1/2] STEP 1/1: FROM a\n[2/2] STEP 1/2: FROM b\n[2/2] STEP 2/2: RUN ["/bin/x","exit 7"]\n'
        "subprocess exited with status 7\n"
        'Error: building at STEP "RUN /bin/x exit 7": exit status 7\n'
    )
    assert transcript.error(7) == '[2/2] STEP 2/2: RUN ["/bin/x","exit 7"]: exit status 7'


def test_an_error_before_any_step_is_told_as_it_is() -> None:
    assert after("Error: no such file\n").error(125) == "no such file"
    assert (
        after("unshare: unshare failed: Operation not permitted\n").error(1) == "unshare: unshare failed: Operation not permitted"
    )
    assert after("").error(125) == "buildah ended with status 125"


def test_the_last_error_is_buildahs_own() -> None:
    assert after("STEP 1/2: FROM x\nError: a step says\nError: it is over").error(1) == "it is over, at STEP 1/2: FROM x"


def test_a_build_that_was_killed_tells_where() -> None:
    assert after("STEP 1/2: FROM x\n").error(0, 9) == "buildah was ended by signal 9, at STEP 1/2: FROM x"
    assert after("STEP 1/2: FROM x\n").error(137) == "buildah was ended by signal 9, at STEP 1/2: FROM x"


def test_a_push_is_as_far_as_its_parts() -> None:
    transcript = PushTranscript(2)
    found = []
    for line in (
        "Getting image",
        *(f"Copying blob sha256:{n * 64}" for n in "aab"),
        "Copying config sha256:c",
        "Writing manifest",
    ):
        transcript.hear(f"{line}\n".encode())
        found.append(transcript.percent)
    assert found == [0, 20, 20, 40, 60, 80]
    transcript.hear(b"Error: writing blob: connection refused\n")
    assert transcript.error(125) == "writing blob: connection refused"


def test_what_is_shown_holds_no_control_characters_and_is_not_long() -> None:
    assert shown("a\x1b[31mb\tc\u202e") == "a [31mb c "
    assert len(shown("x" * 1000)) == 200


@pytest.mark.parametrize("kind", ["build", "push"])
@given(
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from(
                [b"STEP 1/3: x\n", b"STEP 2/3: y\n", b"[1/2] STEP 1/1: z\n", b"COMMIT a\n", b"Copying blob sha256:a\n", b"\n"]
            ),
        )
    )
)
def test_whatever_is_said_progress_never_falls_and_is_never_whole(kind: str, pieces: list[bytes]) -> None:
    transcript = BuildTranscript() if kind == "build" else PushTranscript(1)
    before = 0
    for piece in pieces:
        transcript.hear(piece)
        assert before <= transcript.percent < 100
        before = transcript.percent
    assert transcript.error(1)


def test_lines_without_an_end_take_no_room() -> None:
    transcript = BuildTranscript()
    for _ in range(100):
        transcript.hear(b"x" * LONGEST)
    assert len(transcript._line) == LONGEST
    transcript.hear(b"\nSTEP 1/1: FROM x\n")
    assert transcript.activity == "STEP 1/1: FROM x"
