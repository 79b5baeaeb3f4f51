"""Comet: live, or an archive on disk where there is no connection.

``logger`` is the one that a run has, ``experiment`` the live or offline experiment behind it.
``sdk`` is the only file that imports Comet's package; ``info_file`` reads a key from three lines.
"""
