"""Signs bundles, and makes the keys for it; openssl does the same (docs/bundle-format.md)."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.artefacts import BUNDLE, KEY, check_output, check_outputs, real
from fathom.errors import BundleEditedError, ConfigError, MissingExtraError
from fathom.exporter.bundle.derive import write_files
from fathom.files import new_folder
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import MANIFEST_NAME, SIGNATURE_NAME
from fathom.runtime.manifest_file import parse_manifest, read_manifest_bytes
from fathom.runtime.signature import Trust, read_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def make_keys(private: Path, public: Path) -> None:
    """Write a new pair of keys as PEM; the private one for its owner alone. OutputError where a file exists."""
    try:
        from cryptography.hazmat.primitives import serialization as pem
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise MissingExtraError("cryptography", "sign") from error
    check_outputs((private, KEY), (public, KEY))
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    _create(private, secret, 0o600)
    _create(public, key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo), 0o644)


def sign_bundle(path: Path, key_file: Path) -> None:
    """Sign a bundle, in place of a signature that it may have; only one that opens.

    Raises BundleError for one that does not, OutputError for a folder that holds other files, ConfigError for what is
    no private ed25519 key, MissingExtraError.
    """
    home = real(path)
    check_output(home, BUNDLE, inputs=[key_file])
    key = _private_key(key_file)
    data = read_manifest_bytes(home)
    with Bundle.open(home) as bundle, new_folder(home, BUNDLE) as folder:
        if parse_manifest(home / MANIFEST_NAME, data) != bundle.manifest:
            raise BundleEditedError(f"{home / MANIFEST_NAME}: changed while it was being signed; sign it again")
        write_files(folder, ((name, bundle.read(name)) for name in bundle.manifest.files))
        write_files(folder, [(MANIFEST_NAME, data), (SIGNATURE_NAME, key.sign(data))])
        Bundle.open(folder, trust=Trust([key.public_key()])).close()


def _create(file: Path, data: bytes, mode: int) -> None:
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None
    with os.fdopen(handle, "wb") as opened:
        opened.write(data)


def _private_key(file: Path) -> "Ed25519PrivateKey":
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise MissingExtraError("cryptography", "sign") from error
    try:
        key = load_pem_private_key(read_key(file), password=None)
    except TypeError:
        raise ConfigError(f"{file}: the key needs a password; sign with openssl, or a key without one") from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{file}: not a private ed25519 key in PEM; make a pair with `fathom bundle keygen`")
    return key
