"""The port behind which jobs run: start a callable under a row of the catalog, watch it, stop it.

``controller`` starts what ``planning.dispatch`` chose and reads what finished; the operations it binds get a
``JobContext``. Duties of every engine, proven by ``tests/jobs/test_conformance.py``:

- The row is the truth. It exists before the callable is called, says ``Running`` as long as the callable has not
  returned, and takes its last state only afterwards, whatever anybody asked for meanwhile.
- An address is live once, over all processes: a second ``start`` is refused with ``CatalogError``.
- An engine decides nothing. It has no limits (``planning.dispatch`` has) and it retries nothing: the next attempt is
  planned from the rows of the earlier ones, with their backoff, and comes as a new job.
- A job may die at any point with its process. Its row is then declared ``Lost`` by whoever looks next, and the work is
  planned again; so every callable must be fit to be called again.
- Every method may be called from any thread.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Protocol

from reconciler.base import clocks, meters


class State(enum.StrEnum):
    """How a job's row stands."""

    QUEUED = "Queued"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    #: Done as far as possible; what is missing is said in the error.
    PARTIAL = "Partial"
    FAILED = "Failed"
    #: Somebody asked for this job to stop.
    CANCELLED = "Cancelled"
    #: Its process died or was stopped; nobody wanted this job in particular to end, and it counts against no retries.
    LOST = "Lost"


#: The error code of a ``Lost`` job whose engine was stopped, as opposed to killed.
STOPPED = "Stopped"
#: The error code of a ``Cancelled`` job that was stopped because its window closed, not because anybody asked.
WINDOW_CLOSED = "WindowClosed"
#: The error code of a job that ended by an exception nobody foresaw; its log holds the traceback.
UNEXPECTED = "Unexpected"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a job ended as it did: a CamelCase code and a sentence."""

    code: str
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a callable returns."""

    #: ``SUCCEEDED`` or ``PARTIAL``; everything else is raised.
    state: State = State.SUCCEEDED
    #: What is missing, where the state is ``PARTIAL``.
    failure: Failure | None = None

    def __post_init__(self) -> None:
        if self.state not in (State.SUCCEEDED, State.PARTIAL):
            raise ValueError(f"a callable returns Succeeded or Partial, never {self.state}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a job's row says of the work before it begins."""

    #: Address of the action, unique among live jobs.
    address: str
    #: Backup, Duplicate, Expire, ...
    type: str
    #: From 1, counted by planning.
    attempt: int = 1
    client_id: str | None = None
    policy: str | None = None
    #: Image that is written, read or expired.
    image: str | None = None
    #: Copy number within the image.
    copy: int | None = None
    #: Unit written to, or freed.
    unit: str | None = None
    source_unit: str | None = None
    media_server: str | None = None
    #: Image id that the work reads changes against; it must not expire meanwhile.
    parent: str | None = None
    #: What the jobs of one ``start_batch`` have in common, None for a job of its own.
    batch: str | None = None
    #: What it is expected to add to ``unit``, None where nothing says so.
    expected_bytes: int | None = None
    #: Token of the controller's lease: a newer holder makes ``start`` refuse. None outside a controller.
    fence: int | None = None


class JobContext(Protocol):
    """What a running callable may know and say of its job."""

    @property
    def id(self) -> str:
        """The job's id, such as ``j-000123``."""

    @property
    def meter(self) -> meters.Meter:
        """Counters to add to; ``meter.check()`` before each piece of work raises ``Cancelled`` when asked to stop."""

    @property
    def clock(self) -> clocks.Clock:
        """Where ``now`` comes from."""

    def log(self, line: str) -> None:
        """Add a line to the job's log; for the few that somebody will want to read. Raises ``CatalogError``."""

    def annotate(self, *, image: str | None = None, copy: int | None = None, unit: str | None = None) -> None:
        """Say in the job's row what it works on, once that is known. Raises ``CatalogError``."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Task(Order):
    """Work to be done under a row."""

    #: Called once. Returns how far it came, or raises: ``HoldfastError`` makes the job ``Failed`` with its code.
    run: Callable[[JobContext], Outcome]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A job that ended in this engine."""

    job_id: str
    address: str
    type: str
    state: State
    failure: Failure | None
    #: From the first call to the last return, by the monotonic clock.
    wall_seconds: float


class Engine(Protocol):
    """Runs tasks. See the module's docstring for its duties."""

    def start(self, task: Task) -> str:
        """Begin ``task`` and return its job id without waiting for it. Raises ``CatalogError`` where its address is
        live already, the fence is stale, the engine is draining, or the catalog can no longer be written."""

    def start_batch(self, tasks: Sequence[Task]) -> tuple[str, ...]:
        """Begin ``tasks`` one after another, in order, each under a row of its own that is ``Queued`` until its turn;
        their job ids. What becomes of one leaves the others alone. A task whose address is live, or whose copy leaves,
        is left out. Raises ``CatalogError`` as ``start`` does, with nothing begun."""

    def live(self) -> frozenset[str]:
        """Addresses of the jobs that this engine has begun and that have not ended."""

    def readings(self) -> tuple[tuple[str, meters.Reading], ...]:
        """Address and counters of each live job, for showing progress."""

    def wait(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds until ``finished`` has something to tell, and say whether it has.
        Raises ``CatalogError`` once the catalog is lost and nothing is left to tell."""

    def finished(self) -> tuple[Finished, ...]:
        """The jobs that ended since the last call, in the order in which they ended; each is told once."""

    def cancel(self, job_id: str, failure: Failure | None = None) -> None:
        """Ask one job of this engine to stop; it ends ``Cancelled`` with ``failure`` when its callable has returned.
        A job that is unknown here, or has ended, is no error."""

    def drain(self) -> None:
        """Begin nothing more. Live jobs go on."""

    def stop(self, grace: float) -> tuple[str, ...]:
        """Drain, ask every live job to stop, and wait at most ``grace`` seconds. They end ``Lost`` with the code
        ``STOPPED``. Returns the addresses whose callables have not returned: their rows stay ``Running`` until the
        process ends, so the caller says which they are and ends it with ``os._exit``."""
