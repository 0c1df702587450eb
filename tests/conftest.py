"""The tests and what they start hear signals, however the tests themselves were started.

A shell that puts them into the background has SIGINT and SIGQUIT ignored, nohup has SIGHUP; that is inherited by every child.
"""

import signal

for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
