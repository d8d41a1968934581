"""Workers as transient services of systemd: started, watched, limited and ended by it, so that they outlive the daemon.

Duty: every call of systemd (`systemd`), one worker's unit (`process`), and all of them (`units`).
`core.unit_settings` decides what a unit looks like. The same methods as `host.processes` has, so that the daemon need
not know which of the two hosts its workers. May not know: what a worker is for.

Source: systemd-run(1), systemctl(1), cgroups(7).
"""

from swapd.host.units.process import UnitProcess
from swapd.host.units.systemd import Systemd, why_not
from swapd.host.units.units import Units

__all__ = ["Systemd", "UnitProcess", "Units", "why_not"]
