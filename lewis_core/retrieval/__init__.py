"""CLIP embeddings, look-alikes, and retrieval for identification.

Reading order: ``encoder`` (open_clip), ``vectors`` (embeddings on disk), ``embedding`` (photos), ``mining``
(look-alikes of each photo), ``index`` (texts of a database), ``hybrid`` (retrieval by image and text).
"""
