"""Which signals a server heeds; docs/operating.md says what they do."""

import signal

#: End it: once to drain, twice to end at once.
STOP = (signal.SIGTERM, signal.SIGINT)
#: Serve the newest bundles.
RELOAD = signal.SIGHUP


def ignore_others() -> None:
    """Ignore signals that would end the process without a word, and those to come until they are handled."""
    for number in (RELOAD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
