"""One experiment file for both stages: reading it, overriding it, and building what it names.

``files`` lays files and overrides over one another, ``sections`` makes one stage's experiment of
them with ``typed`` values, and ``components`` builds what a ``class_path`` names. Each stage takes
the sections that it needs and ignores exactly the other stage's known ones; any other key is an
error. Stage two never looks into ``teacher``, and nothing is imported or built before it is asked
for.
"""

from kdcache.config.components import build, build_model, build_nested, fingerprint_function
from kdcache.config.files import Raw, dropped, merge, override, read_file, to_yaml
from kdcache.config.sections import Experiment, Key, keys_of, parse
from kdcache.config.typed import checked, resolved_annotations

__all__ = [
    "Experiment",
    "Key",
    "Raw",
    "build",
    "build_model",
    "build_nested",
    "checked",
    "dropped",
    "fingerprint_function",
    "keys_of",
    "merge",
    "override",
    "parse",
    "read_file",
    "resolved_annotations",
    "to_yaml",
]
