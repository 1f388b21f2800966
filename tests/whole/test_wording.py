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
WHOLE_COMMAND = re.compile(r"`(ovseg-batch|eval|report|verify) [^`]*|python -c .*", re.S)  # for a shell
OTHERS = {"spelled", "run", "Popen"}  # calls that word a message, or run another program with its options
#: Words of an earlier style, in place of the field's terms, and what to write. They have no other use in this project.
DIALECT = {
    r"claimants?": "refine methods",
    r"crews?": "worker pool",
    r"guises?": "variants",
    r"\(holes\)|inpaint_holes": "inpainting examples",
    r"opened\?|is_opened": "edit source",
    r"banked|Namer": "memory bank, relabeller",
    r"intake|_bury|_hear|_Home|_knock": "a verb such as read, skip, handle",
    r"whoever|somebody|someone": "name the subject",
    r"nothing but|none of (its|their) own|that (is|are) none": "say what it is",
    r"of which (one|a|an|the|what|at|every|each)": "a sentence of its own",
    r"what is left of|in the place of|so that it can be had": "a plain clause",
    r"(goes|go|going) by|worth a (word|look)": "use, compare, report",
    r"(is|are|was|were|been) (asked|told|heard|hears)": "compute, query, pass, receive",
    r"held against|the night does not": "compare with; state what continues",
    r"METHODS \d|clip-guided tool|pipeline's document": "author, title, year, section or equation",
}
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


def dialect_in(text: str) -> list[str]:
    """Return the words of the earlier style in a text."""
    return [found[0] for word in DIALECT for found in re.finditer(rf"(?<!\w)(?:{word})(?!\w)", text, re.I)]


def readable_files() -> list[Path]:
    """Return the files that people read, except this one, which lists the words."""
    root = PACKAGE.parent
    code = [path for folder in (PACKAGE, root / "scripts", root / "tests") for path in folder.rglob("*.py")]
    texts = [
        root / "README.md",
        root / "CONTRIBUTING.md",
        *(root / "docs").rglob("*.md"),
        *(root / "configs").glob("*.yaml"),
    ]
    return [path for path in (*code, *texts) if path.is_file() and path != Path(__file__).resolve()]


@pytest.mark.parametrize(
    "text", ["a mask is asked", "Whoever reads it", "of which one a commit must be", "_bury(task)"]
)
def test_words_of_the_earlier_style_are_recognised(text: str) -> None:
    assert dialect_in(text) and not dialect_in("The mask and the prompt are computed for each word.")


def test_no_file_uses_words_of_the_earlier_style() -> None:
    files = readable_files()
    assert len(files) > 300
    assert {str(path): found for path in files if (found := dialect_in(path.read_text(encoding="utf-8")))} == {}


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
