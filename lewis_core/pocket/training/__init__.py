"""How the shipped pocket models were made, and how to make them again.

Reading order: ``config``, ``assets`` (tokenizer, processor, dimensions), ``twin`` (the network),
``stream`` and ``encoding`` (photos and exercises), ``probe``, ``stepper``, ``vlm`` and ``clip``
(training), ``measure``, ``pack``, ``build`` (:func:`~.build.build_pocket_models`). Nothing here is
imported by the pipeline itself.
"""
