"""Messages name what the caller can change: options on the command line, arguments in Python."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import ovseg_batch
from ovseg_batch.errors import FailureCode, OvsegError, RowError, UsageError
from ovseg_batch.wording import for_python, setting, spelled
from tests.conftest import LABELS, Command

PACKAGE = Path(ovseg_batch.__file__).parent
#: only the command line, or its own scripts, run these
COMMAND_LINE = ("cli", "doctor", "evaluate", "runs/demo.py", "wording.py")
#: … and these messages: of the strings of `--set`, and of the folder of `eval --root`
ALLOWED = {"--set ", " has no value. Write --set section.key=value.", "--root "}
WHOLE_COMMAND = re.compile(r"`(ovseg-batch|eval|report|verify) [^`]*|python -c .*", re.S)  # for a shell, whoever calls
OTHERS = {"spelled", "run", "Popen"}  # calls that word a message, or run another program with its options
OPTION = re.compile(r"(?<![\w`-])(--[a-z][a-z-]+|-[oc](?= |\.|$))|give (the same|its) command|`run` again")


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("\ud800", "\\ud800"),
        ("\u202e", "\\u202e"),
        ("\r", "\\r"),
        ("\t\n", "\t\n"),
        ("é", "é"),
    ],
)
def test_errors_show_characters_that_control_a_terminal_as_escapes(character: str, shown: str) -> None:
    name = f"a{character}b"
    assert str(UsageError(f"There is no {name}.")) == f"There is no a{shown}b."
    assert RowError(FailureCode.MISSING, name).message == str(RowError(FailureCode.MISSING, name)) == f"a{shown}b"
    with pytest.raises(UsageError) as caught:
        ovseg_batch.run("nowhere", [name], "never", config=f"{name}.yaml")
    assert f"a{shown}b" in str(caught.value)


def test_errors_keep_the_beginning_and_the_end_of_a_long_message() -> None:
    message = str(UsageError(f"The column {'x' * 20_000} is unknown. Rename it."))
    assert (
        message.startswith("The column xxx") and message.endswith("xxx is unknown. Rename it.") and len(message) < 4000
    )


def test_a_setting_in_the_callers_words() -> None:
    assert setting("dense.cache", "features") == "--set dense.cache=features"
    assert setting("run.allow_remote", True) == "--set run.allow_remote=true"
    with for_python():
        assert setting("dense.cache", "features") == "settings={\"dense.cache\": 'features'}"
        assert setting("run.allow_remote", True) == 'settings={"run.allow_remote": True}'
        assert spelled("-o", "workdir=") == "workdir="
    assert spelled("-o", "workdir=") == "-o"


def texts(path: Path) -> list[str]:
    """The strings of a file that are no docstrings, and that are not what `spelled` gives to the command line."""
    tree = ast.parse(path.read_text())
    left_out: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            left_out.add(node.value)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in OTHERS:
            left_out.update(ast.walk(node))
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in left_out
    ]


def test_no_message_below_both_names_an_option_of_one() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in PACKAGE.rglob("*.py")
        if not any(path.is_relative_to(PACKAGE / part) for part in COMMAND_LINE)
        for text in texts(path)
        if OPTION.search(WHOLE_COMMAND.sub("", text)) and text not in ALLOWED
    }
    assert found == set()


def refused(call: object, *args: object, **kwargs: object) -> str:
    with pytest.raises(OvsegError) as raised:
        call(*args, **kwargs)  # type: ignore[operator]
    return str(raised.value)


def test_errors_of_a_run_name_arguments(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    images, workdir = few_scenes / "images", tmp_path / "run"
    settings = {"refine.method": "none", "run.workers": 0}
    run = ovseg_batch.run(images, LABELS, workdir, config="demo", settings=settings, progress=False)
    other = tmp_path / "one"
    other.mkdir()
    (other / "a.jpg").write_bytes(next(images.iterdir()).read_bytes())
    message = refused(ovseg_batch.run, other, LABELS, workdir, config="demo", settings=settings, progress=False)
    assert "Choose another workdir with workdir=" in message and "give update=True" in message
    done = command("run", other, "-o", workdir, "--labels", LABELS)
    assert "Choose another workdir with -o" in done.stderr and "give --update" in done.stderr
    assert "settings={\"dense.cache\": 'features'}" in refused(run.query, "ball, sky", tmp_path / "query")
    assert 'settings={"run.allow_remote": True}' in refused(
        ovseg_batch.run, "s3://bucket/", LABELS, tmp_path / "s3", config="demo"
    )
    assert "Give another path" in refused(run.export, "masks", images)
    assert "Give another path" in refused(run.report, images)
    val = refused(run.export, "csv", tmp_path / "x.csv", ovseg_batch.Selection(split="val"))
    assert "Selection(val_share=0.1)" in val
    assert 'labels= "car, road, sky"' in refused(ovseg_batch.run, images, [], tmp_path / "none", config="demo")
    assert "labels=" in refused(ovseg_batch.Segmenter, [], config="demo")
    with pytest.raises(UsageError):
        ovseg_batch.Run(tmp_path)
    assert spelled("command", "python") == "command"  # no call leaves its wording behind
