"""Write docs/settings.md from the settings' own descriptions.

`tests/settings/test_settings.py` checks that the page is up to date.
"""

from __future__ import annotations

from pathlib import Path

from ovseg_batch.settings.listing import SettingLine, section_meanings, setting_lines

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"

INTRODUCTION = """# Settings

Every key of `--set`, of a config file, and of `settings={…}` in Python. `ovseg-batch settings WORD` prints the keys
whose name or meaning contains a word; `--json` is for programs. `scripts/docs/write_settings_docs.py` writes this page.

```
ovseg-batch settings threshold
```

In falling order, a value comes from: options such as `--labels`, `--set KEY=VALUE`, the environment
(`OVSEG_REFINE__VOTE=0.5` is `refine.vote`), the file or preset of `-c`, the default. What reads a key is a
[stage](methods.md), under the choice in parentheses.
"""


def page() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION]
    lines = setting_lines()
    for section, meaning in section_meanings().items():
        own = [line for line in lines if line.key.partition(".")[0].partition("[")[0] == section]
        if not section:
            sections = section_meanings()
            own = [line for line in lines if line.key.partition(".")[0].partition("[")[0] not in sections]
        parts.append(f"## {section or 'Without a section'}\n\n{meaning}\n\n{table(own)}")
    return "\n".join(parts)


def table(lines: list[SettingLine]) -> str:
    """Return lines as a table."""
    rows = ["| key | value | default | meaning | read by |", "|---|---|---|---|---|"]
    for line in lines:
        default = "required" if line.default is None else f"`{line.default}`"
        cells = (f"`{line.key}`", line.type, default, line.meaning, line.read_by)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
