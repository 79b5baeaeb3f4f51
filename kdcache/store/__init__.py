"""The store: the only room that knows Zarr. Columns of numbers in, the same columns out.

What a column means is the codecs' business, whose sample it is the join's. format/ is what stands
on disk, file by file; FORMAT.md beside this file describes it. ``writer`` writes a view, ``view``
reads one, ``cache`` opens them all; ``inspection`` says what they hold, with ``sums`` over their
commits, and ``report`` shows it to a person; ``chance``
tells a teacher from one that knows nothing. local/ is the copy that training reads; care/ repairs,
cleans and merges.
"""

from kdcache.columns import FINGERPRINT, KEY, NUM_ENTRIES, NUM_POSITIONS, Array, Column
from kdcache.store.cache import Cache, open_cache
from kdcache.store.format.manifest import UNKNOWN_LENGTH, Manifest, difference_table, differences
from kdcache.store.format.tables import table_digest
from kdcache.store.local.copy import (
    LocalCopy,
    default_folder,
    find_local_copy,
    open_local_copy,
)
from kdcache.store.view import View
from kdcache.store.writer import ViewWriter, check_cache_path

__all__ = [
    "FINGERPRINT",
    "KEY",
    "NUM_ENTRIES",
    "NUM_POSITIONS",
    "UNKNOWN_LENGTH",
    "Array",
    "Cache",
    "Column",
    "LocalCopy",
    "Manifest",
    "View",
    "ViewWriter",
    "check_cache_path",
    "default_folder",
    "difference_table",
    "differences",
    "find_local_copy",
    "open_cache",
    "open_local_copy",
    "table_digest",
]
