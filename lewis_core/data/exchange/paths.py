"""Find files by paths that were written on another machine: the longest end that fits decides."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from lewis_core.errors import DataError


class PathFinder:
    """Finds known paths from paths with another beginning.

    Args:
        paths: Known paths, relative to the data root.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._known = set(paths)
        self._by_end: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self._known):
            parts = PurePosixPath(path).parts
            for start in range(len(parts)):
                self._by_end["/".join(parts[start:])].append(path)

    def find(self, path: str) -> str:
        """Return the known path that a path means.

        A path that is known is itself. Otherwise the known path that is an end of it is meant
        (``/data/PerVA/train_/bag/a/1.jpg`` → ``train_/bag/a/1.jpg``), or else the one with the longest common end of
        at least two parts, in a folder of the same split (``data/YoLLaVA/test/all/bo/0.png`` → ``test/bo/0.png``).

        Raises:
            DataError: If none fits, or several do.
        """
        parts = PurePosixPath(path).parts
        ends = ["/".join(parts[start:]) for start in range(len(parts))]
        for end in ends:
            if end in self._known:
                return end
        for end in ends[:-1]:
            if fitting := self._by_end.get(end):
                splits = {part.rstrip("_") for part in parts}
                same = [known for known in fitting if known.partition("/")[0].rstrip("_") in splits]
                if len(fitting) == 1 or len(same) == 1:
                    return (same or fitting)[0]
                raise DataError(f"{path} could be any of {', '.join(fitting[:3])}")
        raise DataError(f"{path} is not in the data root")
