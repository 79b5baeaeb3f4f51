"""The local copy that training reads: a view decoded once into memory-mapped records.

``copy`` finds or makes it and gives out rows, ``build`` writes one, ``records`` is its table, and
``locks`` keeps two processes from doing the same work twice.
"""
