"""The sub-commands, one a file: from words on the command line to a call of a room below.

``init`` begins a project. ``dump_teacher`` and ``train_student`` are the two stages. ``inspect``,
``verify`` (with ``recompute``), ``clean``, ``merge`` and ``import_logprobs`` work on caches.
terminal/ is what they share: how words are read and progress is shown.
"""
