"""From batches of samples to shards on disk.

``keyed`` deals samples out in batches within shards, with their keys and fingerprints;
``encoding`` checks and encodes what the teacher said of a batch; ``shard_writer`` is the thread
that writes, so that the teacher never waits for a disk.
"""
