"""Memory with a limit: what was not used for the longest time makes room."""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from lewis_core.listener.schemas import CacheStatistics


class Sized(Protocol):
    """What says how much memory it takes."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""


T = TypeVar("T", bound=Sized)


class ByteCache(Generic[T]):
    """Least recently used things, by key, up to a number of bytes.

    Args:
        max_bytes: What they may take together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._entries: OrderedDict[str, T] = OrderedDict()
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._hits = self._misses = self._evictions = 0

    def get(self, key: str) -> T | None:
        """Look something up, and mark it as used."""
        found = self._entries.get(key)
        if found is None:
            self._misses += 1
        else:
            self._hits += 1
            self._entries.move_to_end(key)
        return found

    def put(self, key: str, value: T) -> None:
        """Keep something; the least recently used make room."""
        if key in self._entries or value.num_bytes > self.max_bytes:
            return
        self._entries[key] = value
        self.num_bytes += value.num_bytes
        while self.num_bytes > self.max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.num_bytes -= dropped.num_bytes
            self._evictions += 1

    def clear(self) -> None:
        """Drop everything."""
        self._evictions += len(self._entries)
        self._entries.clear()
        self.num_bytes = 0

    def statistics(self) -> CacheStatistics:
        """How much of it is used, and how well; may be called from any thread."""
        return CacheStatistics(
            entries=len(self._entries),
            num_bytes=self.num_bytes,
            max_bytes=self.max_bytes,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
        )

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries
