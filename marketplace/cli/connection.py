"""Which server, and as whom: the environment, then a saved login, then a marketplace running in this folder."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from marketplace.cli.problems import Problem, problem, usage

LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the API is and the token that opens it. `source` says in words where we got them."""

    url: str
    token: str = field(repr=False)
    source: str

    @property
    def is_local(self) -> bool:
        return (urlsplit(self.url).hostname or "").rstrip(".") in LOOPBACK

    @property
    def is_private(self) -> bool:
        """True if nobody on the way can read the token."""
        return self.is_local or self.url.startswith("https://")


def find_connection(environ: Mapping[str, str] = os.environ) -> Connection:
    """Return the first connection there is, in the order that this module's first line names."""
    url, token = environ.get("GPUMARKET_URL"), environ.get("GPUMARKET_TOKEN")
    if url and token:
        return Connection(url=clean_url(url), token=clean_token(token), source="GPUMARKET_URL and GPUMARKET_TOKEN")
    if url or token:
        # Sending this token to a saved address, or a saved token to this address, would be a guess.
        raise not_connected(
            f"GPUMARKET_{'URL' if url else 'TOKEN'} is set, but GPUMARKET_{'TOKEN' if url else 'URL'} is not."
        )
    for path in (login_path(environ), Path(environ.get("GPUMARKET_HOME") or ".gpumarket") / "connection.json"):
        if found := read_connection(path):
            return found
    raise not_connected("No address and token were found.")


def read_connection(path: Path) -> Connection | None:
    """Return what a file says, None if there is no such file; refuse one that cannot be read."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Connection(url=clean_url(str(stored["url"])), token=clean_token(str(stored["token"])), source=str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise not_connected(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise not_connected(f"{path} is not a connection: it needs a url and a token.") from error


def login_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where a login is kept: the user's configuration folder, by the custom of the system."""
    if sys.platform == "win32":
        base = environ.get("APPDATA") or str(Path.home() / "AppData" / "Roaming")
    else:
        base = environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "gpumarket" / "login.json"


def save_login(connection: Connection, *, path: Path) -> None:
    """Keep a login for later calls, readable by its owner alone from its first byte on."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump({"url": connection.url, "token": connection.token}, file)
    unfinished.replace(path)


def clean_url(url: str) -> str:
    """Return the address of the marketplace without path; refuse what is not an address."""
    text = url.strip().rstrip("/").removesuffix("/api/v1")
    try:
        parts = urlsplit(text)
        # Reading the port is what checks it.
        is_address = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or True)
    except ValueError:
        is_address = False
    if not is_address or not is_one_word(text):
        raise usage(
            "This is not the address of a marketplace.",
            detail=f"{url!r} does not begin with http:// or https:// and a name.",
            suggestion="Give it like this: https://gpu.example.com",
        )
    return text


def clean_token(token: str) -> str:
    """Return the token without the space around it; refuse what cannot be one."""
    text = token.strip()
    if not is_one_word(text):
        raise usage("This is not an API token.", suggestion="Make one in the portal, under Tokens; it begins with gm_.")
    return text


def is_one_word(text: str) -> bool:
    """True if the text can stand in a header or an address: ASCII without spaces or control characters."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def not_connected(detail: str) -> Problem:
    return problem(
        code="not_connected",
        title="The command line does not know which marketplace to talk to.",
        detail=detail,
        suggestion="Do one of these three:\n"
        "    1. gpumarket login https://gpu.example.com\n"
        "    2. set GPUMARKET_URL and GPUMARKET_TOKEN\n"
        "    3. start a marketplace here (uv run manage.py up), or point GPUMARKET_HOME at its folder",
    )
