"""What only a GPU can show, measured in one run of at most 8 minutes: scripts/gpu_check.sh.

Each section is a module of sections/, with a function ``measure(setting, clock)`` that yields
figures:

    image_dump      a dump of a ResNet-50 beside its bare forward loop
    token_dump      the same of a transformer with a billion parameters
    student_step    a language model's step on cached targets beside plain cross entropy
    loss_heads      time and memory of the losses over a vocabulary, plain and fused
    live_images     a training beside a live teacher, or its cache: image networks
    live_tokens     the same: language models

``cuda_tests`` runs tests/cuda before them. The frame:

    __main__        the command line: sections one after another, until the deadline
    needs           packages that must be there
    section         what sections are given and give: settings, clock, figures, results
    worker          the process in which sections run, ended where one hangs
    card            which device, driver and versions these are
    report          the JSON file and the table

In sections/, ``dumping`` is what the two dumps share, ``language`` has the transformer and sizes of
texts.

A figure comes from a measurement of this run, or is not there. Ways that are compared take turns
(scripts/measuring/timing.py), and what earlier benchmarks do is imported from them.
"""
