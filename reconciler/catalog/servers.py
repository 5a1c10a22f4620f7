"""PostgreSQL as the catalog: from a ``postgresql://`` URL to an engine, and from its errors to sentences.

Called by ``database``, which is about files otherwise; ``leases`` asks for the server's clock. The URL is read as
PostgreSQL's own tools read it, ``postgresql://USER@HOST:PORT/NAME?sslmode=verify-full``, a folder as ``host`` for a
socket; what it leaves out comes from ``PGHOST``, ``PGPORT``, ``PGUSER``, ``PGPASSWORD`` and ``~/.pgpass``. The password
is never part of what is printed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import getpass
import os
import socket
import ssl
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import exc

from reconciler.base import errors, times
from reconciler.catalog import tables

#: How long a server may take to answer when a connection is made, in seconds.
_PATIENCE: Final = 10
#: A connection whose peer says nothing for so long is dead, in seconds: a host that lost its power does not say so.
_SILENCE: Final = 30
#: Any fixed number: writers of one catalog queue on it.
_ADVISORY_LOCK: Final = 0x486F6C64
_TLS: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SCHEMES: Final = ("postgresql:", "postgresql+", "postgres:")
_CLOCK: Final = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"
#: Gives every column of texts that has the database's own order the order of bytes.
_TEXTS: Final = """
DO $$ DECLARE one record; BEGIN
  FOR one IN
    SELECT table_name, column_name, format_type(a.atttypid, a.atttypmod) AS type
    FROM information_schema.columns c
    JOIN pg_attribute a ON a.attrelid = format('%I.%I', table_schema, table_name)::regclass AND a.attname = column_name
    WHERE table_schema = current_schema() AND collation_name IS NULL AND a.attcollation <> 0 AND a.attgenerated = ''
  LOOP
    EXECUTE format('ALTER TABLE %I ALTER COLUMN %I TYPE %s COLLATE "C"', one.table_name, one.column_name, one.type);
  END LOOP;
END $$
"""


class _NoAnswer(Exception):
    """No connection was made; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a catalog's server is, and as whom to go there."""

    #: Name or number of a host, or the folder of a socket.
    host: str
    port: int
    user: str
    database: str
    password: str | None = dataclasses.field(repr=False)
    #: ``disable`` to ``verify-full``.
    tls: str
    #: File of the certificates to believe, None for the system's.
    root_certificates: str | None

    @property
    def socket(self) -> str | None:
        """The file of a local socket, None for a host of the network."""
        return f"{self.host}/.s.PGSQL.{self.port}" if self.host.startswith("/") else None

    @property
    def place(self) -> str:
        """The server, for messages."""
        return self.socket or f"{self.host}:{self.port}"


def is_url(location: str) -> bool:
    """Whether a catalog's location is a server's URL, not a file."""
    return location.startswith(_SCHEMES)


def shown(location: str) -> str:
    """A location without its password, for messages and saved plans."""
    if not is_url(location):
        return location
    try:
        return _url(location)._replace(password=None).render_as_string(hide_password=False).replace("%2F", "/")
    except errors.UsageError:
        return location.partition(":")[0] + "://…"


def _url(location: str) -> sa.URL:
    try:
        return sa.make_url(location).set(drivername="postgresql")
    except (exc.ArgumentError, ValueError) as error:
        raise errors.UsageError(
            "the catalog's URL cannot be read", hint="write it as postgresql://USER@HOST:PORT/NAME"
        ) from error


