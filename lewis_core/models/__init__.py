"""Vision-language models: files, loading, scoring, choosing, writing."""
