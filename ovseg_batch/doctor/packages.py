"""Compare the versions of Python and of packages with the requirements of the installed distribution.

The checked packages are not imported, so this module also works if one is missing.
"""

from __future__ import annotations

import importlib
import platform
import shlex
from collections.abc import Sequence
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ovseg_batch.doctor.records import Check, failed, ok, one_line, warning

DISTRIBUTION = "ovseg-batch"
SHOWN = (
    "torch",
    "torchvision",
    "open-clip-torch",
    "sam2",
    "diffusers",
    "transformers",
    "pyarrow",
    "numpy",
    "pillow",
    "pycocotools",
)
LIBRARIES = (
    "torch",
    "torchvision",
    "open_clip",
    "sam2",
    "diffusers",
    "transformers",
    "cv2",
    "pycocotools.mask",
)


def check_packages() -> list[Check]:
    """Check Python and every package that each run needs."""
    try:
        python = metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
        declared = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        advice = "Run `pip install .` in the source folder, then run `ovseg-batch doctor` again."
        return [warning("packages", f"{DISTRIBUTION} is not installed, so its requirements are not known.", advice)]
    return [check_python(python), *check_requirements([one for one in declared if _applies(one)])]


def check_extra(extra: str, needed_by: str) -> list[Check]:
    """Check the packages of an optional extra.

    Args:
        extra: name of the extra, such as `ray`.
        needed_by: the setting that needs it. Empty if no setting does.
    """
    try:
        declared = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        return []
    checks = []
    for requirement in declared:
        if _applies(requirement, extra) and not _applies(requirement):
            problem, version = _compare(requirement)
            name = f"package {requirement.name}"
            if not problem:
                checks.append(ok(name, f"{requirement.name} {version}"))
            elif needed_by:
                advice = f"Run `pip install {shlex.quote(_plain(requirement))}`."
                checks.append(failed(name, f"{problem} {needed_by} needs it.", advice))
            else:
                checks.append(ok(name, f"{problem} These settings do not need it."))
    return checks


def check_python(required: str) -> Check:
    """Check the version of this interpreter against a specifier such as `>=3.11`."""
    version = platform.python_version()
    if SpecifierSet(required).contains(version, prereleases=True):
        return ok("python", f"Python {version}")
    advice = f"Create an environment with Python {required} and install {DISTRIBUTION} there."
    return failed("python", f"Python {version} does not satisfy {required}.", advice)


def check_requirements(requirements: Sequence[Requirement]) -> list[Check]:
    """Check the installed version of every requirement.

    Returns:
        One ok check that lists the main packages, or one failed check for each wrong package.
    """
    compared = {requirement.name.lower(): (requirement, *_compare(requirement)) for requirement in requirements}
    wrong = [
        failed(f"package {name}", problem, f"Run `pip install {shlex.quote(_plain(requirement))}`.")
        for name, (requirement, problem, _) in compared.items()
        if problem
    ]
    versions = [f"{name} {compared[name][2]}" for name in SHOWN if name in compared]
    return wrong or [ok("packages", ", ".join(versions))]


def check_imports(modules: Sequence[str] = LIBRARIES) -> list[Check]:
    """Import the libraries that a run uses; return a failed check for each one that does not load."""
    checks = []
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # broken binaries raise OSError, RuntimeError or other types
            advice = "Install the package again, in a version that fits the others (see `packages`)."
            checks.append(failed(f"import {module}", f"{module} does not load: {one_line(error)}", advice))
    return checks


def check_torch() -> Check:
    """Report for which accelerator torch was built. torch must be importable."""
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
    built = f"ROCm {torch.version.hip}" if torch.version.hip else built
    return ok("torch", f"torch {torch.__version__} is built for {built}.")


def _compare(requirement: Requirement) -> tuple[str, str]:
    """Return the problem of an installed package (empty if there is none), and its version."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed.", ""
    if requirement.specifier.contains(version, prereleases=True):
        return "", version
    return f"{requirement.name} {version} does not satisfy {requirement.specifier}.", version


def _applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _plain(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"
