"""How many workers run one call, and which of them answers. Pure.

The first program that ends well wins. One that fails is an answer too, held back as long as another may do better; two that fail
alike settle it. A worker that failed is no answer: the others are, and when none is left new ones are begun, for each of which
there has to be a token, and no more than `most` in all.

The hedging is that of gRPC (proposal A6): at most five attempts, all at once or each a delay after the one before, an attempt
that failed being followed at once; and a bucket of tokens, so that a service that cannot begin workers is not kept busy by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sidecar.functions.answer import MOST_WORKERS, Ran


@dataclass
class Bucket:
    """Tokens for attempts beyond the first: `size` at most, and `rate` more in a second."""

    size: float = 20.0
    rate: float = 2.0
    _held: float = field(default=-1.0, init=False)
    _at: float = field(default=0.0, init=False)

    def take(self, now: float) -> bool:
        """Take a token, if there is one."""
        held = self.size if self._held < 0 else min(self.size, self._held + (now - self._at) * self.rate)
        self._held, self._at = held - (held >= 1), now
        return held >= 1


@dataclass(frozen=True)
class Next:
    """What to do: begin so many workers; wait, `until` a time or an end; or be done: `won` answers, or nobody does."""

    begin: int = 0
    until: float | None = None
    done: bool = False
    won: Ran | None = None


class Hedge:
    """One call. `token` is asked for each worker beyond the first `workers`; times are in seconds, on any one clock."""

    def __init__(self, workers: int, delay: float, token: Callable[[], bool], most: int = MOST_WORKERS) -> None:
        self._workers, self._delay, self._token, self._most = workers, delay, token, most
        self._begun = 0
        self._last = 0.0
        self._ran: list[Ran] = []

    @property
    def ran(self) -> Sequence[Ran]:
        """Those that have ended."""
        return self._ran

    def ended(self, ran: Ran) -> None:
        """Note what a worker came to."""
        self._ran.append(ran)

    def next(self, now: float) -> Next:
        """Return what to do at the time `now`; whoever is told to begin workers begins them."""
        if (won := self._settled()) is not None:
            return Next(done=True, won=won)
        running = self._begun - len(self._ran)
        if self._begun < self._workers:
            if not self._begun or self._delay <= 0:
                return self._begin(self._workers if self._delay <= 0 else 1, now)
            # Who failed, or whose program did, is followed at once.
            if not running or now >= self._last + self._delay:
                return self._begin(1, now)
            return Next(until=self._last + self._delay)
        if running:
            return Next()
        answers = [each for each in self._ran if each.answers]
        if answers:
            return Next(done=True, won=answers[0])
        wanted = min(self._workers, self._most - self._begun)
        granted = 0
        while granted < wanted and self._token():
            granted += 1
        return self._begin(granted, now) if granted else Next(done=True)

    def _begin(self, count: int, now: float) -> Next:
        count = min(count, self._most - self._begun)
        self._begun += count
        self._last = now
        return Next(begin=count)

    def _settled(self) -> Ran | None:
        answers = [each for each in self._ran if each.answers]
        for number, each in enumerate(answers):
            if each.status == "ok" or any(each.agrees(other) for other in answers[:number]):
                return each
        return None
