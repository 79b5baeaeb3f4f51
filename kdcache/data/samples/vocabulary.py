"""The tokenizer whose vocabulary names the classes of a language model, as a digest.

Same number of classes, other vocabulary: every target would name another token. Any object with
``get_vocab()`` is a tokenizer here (transformers' and tokenizers' have it).
"""

from __future__ import annotations

from typing import Any

import xxhash

from kdcache.data.samples import sources
from kdcache.errors import MismatchError

IDENTITY = "vocabulary"
"""Name of the digest in a manifest's identity; empty where no tokenizer was found."""


def vocabulary_digest(tokenizer: Any) -> str:
    """xxh3-128 over all (id, token) of a tokenizer, in the ids' order."""
    state = xxhash.xxh3_128()
    # By id, which is what targets refer to: a tokenizer lists its tokens in any order.
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])):
        content = token if isinstance(token, bytes) else str(token).encode("utf-8", "surrogatepass")
        state.update(b"%d %d;" % (int(number), len(content)) + content)
    return f"xxh3:{state.hexdigest()}"


def own_vocabulary(holder: Any) -> str:
    """The digest of the ``tokenizer`` that an object has; empty where it has none."""
    found = own_tokenizer(holder)
    return "" if found is None else vocabulary_digest(found)


def own_tokenizer(holder: Any) -> Any:
    """The ``tokenizer`` that an object has, or None."""
    found = getattr(holder, "tokenizer", None)
    return found if callable(getattr(found, "get_vocab", None)) else None


def find_tokenizer(data: Any, loader: sources.Loader) -> Any:
    """The tokenizer of a data object, its dataset or its collate function, or None.

    Args:
        data: the user's data object, or None.
        loader: the training loader.
    """
    holders = (data, sources.innermost(loader.dataset), loader.collate_fn)
    found = (own_tokenizer(holder) for holder in holders)
    return next((tokenizer for tokenizer in found if tokenizer is not None), None)


def find_vocabulary(data: Any, loader: sources.Loader) -> str:
    """The digest of the tokenizer that :func:`find_tokenizer` finds; empty without one."""
    found = find_tokenizer(data, loader)
    return "" if found is None else vocabulary_digest(found)


def check_vocabulary(cache: str, run: str) -> None:
    """Raise MismatchError where both sides know their vocabulary, and it is not the same.

    Args:
        cache: the digest at the dump; empty where it is not known.
        run: of this run's tokenizer.
    """
    if cache and run and cache != run:
        raise MismatchError(
            f"the tokenizer's vocabulary is {run} in this run and was {cache} at the dump. Targets "
            "and this run's token ids would name different tokens. Use the tokenizer of the dump, "
            "or dump again."
        )
