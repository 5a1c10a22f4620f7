"""A PostgreSQL server of one's own: in a temporary folder, reachable through a socket in it, gone with the test.

Used by the fixtures of ``tests/conftest.py`` and by ``hack/bench planner``. As root the server runs as the user that
Debian's package makes, or as ``nobody``: PostgreSQL refuses to run as root. No cluster of the system is touched.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

#: Debian keeps the server's programs out of the path; newest version first.
_PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
USER = "holdfast"
#: As a small server has it.
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "50",
    "shared_buffers": "64MB",
    "max_wal_size": "4GB",
    "logging_collector": "off",
}


def programs() -> Path | None:
    """The folder of the server's programs, None where the package is missing."""
    for place in _PLACES:
        if (place / "initdb").exists():
            return place
    found = shutil.which("initdb")
    return Path(found).parent if found else None


#: For tests in which only processes die: what a killed one wrote is in the kernel's hands, as with SQLite.
HASTY = {"fsync": "off", "full_page_writes": "off"}


class Server:
    """A running server; ``stop`` ends it and removes its folder."""

    def __init__(self, folder: Path, **settings: str) -> None:
        """Make the cluster in ``folder``, which must not be deep (a socket's path is short), and start it."""
        found = programs()
        if found is None:
            raise FileNotFoundError("PostgreSQL's server programs; install the package postgresql")
        self._programs = found
        self.folder = folder
        self.sockets = folder / "sockets"
        self._data = folder / "data"
        self._settings = {**_SETTINGS, "unix_socket_directories": str(self.sockets), **settings}
        self._process: subprocess.Popen[bytes] | None = None
        for path in (folder, self.sockets, self._data):
            path.mkdir(exist_ok=True)
        self._own(folder, self.sockets, self._data)
        self._run("initdb", "-D", self._data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.start()

    @staticmethod
    def temporary(**settings: str) -> Server:
        """One in a new folder under the system's temporary one."""
        return Server(Path(tempfile.mkdtemp(prefix="holdfast-pg-")), **settings)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as_somebody(), str(self._programs / "postgres"), "-D", str(self._data), *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while self._ask("pg_isready", "-q").returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.05)

    def halt(self, how: int = signal.SIGINT) -> None:
        """End the server, by default in order and at once (SIGINT); SIGQUIT is as good as a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def stop(self) -> None:
        """End the server and leave nothing behind."""
        self.halt()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, name: str) -> str:
        """The location of a database as ``--catalog`` takes it."""
        return f"postgresql://{USER}@/{name}?host={self.sockets}"

    def create(self, name: str, *, template: str = "template0") -> str:
        """A new database; its URL."""
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop(self, name: str) -> None:
        """Remove a database, whoever is connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, *statements: str, name: str = "postgres") -> str:
        """Run SQL through psql; what it prints."""
        words = [word for statement in statements for word in ("-c", statement)]
        done = self._ask("psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-d", name, *words)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout

    def _ask(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self._programs / program), "-h", str(self.sockets), "-U", USER, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [*self._as_somebody(), str(self._programs / program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd="/")
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}")

    def _as_somebody(self) -> list[str]:
        if os.geteuid():
            return []
        user = _somebody()
        return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]

    @staticmethod
    def _own(*paths: Path) -> None:
        if os.geteuid() == 0:
            user = _somebody()
            for path in paths:
                os.chown(path, user.pw_uid, user.pw_gid)


def _somebody() -> pwd.struct_passwd:
    """Whoever runs the server where this process is root."""
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
