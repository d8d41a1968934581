"""Worker processes: started in their own session, watched, and ended with all their descendants.

Duty: spawn (`start`), exit as an event of the loop and reaping (`supervisor`), identity and the end of a whole
process tree, also of children that left it by setsid or a double fork (`tree`). `core.process_tree` decides who
belongs. May not know: what a worker is for. Source: pidfd_open(2), pidfd_send_signal(2), waitid(2), proc(5),
PR_SET_CHILD_SUBREAPER(2const).
"""

from swapd.core.launch import MARKER
from swapd.core.process_tree import UNKNOWN_EXIT
from swapd.host.pids import ProcessIdentity, boot_id
from swapd.host.processes.supervisor import Process, Supervisor
from swapd.host.processes.tree import (
    kill_leftovers,
    tree_pids,
    trees_pids,
)

__all__ = [
    "MARKER",
    "UNKNOWN_EXIT",
    "Process",
    "ProcessIdentity",
    "Supervisor",
    "boot_id",
    "kill_leftovers",
    "tree_pids",
    "trees_pids",
]
