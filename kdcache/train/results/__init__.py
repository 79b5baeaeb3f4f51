"""What a run leaves behind.

``output`` is its folder, ``record`` what the run was, ``student_run`` what came out and
``report`` the tables that a person sees; ``pretrained`` saves a student for ``from_pretrained``.
"""
