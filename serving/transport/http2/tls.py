"""What TLS has shown of a client, as gRPC names it."""

import ssl

from fathom.serving.transport.contract import AuthContext

#: Of a certificate's other names.
_NAMES = ("DNS", "URI", "email", "IP Address")


def auth_context_of(tls: ssl.SSLObject | None) -> AuthContext:
    """Empty without TLS, or without a certificate of the client."""
    encoded = None if tls is None else tls.getpeercert(binary_form=True)
    if tls is None or encoded is None:
        return {}
    shown = tls.getpeercert() or {}
    others = [each[1] for each in shown.get("subjectAltName", ()) if each[0] in _NAMES]
    common = [each[1] for parts in shown.get("subject", ()) for each in parts if each[0] == "commonName"]
    found = {
        "x509_common_name": [str(each).encode() for each in common],
        "x509_subject_alternative_name": [str(each).encode() for each in others],
        "x509_pem_cert": [ssl.DER_cert_to_PEM_cert(encoded).encode()],
    }
    return {name: values for name, values in found.items() if values}
