"""The agent's log: one line a record, for people or for machines."""

import json
import logging
from datetime import UTC, datetime

log = logging.getLogger("gpumarket.agent")

PLAIN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Fields(logging.Formatter):
    """Writes a record with its extra fields: as JSON for machines, as name=value for people."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return one line (and, for people, a traceback below it)."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = {name: value for name, value in vars(record).items() if name not in PLAIN_FIELDS}
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            head = {"time": at, "level": record.levelname.lower(), "event": record.getMessage()}
            return json.dumps(head | fields | ({"exception": trace} if trace else {}), default=str)
        words = "".join(f" {name}={value}" for name, value in fields.items())
        return f"{at[11:23]} {record.levelname:<7} {record.getMessage()}{words}" + (f"\n{trace}" if trace else "")


def start_log(log_format: str) -> None:
    """Write the log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(Fields(as_json=log_format == "json"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
