"""Settings of the second home of artifacts."""

from lewis_core.config.base import FrozenConfig


class StorageConfig(FrozenConfig):
    """A copy of every finished artifact elsewhere, so that other machines find it; without an address there is none."""

    url: str | None = None
    """Folder of any file system that fsspec knows, e.g. ``s3://bucket/lewis`` (extra ``s3``), ``file:///mnt/shared``.
    Keys and secrets come from the file system's own sources (for S3 ``AWS_ACCESS_KEY_ID`` and the like), never from
    settings."""
    options: dict[str, str | int | bool] = {}
    """Options of that file system that are no secrets, e.g. ``{endpoint_url = "http://minio:9000"}``."""
