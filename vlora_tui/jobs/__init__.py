"""Jobs: recipes that run in processes of their own and outlive whoever started them.

A job is a directory (`store`) and a process of its own session (`runner`) that holds a lock
(`joblock`, `identity`) and appends events. Whoever looks on (`watch`) reads events and small
files; `control` starts, cancels, resumes and removes. Nothing in here imports torch or numpy.
"""

from __future__ import annotations

from vlora_tui.jobs.control import cancel, remove, resume, start, start_action, wait
from vlora_tui.jobs.store import Job, JobStore
from vlora_tui.jobs.watch import EventReader, JobView, JobWatcher, State, TimedEvent, follow, look
from vlora_tui.jobs.worker import WarmWorker

__all__ = [
    "EventReader",
    "Job",
    "JobStore",
    "JobView",
    "JobWatcher",
    "State",
    "TimedEvent",
    "WarmWorker",
    "cancel",
    "follow",
    "look",
    "remove",
    "resume",
    "start",
    "start_action",
    "wait",
]
