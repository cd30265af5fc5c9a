"""Vision-language models: files, loading, scoring, choosing, writing.

Reading order: ``files`` and ``loading`` (from a reference to a model), ``images`` and ``features`` (photos, and what
the language model gets instead), ``packing`` with ``attention``, and ``continuation`` (one prompt, many suffixes),
``sampling`` with ``decoding`` and ``merging`` (completions), ``shared_prefix`` and ``plain`` (engines), ``vlm`` (what
everybody else uses).
"""
