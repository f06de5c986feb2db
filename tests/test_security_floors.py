"""Older versions than these have known vulnerabilities that matter here, so it must not be possible to install them."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.helpers.paths import ROOT

#: package -> first allowed version, and the reason; the audit of 2026-11-25 named some versions without a CVE
FLOORS = {
    "torch": ("2.10", "CVE-2025-32434, CVE-2026-24747"),
    "ray": ("2.54", "CVE-2023-48022, CVE-2026-27482"),
    "mlflow": ("3.11", "CVE-2026-2614"),
    "transformers": ("5.3", "CVE-2026-4372, which a model given by --encoder could use"),
    "pillow": ("12.2", "audit"),
    "av": ("18.1", "audit"),
    "aiohttp": ("3.13.4", "audit"),
}


def _requirements() -> list[Requirement]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and newer read TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for line in [*project["dependencies"], *(line for extra in extras for line in extra)]]


@pytest.mark.parametrize("package", FLOORS)
def test_no_vulnerable_version_may_be_installed(package: str) -> None:
    wanted = [each for each in _requirements() if each.name == package]
    assert wanted, f"{package} is not required by itself, so that nothing holds its floor"
    floor = Version(FLOORS[package][0])
    for requirement in wanted:
        lowest = [Version(spec.version) for spec in requirement.specifier if spec.operator in (">=", "==", "~=")]
        assert lowest, requirement
        assert max(lowest) >= floor, f"{requirement}: {FLOORS[package][1]}"
    assert Version(version(package)) >= floor
