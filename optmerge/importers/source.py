"""Reading the text of a file that comes from elsewhere."""

from __future__ import annotations

from pathlib import Path

from optmerge.errors import ConfigError


def read_source(file: Path) -> str:
    """The text of a configuration.

    Raises:
        ConfigError: It is missing, or no text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ConfigError(f"There is no file {file}. Name the YAML file of the configuration.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is no text. Name the YAML file of the configuration.") from None
