"""Where the log goes: warnings as lines for people, or everything as JSON for machines."""

from __future__ import annotations

import json
import logging
import time

FIELDS = ("id", "status", "seconds")  # what a request's record has besides its text


class Lines(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        data = {"time": f"{stamp}.{int(record.msecs):03}Z", "level": record.levelname.lower()}
        data["message"] = record.getMessage()
        data |= {key: getattr(record, key) for key in FIELDS if hasattr(record, key)}
        if record.exc_info:
            data["error"] = self.formatException(record.exc_info)
        return json.dumps(data)


def to_stderr(as_json: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(Lines() if as_json else logging.Formatter("pronghorn: %(message)s"))
    logger = logging.getLogger("pronghorn")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if as_json else logging.WARNING)
