"""The join: the user's samples with the teacher's targets, by key.

``dataset`` joins a dataset that can be indexed, ``stream`` one that cannot. Before the first step
``probes`` looks at some samples of data and cache, ``collation`` at what a collate function does
to their order, and ``collated`` holds whole batches against those of the dump. ``counts`` is for
loops of the user's own: what a step divides its losses by.
"""
