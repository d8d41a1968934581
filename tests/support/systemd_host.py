"""A real systemd as PID 1 of namespaces of its own: units behave there as on a booted host.

    with SystemdHost(tmp_path, units={"swapd.service": text}) as host:
        host.systemctl("start", "swapd.service")
        assert host.show("swapd.service", "ActiveState") == "active"

What happens inside stays inside. /run, /tmp and /var/tmp are fresh: systemd-tmpfiles empties /tmp at boot, and it
would be the host's own (so it is masked besides). /etc, /var, /opt, /usr/local, the homes and whatever holds the
project and its interpreter are overlaid: units may write there, and nothing of it is left. `keep` are directories below
the fresh ones that stay visible, read-only; the interpreter's and the project's are kept by themselves. A unit with
PrivateTmp= sees no /tmp but its own: `inside` names where such a directory is besides.

Needs root, unshare, nsenter, overlayfs and systemd; `why_not()` says what is missing. Ends with all that runs in it,
also when the test process is killed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.process_waiting import DEADLINE_S, wait_until

PROJECT = Path(__file__).resolve().parents[2]
SYSTEMD = Path("/lib/systemd/systemd")
TARGET = "swapd-test.target"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--cgroup", "--uts", "--ipc")
_FRESH = ("/run", "/tmp", "/var/tmp")
_MASKED = ("systemd-tmpfiles-setup.service", "systemd-tmpfiles-clean.service", "systemd-tmpfiles-clean.timer")


def why_not() -> str | None:
    """Why no systemd can be booted here, or None."""
    if os.geteuid() != 0:
        return "booting a systemd needs root"
    for program in ("unshare", "nsenter", "setpriv", "mount"):
        if shutil.which(program) is None:
            return f"booting a systemd needs {program}"
    if not SYSTEMD.exists():
        return f"no {SYSTEMD}"
    trial = (
        "mount --make-rprivate /; mount -t tmpfs tmpfs /mnt; mkdir /mnt/upper /mnt/work;"
        " mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work /etc;"
        " umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    )
    done = subprocess.run([*_UNSHARE, "sh", "-ec", trial], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"namespaces, overlayfs or cgroup2 are not to be had here: {done.stderr.strip()[:200]}"
    return None


class SystemdHost:
    """Boots on entry, with `units` (name to text) in /etc/systemd/system, and `files` (path to text) in place."""

    def __init__(
        self,
        directory: Path,
        *,
        units: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
        keep: Sequence[Path] = (),
        prepare: str = "",
    ) -> None:
        """`directory` is for this object's own use and must be empty; `prepare` is shell run before systemd is.

        Files whose text begins with "#!" are made executable.
        """
        self._directory = directory
        self._staged = directory / "staged"
        self._files = {f"/etc/systemd/system/{name}": text for name, text in (units or {}).items()} | dict(files or {})
        self._needed = [Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), PROJECT]
        needed = [*self._needed, *(path.resolve() for path in keep)]
        self._keep = [path for path in dict.fromkeys(needed) if str(path).startswith(tuple(f"{d}/" for d in _FRESH))]
        self._prepare = prepare
        self._cgroup = _own_cgroup()
        self._unshare: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> SystemdHost:
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def console(self) -> str:
        """What systemd itself has said."""
        return (self._directory / "console.log").read_text(errors="replace")

    def inside(self, path: Path) -> Path:
        """Where a path of this host is seen by every unit, whatever its sandbox."""
        for number, kept in enumerate(self._keep):
            if path.is_relative_to(kept):
                return Path(f"/mnt/keep/{number}") / path.relative_to(kept)
        return path

    @property
    def python(self) -> str:
        """This interpreter, with its packages, for a unit's ExecStart."""
        return str(self.inside(Path(sys.prefix).resolve()) / "bin" / Path(sys.executable).name)

    @property
    def units_log(self) -> str:
        """What the services have printed."""
        with contextlib.suppress(FileNotFoundError):
            return self.path("/var/log/units.log").read_text(errors="replace")
        return ""

    # --- talking to it -------------------------------------------------------------------------------------

    def run(self, *argv: str, check: bool = True, timeout_s: float = DEADLINE_S) -> str:
        """Runs a command inside, as root; its output."""
        done = subprocess.run(
            [*self._enter(), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{shlex.join(argv)} exits {done.returncode}:\n{done.stdout}\n{self._said()}")
        return done.stdout

    def popen(self, *argv: str) -> subprocess.Popen[str]:
        """Starts a command inside, as root, and leaves its pipes to the caller."""
        return subprocess.Popen([*self._enter(), *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _enter(self) -> list[str]:
        return ["nsenter", "-t", str(self._init), "-m", "-p", "-C", "-u", "-i", "env", "-i", f"PATH={PATH}"]

    def systemctl(self, *argv: str, check: bool = True) -> str:
        return self.run("systemctl", "--no-pager", "--no-ask-password", *argv, check=check)

    def show(self, unit: str, name: str) -> str:
        return self.systemctl("show", unit, "--property", name, "--value").strip()

    def wait_for(self, unit: str, name: str, *values: str) -> str:
        """Waits until a property has one of the values."""
        try:
            wait_until(lambda: self.show(unit, name) in values, f"{unit}: {name} in {values}")
        except AssertionError as error:
            status = self.systemctl("status", "--full", "--lines=0", unit, check=False)
            raise AssertionError(
                f"{error}; it is {self.show(unit, name)!r}\n{status}\n{self.console[-4000:]}"
            ) from None
        return self.show(unit, name)

    def _said(self) -> str:
        return f"--- console\n{self.console[-2000:]}\n--- units\n{self.units_log[-4000:]}"

    def path(self, inside: str) -> Path:
        """A path inside, for reading from outside."""
        return Path(f"/proc/{self._init}/root{inside}")

    def pid(self, unit: str) -> int:
        """The unit's main process, as numbered inside."""
        return int(self.show(unit, "MainPID"))

    # --- the life of it ------------------------------------------------------------------------------------

    def _boot(self) -> None:
        for path, text in self._files.items():
            staged = self._staged / path.lstrip("/")
            staged.parent.mkdir(parents=True, exist_ok=True)
            staged.write_text(text)
            staged.chmod(0o755 if text.startswith("#!") else 0o644)
        self._staged.mkdir(exist_ok=True)
        enter = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "sh",
            "-c",
            'echo $$ > "$0"/cgroup.procs; exec "$@"',
            str(self._cgroup),
        ]
        with (self._directory / "console.log").open("wb") as console:
            # --kill-child and --pdeathsig: if this process is killed, so is everything inside.
            self._unshare = subprocess.Popen(
                [*enter, *_UNSHARE, "bash", "-ec", self._script()],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")

        def find_init() -> bool:
            if self._unshare is not None and self._unshare.poll() is not None:
                raise AssertionError(f"systemd did not boot:\n{self.console}")
            with contextlib.suppress(FileNotFoundError, IndexError):
                self._init = int(children.read_text().split()[0])
            return self._init > 0 and Path(f"/proc/{self._init}/comm").read_text().strip() == "systemd"

        wait_until(find_init, "systemd as PID 1")
        active = ("systemctl", "is-active", TARGET)
        wait_until(lambda: self.run(*active, check=False).strip() == "active", f"{TARGET} is reached")

    def _script(self) -> str:
        quote = shlex.quote
        log = "append:/var/log/units.log"
        top_levels = {f"/{path.parts[1]}" for path in self._needed}
        own = {"/etc", "/var", "/opt", "/root", "/home", "/srv", "/usr/local"}
        overlaid = sorted((own | top_levels) - {"/tmp", "/run", "/usr"})
        lines = [
            "mount --make-rprivate /",
            # The work tree of the overlays, and what is to be kept, before anything covers it.
            "mount -t tmpfs -o mode=755 tmpfs /mnt",
            "mkdir -p /mnt/keep /mnt/staged",
            f"cp -a {quote(str(self._staged))}/. /mnt/staged",
        ]
        for number, path in enumerate(self._keep):
            lines += [f"mkdir /mnt/keep/{number}", f"mount --bind {quote(str(path))} /mnt/keep/{number}"]
        for number, path in enumerate(overlaid):
            if not Path(path).is_dir() or Path(path).is_symlink():
                continue
            upper, work = f"/mnt/upper{number}", f"/mnt/work{number}"
            lines += [
                f"mkdir {upper} {work}",
                f"chmod --reference={path} {upper}",
                f"mount -t overlay overlay -o lowerdir={path},upperdir={upper},workdir={work} {path}",
            ]
        lines += [f"mount -t tmpfs -o mode={'755' if path == '/run' else '1777'} tmpfs {path}" for path in _FRESH]
        for number, path in enumerate(self._keep):
            target = quote(str(path))
            lines += [f"mkdir -p {target}", f"mount --bind /mnt/keep/{number} {target}"]
            lines += [f"mount -o remount,bind,ro {place}" for place in (target, f"/mnt/keep/{number}")]
        # Units with a user of their own must get through to the interpreter: in the overlays, never on the host.
        for path in self._needed:
            if path not in self._keep:
                lines += [f"chmod a+x {quote(str(parent))}" for parent in path.parents if parent != Path("/")]
        lines += [f"ln -sf /dev/null /etc/systemd/system/{name}" for name in _MASKED]
        lines += [
            "rm -rf /etc/systemd/system/*.wants",  # nothing of the host's own is started
            "printf '[Unit]\\nDefaultDependencies=no\\nAllowIsolate=yes\\n' > /etc/systemd/system/" + TARGET,
            "mkdir /etc/systemd/system/service.d",  # there is no journal
            f"printf '[Service]\\nStandardOutput={log}\\nStandardError={log}\\n'"
            " > /etc/systemd/system/service.d/log.conf",
            "mkdir /etc/systemd/system/swapd-.service.d",  # but for workers, whose unit names their log
            "ln -s /dev/null /etc/systemd/system/swapd-.service.d/log.conf",
            "cp -a --no-preserve=ownership /mnt/staged/. /",
            "umount -R /sys/fs/cgroup",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
            self._prepare,
            f"exec env -i container=private PATH={PATH} SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=info"
            f" {SYSTEMD} --system --unit={TARGET}",
        ]
        return "\n".join(line for line in lines if line)

    def close(self) -> None:
        if self._unshare is None:
            return
        if self._init > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)  # PID 1 takes everything inside with it
        self._unshare.kill()  # and --kill-child does the same if it is not known
        self._unshare.wait()
        self._unshare = None
        wait_until(lambda: _remove_cgroup(self._cgroup), f"{self._cgroup} is empty")


def _own_cgroup() -> Path:
    """The root of this host's cgroups: two that run at a time would count each other's processes as their own."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    top = Path(next(mount[1] for mount in mounts if mount[2] == "cgroup2"))
    own = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].splitlines()[0]
    return Path(tempfile.mkdtemp(prefix="swapd-test-", dir=top / own))


def _remove_cgroup(top: Path) -> bool:
    """False while processes in it are still on their way out."""
    try:
        for path, _, _ in os.walk(top, topdown=False):
            os.rmdir(path)
    except OSError:
        return False
    return True
