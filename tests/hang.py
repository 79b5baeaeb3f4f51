"""How long a test waits for what should come at once: a bound against a hang, never on speed.

Ten times the longest quiet time and more, since other machines are slower, and busy.
"""

HANG_S = 1200.0
