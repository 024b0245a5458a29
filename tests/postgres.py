"""A PostgreSQL server for one test session: an unprivileged user's, in a temporary folder, on a unix socket alone."""

from __future__ import annotations

import getpass
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROLE = "searcher"


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        folder: Where its socket is.
        password: Of `ROLE`; the server asks for it.
    """

    folder: Path
    password: str
    user: str
    programs: Path

    def url(self, password: str) -> str:
        """Of the database "postgres"; ``password`` stands where the password goes."""
        return f"postgresql://{ROLE}:{password}@/postgres?host={self.folder}"

    def run(self, program: str, *arguments: str) -> None:
        """One of PostgreSQL's programs, as the unprivileged user."""
        own = {} if self.user == getpass.getuser() else {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid}
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program != "pg_ctl" else subprocess.DEVNULL,  # the server would keep a pipe open
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            check=False,
            text=True,
            **own,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, f"{program} failed: {done.stdout}"


def programs() -> Path | None:
    """The folder of initdb and pg_ctl, on the path or where Debian's package puts the newest; None if there is none."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda folder: int(folder.parent.name), default=None)


@contextmanager
def postgres_server() -> Iterator[Server]:
    """A server until the block ends; nothing is left of it."""
    where = programs()
    assert where is not None, "PostgreSQL is not installed; `make test-postgres` installs Debian's package"
    user = getpass.getuser() if os.getuid() else _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="optmerge-pg-"))  # short: a socket's path has at most 107 bytes
    server = Server(folder, secrets.token_hex(12), user, where)
    try:
        (folder / "password").write_text(server.password)
        if not os.getuid():
            for path in (folder, folder / "password"):
                os.chown(path, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        data = str(folder / "data")
        server.run(
            "initdb", "-D", data, "-U", ROLE, "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync"
        )
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        server.run("pg_ctl", "-D", data, "-l", str(folder / "log"), "-w", "-o", options, "start")
        try:
            yield server
        finally:
            server.run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> str:
    """PostgreSQL refuses to run as root."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise AssertionError("there is no user postgres or nobody to run a server as; run the tests as another user")
