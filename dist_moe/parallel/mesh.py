"""Arranges the job's ranks as data-parallel replicas, each of `ep_size` ranks that share the experts of one replica.

    world rank = replica * ep_size + ep rank

Neighbouring ranks share experts. So if ep_size is at most the number of ranks on a node, tokens stay on the node.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist

from dist_moe.errors import UserError
from dist_moe.parallel.comm import Comm, GroupComm, SoloComm
from dist_moe.parallel.rendezvous import TIMEOUT


@dataclass(frozen=True, slots=True)
class Mesh:
    """The three groups of which this rank is a member; a group of one rank is a `SoloComm`."""

    world: Comm
    """All ranks of the job."""
    ep: Comm
    """The expert-parallel group: the ranks that together hold one replica's experts. `ep.rank` is the rank in a
    `Placement`."""
    replicas: Comm
    """The data-parallel group: the ranks that hold the same experts, one in each replica. `replicas.rank` is the
    replica."""

    @classmethod
    def one_replica(cls, comm: Comm) -> Mesh:
        """One replica: all ranks of `comm` share the experts."""
        return cls(comm, comm, SoloComm(comm.device))

    @classmethod
    def of(cls, comm: Comm, ep_size: int | None, setting: str = "parallel.ep_size") -> Mesh:
        """`ep_size` ranks share the experts of a replica; None: all ranks. Called by all ranks together.

        `setting` is the name of the user's setting, for messages.

        Raises:
            UserError: `ep_size` does not divide the number of ranks.
        """
        ep_size = ep_size or comm.size
        if comm.size % ep_size:
            raise UserError(
                f"{setting} is {ep_size}, but {comm.size} rank(s) do not divide into replicas of {ep_size}: "
                "choose a divisor, or start another number of ranks"
            )
        if ep_size == comm.size:
            return cls.one_replica(comm)
        assert isinstance(comm, GroupComm)
        num_replicas = comm.size // ep_size
        rows = [list(range(r * ep_size, (r + 1) * ep_size)) for r in range(num_replicas)]
        columns = [list(range(e, comm.size, ep_size)) for e in range(ep_size)]
        return cls(comm, _group_of(rows, comm), _group_of(columns, comm))


def _group_of(groups: list[list[int]], world: GroupComm) -> Comm:
    """This rank's group. Every rank must create all groups, in the same order."""
    if len(groups[0]) == 1:
        return SoloComm(world.device)
    made = [dist.new_group(ranks, timeout=TIMEOUT) for ranks in groups]
    mine = next(group for ranks, group in zip(groups, made, strict=True) if world.rank in ranks)
    return GroupComm(mine, world.device)
