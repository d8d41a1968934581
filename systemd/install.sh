#!/bin/sh
# Installs swapd for systemd, or takes it away again: `make install`, `make uninstall`.
#
#   PREFIX   where versions lie (/opt/swapd)        SOURCE  what pip installs (the project; or a wheel)
#   DESTDIR  a root to install into, for packagers: nothing of the running system is touched then
#   PYTHON   the interpreter (python3)              PURGE=1 uninstall: configuration, journal, logs and caches go too
#
# No file of an installed version is ever changed: workers that run go on with the code they were started with.
set -eu
umask 022

here=$(cd "$(dirname "$0")/.." && pwd)
PREFIX=${PREFIX:-/opt/swapd}
DESTDIR=${DESTDIR:-}
PYTHON=${PYTHON:-python3}
SOURCE=${SOURCE:-$here}
LIB=$DESTDIR/usr/local/lib
BIN=$DESTDIR/usr/local/bin
UNITS="swapd.service swapd-keep.service swapd-workers.slice"

fail() {
    echo "swapd: $*" >&2
    exit 1
}

live() { # systemd runs this host, and it is this host that is installed to
    [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]
}

free_directory() { # of this version; installed again, it becomes VERSION-2
    number=1
    name=$1
    while [ -e "$DESTDIR$PREFIX/$name" ]; do
        number=$((number + 1))
        name=$1-$number
    done
    echo "$name"
}

install_program() {
    version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$here/swapd/__init__.py")
    name=$(free_directory "$version")
    target=$DESTDIR$PREFIX/$name
    mkdir -p "$DESTDIR$PREFIX"
    trap 'rm -rf "$target"' EXIT # half a version is none
    "$PYTHON" -m venv "$target"
    "$target/bin/python" -m pip install --quiet --disable-pip-version-check "$SOURCE"
    if [ -n "$DESTDIR" ]; then
        grep -rlIZ "$target" "$target/bin" "$target/pyvenv.cfg" | xargs -0 sed -i "s#$target#$PREFIX/$name#g"
    fi
    trap - EXIT
    ln -s "$name" "$DESTDIR$PREFIX/current.new"
    mv -T "$DESTDIR$PREFIX/current.new" "$DESTDIR$PREFIX/current" # in one step
    mkdir -p "$BIN"
    for program in swapd swapd-cli; do
        ln -sfn "$PREFIX/current/bin/$program" "$BIN/$program"
    done
}

install_files() {
    mkdir -p "$LIB/systemd/system" "$LIB/sysusers.d" "$LIB/tmpfiles.d" "$DESTDIR/etc/swapd/models.d"
    for unit in $UNITS; do
        sed "s#/opt/swapd/#$PREFIX/#g" "$here/systemd/$unit" > "$LIB/systemd/system/$unit.new"
        chmod 644 "$LIB/systemd/system/$unit.new"
        mv "$LIB/systemd/system/$unit.new" "$LIB/systemd/system/$unit"
    done
    install -m 644 "$here/systemd/swapd.sysusers.conf" "$LIB/sysusers.d/swapd.conf"
    install -m 644 "$here/systemd/swapd.tmpfiles.conf" "$LIB/tmpfiles.d/swapd.conf"
    if [ ! -e "$DESTDIR/etc/swapd/swapd.toml" ]; then
        install -m 640 "$here/etc/swapd.toml" "$DESTDIR/etc/swapd/swapd.toml"
    fi
}

install_swapd() {
    install_program
    install_files
    live || return 0
    systemd-sysusers "$LIB/sysusers.d/swapd.conf"
    systemd-tmpfiles --create "$LIB/tmpfiles.d/swapd.conf"
    systemctl daemon-reload
    # Workers run as this user: an interpreter in somebody's home would be of no use to them.
    setpriv --reuid swapd --regid swapd-workers --clear-groups "$PREFIX/current/bin/swapd" --version > /dev/null ||
        fail "installed, but user swapd cannot run it: choose an interpreter that everybody may read, PYTHON=/usr/bin/python3"
    if systemctl is-active --quiet swapd; then
        echo "swapd $name is installed; workers run on. Next: systemctl restart swapd"
    else
        echo "swapd $name is installed. Next: edit /etc/swapd/swapd.toml, then systemctl enable --now swapd"
    fi
}

uninstall_swapd() {
    if live; then
        systemctl disable --quiet swapd 2> /dev/null || true
        systemctl stop swapd.service swapd-keep.service swapd-workers.slice 2> /dev/null || true
    fi
    for unit in $UNITS; do
        rm -f "$LIB/systemd/system/$unit"
    done
    rm -f "$LIB/sysusers.d/swapd.conf" "$LIB/tmpfiles.d/swapd.conf"
    for program in swapd swapd-cli; do
        [ "$(readlink "$BIN/$program")" != "$PREFIX/current/bin/$program" ] || rm "$BIN/$program"
    done
    for version in "$DESTDIR$PREFIX"/*; do # what is not ours stays
        [ -L "$version" ] || [ ! -x "$version/bin/swapd" ] || [ ! -f "$version/pyvenv.cfg" ] || rm -rf "$version"
    done
    rm -f "$DESTDIR$PREFIX/current"
    rmdir "$DESTDIR$PREFIX" 2> /dev/null || true
    live && systemctl daemon-reload
    if [ "${PURGE:-}" = 1 ]; then
        rm -rf "$DESTDIR/etc/swapd" "$DESTDIR/var/lib/swapd" "$DESTDIR/var/cache/swapd"
        echo "swapd is gone, with its configuration, journal, logs and caches. Users and groups stay: userdel swapd"
    else
        echo "swapd is gone. /etc/swapd, /var/lib/swapd and /var/cache/swapd are kept: PURGE=1 removes them too"
    fi
}

case ${1:-} in
    install) install_swapd ;;
    uninstall) uninstall_swapd ;;
    *) fail "usage: $0 install | uninstall" ;;
esac
