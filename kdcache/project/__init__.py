"""What ``kdcache init`` writes: a project that runs as it is on the user's data.

``plan`` looks at the data and decides sizes, counts and how long to train; ``files`` fills the
templates/ with it. No torch here; the templates are files of a user's project, not modules of the
package.
"""