def address(location: str, environment: Mapping[str, str] = os.environ) -> Address:
    """What a URL says, completed from the environment. Raises ``UsageError`` for one that says too little."""
    url = _url(location)
    query = {name: str(value) for name, value in url.query.items()}
    unknown = sorted(query.keys() - {"host", "port", "user", "sslmode", "sslrootcert"})
    if unknown:
        raise errors.UsageError(f"the catalog's URL asks for {unknown[0]}, which Holdfast does not know")
    host = query.get("host") or url.host or environment.get("PGHOST") or "localhost"
    user = url.username or query.get("user") or environment.get("PGUSER") or getpass.getuser()
    database = url.database or environment.get("PGDATABASE") or user
    tls = query.get("sslmode") or environment.get("PGSSLMODE") or "prefer"
    port = query.get("port") or str(url.port or environment.get("PGPORT") or 5432)
    if tls not in _TLS or not port.isdigit():
        raise errors.UsageError(
            f"the catalog's URL says {'sslmode=' + tls if tls not in _TLS else 'port ' + port}",
            hint=f"sslmode is one of {', '.join(_TLS)}; a port is a number",
        )
    found = Address(
        host=host,
        port=int(port),
        user=user,
        database=database,
        password=None,
        tls=tls,
        root_certificates=query.get("sslrootcert") or environment.get("PGSSLROOTCERT"),
    )
    given = str(url.password) if url.password is not None else environment.get("PGPASSWORD")
    return dataclasses.replace(found, password=given or _remembered(found, environment))


def _remembered(wanted: Address, environment: Mapping[str, str]) -> str | None:
    """The password in the user's password file, if that is nobody else's to read."""
    path = Path(environment.get("PGPASSFILE") or Path.home() / ".pgpass")
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            return None
        lines = path.read_text().splitlines()
    except OSError:
        return None
    here = ("localhost" if wanted.socket else wanted.host, str(wanted.port), wanted.database, wanted.user)
    for line in lines:
        fields = line.replace("\\:", "\0").split(":")
        if len(fields) == 5 and not line.startswith("#") and all(map(_fits, fields, here)):
            return fields[4].replace("\0", ":").replace("\\\\", "\\")
    return None


def _fits(pattern: str, value: str) -> bool:
    return pattern in ("*", value) or pattern.replace("\0", ":") == value


def engine(location: str, *, read_only: bool = False) -> sa.Engine:
    """An engine whose transactions read one moment, or write alone. Raises ``CatalogError`` without the driver."""
    where = address(location)
    try:
        made = sa.create_engine(
            "postgresql+pg8000://",
            creator=lambda: _connect(where, read_only),
            pool_size=4,
            max_overflow=-1,
            pool_pre_ping=True,
        )
    except ModuleNotFoundError as error:
        raise errors.CatalogError(
            f"a PostgreSQL catalog needs the Python package {error.name}",
            hint="install it beside Holdfast: pip install 'holdfast[postgresql]'",
        ) from error
    # Loading a dump row by row would be a round trip for each.
    made.dialect.use_insertmanyvalues_wo_returning = True

    def begin(connection: sa.Connection) -> None:
        writing = connection.get_execution_options().get("holdfast_writing", False)
        if writing:
            # A snapshot taken before the lock was granted would be stale: each statement looks anew.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        elif writing is False:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

    sa.event.listen(made, "begin", begin)
    return made


def clock(connection: sa.Connection) -> dt.datetime:
    """The time by the server's clock, the only one that processes on several hosts share."""
    return times.to_moment(int(connection.exec_driver_sql(_CLOCK).scalar_one()))


def count_on(connection: sa.Connection) -> None:
    """Let numbers that the server counts up go on after those that rows were given: a dump was loaded."""
    for table in tables.METADATA.sorted_tables:
        if table.autoincrement_column is not None:
            top = f"SELECT COALESCE(MAX(number), 0) + 1 FROM {table.name}"
            sequence = f"pg_get_serial_sequence('{table.name}', 'number')"
            connection.exec_driver_sql(f"SELECT setval({sequence}, ({top}), false)")


def order_by_bytes(connection: sa.Connection) -> None:
    """Let every text of the schema be ordered by its bytes, as in SQLite, whatever the database was created with."""
    connection.exec_driver_sql(_TEXTS)


def _connect(where: Address, read_only: bool) -> Any:
    from pg8000 import dbapi

    try:
        plain = _socket(where)
        context = _context(where)
    except OSError as error:
        raise _NoAnswer(error.strerror or str(error)) from error
    try:
        return dbapi.connect(
            user=where.user,
            host=where.host,
            database=where.database,
            port=where.port,
            password=where.password,
            sock=plain,
            ssl_context=context,
            application_name="holdfast",
            # A plan's few large queries are over before compiling them would pay.
            startup_params={
                "lock_timeout": "30s",
                "jit": "off",
                "default_transaction_read_only": "on" if read_only else "off",
            },
        )
    except OSError as error:
        plain.close()
        raise _NoAnswer(str(error)) from error
    except BaseException:
        plain.close()
        raise


