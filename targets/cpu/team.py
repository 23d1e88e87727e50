"""The native thread team that runs one call of a model together: its barrier, its workers, and how it is built.

Every member runs the whole program (`BODY`); kernels that are shared out compute a part each, all else is done by
member 0, and barriers stand between. Members that wait spin for some microseconds, since kernels take as long, then
yield; between calls the workers sleep on a semaphore. TVM has no atomics for CPUs, so this is LLVM IR, linked into the
entry's object.

Two functions are for Python (packed, one pointer): `START` and `STOP`, both given the team's memory, whose layout is in
`members`. `RUN` is called by ``dlc_main``.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.ir import StringImm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.builder import C_ABI
from dlc.targets.cpu.members import ARRIVED, COUNT, ROUND, START, STOP, TABLE, WORKER, WORKERS

BODY, RUN, BARRIER = "dlc_body", "dlc_team_run", "dlc_team_barrier"
_SPINS_IN_BARRIER, _SPINS_WHEN_IDLE = 4_000, 20_000


def _each_worker(body: str, falls_through: bool = True) -> str:
    """The end of a function, from its block ``begin`` on: a loop over the workers, ``%i`` from 1 on, each at
    ``%worker``. `body` begins a block and goes to ``next``, by itself or where it ends."""
    return f"""begin:
  %countp = getelementptr i8, ptr %team, i64 {COUNT}
  %count = load i64, ptr %countp, align 8
  br label %each
