#!/usr/bin/env bash
# Puts another model behind nginx the way that tutorials show: start it, ask for its health with curl, switch, kill.
#
#   deploy.sh blue-green MODEL    a second server beside the first; nginx is pointed to it and reloaded
#   deploy.sh in-place MODEL      the only server is killed first: what is left where the memory does not hold both
#
# SITE is a directory with nginx.conf, which includes upstream.conf, and with `serve MODEL PORT`, which becomes the
# server. PORTS are the two ports that servers use in turn. Each step is told with the time of its end.
set -euo pipefail

strategy=$1 model=$2
read -r blue green <<<"$PORTS"
cd "$SITE"

step() { echo "$1 $EPOCHREALTIME"; }

start() {
    nohup ./serve "$model" "$1" >>serve.log 2>&1 </dev/null &
    echo $! >"$1.pid"
    step start
}

wait_healthy() {
    for _ in $(seq 60); do
        if curl --fail --silent --max-time 2 --output /dev/null "http://127.0.0.1:$1/health"; then
            step healthy
            return
        fi
        sleep 1
    done
    echo "$model is not healthy after 60 s; see serve.log" >&2
    exit 1
}

point_nginx() {
    echo "server 127.0.0.1:$1;" >upstream.conf
    nginx -p "$SITE" -c nginx.conf -s reload
    echo "$1" >live
    step nginx
}

stop() {
    local pid
    pid=$(cat "$1.pid")
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 30); do
        if ! kill -0 "$pid" 2>/dev/null; then
            step stop
            return
        fi
        sleep 1
    done
    kill -9 "$pid"
    step killed
}

live=$(cat live)
case $strategy in
blue-green)
    other=$([ "$live" = "$blue" ] && echo "$green" || echo "$blue")
    start "$other"
    wait_healthy "$other"
    point_nginx "$other"
    stop "$live"
    ;;
in-place)
    stop "$live"
    start "$live"
    wait_healthy "$live"
    ;;
*)
    echo "usage: deploy.sh blue-green|in-place MODEL" >&2
    exit 2
    ;;
esac
