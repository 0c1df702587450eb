"""What buildah says while it builds or pushes, as progress and as what went wrong. Pure.

    [1/2] STEP 3/6: RUN make            the third of six steps of the first of two stages begins; a single stage has no [1/2]
    [2/2] COMMIT localhost/app:1        all are done
    Error: building at STEP "RUN make": exit status 7

    Copying blob sha256:…               a layer is on its way, of those that the image is known to have
    Copying config sha256:…
    Writing manifest to image destination

What the steps themselves say is in between, and may be anything: lines without an end, or lines that look like these. So a step
counts only where it is the next of its stage, percentages never fall, and no line is longer than LONGEST. 100 is not for this
module to say: nothing is complete before it is recorded.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST = 1 << 16
# What is told of a step, and of an error, which says why at its end.
_SHOWN = 200
_TOLD = 2000
_NEARLY = 99

_STEP = re.compile(r"(?:\[(\d{1,4})/(\d{1,4})\] )?STEP (\d{1,5})/(\d{1,5}): (.*)")
_COMMIT = re.compile(r"(?:\[\d{1,4}/\d{1,4}\] )?COMMIT\b")
_FAILED_AT = re.compile(r'building at STEP "(.*)": (.*)')


class _Transcript:
    """Bytes in, progress out: `percent` and `activity` as they are now, `error` as buildah told it last."""

    def __init__(self) -> None:
        self.percent = 0
        self.activity = ""
        self._said = ""
        self._last = ""
        self._line = b""

    def hear(self, data: bytes) -> bool:
        """Take what was said; tell whether there is progress."""
        before = self.percent, self.activity
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._more(line)
            self._whole()
        self._more(rest)
        return before != (self.percent, self.activity)

    def end(self) -> None:
        """Take what was said last for a line, although it has no end."""
        self._whole()

    def _killed(self, status: int) -> int:
        """Return the signal that ended buildah, as a shell tells it; 0 where it ended by itself: then it says why."""
        return status - 128 if 128 < status < 128 + 65 and not self._said else 0

    def _why(self, status: int) -> str:
        # Without an error of its own it may not even have begun: then what was said last tells why.
        return shown(self._said or ("" if self.activity else self._last), _TOLD) or f"buildah ended with status {status}"

    def _more(self, data: bytes) -> None:
        self._line += data[: LONGEST - len(self._line)]

    def _whole(self) -> None:
        line, self._line = self._line.decode(errors="replace"), b""
        self._last = line if line.strip() else self._last
        if line.startswith("Error: "):
            self._said = line.removeprefix("Error: ")
        self._take(line)

    def _take(self, line: str) -> None:
        raise NotImplementedError

    def _reach(self, percent: int, activity: str) -> None:
        self.percent = max(self.percent, min(percent, _NEARLY))
        self.activity = shown(activity)


class BuildTranscript(_Transcript):
    """What a build says. A step that begins counts for those before it: of three, the third begins at 66."""

    def __init__(self) -> None:
        super().__init__()
        self._stage = (0, 0)
        self._step = (0, 0)

    def error(self, status: int, signal: int = 0) -> str:
        """Return why a build that ended so is none: the step that failed, and how."""
        self.end()
        if signal := signal or self._killed(status):
            return f"buildah was ended by signal {signal}{self._at()}"
        if match := _FAILED_AT.fullmatch(self._said):
            return f"{self.activity or 'STEP ' + shown(match[1])}: {shown(match[2], _TOLD)}"
        return f"{self._why(status)}{self._at()}"

    def _at(self) -> str:
        return f", at {self.activity}" if self.activity else ""

    def _take(self, line: str) -> None:
        if match := _STEP.fullmatch(line):
            stage = int(match[1] or 1), int(match[2] or 1)
            step = int(match[3]), int(match[4])
            if self._follows(stage, step):
                self._stage, self._step = stage, step
                done = (stage[0] - 1 + (step[0] - 1) / step[1]) / stage[1]
                self._reach(int(100 * done), line)
        elif _COMMIT.match(line) and self._step[0] == self._step[1] > 0 and self._stage[0] == self._stage[1]:
            self._reach(_NEARLY, line)

    def _follows(self, stage: tuple[int, int], step: tuple[int, int]) -> bool:
        """Tell whether a step may come now: the next, or the first of a later stage. Stages that nothing needs are left out."""
        if not (1 <= stage[0] <= stage[1] and 1 <= step[0] <= step[1]):
            return False
        if stage == self._stage:
            return step == (self._step[0] + 1, self._step[1])
        return step[0] == 1 and stage[0] > self._stage[0] and (not self._stage[1] or stage[1] == self._stage[1])


class PushTranscript(_Transcript):
    """What the push of an image with so many layers says. Each line tells of a part that begins."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self._parts = layers + 2
        self._blobs: set[str] = set()
        self._others = 0

    def error(self, status: int, signal: int = 0) -> str:
        """Return why a push that ended so is none."""
        self.end()
        signal = signal or self._killed(status)
        return f"buildah was ended by signal {signal}" if signal else self._why(status)

    def _take(self, line: str) -> None:
        first, _, rest = line.partition(" sha256:")
        if first == "Copying blob":
            self._blobs.add(rest[:64])
        elif first == "Copying config" or line.startswith("Writing manifest"):
            self._others += 1
        else:
            return
        self._reach(100 * min(len(self._blobs) + self._others, self._parts) // (self._parts + 1), line)


def shown(line: str, most: int = _SHOWN) -> str:
    """Return a line as it can be shown anywhere: without control characters, and not too long."""
    plain = "".join(" " if unicodedata.category(each)[0] == "C" else each for each in line[: most + 1])
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"
