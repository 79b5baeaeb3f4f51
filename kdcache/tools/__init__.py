"""Tools on a cache that need no model and no torch.

``verify`` reads everything and holds it against its checksums, ``merge`` makes one cache of
several, ``fidelity`` tells shards that are unlike the others.
"""
