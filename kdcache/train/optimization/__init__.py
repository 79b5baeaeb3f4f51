"""``optimizers`` and ``schedules``: the built-in ones by name, any other by its class path."""
