"""Trust: what a VCenter's ``tls`` means as an SSL context, and the thumbprint of the certificate it leads to.

Verification is always on: the context is made here and handed to whoever connects, because pyVmomi verifies nothing of
its own on the loopback interface. A pinned thumbprint becomes a context that trusts exactly that certificate.
"""

from __future__ import annotations

import hashlib
import socket
import ssl

from reconciler.api import vcenters
from reconciler.base import errors

#: Seconds for one handshake.
_PATIENCE = 30.0


class Untrusted(errors.SourceError):
    """The server's certificate is not the one that was declared, or is signed by nobody who is trusted."""

    retryable = False


def context(spec: vcenters.VCenterSpec) -> ssl.SSLContext:
    """The context for every connection to this server. Raises ``Untrusted`` or ``SourceError``."""
    if spec.tls.thumbprint is not None:
        return _pinned(spec, spec.tls.thumbprint)
    if spec.tls.ca_file is None:
        return ssl.create_default_context()
    try:
        made = ssl.create_default_context(cafile=spec.tls.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise errors.SourceError(
            f"{spec.tls.ca_file}: cannot be read as certificates: {error}", hint="caFile is a PEM file"
        ) from error
    # What is named is trusted, be it the authority, one below it, or the server's own certificate.
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return made


def thumbprint(spec: vcenters.VCenterSpec, trusted: ssl.SSLContext) -> str:
    """SHA-1 of the server's certificate in 20 upper-case pairs, as VMware's tools want it, taken from a connection that
    ``trusted`` approves of. Raises ``Untrusted`` or ``SourceError``."""
    return _pairs(hashlib.sha1(_certificate(spec, trusted), usedforsecurity=False).hexdigest())


def _pinned(spec: vcenters.VCenterSpec, wanted: str) -> ssl.SSLContext:
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    shown = _certificate(spec, unverified)
    sha256 = len(wanted) > 59
    digest = hashlib.sha256(shown) if sha256 else hashlib.sha1(shown, usedforsecurity=False)
    found = _pairs(digest.hexdigest())
    if found != wanted.upper():
        raise Untrusted(
            f"{spec.server}:{spec.port} shows a certificate with thumbprint {found}, declared is {wanted.upper()}",
            hint="if the certificate was renewed, correct tls.thumbprint; else somebody may be listening",
        )
    # Every later handshake is verified against this certificate: what was compared is what is talked to.
    pinned = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    pinned.check_hostname = False
    pinned.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(shown))
    pinned.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return pinned


def _pairs(digits: str) -> str:
    return ":".join(digits[place : place + 2] for place in range(0, len(digits), 2)).upper()


def _certificate(spec: vcenters.VCenterSpec, trusted: ssl.SSLContext) -> bytes:
    """The server's certificate in DER."""
    try:
        with (
            socket.create_connection((spec.server, spec.port), _PATIENCE) as plain,
            trusted.wrap_socket(plain, server_hostname=spec.server) as secured,
        ):
            return secured.getpeercert(binary_form=True) or b""
    except ssl.SSLError as error:
        raise untrusted(spec, error) from error
    except OSError as error:
        raise unreachable(spec, error) from error


def untrusted(spec: vcenters.VCenterSpec, error: ssl.SSLError) -> errors.SourceError:
    """A handshake that failed, as an error."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Untrusted(
            f"{spec.server}:{spec.port}: its certificate is not trusted: {error.verify_message}",
            hint="name its authority in tls.caFile, or the certificate itself in tls.thumbprint",
        )
    return errors.SourceError(
        f"{spec.server}:{spec.port}: no TLS connection: {error.reason or error}", hint="is this the port of its API?"
    )


def unreachable(spec: vcenters.VCenterSpec, error: OSError) -> errors.SourceError:
    """A connection that could not be made or broke, as an error."""
    return errors.SourceError(
        f"{spec.server}:{spec.port}: {error.strerror or error or type(error).__name__}",
        hint="check server and port, and that the vCenter is up",
    )
