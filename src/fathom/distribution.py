"""What is installed: the name under which packages are found, and its version."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from fathom.errors import ConfigError

NAME = "fathom"


def version() -> str:
    """The installed version; raises ConfigError where only the source is on the path."""
    try:
        return installed_version(NAME)
    except PackageNotFoundError:
        raise ConfigError(
            f"{NAME} is not installed here, so it has no version; run pip install . in its folder"
        ) from None
