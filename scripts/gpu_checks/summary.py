"""Print the checks as they arrive, and the last line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from gpu_checks.records import Check, Record, Setting
from gpu_checks.sections import SECTIONS

NAME, VALUE, LIMIT = 56, 74, 22  # columns of the table


class Summary:
    """All records of a run.

    Args:
        echo: prints one line.
    """

    def __init__(self, echo: Callable[[str], object]) -> None:
        self._echo = echo
        self._sections: list[str] = []
        self.checks: list[Check] = []
        self.settings: dict[str, str] = {}

    @property
    def failed(self) -> list[str]:
        """The names of the failed checks, as `section: check`."""
        return [
            check.section if check.name == check.section else f"{check.section}: {check.name}"
            for check in self.checks
            if not check.passed
        ]

    @property
    def passed(self) -> bool:
        return not self.failed

    def begin(self, section: str) -> None:
        """Print the head of a section's table."""
        self._sections.append(section)
        self._echo(f"\n{section}: {SECTIONS[section].title}")
        self._echo(f"  {'check':{NAME}} {'value':{VALUE}} {'limit':{LIMIT}}")

    def add(self, record: Record) -> None:
        """Print a check and keep it; keep a setting."""
        if isinstance(record, Setting):
            self.settings[record.key] = record.value
            return
        self.checks.append(record)
        verdict = "FAILED" if not record.passed else "passed" if record.limit else ""
        line = f"  {record.name:{NAME}} {record.value:{VALUE}} {record.limit:{LIMIT}} {verdict}"
        self._echo(line.rstrip())

    def last_line(self) -> str:
        """Return `OK` or the failed checks, the sections if some were left out, and the recommended settings."""
        parts = ["OK" if self.passed else f"FAILED: {' | '.join(self.failed)}"]
        late = [check.section for check in self.checks if not check.passed and "time budget" in check.value]
        if late:
            parts.append(f"time budget: {', '.join(late)} not completed")
        if len(self._sections) < len(SECTIONS):
            parts.append(f"only {', '.join(self._sections)}")
        if self.settings:
            parts.append("recommended: " + " ".join(f"{key}={value}" for key, value in self.settings.items()))
        return "; ".join(parts)

    def finish(self, json_file: Path | None, folder: Path, keep: bool) -> None:
        """Write the JSON file, remove the folder of a passed run unless `keep`, and print the last line."""
        if json_file is not None:
            checks = [asdict(check) for check in self.checks]
            tree = {"passed": self.passed, "failed": self.failed, "settings": self.settings, "checks": checks}
            json_file.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if keep or self.failed:
            self._echo(f"\nRuns and logs: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        self._echo(self.last_line())
