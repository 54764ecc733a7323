"""What happens around a run: options, the server's answer before it, cleaning up and the report after it."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import locust.stats
from locust import events
from locust.runners import WorkerRunner

from fathom.errors import ConfigError, FathomError
from fathom.files import write_bytes
from fathom.loadtests.closed_loop import Told, with_note
from fathom.loadtests.steps import Steps, table_of
from fathom.loadtests.users.invented import check_removable, remove_written
from fathom.loadtests.users.load_run import LoadRun
from fathom.loadtests.users.options import add_options, allowed, check_options

#: Seconds between the points of the report's charts while steps are measured; else locust's own.
POINT_EVERY_S = 1

events.init_command_line_parser.add_listener(add_options)  # type: ignore[no-untyped-call]


@events.init.add_listener  # type: ignore[untyped-decorator]
def prepare(environment: Any, web_ui: Any, **_: Any) -> None:
    """Before anything runs: which users there are, in which shape, and how their report is shown."""
    environment.began_s = time.time()
    environment.load_run = None
    environment.named_classes = list(environment.user_classes)
    locust.stats.PERCENTILES_TO_CHART = [0.5, 0.99]
    with _one_line():
        _set_shape(environment)
        if not _learns_later(environment):
            _set_load(environment)
        elif not environment.parsed_options.class_picker:
            environment.user_classes = allowed(environment.named_classes, environment.parsed_options)
    if web_ui is not None:
        web_ui.app.after_request(lambda response: _noted_page(environment, response))
    # Locust is about to set a timer for --run-time, which would count from when gevent last looked at the clock.
    gevent.get_hub().loop.update_now()


def _set_shape(environment: Any) -> None:
    """Locust takes every shape that it finds in a file; ours is only for ``--steps``."""
    options, shape = environment.parsed_options, environment.shape_class
    if not options.steps:
        environment.shape_class = None
        environment.available_shape_classes.clear()
        return
    if options.num_users or options.run_time:
        raise ConfigError("--steps says how many users run and for how long; leave out -u and -t")
    shape.steps = Steps.parse(options.steps, options.step_s, options.spawn_rate)
    locust.stats.HISTORY_STATS_INTERVAL_SEC = POINT_EVERY_S
    environment.events.spawning_complete.add_listener(lambda user_count, **_: shape.all_there(user_count))


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def start(environment: Any, **_: Any) -> None:
    """Before each test of those who learn only now what to do."""
    if _learns_later(environment):
        with _one_line():
            _set_load(environment)


def _learns_later(environment: Any) -> bool:
    """The web page's options may change from test to test, and those of a worker are what its master sends."""
    return environment.web_ui is not None or isinstance(environment.runner, WorkerRunner)


def _set_load(environment: Any) -> None:
    """What all users of a test share, and who they are."""
    options = environment.parsed_options
    check_options(options)
    # The web page's picker has just chosen.
    chosen = environment.user_classes if options.class_picker else environment.named_classes
    environment.user_classes = allowed(chosen, options)
    load = environment.load_run = LoadRun(options, environment.host)
    if not isinstance(environment.runner, WorkerRunner):
        _ask_server(load, must_answer=options.headless)
        check_removable(load, {each.asks_for for each in environment.user_classes})
    # So that calls under way are answered, and counted, before the users go.
    timeouts_s = [load.deadline_s if each.timeout_s is None else each.timeout_s for each in environment.user_classes]
    environment.stop_timeout = environment.stop_timeout or max(timeouts_s)


@contextmanager
def _one_line() -> Iterator[None]:
    """End the program with one line where something cannot be used."""
    try:
        yield
    except FathomError as error:
        raise SystemExit(f"error: {error}") from None


def _ask_server(load: LoadRun, *, must_answer: bool) -> None:
    """On the web page, that nobody answers yet is for the users to find out."""
    try:
        served = load.ask_server()
    except FathomError as error:
        if must_answer:
            raise
        logging.warning("%s", error)
    else:
        what = served.bundle or "a bundle that it does not name"
        logging.info("%s serves %s, transport %s", load.connection.target, what, served.transport or "unknown")


@events.test_stop.add_listener  # type: ignore[untyped-decorator]
def stop(environment: Any, **_: Any) -> None:
    """Take away what the users have written, and log the steps."""
    load = environment.load_run
    if load is None or isinstance(environment.runner, WorkerRunner):
        return
    for line in remove_written(load, {each.asks_for for each in environment.user_classes}):
        logging.warning("%s", line)
    if environment.shape_class is not None:
        environment.shape_class.stopped()
        for row in table_of(environment.shape_class.meter.results):
            logging.info("step: %s", "  ".join(f"{cell:>17}" for cell in row))


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def complete_report(environment: Any, **_: Any) -> None:
    """Put the note into the report that locust has just written, if it has."""
    options = environment.parsed_options
    path = Path(options.html_file) if options.html_file else None
    if path is None or environment.load_run is None or not path.is_file() or path.stat().st_mtime < environment.began_s:
        return
    report = path.read_text(encoding="utf-8")
    try:
        write_bytes(path, with_note(report, _told(environment)).encode())
    except FathomError as error:
        logging.error("%s", error)


def _noted_page(environment: Any, response: Any) -> Any:
    """The web page's reports with the note."""
    if environment.load_run is not None and response.mimetype == "text/html" and not response.direct_passthrough:
        from flask import request

        if request.path.endswith("/stats/report"):
            response.set_data(with_note(response.get_data(as_text=True), _told(environment)))
    return response


def _told(environment: Any) -> Told:
    load, shape = environment.load_run, environment.shape_class
    return Told(
        target=load.connection.target,
        bundle=load.served.bundle,
        transport=load.served.transport,
        think_ms=load.options.think_ms,
        user_classes=[each.__name__ for each in environment.user_classes],
        steps=[] if shape is None else shape.meter.results,
    )
