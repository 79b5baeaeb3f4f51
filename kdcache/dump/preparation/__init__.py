"""What is decided before the first shard: the job, the teacher, and a plan for every split.

``job`` holds all that stage one is told, ``teacher`` the model as it runs here. ``plan`` decides
what a split's manifest says, after ``split_data`` has looked at the data, ``pilot`` has measured
what the codec costs, and ``answers`` has compared the teacher with the one that began the dump.
"""
