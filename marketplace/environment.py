"""What the outside tells us, read once and refused loudly when it is wrong or weak.

Values come from the process environment; what is missing there is taken from
`<home>/environment.json`, which `manage.py up` writes, so that other commands
find the servers of a marketplace that is up.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

WEAKEST_SECRET_KEY = 50
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]", "testserver")


class BadEnvironment(Exception):
    """The environment cannot be served; the message names each variable and what to do."""


@dataclass(frozen=True)
class Environment:
    """The settings of this process. `local` answers to localhost names only; `production` refuses weak values."""

    mode: str
    home: Path
    database_url: str
    redis_url: str
    secret_key: str
    secret_key_fallbacks: tuple[str, ...]
    public_url: str
    allowed_hosts: tuple[str, ...]
    log_format: str
    log_level: str
    email_url: str
    wipe_needs_scrub: bool
    gang_networks: str
    webhook_hosts: tuple[str, ...]
    artifacts: Path
    artifact_gib_max: int
    artifacts_project_gib_max: int
    stripe_api_key: str
    stripe_webhook_secret: str
    stripe_api_base: str

    @property
    def is_production(self) -> bool:
        return self.mode == "production"


def read(environ: Mapping[str, str]) -> Environment:
    """Return the environment of this process, or raise BadEnvironment with every fault at once."""
    home = Path(environ.get("GPUMARKET_HOME") or ".gpumarket").absolute()
    values = {**_written_by_up(home), **{name: value for name, value in environ.items() if value}}
    mode = values.get("GPUMARKET_MODE", "local")
    public_url = values.get("GPUMARKET_PUBLIC_URL", "http://127.0.0.1:8000").rstrip("/")
    environment = Environment(
        mode=mode,
        home=home,
        database_url=values.get("DATABASE_URL", ""),
        redis_url=values.get("REDIS_URL", ""),
        secret_key=values.get(
            "GPUMARKET_SECRET_KEY", "" if mode == "production" else "only-for-a-marketplace-on-localhost"
        ),
        secret_key_fallbacks=_listed(values.get("GPUMARKET_SECRET_KEY_FALLBACKS", "")),
        public_url=public_url,
        allowed_hosts=_listed(values.get("GPUMARKET_ALLOWED_HOSTS", "")) or (_host(public_url),),
        log_format=values.get("GPUMARKET_LOG_FORMAT", "json" if mode == "production" else "console"),
        log_level=values.get("GPUMARKET_LOG_LEVEL", "INFO").upper(),
        email_url=values.get("GPUMARKET_EMAIL_URL", ""),
        wipe_needs_scrub=values.get("GPUMARKET_WIPE_NEEDS_SCRUB", "0") not in {"0", "no", "false"},
        gang_networks=values.get("GPUMARKET_GANG_NETWORKS", "10.128.0.0/9"),
        webhook_hosts=_listed(values.get("GPUMARKET_WEBHOOK_HOSTS", "")),
        artifacts=Path(values.get("GPUMARKET_ARTIFACTS") or home / "artifacts").absolute(),
        artifact_gib_max=_whole(values.get("GPUMARKET_ARTIFACT_GIB_MAX", "50")),
        artifacts_project_gib_max=_whole(values.get("GPUMARKET_ARTIFACTS_PROJECT_GIB_MAX", "500")),
        stripe_api_key=values.get("STRIPE_API_KEY", ""),
        stripe_webhook_secret=values.get("STRIPE_WEBHOOK_SECRET", ""),
        stripe_api_base=values.get("STRIPE_API_BASE", ""),
    )
    if faults := _faults(environment):
        raise BadEnvironment("The environment cannot be served:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return environment


def _written_by_up(home: Path) -> dict[str, str]:
    try:
        written = json.loads((home / "environment.json").read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadEnvironment(f"{home / 'environment.json'} cannot be read: {error}") from error
    if not isinstance(written, dict):
        raise BadEnvironment(f"{home / 'environment.json'} is not a JSON object")
    return {str(name): str(value) for name, value in written.items()}


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _whole(text: str) -> int:
    """Return a whole number, 0 for what is none."""
    return int(text) if text.isdecimal() else 0


def _host(url: str) -> str:
    """Return the host of an address as it stands in requests, or an empty string."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return ""
    return f"[{host}]" if ":" in host else host


