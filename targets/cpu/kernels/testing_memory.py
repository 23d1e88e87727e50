"""Memory between pages that no access may touch, and native calls that may fault without harm: for tests.

A buffer lies in a mapping of its own. In the one placement its last byte is the last of a page, in the other its first
byte is the first of one; on both sides of the mapping are pages that can be neither read nor written. What is left of
the buffer's own pages holds a pattern that is looked at afterwards. Both placements together show every access that
starts outside a buffer or reaches beyond it, reads too, as long as it is less than 64 KiB away.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

_PAGE = mmap.PAGESIZE
_AROUND = 16 * _PAGE  # bytes without access on each side
_SECONDS = 120  # after which a call counts as one that hangs
_NO_ACCESS, _READ_ONLY, _WRITABLE = 0, mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
_FAULT = 3  # exit code
_LIBC = ctypes.CDLL(None, use_errno=True)
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_WITH_INFORMATION = 4  # SA_SIGINFO

#: (whether buffers end with their page, what is in memory that nobody has written): kernels give the same for both.
PLACEMENTS = ((True, 0xFF), (False, 0x5A))


def _protect(address: int, size: int, rights: int) -> None:
    if size and _LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), rights):
        raise OSError(ctypes.get_errno(), "mprotect")


class _Action(ctypes.Structure):
    """struct sigaction of Linux's C library."""

    _fields_: ClassVar = [
        ("handler", _HANDLER), ("mask", ctypes.c_uint64 * 16), ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p),
    ]  # fmt: skip


class Room:
    """A buffer of `size` bytes between two pages without access; child processes write to the same memory.

    Args:
        content: what the buffer holds at first, of any dtype; None for `fill` in all bytes.
        at_end: the buffer ends where its pages do; else it begins there. Its alignment is then that of its size.
        fill: the byte that is around the buffer, and in it where there is no content.
        writable: whether the call may write to it.

    Attributes:
        address: of the first byte.
        bytes: the buffer, uint8.
    """

    def __init__(
        self, size: int, at_end: bool, fill: int, content: np.ndarray | None = None, writable: bool = True
    ) -> None:
        self._fill = fill
        self._inner = -(-size // _PAGE) * _PAGE
        whole = np.frombuffer(mmap.mmap(-1, self._inner + 2 * _AROUND), np.uint8)
        self._first: int = whole.ctypes.data
        inside = whole[_AROUND : _AROUND + self._inner]
        inside[:] = fill
        self._begin = self._inner - size if at_end else 0
        self._inside, self.bytes = inside, inside[self._begin : self._begin + size]
        self.address = self._first + _AROUND + self._begin
        if content is not None:
            self.bytes[:] = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
        _protect(self._first, _AROUND, _NO_ACCESS)
        _protect(self._first + _AROUND, self._inner, _WRITABLE if writable else _READ_ONLY)
        _protect(self._first + _AROUND + self._inner, _AROUND, _NO_ACCESS)

    def offset(self, address: int) -> int | None:
        """The byte of the buffer at an address, negative before its begin; None far from it."""
        near = self._first <= address < self._first + self._inner + 2 * _AROUND
        return address - self.address if near else None

    def stray(self) -> int:
        """Bytes around the buffer that were written."""
        around = np.ones(self._inner, bool)
        around[self._begin : self._begin + self.bytes.size] = False
        return int(np.count_nonzero(self._inside[around] != self._fill))


class FaultError(Exception):
    """A native call that did not return; `address` is what it accessed, None where that is not why."""

    def __init__(self, text: str, address: int | None = None) -> None:
        super().__init__(text)
        self.address = address


def apart(call: Callable[[], Any]) -> None:
    """Run a native call in a child process; what it writes to `Room`s is seen here. Raises FaultError."""
    report = np.frombuffer(mmap.mmap(-1, _PAGE), np.uint64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child runs native code only
        child = os.fork()
    if not child:
        _run_alone(call, report)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        raise FaultError("it hangs" if number == signal.SIGALRM else f"it dies of {signal.Signals(number).name}")
    if os.WEXITSTATUS(status) == _FAULT:
        raise FaultError("it faults", int(report[0]))
    if os.WEXITSTATUS(status):
        raise FaultError("it raises an exception")


def _run_alone(call: Callable[[], Any], report: np.ndarray) -> None:
    """The child: never returns."""

    @_HANDLER
    def faulted(number: int, information: int, context: int) -> None:
        report[0] = ctypes.c_uint64.from_address(information + 2 * ctypes.sizeof(ctypes.c_void_p)).value
        os._exit(_FAULT)

    code = 1
    try:
        action = _Action(faulted, flags=_WITH_INFORMATION)
        for number in (signal.SIGSEGV, signal.SIGBUS):
            _LIBC.sigaction(int(number), ctypes.byref(action), None)
        for number in (signal.SIGALRM, signal.SIGABRT):
            _LIBC.signal(int(number), None)  # its default, whatever pytest has set up
        signal.alarm(_SECONDS)
        call()
        code = 0
    except BaseException as error:
        print(f"in the child process: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def hold(call: Callable[[], Any], rooms: Mapping[str, Room], alone: bool = True) -> None:
    """Run a native call and hold it to its buffers.

    Args:
        alone: in a child process, which takes 20 ms; else a fault ends this one.

    Raises:
        AssertionError: it reads or writes outside a buffer, or writes to one that is not writable; names the buffer
            and the byte.
    """
    try:
        if alone:
            apart(call)
        else:
            call()
    except FaultError as fault:
        raise AssertionError(f"{fault}{_place(fault.address, rooms)}") from None
    for name, room in rooms.items():
        stray = room.stray()
        assert not stray, f"{stray} bytes written outside of {name}, which has {room.bytes.size}"


def _place(address: int | None, rooms: Mapping[str, Room]) -> str:
    if address is None:
        return ""
    for name, room in rooms.items():
        offset = room.offset(address)
        if offset is not None:
            return f" at byte {offset} of {name}, which has {room.bytes.size}"
    return f" at address {address:#x}, which is in no buffer (0: an address that is not aligned)"
