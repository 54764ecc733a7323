"""Every error a user or a client can cause, in one tree; the program that meets one shows its line and exits with 2."""

from importlib import import_module
from typing import Any

from fathom import installing


def brief(value: object, most: int = 60) -> str:
    """Untrusted text as an error may quote it: one line of ASCII, cut to ``most`` characters."""
    text = ascii(str(value))[1:-1]
    return text if len(text) <= most else f"{text[:most]}..."


class FathomError(Exception):
    """The root of all; its text is one line for a person to read: what is wrong, where, what to do."""


class DataError(FathomError):
    """Interactions or a dataset folder that cannot be used."""


class ConfigError(FathomError):
    """An unknown key or an impossible value in settings, presets or profiles."""


class NotApplicableError(ConfigError):
    """An importance method that cannot judge this model, or not yet."""


class OutputError(FathomError):
    """An output path that holds, or would replace, what is not the command's own."""


class PlanError(FathomError):
    """A DepthPlan that the model cannot run."""


class MissingExtraError(FathomError):
    """An optional library is not installed; the text names the extra."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed; run: {installing(extra)}")


def optional(module: str, extra: str) -> Any:
    """A module of a library that comes with an extra; raises MissingExtraError where it cannot be imported."""
    try:
        return import_module(module)
    except ImportError:
        raise MissingExtraError(module.partition(".")[0], extra) from None


class ArtefactError(FathomError):
    """A stored artefact (dataset, checkpoint, ranking, plan) cannot be used."""


class BundleError(ArtefactError):
    """A bundle is refused as a whole."""


class BundleMissingFileError(BundleError):
    """A file that the manifest lists is not there."""


class BundleTruncatedError(BundleError):
    """A file's length differs from the manifest."""


class BundleEditedError(BundleError):
    """A file's sha256 differs from the manifest."""


class BundleSignatureError(BundleError):
    """The bundle is not signed, or not by a key that is trusted."""


class BundleSchemaError(BundleError):
    """The manifest was written by a newer Fathom, or is not a manifest at all."""


class ParityError(FathomError):
    """An exported engine disagrees with the model it was exported from."""


class ConnectError(FathomError):
    """A server cannot be reached or answered with an error."""


class RequestError(FathomError):
    """A single request cannot be answered; the server maps each kind to one status."""


class InvalidRequestError(RequestError):
    """The request contradicts itself or the contract."""


class NotFoundError(RequestError):
    """Something that the request names does not exist here."""


class UnauthenticatedError(RequestError):
    """Who calls has not proved who that is."""


class PermissionDeniedError(RequestError):
    """Who calls may not do that."""


class DeadlineError(RequestError):
    """The deadline has passed, or no allowed depth can meet it."""


class OverloadError(RequestError):
    """The server is full; try again after ``retry_after_s`` seconds (None: it cannot say)."""

    def __init__(self, text: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class LimitError(OverloadError):
    """Who calls asks for more than its limit; others are answered."""


class UnavailableError(RequestError):
    """The server is starting, draining or has lost its engine."""


class ServerFailedError(FathomError):
    """A fault of the server itself, which its log describes, has ended it."""