def _socket(where: Address) -> socket.socket:
    """A connected socket that notices a peer which is gone. Raises ``OSError``."""
    if where.socket is not None:
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            plain.settimeout(_PATIENCE)
            plain.connect(where.socket)
        except BaseException:
            plain.close()
            raise
    else:
        plain = socket.create_connection((where.host, where.port), _PATIENCE)
        for option, value in (
            (socket.TCP_KEEPIDLE, _SILENCE // 3),
            (socket.TCP_KEEPINTVL, _SILENCE // 3),
            (socket.TCP_KEEPCNT, 2),
            (socket.TCP_USER_TIMEOUT, _SILENCE * 1000),
            (socket.TCP_NODELAY, 1),
        ):
            plain.setsockopt(socket.IPPROTO_TCP, option, value)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    plain.settimeout(None)
    return plain


def _context(where: Address) -> ssl.SSLContext | bool | None:
    """What the driver understands: no TLS, TLS if there is any, or this context."""
    if where.socket is not None or where.tls in ("disable", "allow"):
        return False
    if where.tls == "prefer":
        return None
    context = ssl.create_default_context(cafile=where.root_certificates)
    if where.tls != "verify-full":
        context.check_hostname = False
    if where.tls == "require" and where.root_certificates is None:
        context.verify_mode = ssl.CERT_NONE
    return context


@contextlib.contextmanager
def explained(location: str) -> Iterator[None]:
    """Turn what the server says into ``CatalogError`` with the next step."""
    try:
        yield
    except exc.IntegrityError as error:
        raise errors.CatalogError(f"{shown(location)}: the catalog refuses the change: {_said(error)}") from error
    except exc.SQLAlchemyError as error:
        raise _explain(location, _state(error), _said(error)) from error
    except _NoAnswer as error:
        raise _silent(location, str(error)) from error


def _fields(error: BaseException) -> Mapping[str, str]:
    """What the server said, which the driver hides behind its own failure to take leave of a server that hung up."""
    one: BaseException | None = getattr(error, "orig", None) or error
    while one is not None:
        if one.args and isinstance(one.args[0], dict):
            return one.args[0]
        one = one.__cause__ or one.__context__
    return {}


def _state(error: BaseException) -> str:
    """The SQLSTATE, empty where the connection itself failed."""
    return _fields(error).get("C", "")


def _said(error: BaseException) -> str:
    fields = _fields(error)
    return fields.get("M") or str(getattr(error, "orig", None) or error)


def _silent(location: str, why: str) -> errors.CatalogError:
    return errors.CatalogError(
        f"{shown(location)}: the catalog's server {address(location).place} does not answer: {why}",
        hint="start PostgreSQL there, or correct --catalog",
    )


def _explain(location: str, state: str, said: str) -> errors.CatalogError:
    where, place = shown(location), address(location).place
    if state.startswith("23"):
        return errors.CatalogError(f"{where}: the catalog refuses the change: {said}")
    if not state or state.startswith(("08", "57P")):
        return _silent(location, said)
    if state == "55P03":
        return errors.CatalogError(f"{where}: the catalog was busy for 30 s", hint="try again; see holdfast status")
    if state.startswith("28"):
        return errors.CatalogError(
            f"{where}: {place} does not let {address(location).user} in: {said}",
            hint="set PGPASSWORD, write ~/.pgpass (mode 600), or see the server's pg_hba.conf",
        )
    if state == "3D000":
        return errors.CatalogError(
            f"{where}: {place}: {said}", hint=f"make it: createdb -h {address(location).host} NAME"
        )
    if state in ("42501", "25006"):
        return errors.CatalogError(
            f"{where}: the catalog cannot be opened: {said}", hint="let the catalog's user own its database"
        )
    if state.startswith("53"):
        return errors.CatalogError(
            f"{where}: the catalog cannot be written: {said}", hint=f"see to the server {place}: space, connections"
        )
    return errors.CatalogError(
        f"{where}: the catalog cannot be read: {said}",
        hint="restore the database, or name an empty one: holdfast catalog rebuild --from UNIT... --catalog URL",
    )
