"""Taking over a shard of another view as it is: verified, copied, committed under its new place."""

from __future__ import annotations

import shutil
from dataclasses import replace

from kdcache.errors import CacheCorruptedError
from kdcache.store.format.arrays import object_file
from kdcache.store.format.commits import Commit, check_origin, write_commit
from kdcache.store.format.files import fsync_folder, fsync_tree, write_group, writing_into
from kdcache.store.format.layout import GROUP_FILE, attempt_folder, new_attempt
from kdcache.store.view import View
from kdcache.store.writer import ViewWriter


def adopt_shard(writer: ViewWriter, shard: int, view: View, commit: Commit) -> Commit | None:
    """Copy one shard of a view into another that has the same columns.

    Args:
        writer: of the view that takes it.
        shard: its number there; must hold as many samples.
        view: where it comes from.
        commit: of the shard there.

    Returns:
        The new commit, or None where another attempt at this shard was committed first.

    Raises:
        CacheCorruptedError: any checksum of the shard is wrong, or it is not of the dump that its
            view's manifest says; nothing is committed.
        CacheError: it cannot be written.
    """
    where = f"shard {commit.shard} of {view.folder}"
    start, stop = writer.manifest.shard_range(shard)
    if stop - start != commit.stop - commit.start:
        raise CacheCorruptedError(f"{where} does not fit {shard}.")
    check_origin(view.manifest, commit.origin, commit.stop, where)
    view.read_shard(commit)
    source = attempt_folder(view.folder, commit.shard, commit.attempt)
    attempt = new_attempt()
    group = attempt_folder(writer.folder, shard, attempt)
    with writing_into(writer.folder):
        group.mkdir()
        write_group(group, {})
        for column in writer.manifest.columns:
            (group / column.name).mkdir()
            shutil.copyfile(source / column.name / GROUP_FILE, group / column.name / GROUP_FILE)
            if commit.arrays[column.name].rows:
                target = object_file(group, column)
                target.parent.mkdir(parents=True)
                shutil.copyfile(object_file(source, column), target)
        fsync_tree(group)
        fsync_folder(writer.folder)
        adopted = replace(
            commit,
            shard=shard,
            attempt=attempt,
            start=start,
            stop=stop,
            origin=writer.manifest.origin,
        )
        return adopted if write_commit(writer.folder, adopted) else None
