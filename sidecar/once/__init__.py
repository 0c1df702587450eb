"""A program that runs at most once, and what came of it: for whoever asks again the same answer, byte for byte.

    asked      what is to be run, as it is run and as it is kept; what differs from what ran                       pure
    facts      what is known of a run, as whoever asks is told it
    lease      who lives: a lock that the kernel drops, with room for the last words of a run whose disk is full
    rows       facts as the store's rows, and as the last words in a lease
    claim      the right to run something: it began, it wrote, it ended
    ledger     where the facts stand: claim, find, forget
    recorder   what a program writes: passed on and kept
    run        run it or, where that was done, give back what came of it

The promise rests on one order: the claim is on the disk before the program is begun. Whoever finds a claim whose owner is dead
and that has no end knows nothing more, not even whether the program began, and does not begin it again.
"""

from sidecar.once.ledger import Ledger as Ledger
