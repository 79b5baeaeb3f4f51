"""Caches of soft targets that were made elsewhere: the other way into the store, without a teacher.

``logprobs`` is the importer; ``files`` give raw records, ``records`` what they say, ``rows`` the
targets of a sample's positions, ``shards`` columns.
"""
