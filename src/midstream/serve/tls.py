"""TLS: the context of a worker, made from the settings when it boots.

So an upgrade (HUP) takes the certificate that is on disk then, and one that cannot be used is a failed upgrade: the old
workers go on with what they have. What must not live here: sockets. Runs in the workers and in `--check`.
"""

from __future__ import annotations

import os
import ssl

from midstream.errors import OperatorError
from midstream.serve.settings import Settings


def context(settings: Settings) -> ssl.SSLContext:
    """For the server side, TLS 1.2 and later, HTTP/1.1. With ca_certs clients must show a certificate. Reads files.

    Raises OperatorError that names the file."""
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["http/1.1"])
    try:
        # An empty password: OpenSSL would otherwise ask for one on the terminal.
        made.load_cert_chain(settings.certfile, settings.keyfile or None, password="")
    except OSError as error:  # ssl.SSLError is one
        raise _error(settings, error) from error
    if settings.ca_certs:
        made.verify_mode = ssl.CERT_REQUIRED
        try:
            made.load_verify_locations(settings.ca_certs)
        except OSError as error:
            raise OperatorError(
                f"{settings.ca_certs} holds no certificates of authorities: {error.strerror or error}",
                where="--ca-certs",
                remedy="name a PEM file of authorities",
            ) from error
    return made


def _error(settings: Settings, error: OSError) -> OperatorError:
    for path, option in ((settings.certfile, "--certfile"), (settings.keyfile, "--keyfile")):
        if not path:
            continue
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as why:
            return OperatorError(
                f"{path} cannot be read: {why.strerror}", where=option, remedy=f"let uid {os.geteuid()} read it"
            )
    reason = getattr(error, "reason", "") or ""
    if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
        return OperatorError(
            f"the key does not belong to the certificate {settings.certfile}",
            where="--keyfile",
            remedy="name the key that the certificate was made with",
        )
    if not settings.keyfile and "PRIVATE KEY" not in _text(settings.certfile):
        return OperatorError(
            f"{settings.certfile} holds no private key", where="--certfile", remedy="name it: --keyfile"
        )
    remedy = (
        "openssl rsa takes the password away" if "ENCRYPTED" in _text(settings.keyfile or settings.certfile) else ""
    )
    what = f"{settings.certfile} and its key are no PEM files that OpenSSL reads: {reason or error.strerror or error}"
    return OperatorError(what, where="--certfile", remedy=remedy)


def _text(path: str) -> str:
    with open(path, encoding="latin-1") as file:
        return file.read(1024 * 1024)
