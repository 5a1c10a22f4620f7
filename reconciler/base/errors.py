"""One tree of errors. The exit code and whether a retry may help stand on the class; the cause is chained.

::

    HoldfastError                    1
    ├── UsageError                  64   wrong words on the command line, or a question without a terminal
    ├── ConfigurationError           4   manifests with errors; carries the diagnostics
    ├── TargetExists                 4   a restore would overwrite something
    ├── FormatTooNew                 4   written by a newer Holdfast
    ├── StalePlan                    5   the saved plan no longer describes what would happen
    ├── LeaseHeld                    6   another controller lives
    ├── Cancelled                  130   somebody asked the work to stop
    ├── NotFound                     1   a named object does not exist
    ├── CatalogError                 1   the catalog refuses or cannot be read
    ├── NeverViolated                1   a deletion that one of the six nevers forbids
    ├── SourceError                  1   the machine or its disks cannot be read as promised
    │   └── SourceChanged                … while it was read; a retry may see it still
    ├── GuestUnreadable              1   a file system inside a disk, or a file of it, cannot be read
    ├── UnitError                    1   a storage unit refuses
    │   ├── UnitOffline                  its folder or identity is missing
    │   ├── UnitReadOnly                 owned by another catalog, or not writable
    │   ├── UnitFull                     no space
    │   ├── ImageMissing                 the unit does not hold this image
    │   └── ImageDamaged                 stored bytes contradict their digests
    │       ├── AttachmentDamaged        … of a document beside the disks; what the disks hold is not concerned
    │       └── BlocksMissing            … on every copy: nobody has these bytes any more
    ├── TargetError                  1   a restore cannot write where it was told to
    ├── HookFailed                   1   a command around the backup failed
    └── EmulatorFailed               1   no machine could be started here, which says nothing about the image
"""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.base import diagnostics


class HoldfastError(Exception):
    """Anything Holdfast can explain. ``message`` says what is wrong, ``hint`` the next step."""

    exit_code: int = 1
    #: Whether trying the same again later may succeed without anybody changing anything.
    retryable: bool = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def code(self) -> str:
        """The CamelCase reason code under which jobs and conditions record this error."""
        return type(self).__name__

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(HoldfastError):
    """The command line cannot be obeyed as written."""

    exit_code = 64


class ConfigurationError(HoldfastError):
    """The manifests have errors; ``diagnostics`` holds every one of them."""

    exit_code = 4

    def __init__(
        self, message: str, problems: Sequence[diagnostics.Diagnostic] = (), *, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.diagnostics = tuple(problems)


class TargetExists(HoldfastError):
    """A restore target exists and ``--force`` was not given."""

    exit_code = 4


class FormatTooNew(HoldfastError):
    """Data on disk was written by a newer version of Holdfast than this one."""

    exit_code = 4


class StalePlan(HoldfastError):
    """What a saved plan describes has moved."""

    exit_code = 5


class LeaseHeld(HoldfastError):
    """Another controller holds the lease."""

    exit_code = 6


class Cancelled(HoldfastError):
    """The work was asked to stop, and stopped."""

    exit_code = 130


class NotFound(HoldfastError):
    """A named object does not exist."""


class CatalogError(HoldfastError):
    """The catalog cannot be opened, read or changed as asked."""


class CatalogTooOld(CatalogError):
    """An older Holdfast made the catalog, and this one reads it once a writer has migrated it."""


class NeverViolated(HoldfastError):
    """A deletion that one of the six nevers forbids; refused inside the deleting transaction."""


class SourceError(HoldfastError):
    """A machine or one of its disks cannot be read."""

    retryable = True


class SourceChanged(SourceError):
    """A disk changed, or was held open for writing, while it was read."""


class GuestUnreadable(HoldfastError):
    """A file system inside a disk, or one of its files, cannot be read: damaged, encrypted, or of an unknown kind."""


class UnitError(HoldfastError):
    """A storage unit cannot do what was asked."""

    retryable = True


class UnitOffline(UnitError):
    """The unit's folder, or the identity file in it, is not there."""


class UnitReadOnly(UnitError):
    """The unit belongs to another catalog, or its file system refuses writes."""


class UnitFull(UnitError):
    """The unit has no space for the write."""


class ImageMissing(UnitError):
    """The unit is online and does not hold the image."""

    retryable = False


class ImageDamaged(UnitError):
    """Bytes read back contradict the digests stored with them."""

    retryable = False


class AttachmentDamaged(ImageDamaged):
    """A document that an image carries beside its disks contradicts its digests; its disks may be whole."""


class BlocksMissing(ImageDamaged):
    """No copy of an image has some of its blocks."""


class ParentDamaged(UnitError):
    """The image that another one is written against cannot be read; written without it, that one can be."""


class VerificationFailed(HoldfastError):
    """A copy was tried and is not what it should be; the catalog has the result."""


class TargetError(HoldfastError):
    """A restore target cannot be written: no space, no permission, or a failing device."""

    retryable = True


class HookFailed(HoldfastError):
    """A hook command ended with a failure or ran out of time."""

    retryable = True


class EmulatorFailed(HoldfastError):
    """QEMU is missing, does not start, or died under its guest: nothing was learned about what was to be booted."""

    retryable = True
