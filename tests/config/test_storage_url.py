from __future__ import annotations

import pytest

from optmerge.config.drivers import OptunaConfig
from optmerge.config.storage_url import check_storage_url, opened_url
from optmerge.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("studies.db", "has no scheme; expected postgresql://"),
        ("postgres://me@db/studies", "has 'postgres'.*Did you mean 'postgresql'"),
        ("postgresql://me:hunter2@db/studies", "has a password in it.*PGPASSWORD"),
        ("postgresql://me:hunter${PW}@db/studies", "has a password in it"),
        ("mysql://db/studies?user=me&passwd=hunter2", "has a password in it"),
        ("postgresql://[db/studies", "not a URL that can be read"),
        ("sqlite://", "expected sqlite:///FILE"),
        ("sqlite://studies.db", "expected sqlite:///FILE"),
    ],
)
def test_what_is_no_storage_is_refused_without_its_secret(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_storage_url(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@db:5432/studies",
        "postgresql://me:${PW}@db/studies",
        "postgresql:///studies?host=/run/postgresql",
        "mysql+pymysql://me:${PW}@db/studies",
        "sqlite:////tmp/studies.db",
    ],
)
def test_a_storage_stays_as_it_is_written(url: str) -> None:
    assert OptunaConfig(storage=url).storage == url


def test_names_are_read_from_the_environment_where_secrets_are_quoted_and_paths_are_not() -> None:
    environment = {"PW": "p@ss/w:rd?", "WHERE": "/var/data", "KEY": "a&b"}
    assert (
        opened_url("mysql://me:${PW}@db${WHERE}/studies?ssl_key=${KEY}", environment)
        == "mysql+pymysql://me:p%40ss%2Fw%3Ard%3F@db/var/data/studies?ssl_key=a%26b"
    )
    with pytest.raises(ConfigError, match=r"names \$\{NOBODY\}.*export NOBODY="):
        opened_url("sqlite:///${NOBODY}.db", environment)


def test_a_study_needs_a_storage() -> None:
    with pytest.raises(ValueError, match="study names a study of a storage, and there is none"):
        OptunaConfig(study="mine")
