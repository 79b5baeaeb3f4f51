"""What a batch of the user's is: its inputs, labels and positions. One mapping for both stages.

``mapping`` says which leaves of a batch are what; ``section`` reads it from the ``batch:`` section
of an experiment, ``selection`` and ``leaves`` find a leaf by its path. Where nobody says it,
``conventions`` tells inputs and labels by their names and ``signature`` by what a model's
``forward`` takes. ``masks`` says which positions count, ``labels`` which class each has.
``forward`` puts a batch through a model and flattens what comes out; ``output_kind`` refuses
probabilities where logits are promised.
"""
