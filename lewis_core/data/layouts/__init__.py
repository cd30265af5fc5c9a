"""How data sets lie on disk: one :class:`~lewis_core.data.layouts.base.Layout` each.

Reading order: ``base`` (what a layout is, and what reading one gives), ``shapes`` (the three ways in which folders are
arranged), ``known`` (the table of data sets), ``detect`` (which one a folder is, and why).
"""
