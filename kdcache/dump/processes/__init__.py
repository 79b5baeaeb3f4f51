"""Many processes: which of them does what, and how they end.

``replica`` says which shards are this process's own, ``ranks`` keeps the processes of a sharded
teacher together, and ``preemption`` makes SIGTERM a request to finish the current shard.
"""
