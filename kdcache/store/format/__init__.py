"""What stands on disk, file by file, as FORMAT.md describes it.

``layout`` has the names and paths. ``files`` makes files appear whole or not at all; ``fields``
reads JSON that somebody else may have written. ``manifest`` is what a view is, ``origins`` which
dump its shards belong to, ``commits`` which shards are there, ``arrays`` their columns, ``tables``
what a codec shares between them.
"""
