"""Keeping a cache in order, without its teacher.

``survey`` reads what is there without stopping at damage; ``repair`` marks damaged shards as
missing, so that a dump writes them again; ``leftovers`` finds what killed jobs left behind;
``adopt`` takes over whole shards of another cache, for a merge.
"""
