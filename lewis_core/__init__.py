"""The Lewis signalling game for personal things: pure functions, no orchestration, no tracking.

Read in this order: :mod:`records` (the data), :mod:`config` (the settings), :mod:`pipeline` (the stages),
:mod:`stages` and :mod:`artifacts` (how they are cached), then ``data``, ``retrieval``, ``prompts``, ``descriptions``,
``models``, ``listener``, ``rewards``, ``training``, ``evaluation``, ``report``; ``pocket`` is a world to try it in.
"""

from lewis_core.packages import check_packages

check_packages()
