"""What a sample is, whichever batch it comes in: its key, its fingerprint, where it comes from.

``sources`` takes the user's loaders apart into datasets and collate functions; ``order`` says in
which order samples come. ``keys`` and ``fingerprint`` identify a sample, ``label_digests`` its
label, ``vocabulary`` the tokenizer that names the classes. ``references`` keeps what a few samples
looked like at the dump, so that ``mismatch`` can say how a changed one differs. ``unreadable`` and
``named_samples`` name the sample where the user's own code raises.
"""
