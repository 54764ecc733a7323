import grpc
import pytest

from fathom.errors import (
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OverloadError,
    RequestError,
    UnavailableError,
)
from fathom.serving.status import STATUSES, code_number, status_of


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequestError("x"), grpc.StatusCode.INVALID_ARGUMENT),
        (NotFoundError("x"), grpc.StatusCode.NOT_FOUND),
        (DeadlineError("x"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (OverloadError("x"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (UnavailableError("x"), grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_each_of_our_errors_has_its_status_and_keeps_its_text(error: Exception, code: grpc.StatusCode) -> None:
    assert status_of(error) == (code, "x")


def test_no_request_error_is_missing_from_the_table() -> None:
    assert {kind for kind, _ in STATUSES} == set(RequestError.__subclasses__())


def test_what_nobody_foresaw_is_internal_and_says_nothing_about_the_inside() -> None:
    code, text = status_of(KeyError("/secret/path"))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in text


def test_texts_are_short_enough_for_a_trailer() -> None:
    assert len(status_of(NotFoundError("x" * 100_000))[1]) == 500


def test_numbers_are_those_of_google_rpc_code() -> None:
    assert code_number(grpc.StatusCode.INVALID_ARGUMENT) == 3
    assert code_number(grpc.StatusCode.UNAVAILABLE) == 14
