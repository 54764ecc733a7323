import json
import logging
from pathlib import Path

from fathom.serving.logs import logging_to


def test_logs_are_one_json_object_per_line_with_the_traceback(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file, logging_to(file):
        logger = logging.getLogger("fathom.serving")
        logger.info("ready\nsteady", extra={"fields": {"port": 1}})
        try:
            raise ValueError("bad")
        except ValueError:
            logger.exception("oh")
        logger.debug("not at this level")
    first, second = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (first["level"], first["message"], first["port"]) == ("info", "ready\nsteady", 1)
    assert "ValueError: bad" in second["traceback"]


def test_text_logs_and_levels_can_be_chosen(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file, logging_to(file, log_format="text", level="debug"):
        logging.getLogger("fathom.runtime").debug("a batch")
    assert (tmp_path / "log").read_text().endswith("DEBUG fathom.runtime: a batch\n")


def test_logging_is_as_it_was_afterwards(tmp_path: Path) -> None:
    logger = logging.getLogger("fathom")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with (tmp_path / "log").open("w") as file, logging_to(file):
        assert logger.handlers != before[2]
    assert (logger.level, logger.propagate, logger.handlers) == before
