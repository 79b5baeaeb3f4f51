"""Random numbers go on on every rank where that rank was."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.multiprocessing

from kdcache.train.interruption.randomness import of_this_rank, random_states, restore_random_state


def _goes_on(rank, folder, num_ranks):
    if num_ranks > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks
        )
    torch.manual_seed(rank)
    states = random_states()
    wanted = torch.rand(3)
    torch.manual_seed(9)
    restore_random_state(of_this_rank(states))
    assert len(states) == num_ranks
    assert torch.equal(torch.rand(3), wanted)
    if num_ranks > 1:
        dist.destroy_process_group()


def test_one_process(tmp_path):
    _goes_on(0, tmp_path, 1)


def test_two_ranks_that_drew_differently(tmp_path):
    torch.multiprocessing.spawn(_goes_on, (str(tmp_path), 2), nprocs=2)
