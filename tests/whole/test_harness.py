"""The runner of the harnesses lists each of them, and finds its command."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from tests.harness.__main__ import HARNESSES, main


def test_help_lists_every_harness_on_one_line() -> None:
    lines = CliRunner().invoke(main, ["--help"]).stdout.splitlines()
    for name, about in HARNESSES.items():
        assert any(line.split() == [name, *about.split()] for line in lines), name


@pytest.mark.parametrize("name", HARNESSES)
def test_every_harness_has_a_command(name: str) -> None:
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0 and done.stdout.startswith(f"Usage: main {name}"), done.output
    assert CliRunner().invoke(main, [f"{name}s"]).exit_code == 2
