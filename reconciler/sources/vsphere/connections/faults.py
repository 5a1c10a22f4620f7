"""What a vCenter complains of, in its own words, as Holdfast's errors."""

from __future__ import annotations

import http.client
import ssl
import xml.parsers.expat
from typing import Final

from pyVmomi import vim, vmodl

from reconciler.api import vcenters
from reconciler.base import errors
from reconciler.sources.vsphere.connections import certificates

#: What a call may raise besides a fault of the API.
BROKEN: Final = (OSError, http.client.HTTPException, xml.parsers.expat.ExpatError)
#: What pyVmomi raises over an answer that contradicts the API's description.
STRANGE: Final = (TypeError, ValueError, LookupError, AttributeError)
#: The session ended; the call was not executed.
_SESSION: Final = (vim.fault.NotAuthenticated,)


class VSphereFault(errors.SourceError):
    """The vCenter refused or failed; ``fault`` is its name for why, such as ``FileLocked``."""

    fault: str = ""


class LoginRefused(errors.SourceError):
    """User or password are wrong, or the user may not log in."""

    retryable = False


class PrivilegeMissing(VSphereFault):
    """The user may not do this."""

    retryable = False


class Vanished(VSphereFault):
    """The machine or snapshot does not exist any more."""


def is_session(error: BaseException) -> bool:
    """Whether a call failed only because nobody is logged in."""
    return isinstance(error, _SESSION)


def kind(error: BaseException) -> str:
    """The API's name of a fault, such as ``FileLocked``."""
    return type(error).__name__.rpartition(".")[2]


def words(error: BaseException) -> str:
    """A fault's name and its own words in one line."""
    parts = [str(getattr(error, "msg", "") or "").strip()]
    for message in getattr(error, "faultMessage", None) or ():
        parts.append(str(getattr(message, "message", "") or "").strip())
    if not any(parts):
        parts = [str(getattr(error, "reason", "") or getattr(error, "name", "") or "").strip()]
    said = "; ".join(dict.fromkeys(part for part in parts if part))
    return f"{kind(error)}: {said}" if said else kind(error)


def translated(spec: vcenters.VCenterSpec, error: BaseException, doing: str) -> errors.HoldfastError:
    """An error that says what was being done, with the fault's own words. ``doing``: ``VM oblVM1: snapshot``."""
    if isinstance(error, errors.HoldfastError):
        return error
    if isinstance(error, vim.fault.InvalidLogin):
        return LoginRefused(f"{doing}: {spec.server} refuses the user or the password", hint="correct the credential")
    if is_session(error):
        return _fault(VSphereFault, error, doing, "sessions end at once; see who ends them")
    if isinstance(error, vim.fault.NoPermission):
        privilege = getattr(error, "privilegeId", None) or "a privilege"
        return _fault(PrivilegeMissing, error, doing, f"give the user {privilege}; README lists what is needed")
    if isinstance(error, vmodl.fault.ManagedObjectNotFound):
        return _fault(Vanished, error, doing, "it was removed meanwhile")
    if isinstance(error, vmodl.MethodFault):
        return _fault(VSphereFault, error, doing, "the vCenter's own task list says more")
    if isinstance(error, ssl.SSLError):
        return certificates.untrusted(spec, error)
    if isinstance(error, OSError):
        broken = certificates.unreachable(spec, error)
        return errors.SourceError(f"{doing}: {broken.message}", hint=broken.hint)
    if isinstance(error, BROKEN):
        return errors.SourceError(
            f"{doing}: {spec.server}:{spec.port} gave no whole answer: {str(error) or type(error).__name__}",
            hint="check that the vCenter is well",
        )
    if isinstance(error, STRANGE):
        return errors.SourceError(
            f"{doing}: {spec.server}:{spec.port} answered what cannot be understood: {kind(error)}: {error}",
            hint="the server contradicts the API's description; update it, or pyvmomi",
        )
    raise error


def _fault(kind_of: type[VSphereFault], error: BaseException, doing: str, hint: str) -> VSphereFault:
    made = kind_of(f"{doing}: {words(error)}", hint=hint)
    made.fault = kind(error)
    return made
