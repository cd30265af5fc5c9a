"""The README's picture of a report: ``python infra/picture.py runs/pocket/store/build-report/*/report.html``.

Needs chromium. It shows the upper part of the page, down to the gap below the second row of curves or so.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

TARGET = Path(__file__).with_name("docs") / "report.png"
VIEWPORT, WIDTH = 1152, 960
"""Pixels of the browser's window, and of the picture."""
ABOUT, GAP = 2400, 30
"""The picture ends at the last gap of so many blank lines above this line of the page."""


def photograph(page: Path) -> Image.Image:
    """Let a browser draw the page.

    Raises:
        SystemExit: If there is no browser.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("picture: there is no chromium on this machine; install it, e.g. apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}", f"--window-size={VIEWPORT},{ABOUT}", f"--screenshot={shot}"]
        subprocess.run([*command, page.resolve().as_uri()], check=True, capture_output=True)
        return Image.open(shot).convert("RGB")


def last_gap(page: Image.Image) -> int:
    """Middle of the last band of blank lines; the whole height if there is none."""
    paper = Image.new("RGB", (page.width, GAP), page.getpixel((0, 0)))  # type: ignore[arg-type] # RGB is three numbers
    for top in range(page.height - GAP, 0, -1):
        if ImageChops.difference(page.crop((0, top, page.width, top + GAP)), paper).getbbox() is None:
            return top + GAP // 2
    return page.height


def main() -> None:
    """Draw the picture of the report that the command line names."""
    page = photograph(Path(sys.argv[1]))
    page = page.crop((0, 0, page.width, last_gap(page)))
    small = page.resize((WIDTH, round(page.height * WIDTH / page.width)), Image.Resampling.LANCZOS)
    small.save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