each:
  %i = phi i64 [ 1, %begin ], [ %following, %next ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %one, label %done
one:
  %index = sub i64 %i, 1
  %scaled = mul i64 %index, {WORKER}
  %offset = add i64 %scaled, {WORKERS}
  %worker = getelementptr i8, ptr %team, i64 %offset
{body.strip(chr(10))}
{"  br label %next" if falls_through else ""}
next:
  %following = add i64 %i, 1
  br label %each
done:
  ret void"""


# What is done for each worker: where work is given, where the team begins, where it ends.
_WAKE = """
  %slept = atomicrmw xchg ptr %worker, i64 0 seq_cst
  %sleeping = icmp eq i64 %slept, 1
  br i1 %sleeping, label %post, label %next
post:
  %semaphore = getelementptr i8, ptr %worker, i64 32
  %posted = call i32 @sem_post(ptr %semaphore)
"""
_MAKE = """
  %numberp = getelementptr i8, ptr %worker, i64 16
  store i64 %i, ptr %numberp, align 8
  %teamp = getelementptr i8, ptr %worker, i64 24
  store ptr %team, ptr %teamp, align 8
  %semaphore = getelementptr i8, ptr %worker, i64 32
  %made = call i32 @sem_init(ptr %semaphore, i32 0, i32 0)
  %threadp = getelementptr i8, ptr %worker, i64 8
  %failed = call i32 @pthread_create(ptr %threadp, ptr null, ptr @dlc_team_worker, ptr %worker)
  %bad = icmp ne i32 %failed, 0
  br i1 %bad, label %fewer, label %next
fewer:
  store i64 %i, ptr %countp, align 8
  ret void
"""
_JOIN = """
  %threadp = getelementptr i8, ptr %worker, i64 8
  %thread = load i64, ptr %threadp, align 8
  %joined = call i32 @pthread_join(i64 %thread, ptr null)
"""

_CODE = f"""
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(i64, ptr)
declare i32 @sem_init(ptr, i32, i32)
declare i32 @sem_wait(ptr)
declare i32 @sem_post(ptr)
declare i32 @sched_yield()
declare void @{BODY}(ptr, i64, i64, ptr)
declare void @PAUSE()
declare void @dlc_team_worker(ptr)

define void @dlc_team_meet(ptr %team) alwaysinline {{
entry:
  %countp = getelementptr i8, ptr %team, i64 {COUNT}
  %count = load i64, ptr %countp, align 8
  %roundp = getelementptr i8, ptr %team, i64 {ROUND}
  %round = load atomic i64, ptr %roundp acquire, align 8
  %arrivedp = getelementptr i8, ptr %team, i64 {ARRIVED}
  %before = atomicrmw add ptr %arrivedp, i64 1 acq_rel
  %arrived = add i64 %before, 1
  %last = icmp eq i64 %arrived, %count
  br i1 %last, label %open, label %wait
open:
  store atomic i64 0, ptr %arrivedp monotonic, align 8
  %next = add i64 %round, 1
  store atomic i64 %next, ptr %roundp release, align 8
  ret void
wait:
  %spin = phi i64 [ 0, %entry ], [ %spun, %pause ], [ %spun, %yield ]
  %now = load atomic i64, ptr %roundp acquire, align 8
  %passed = icmp ne i64 %now, %round
  br i1 %passed, label %done, label %pause
pause:
  call void @PAUSE()
  %spun = add i64 %spin, 1
  %tired = icmp ugt i64 %spun, {_SPINS_IN_BARRIER}
  br i1 %tired, label %yield, label %wait
yield:
  %ignored = call i32 @sched_yield()
  br label %wait
done:
  ret void
}}

define void @dlc_team_work(ptr %self) alwaysinline {{
entry:
  %numberp = getelementptr i8, ptr %self, i64 16
  %number = load i64, ptr %numberp, align 8
  %teamp = getelementptr i8, ptr %self, i64 24
  %team = load ptr, ptr %teamp, align 8
  %semaphore = getelementptr i8, ptr %self, i64 32
  br label %idle
idle:
  %seen = phi i64 [ 0, %entry ], [ %job3, %work ], [ %seen, %rest ]
  br label %look
look:
  %spin = phi i64 [ 0, %idle ], [ %spun, %pause ]
  %job1 = load atomic i64, ptr %team acquire, align 8
  %fresh1 = icmp ne i64 %job1, %seen
  br i1 %fresh1, label %run, label %pause
pause:
  call void @PAUSE()
  %spun = add i64 %spin, 1
  %tired = icmp ugt i64 %spun, {_SPINS_WHEN_IDLE}
  br i1 %tired, label %sleep, label %look
sleep:
  store atomic i64 1, ptr %self seq_cst, align 8
  %job2 = load atomic i64, ptr %team seq_cst, align 8
  %fresh2 = icmp ne i64 %job2, %seen
  br i1 %fresh2, label %cancel, label %rest
cancel:
  ; A job came meanwhile: if its giver has seen the flag, its post must be taken.
  %was = atomicrmw xchg ptr %self, i64 0 seq_cst
  %posted = icmp eq i64 %was, 0
  br i1 %posted, label %rest, label %run
rest:
  %waited = call i32 @sem_wait(ptr %semaphore)
  br label %idle
run:
  %job3 = load atomic i64, ptr %team acquire, align 8
  %tablep = getelementptr i8, ptr %team, i64 {TABLE}
  %table = load ptr, ptr %tablep, align 8
  %ends = icmp eq ptr %table, null
  br i1 %ends, label %end, label %work
work:
  %countp = getelementptr i8, ptr %team, i64 {COUNT}
  %count = load i64, ptr %countp, align 8
  call void @{BODY}(ptr %table, i64 %number, i64 %count, ptr %team)
  call void @dlc_team_meet(ptr %team)
  br label %idle
end:
  ret void
}}

define void @dlc_team_publish(ptr %team, ptr %table) alwaysinline {{
  %tablep = getelementptr i8, ptr %team, i64 {TABLE}
  store ptr %table, ptr %tablep, align 8
  %old = atomicrmw add ptr %team, i64 1 seq_cst
  br label %begin
{_each_worker(_WAKE)}
}}

define void @dlc_team_give(ptr %team, ptr %table) alwaysinline {{
  call void @dlc_team_publish(ptr %team, ptr %table)
  %countp = getelementptr i8, ptr %team, i64 {COUNT}
  %count = load i64, ptr %countp, align 8
  call void @{BODY}(ptr %table, i64 0, i64 %count, ptr %team)
  call void @dlc_team_meet(ptr %team)
  ret void
}}

define void @dlc_team_start(ptr %team) alwaysinline {{
  br label %begin
{_each_worker(_MAKE, falls_through=False)}
}}

define void @dlc_team_stop(ptr %team) alwaysinline {{
  call void @dlc_team_publish(ptr %team, ptr null)
  br label %begin
{_each_worker(_JOIN)}
}}
"""


def team_functions(isa: Isa) -> dict[str, Any]:
    """The team's functions, by name. TVM gives what it imports to the inliner and then drops it, so each of those that
    are called from elsewhere is wrapped in a function of TVM's."""
    return {
        START: _wrapped(START, "dlc_team_start", ("team",), _code(isa)),
        STOP: _wrapped(STOP, "dlc_team_stop", ("team",)),
        RUN: _wrapped(RUN, "dlc_team_give", ("team", "table"), c_abi=True),
        BARRIER: _wrapped(BARRIER, "dlc_team_meet", ("team",), c_abi=True),
        "dlc_team_worker": _wrapped("dlc_team_worker", "dlc_team_work", ("self",), c_abi=True),
    }


def _code(isa: Isa) -> str:
    if isa.arch != "x86_64":
        own = "define void @dlc_team_pause() alwaysinline {\n  ret void\n}\n"
        return _CODE.replace("declare void @PAUSE()\n", own).replace("@PAUSE", "@dlc_team_pause")
    return _CODE.replace("@PAUSE", "@llvm.x86.sse2.pause")


def _wrapped(name: str, target: str, parameters: tuple[str, ...], code: str = "", c_abi: bool = False) -> Any:
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True, **({"calling_conv": C_ABI} if c_abi else {})})
            T.evaluate(T.call_extern("void", target, *(T.arg(p, T.handle("int64")) for p in parameters)))
        function = builder.get()
    if not code:
        return function
    body = tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", StringImm(code), function.body)
    return function.with_body(body)
