"""How the examples show their students; what their numbers are, each example says itself.

``rows``: students that differ in their seed alone, with mean and deviation over seeds. ``tables``:
the table on the terminal. ``results``: what goes into ``results.json``. ``plots``: a picture with a
dot for each seed. Nothing is trained or read from a cache here.
"""
