"""Where a study lives that several machines share: a database's URL, which never holds a secret.

A search file is copied into its run, to W&B and into reports, so a password is named, not written:

    storage: postgresql://me:${STUDY_PASSWORD}@db.example.org/studies

``${NAME}`` is read from the environment when the database is opened. PostgreSQL's own ways (``PGPASSWORD``,
``~/.pgpass``) need nothing in the URL at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import parse_qsl, quote, urlsplit

from pydantic import AfterValidator

from optmerge.errors import ConfigError, did_you_mean

# scheme as written -> as SQLAlchemy wants it, with the package that speaks to the database
SCHEMES = {
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mysql+pymysql": "mysql+pymysql",
    "sqlite": "sqlite",
}
_SECRET_KEYS = frozenset({"password", "passwd", "sslpassword"})
_NAME = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def check_storage_url(url: str) -> str:
    """The URL as it was written, if it is one of a database and has no secret in it.

    Raises:
        ValueError: It is not; the message repeats nothing of the URL but its scheme.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        what = repr(scheme) if separator else "no scheme"
        raise ValueError(
            f"the URL of a storage has {what}; expected postgresql://, mysql:// or, for processes of one machine, "
            f"sqlite:///.{did_you_mean(scheme, SCHEMES) if separator else ''}"
        )
    try:
        password, query, host = urlsplit(url).password, urlsplit(url).query, urlsplit(url).hostname
    except ValueError:
        raise ValueError("the storage is not a URL that can be read; expected scheme://user@host/database") from None
    secrets = [password, *(value for key, value in parse_qsl(query) if key.lower() in _SECRET_KEYS)]
    if any(secret and not _NAME.fullmatch(secret) for secret in secrets):
        raise ValueError(
            "the URL has a password in it, and search files are copied into runs, reports and W&B. Write a name in its "
            "place, such as ${STUDY_PASSWORD}, which is read from the environment; or leave it out and use PGPASSWORD "
            "or ~/.pgpass"
        )
    if scheme == "sqlite" and (host or not rest.strip("/")):
        raise ValueError("sqlite is a file of this machine; expected sqlite:///FILE or sqlite:////absolute/FILE")
    return url


StorageUrl = Annotated[str, AfterValidator(check_storage_url)]


def opened_url(url: str, environment: Mapping[str, str] = os.environ) -> str:
    """The URL for SQLAlchemy, names replaced by what the environment has. It may hold secrets: show it to nobody.

    >>> opened_url("postgresql://me:${PW}@db/studies", {"PW": "a/b"})
    'postgresql+psycopg://me:a%2Fb@db/studies'
    >>> opened_url("sqlite:///${HOME}/studies.db", {"HOME": "/home/me"})
    'sqlite:////home/me/studies.db'

    Raises:
        ConfigError: A name is not set.
    """

    def value(match: re.Match[str]) -> str:
        found = environment.get(match.group(1))
        if found is None:
            raise ConfigError(
                f"driver.storage names ${{{match.group(1)}}}, and the environment has no such variable: "
                f"export {match.group(1)}=... before the search is started or resumed."
            )
        return quote(found, safe="") if match.start() < credentials or match.start() > path else found

    scheme, _, rest = url.partition("://")
    path = len(rest.partition("?")[0])
    credentials = rest.rfind("@", 0, path)
    return f"{SCHEMES[scheme]}://{_NAME.sub(value, rest)}"
