"""Evaluation that cannot be fooled: the game, identification, recognition, questions, and what the texts say.

Reading order: ``records`` (what is written), ``metrics`` (every formula), ``statistics`` (intervals and paired tests
with concepts as units), ``io`` and ``asking`` (what all evaluations share), ``game``, ``options`` and
``identification``, ``recognition``, ``vqa``, ``descriptions``, ``compare``.

Rules that hold everywhere: prompts hold category words and descriptions, never names; ties are against the speaker; an
invalid answer is wrong and counted; a concept without a readable description is wrong in every number but those that
end in ``_described``; what cannot be measured is ``None``.
"""
