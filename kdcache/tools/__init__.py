"""Tools on a cache that need no model: what it holds, whether it is whole, and making one.

None needs torch but the importer, which asks a codec for its columns.
"""
