"""Answer requests with `_sqlite3`, for tests/test_portable_sqlite.py: one line of JSON each, stdin to stdout.

It runs as a script, with the `_sqlite3` of CPython; and frozen, in the place of wrappers/portable/portable.py, with that of the
portable wrapper. So what differs in the answers differs in the modules. A request is a list: what to do, the name of the
connection, and what else it takes. What JSON has not is a dictionary of one: {"bytes": "00ff"}, {"float": "-inf"}.
"""

from __future__ import annotations

import _sqlite3
import _thread
import os

from sidecar.coordination.notation import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CONNECTIONS: dict[str, Any] = {}
CURSORS: dict[str, Any] = {}
THREADS: dict[str, tuple[Any, list[Any]]] = {}


def main() -> None:
    for line in open(0, "rb"):  # noqa: SIM115
        os.write(1, encode(answer(*decode(line))).encode() + b"\n")
    os._exit(0)


def answer(what: str, name: str, *more: Any) -> Any:
    try:
        return DO[what](name, *more)
    except Exception as error:
        classes = [each.__name__ for each in type(error).__mro__]
        code = getattr(error, "sqlite_errorcode", None)
        return {"error": classes[: classes.index("Exception")], "code": code, "says": str(error)}


def connect(name: str, path: str, timeout: float = 0) -> None:
    CONNECTIONS[name] = _sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)


def execute(name: str, sql: str, *parameters: Any) -> Any:
    CURSORS.pop(name, None)
    CURSORS[name] = cursor = CONNECTIONS[name].execute(sql, [read(each) for each in parameters])
    return {"rowcount": cursor.rowcount, "lastrowid": cursor.lastrowid, "in_transaction": CONNECTIONS[name].in_transaction}


def fetch_one(name: str) -> Any:
    row = CURSORS[name].fetchone()
    return {"row": row and [write(each) for each in row], "type": type(row).__name__, "rowcount": CURSORS[name].rowcount}


def fetch_all(name: str) -> Any:
    return {"rows": [[write(each) for each in row] for row in CURSORS[name].fetchall()], "rowcount": CURSORS[name].rowcount}


def iterate(name: str) -> Any:
    return [[write(each) for each in row] for row in CURSORS[name]]


def run(name: str, sql: str, *parameters: Any) -> Any:
    return execute(name, sql, *parameters) | fetch_all(name)


def run_in_a_thread(name: str, sql: str, *parameters: Any) -> None:
    ended, answers = _thread.allocate_lock(), []

    def thread() -> None:
        answers.append(answer("run", name, sql, *parameters))
        ended.release()

    ended.acquire()
    THREADS[name] = ended, answers
    _thread.start_new_thread(thread, ())


def join(name: str) -> Any:
    ended, answers = THREADS[name]
    ended.acquire()
    return answers[0]


DO: dict[str, Callable[..., Any]] = {
    "connect": connect,
    "execute": execute,
    "fetchone": fetch_one,
    "fetchall": fetch_all,
    "iterate": iterate,
    "run": run,
    "run in a thread": run_in_a_thread,
    "join": join,
    "rowcount": lambda name: CURSORS[name].rowcount,
    "in_transaction": lambda name: CONNECTIONS[name].in_transaction,
    "close": lambda name: CONNECTIONS[name].close(),
    "leave": lambda name: CURSORS.pop(name) and None,
}


def read(thing: Any) -> Any:
    if isinstance(thing, dict) and "bytes" in thing:
        return bytes.fromhex(thing["bytes"])
    if isinstance(thing, dict) and "float" in thing:
        return float(thing["float"])
    return thing


def write(thing: Any) -> Any:
    if isinstance(thing, bytes):
        return {"bytes": thing.hex()}
    if isinstance(thing, float):
        return {"float": repr(thing)}
    return thing


if __name__ == "__main__":
    main()
