"""From a folder of photos to games and training rows.

Reading order: ``images`` (one file), ``layout`` (which files), ``vocabulary`` (words for categories), ``catalog`` with
``questions`` (folder → catalog), ``splits`` (concepts trained on), ``games`` (candidates → games), ``datasets``.
"""
