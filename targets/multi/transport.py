"""Arrays between processes: a gloo process group of its own, so that several can live in one process.

Ranks meet at a store that the driver keeps on its node's address. Addresses come from Ray; nothing here assumes one.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.runtime.tensors import ALIGNMENT

_TAG = 7
FOREVER = timedelta(days=365)  # an idle worker waits for its driver as long as that lives


class LinkError(RuntimeError):
    """A peer is gone, or has not answered in time."""


def require_torch() -> Any:
    """The module ``torch.distributed``; DlcError where torch is not installed or lacks gloo."""
    try:
        import torch.distributed as dist
    except ImportError:
        raise DlcError("target multi needs torch to send tensors between processes: install dlc[distributed]") from None
    if not dist.is_available() or not dist.is_gloo_available():
        raise DlcError("target multi needs a torch with gloo: install dlc[distributed]")
    return dist


def listen(host: str) -> socket.socket:
    """A socket on a free port of `host` and no other address, for the store that the group meets at."""
    opened = socket.socket()
    opened.bind((host, 0))
    opened.listen()
    return opened


class Group:
    """A process group. Messages from one rank to another arrive in the order in which they were sent.

    Raises:
        LinkError: from every method, when a peer is gone or `timeout` is over.
    """

    def __init__(
        self,
        store: tuple[str, int],
        rank: int,
        world: int,
        host: str,
        timeout: timedelta,
        listener: socket.socket | None = None,
    ) -> None:
        """Meet the `world` - 1 other ranks at `store` (host, port); blocks until all are there.

        Args:
            store: where rank 0 listens.
            rank, world: this process's number, and how many there are.
            host: the address under which the other ranks reach this process.
            timeout: for meeting, and for each message.
            listener: on rank 0, the socket that `store` names.
        """
        dist = require_torch()
        extra = {} if listener is None else {"master_listen_fd": listener.detach()}
        options = dist.ProcessGroupGloo._Options()
        options._timeout = timeout
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
        meeting = min(timeout, timedelta(minutes=10))
        try:
            self._store = dist.TCPStore(*store, world, rank == 0, meeting, wait_for_workers=False, **extra)
            self._group = dist.ProcessGroupGloo(self._store, rank, world, options)
        except RuntimeError as error:
            raise LinkError(str(error)) from error

    def send(self, array: np.ndarray, peer: int) -> Any:
        """Begin to send; returns the work to `wait` for, until which `array` must stay alive and unchanged."""
        from torch import from_numpy

        try:
            return self._group.send([from_numpy(_bytes(array))], peer, _TAG)
        except RuntimeError as error:
            raise LinkError(str(error)) from error

    def wait(self, work: Any) -> None:
        """Wait until a send is done."""
        try:
            work.wait()
        except RuntimeError as error:
            raise LinkError(str(error)) from error

    def receive(self, array: np.ndarray, peer: int) -> np.ndarray:
        """Fill `array` (C-contiguous) with the next message of `peer`, which must be of that size; returns it."""
        from torch import from_numpy

        try:
            self._group.recv([from_numpy(_bytes(array))], peer, _TAG).wait()
        except RuntimeError as error:
            raise LinkError(str(error)) from error
        return array

    def send_blob(self, data: bytes | memoryview, peer: int) -> None:
        """Send bytes of any length and wait until they are taken."""
        size = np.array([len(data)], np.int64)
        self.wait(self.send(size, peer))
        if len(data):
            self.wait(self.send(np.frombuffer(data, np.uint8).copy(), peer))

    def receive_blob(self, peer: int) -> np.ndarray:
        """What `send_blob` sent, as uint8 at a multiple of 64 bytes: constants are used where they lie."""
        size = int(self.receive(np.empty(1, np.int64), peer)[0])
        raw = np.empty(size + ALIGNMENT, np.uint8)
        shift = -raw.ctypes.data % ALIGNMENT
        data = raw[shift : shift + size]
        return self.receive(data, peer) if size else data

    def send_json(self, record: Mapping[str, Any], peer: int) -> None:
        """Send a JSON-able record."""
        self.send_blob(json.dumps(record).encode(), peer)

    def receive_json(self, peer: int) -> Any:
        """What `send_json` sent."""
        return json.loads(self.receive_blob(peer).tobytes())

    def close(self) -> None:
        """Drop the connections: peers that wait for this rank get a `LinkError`."""
        self._group = self._store = None


def _bytes(array: np.ndarray) -> np.ndarray:
    """The array's memory: gloo need not know the dtype, and numpy has some that torch has not."""
    return array.reshape(-1).view(np.uint8)
