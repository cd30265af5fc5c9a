"""What the audit of dependencies makes of a report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Holes = list[dict[str, object]]


def read(tmp_path: Path, vulnerabilities: Holes, ignore: str = "") -> subprocess.CompletedProcess[str]:
    """Run the reader on a report about one package."""
    package = {"name": "thing", "version": "1.0", "vulns": vulnerabilities}
    (tmp_path / "report.json").write_text(json.dumps({"dependencies": [package, {"name": "skipped"}], "fixes": []}))
    (tmp_path / "ignore.txt").write_text(ignore)
    command = [sys.executable, ROOT / "infra/read_audit.py", tmp_path / "report.json", tmp_path / "ignore.txt"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


HOLE = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"]}


@pytest.mark.parametrize(
    ("vulnerabilities", "ignore", "status", "says"),
    [
        ([], "", 0, "2 packages, 0 known vulnerabilities, 0 to be mended"),
        ([HOLE], "", 1, "thing 1.0: PYSEC-1 is mended in 1.1"),
        ([HOLE | {"fix_versions": []}], "", 0, "PYSEC-1 is not mended by anybody yet"),
        ([HOLE], "# why\nCVE-1 we never call it\n", 0, "PYSEC-1 is excused: we never call it"),
        ([HOLE], "CVE-1\n", 1, "CVE-1 has no reason"),
    ],
)
def test_what_can_be_mended_fails(tmp_path: Path, vulnerabilities: Holes, ignore: str, status: int, says: str) -> None:
    done = read(tmp_path, vulnerabilities, ignore)
    assert done.returncode == status
    assert says in done.stdout + done.stderr


def test_the_list_of_excuses_has_reasons(tmp_path: Path) -> None:
    ignore = (ROOT / "infra/audit_ignore.txt").read_text(encoding="utf-8")
    assert read(tmp_path, [], ignore).returncode == 0
