"""Options beside locust's own, and which users they let run."""

import logging
from collections.abc import Sequence
from typing import Any

from fathom.errors import ConfigError

DEFAULT_HISTORIES = "build/ml-100k/dataset"


def add_options(parser: Any) -> None:
    """Our options; locust's web page offers those that are no secret and can change from test to test."""
    _add_load(parser)
    _add_connection(parser)
    for flag, what in (
        ("--write-events", "users who append to histories, of users of their own, and delete them"),
        ("--write-items", "users who change the catalogue, by items of their own that no answer holds"),
        ("--experiments", "users who ask for experiments and report outcomes"),
        ("--reload", "a user who has the bundles reloaded again and again"),
    ):
        parser.add_argument(flag, action="store_true", help=what)


def _add_load(parser: Any) -> None:
    add = parser.add_argument
    add("--histories", env_var="LOADTEST_HISTORIES", default=DEFAULT_HISTORIES, help="dataset or trace")
    add("--profiles", env_var="LOADTEST_PROFILES", default="", help="profiles to mix, with commas")
    add("--deadline-ms", env_var="LOADTEST_DEADLINE_MS", type=float, default=1000.0, help="per call")
    add("--think-ms", env_var="LOADTEST_THINK_MS", type=float, default=50.0, help="mean pause")
    add("--batch-size", env_var="LOADTEST_BATCH_SIZE", type=int, default=32, help="histories in a batch")
    add("--stream-size", env_var="LOADTEST_STREAM_SIZE", type=int, default=16, help="histories in a stream")
    add(
        "--steps",
        env_var="LOADTEST_STEPS",
        default="",
        include_in_web_ui=False,
        help="numbers of users, one after the other, as 8,16,32,64, in place of -u and -t; reached at -r a second",
    )
    add("--step-s", env_var="LOADTEST_STEP_S", type=float, default=10.0, include_in_web_ui=False, help="of each step")


def _add_connection(parser: Any) -> None:
    def add(*names: str, **more: Any) -> None:
        parser.add_argument(*names, include_in_web_ui=False, **more)

    add("--admin-host", default="", help="HOST:PORT of the admin port, where the server has one")
    add("--tls", action="store_true", help="use TLS, with the certificate authorities of gRPC")
    add("--ca", default="", help="use TLS, with this certificate authority (PEM)")
    add("--cert", default="", help="TLS: the certificate to show (PEM)")
    add("--key", default="", help="TLS: the key of --cert (PEM)")
    add("--metadata", action="append", default=[], metavar="KEY=VALUE", help="sent with every call")


def check_options(options: Any) -> None:
    """Raise ConfigError for what argparse lets pass."""
    for name, most in (("batch_size", 1_024), ("stream_size", 100_000)):
        if not 1 <= getattr(options, name) <= most:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)}: give 1 to {most:,}")
    if not 0 < options.deadline_ms < 1e9 or not 0 <= options.think_ms < 1e9:
        raise ConfigError("--deadline-ms must be above 0, --think-ms at least 0, and both finite")


def allowed(user_classes: Sequence[Any], options: Any) -> list[Any]:
    """Those of the classes of users that the options let run; raises ConfigError where that is none."""
    lacking = [each for each in user_classes if each.asks_for and not getattr(options, each.asks_for)]
    reasons = [f"{each.__name__}: {each.because}; add --{each.asks_for.replace('_', '-')}" for each in lacking]
    if len(lacking) == len(user_classes):
        raise ConfigError("; ".join(reasons))
    for reason in reasons if options.user_classes else ():
        logging.warning("left out: %s", reason)
    return [each for each in user_classes if each not in lacking]
