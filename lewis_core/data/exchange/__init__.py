"""Experiments of the reference system, taken over and handed back: its catalog, split and retrieval JSON files.

Reading order: ``paths`` (whose path is this?), ``catalogs``, ``splits``, ``games``, and the command line:
``python -m lewis_core.data.exchange --help``.
"""
