"""What commands share: words in, lines out.

``arguments`` reads the words after a stage's name (experiment files and overrides), ``parser``
those of a command on a cache; ``console`` shows progress, and keeps Lightning quiet.
"""