def _is_address(url: str, *schemes: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and parts.port != 0
    except ValueError:
        return False


def _faults(environment: Environment) -> list[str]:
    faults = []
    if min(environment.artifact_gib_max, environment.artifacts_project_gib_max) < 1:
        faults.append("GPUMARKET_ARTIFACT_GIB_MAX and GPUMARKET_ARTIFACTS_PROJECT_GIB_MAX are whole numbers from 1 on")
    faults += _unknown_words(environment)
    # The addresses are not repeated: they carry passwords.
    if environment.database_url and not _is_address(environment.database_url, "postgresql", "postgres"):
        faults.append("DATABASE_URL is not an address that begins with postgresql://")
    if environment.redis_url and not _is_address(environment.redis_url, "redis", "rediss"):
        faults.append("REDIS_URL is not an address that begins with redis:// or rediss://")
    if not _is_address(environment.public_url, "http", "https") or not _host(environment.public_url):
        faults.append(f"GPUMARKET_PUBLIC_URL is {environment.public_url!r}; it is an http(s) address")
    if bool(environment.stripe_api_key) != bool(environment.stripe_webhook_secret):
        faults.append("STRIPE_API_KEY and STRIPE_WEBHOOK_SECRET are given together or not at all")
    if environment.is_production:
        faults += _weaknesses(environment)
    elif any(name not in LOCAL_NAMES for name in environment.allowed_hosts):
        faults.append(
            "GPUMARKET_ALLOWED_HOSTS names other hosts than localhost; set GPUMARKET_MODE=production to serve them"
        )
    return faults


def _unknown_words(environment: Environment) -> list[str]:
    faults = []
    if environment.mode not in {"local", "production"}:
        faults.append(f"GPUMARKET_MODE is {environment.mode!r}; it is local or production")
    if environment.log_format not in {"console", "json"}:
        faults.append(f"GPUMARKET_LOG_FORMAT is {environment.log_format!r}; it is console or json")
    if environment.log_level not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        faults.append(f"GPUMARKET_LOG_LEVEL is {environment.log_level!r}; it is DEBUG, INFO, WARNING or ERROR")
    return faults


def _weaknesses(environment: Environment) -> list[str]:
    weaknesses = []
    keys = (environment.secret_key, *environment.secret_key_fallbacks)
    if any(len(key) < WEAKEST_SECRET_KEY or len(set(key)) < WEAKEST_SECRET_KEY // 10 for key in keys):
        weaknesses.append(
            f"GPUMARKET_SECRET_KEY (or a fallback) is missing or weak; give {WEAKEST_SECRET_KEY} random characters"
        )
    if not _is_address(environment.email_url, "smtp", "smtps"):
        weaknesses.append(
            "GPUMARKET_EMAIL_URL is missing (smtp://... or smtps://...); people could not confirm an address"
        )
    if not environment.database_url:
        weaknesses.append("DATABASE_URL is missing")
    if not environment.redis_url:
        weaknesses.append("REDIS_URL is missing")
    if not environment.public_url.startswith("https://"):
        weaknesses.append("GPUMARKET_PUBLIC_URL does not begin with https://")
    if environment.stripe_api_base:
        weaknesses.append("STRIPE_API_BASE is set; in production cards are charged by Stripe itself")
    if "*" in environment.allowed_hosts:
        weaknesses.append("GPUMARKET_ALLOWED_HOSTS contains *; name the hosts that are served")
    return weaknesses


ENVIRONMENT = read(os.environ)
