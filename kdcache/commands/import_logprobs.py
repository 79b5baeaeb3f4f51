"""``kdcache import-logprobs FILE ... --into CACHE --num_classes C``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from kdcache.commands.terminal.console import shard_bar
from kdcache.commands.terminal.parser import Parser

_ABOUT = """\
Make one split of a teacher cache from top-k log-probabilities that were made elsewhere.

A record (a JSON line, or a row of a Parquet file) is one sample: its token ids,
and a list with one element for each token, of the most probable tokens at its
place. An element is null, or one of

  {"42": {"logprob": -0.1, "rank": 1}, ...}      vLLM's prompt_logprobs
  {"42": -0.1, ...}                              the same with bare numbers
  [[42, -0.1], ...]                              pairs, also a Parquet map
  [{"token_id": 42, "logprob": -0.1}, ...]       structs, "rank" may be there
  [-0.1, ...]                                    with [42, ...] in --top_ids_field

and either field may be a text that is JSON of this. Element t is of token t,
given those before it, and the first is null (--shift 1, as in vLLM); or of
token t + 1, as topk of a model's logits gives it (--shift 0). Anything else is
refused by file, line and element.
"""
_END = """\
Students train from it with batch: {causal: true}, at temperature 1, on samples
with the same token ids, without padding. The same command goes on where an
interrupted one stopped.
"""


def run(arguments: Sequence[str]) -> int:
    """Import files and print what the cache holds."""
    options = _parser().parse_args(arguments)
    from kdcache.importers.logprobs import import_logprobs

    with shard_bar("importing") as progress:
        cache = import_logprobs(
            options.files,
            options.into,
            num_classes=options.num_classes,
            split=options.split,
            k=options.k,
            shift=options.shift,
            ids_field=options.ids_field,
            logprobs_field=options.logprobs_field,
            top_ids_field=options.top_ids_field,
            key=options.key,
            fingerprint=options.fingerprint,
            dtype=options.dtype,
            teacher=options.teacher,
            samples_per_shard=options.samples_per_shard,
            progress=progress,
        )
    print(cache.summary())
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="kdcache import-logprobs",
        description=_ABOUT,
        epilog=_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help=".jsonl, .ndjson, .json (or .gz), .parquet, .pq")
    add("--into", required=True, metavar="CACHE", help="folder of the teacher cache")
    add(
        "--num_classes",
        required=True,
        type=int,
        metavar="C",
        help="size of the vocabulary, as the student's logits have it",
    )
    add("--split", default="train", help="split to make (default train); others stay")
    add("--k", type=int, help="classes kept; as many as the first records have if not given")
    add("--shift", type=int, default=1, choices=(0, 1), help="see above (default 1)")
    add("--ids_field", default="prompt_token_ids", metavar="FIELD", help="default %(default)s")
    add(
        "--logprobs_field",
        default="prompt_logprobs",
        metavar="FIELD",
        help="default %(default)s; a dotted path leads into nested objects",
    )
    add("--top_ids_field", metavar="FIELD", help="ids of bare log-probabilities; see above")
    add("--key", default="content", help="content (default), or index: records in the data's order")
    add(
        "--fingerprint",
        default="tokens:input_ids",
        metavar="tokens:PATH",
        help="where the student's samples have their token ids (default %(default)s)",
    )
    add("--dtype", default="float16", help="of log-probabilities: float16 (default) or float32")
    add("--teacher", default="", metavar="TEXT", help="which model it was; stands in the cache")
    add(
        "--samples_per_shard",
        type=int,
        metavar="N",
        help="samples written together; chosen if not given",
    )
    return parser
