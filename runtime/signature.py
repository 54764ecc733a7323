"""Who made a bundle: an ed25519 signature over the exact bytes of its manifest, in ``manifest.sig`` beside it.

The manifest lists the sha256 of every file, so the signature speaks for all of the bundle.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.errors import BundleMissingFileError, BundleSignatureError, ConfigError, MissingExtraError, brief
from fathom.runtime.bundle_folder import read_regular
from fathom.runtime.manifest import MANIFEST_NAME, SIGNATURE_NAME

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE_BYTES = 64
_LARGEST_KEY = 64 << 10


class Trust:
    """The public keys that bundles may be signed with; at least one."""

    def __init__(self, keys: Sequence["Ed25519PublicKey"]) -> None:
        self._keys = keys

    @classmethod
    def load(cls, files: Sequence[Path]) -> "Trust | None":
        """Keys from PEM files; None for no file. Raises ConfigError for what is no such key, MissingExtraError."""
        return cls([_public_key(file) for file in files]) if files else None

    def check(self, root: Path, manifest: bytes) -> None:
        """Raise BundleSignatureError unless a trusted key has signed these bytes of the bundle's manifest."""
        from cryptography.exceptions import InvalidSignature

        file = root / SIGNATURE_NAME
        try:
            signature = read_regular(file, SIGNATURE_BYTES)
        except BundleMissingFileError:
            raise BundleSignatureError(f"{root}: not signed; sign it with `fathom bundle sign`") from None
        for key in self._keys:
            try:
                key.verify(signature, manifest)
                return
            except InvalidSignature:
                continue
        raise BundleSignatureError(f"{file}: no trusted key signed this {MANIFEST_NAME}; do not use the bundle")


def read_key(file: Path) -> bytes:
    """The beginning of a file, in which a key has room; raises ConfigError, and never waits, where no file is."""
    try:
        if file.exists() and not file.is_file():
            raise ConfigError(f"{brief(file, 160)}: not a regular file; give a PEM key")
        with file.open("rb") as opened:
            return opened.read(_LARGEST_KEY)
    except OSError as error:
        raise ConfigError(f"{brief(file, 160)}: cannot be read: {error.strerror}") from None


def _public_key(file: Path) -> "Ed25519PublicKey":
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise MissingExtraError("cryptography", "sign") from error
    try:
        key = load_pem_public_key(read_key(file))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{file}: not a public ed25519 key in PEM; make a pair with `fathom bundle keygen`")
    return key
