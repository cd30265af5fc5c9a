"""From a folder of photos to games and training rows.

Reading order: ``images`` with ``plain_jpeg``, and ``looks`` (one file), ``tree`` (all files), ``layout`` with
``layouts`` (what each file is), ``vocabulary`` (words for categories), ``inspection`` with ``memory`` (open them all,
or only the new ones),
``catalog`` with ``duplicates``, ``companions`` and ``questions`` (folder → catalog), ``splits`` (concepts trained on),
``games`` (candidates → games), ``datasets``.
"""
