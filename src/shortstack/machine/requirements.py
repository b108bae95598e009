"""What work needs of a machine: memory where it computes, and room on the disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Requirements:
    """An estimate for one piece of work.

    memory_bytes: the most that it holds on `device`, without the libraries that the process has loaded. disk_bytes: what it
    writes beside its output until it ends, the output included. streamed: layers are read one by one.
    """

    memory_bytes: int = 0
    disk_bytes: int = 0
    streamed: bool = False
    device: str = "cpu"

    def then(self, other: Requirements) -> Requirements:
        """Of both, one after the other: memory is given back between them, what is on the disk stays."""
        return Requirements(
            max(self.memory_bytes, other.memory_bytes),
            self.disk_bytes + other.disk_bytes,
            self.streamed or other.streamed,
            other.device,
        )
