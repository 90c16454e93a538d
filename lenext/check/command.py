"""`lenext check`: from the request to what is shown and written."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lenext import runs
from lenext.check import check_data, clean, report

log = logging.getLogger("lenext")


def run(
    data: str,
    *,
    form: str = "table",
    out: str | None = None,
    html: str | None = None,
    write_manifest: str | None = None,
    write_shards: str | None = None,
    **settings: Any,
) -> bool:
    """Check a data set, show and write what was found; whether a result would be worth anything.

    form: "table" or "json", on standard output; out: a file for the JSON. html: a file for the page.
    write_manifest, write_shards: the file or folder for a cleaned copy of the list, or of the pictures.
    settings: as `check_data` takes them.
    """
    check = check_data(data, **settings)
    answer = json.dumps(report.to_dict(check), ensure_ascii=False, indent=2) + "\n"
    # File names may hold bytes that are no text.
    answer = answer.encode("utf-8", "backslashreplace").decode("utf-8")
    if out is not None:
        runs.write_text(Path(out), answer)
    if form == "json" and out is None:
        sys.stdout.write(answer)
    elif form == "table":
        report.show(check)
    if html is not None:
        report.write_html(check, html)
        log.info("page: %s", html)
    writers: list[tuple[str | None, Callable[[Any, str], str]]] = [
        (write_manifest, clean.write_manifest),
        (write_shards, clean.write_shards),
    ]
    for target, write in writers:
        if target is not None:
            command = write(check, target)
            for why, rows in clean.left_out(check).items():
                if len(rows):
                    names = ", ".join(check.findings.samples.images[int(row)] for row in rows[:5])
                    log.info("left out, %s: %d (%s%s)", why, len(rows), names, ", ..." if len(rows) > 5 else "")
            kept, n = len(clean.kept(check)), len(check.named)
            log.info("kept %d of %d pictures in %s; train on them: %s", kept, n, target, command)
    return not check.findings.worthless
