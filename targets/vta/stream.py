"""Writing an instruction stream: micro-ops kept in their buffer, dependences between engines turned into tokens.

A caller says ``emit(instruction, after=[...])`` with the instructions of other engines that must have completed. When
the stream is finished, each dependence that an earlier token does not already cover becomes one token: one push and one
pop. As both engines run in order, the i-th pop meets the i-th push, and no token is left over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from dlc.targets.vta.config import Config
from dlc.targets.vta.engines import COMPUTE, POP_FLAG, PUSH_FLAG, STORE, engine_of
from dlc.targets.vta.isa import Finish, Instruction, Load, Memory, Store, pack_uops

NONE = -1


class Stream:
    """A stream under construction.

    Attributes:
        uop_base: where micro-ops lie in DRAM, counted in micro-ops.
        stored: for each ACC (and OUT) entry the last STORE that reads it, or `NONE`.
        zero: which ACC entries are known to be zero.
    """

    def __init__(self, config: Config, uop_base: int) -> None:
        self.config, self.uop_base = config, uop_base
        self.instructions: list[Instruction] = []
        self._engines: list[str] = []
        self._after: list[tuple[int, int]] = []  # consumer, producer
        self._cached: dict[bytes, int] = {}  # micro-ops -> their place in the buffer
        self._filled = 0
        self._written: dict[bytes, int] = {}  # micro-ops -> their place in DRAM
        self.uops = bytearray()
        self.stored = np.full(config.accs, NONE)
        self.zero = np.zeros(config.accs, bool)
        self._seen: list[tuple[int, int]] = []  # (STORE, the first compute instruction that waited for it)

    def emit(self, instruction: Instruction, after: Iterable[int] = ()) -> int:
        """Append; returns the instruction's index. `after` may hold `NONE`."""
        index, engine = len(self.instructions), engine_of(instruction)
        self.instructions.append(instruction)
        self._engines.append(engine)
        for producer in after:
            if producer != NONE and self._engines[producer] != engine:
                self._after.append((index, producer))
                if engine == COMPUTE and self._engines[producer] == STORE:
                    self._saw(producer, index)
        return index

    def _saw(self, store: int, index: int) -> None:
        if not self._seen or store > self._seen[-1][0]:
            self._seen.append((store, index))

    def fence(self, store: int) -> int:
        """A compute instruction that completes after `store`, for the load engine to wait for; `NONE` for `NONE`."""
        if store == NONE:
            return NONE
        for seen, index in self._seen:
            if seen >= store:
                return index
        return self.emit(Load(memory=Memory.UOP), after=[store])

    # --- micro-ops ---

    def load_uops(self, uops: np.ndarray) -> int:
        """The place in the buffer of micro-ops (n, 3), which are loaded where they are not there."""
        data = pack_uops(uops, self.config).astype("<u4").tobytes()
        if data not in self._cached:
            if self._filled + len(uops) > self.config.uops:
                self._cached, self._filled = {}, 0
            if data not in self._written:
                self._written[data] = len(self.uops) // 4
                self.uops += data
            source = self.uop_base + self._written[data]
            count = len(uops)
            self.emit(Load(memory=Memory.UOP, sram_base=self._filled, dram_base=source, x_size=count, x_stride=count))
            self._cached[data] = self._filled
            self._filled += count
        return self._cached[data]

    # --- what ACC holds ---

    def stores_of(self, begin: int, end: int) -> int:
        """The last STORE of these entries."""
        return int(self.stored[begin:end].max(initial=NONE))

    def store(self, store: Store, after: int) -> int:
        """A STORE of entries that the compute instruction `after` wrote last."""
        index = self.emit(store, after=[after])
        self.stored[store.sram_base : store.sram_base + store.y_size * store.x_size] = index
        return index

    # --- the end ---

    def finish(self) -> list[Instruction]:
        """The stream with its token flags and a FINISH at the end, which waits for the last STORE."""
        last = max((i for i, engine in enumerate(self._engines) if engine == STORE), default=NONE)
        self.emit(Finish(), after=[last])
        flags: dict[int, set[str]] = {}
        covered: dict[tuple[str, str], int] = {}
        latest: dict[tuple[int, str], int] = {}
        for consumer, producer in self._after:
            key = (consumer, self._engines[producer])
            latest[key] = max(latest.get(key, NONE), producer)
        for (consumer, engine), producer in sorted(latest.items()):
            queue = (engine, self._engines[consumer])
            if producer > covered.get(queue, NONE):
                covered[queue] = producer
                flags.setdefault(consumer, set()).add(POP_FLAG[queue])
                flags.setdefault(producer, set()).add(PUSH_FLAG[queue])
        return [
            replace(i, **dict.fromkeys(flags[n], True)) if n in flags else i for n, i in enumerate(self.instructions)
        ]
