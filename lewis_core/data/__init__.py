"""From a folder of photos to games and training rows.

Reading order: ``images`` (one file), ``tree`` (all files), ``layout`` with ``layouts`` (what each file is),
``vocabulary`` (words for categories), ``catalog`` with ``questions`` (folder → catalog), ``splits`` (concepts trained
on), ``games`` (candidates → games), ``datasets``.
"""
