"""Read pip-audit's report: what can be mended fails, what cannot or is excused with a reason is told.

python infra/read_audit.py REPORT.json IGNORE.txt
"""

import json
import sys
from pathlib import Path


def read_excuses(file: Path) -> dict[str, str]:
    """Ids of vulnerabilities that do not matter here, with the reasons.

    Raises:
        SystemExit: If an entry has no reason.
    """
    excuses = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.strip().partition(" ")
            if not reason.strip():
                raise SystemExit(f"{file}: {name} has no reason")
            excuses[name] = reason.strip()
    return excuses


def main(report: Path, ignore: Path) -> int:
    """Print what is known; returns 1 if something can be mended and is not excused."""
    excuses, bad, known = read_excuses(ignore), 0, 0
    dependencies = json.loads(report.read_text(encoding="utf-8"))["dependencies"]
    for package in dependencies:
        for found in package.get("vulns", []):
            known += 1
            names = {found["id"], *found.get("aliases", [])}
            excuse = next((excuses[name] for name in sorted(names) if name in excuses), None)
            fixed = ", ".join(found.get("fix_versions", []))
            what = f"{package['name']} {package['version']}: {found['id']}"
            if excuse:
                print(f"audit: {what} is excused: {excuse}")
            elif not fixed:
                print(f"audit: {what} is not mended by anybody yet")
            else:
                bad += 1
                print(f"audit: {what} is mended in {fixed}")
    print(f"audit: {len(dependencies)} packages, {known} known vulnerabilities, {bad} to be mended")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
