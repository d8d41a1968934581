"""A small HTTP server that knows nothing of swapd, with the bad habits of real ones.

    python stand_in.py [--uds PATH | --port N | --host PATH] [HABIT ...]

Other flags, as a preset adds them, are accepted; GET / tells them all, and $NAME as "model". HABITs:

slow      accepts after 0.3 s
loading   answers everything with 503, until /health was asked five times
never     answers /health with 503
deaf      ignores SIGTERM
goodbye   writes the name of the signal that ends it to the file $GOODBYE
forks     has a child in its session
strays    has a child in a session of its own, without its environment
logs      prints 100 MB at the start
exits     ends at once, with status 7
squats    waits before it binds, the first time, until $SQUATTED.done is there; $SQUATTED tells the port
"""

import http.server
import json
import os
import resource
import signal
import socket
import socketserver
import subprocess
import sys
import time

OPTIONS = {"--uds": "uds", "--host": "uds", "--port": "port"}
SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def parse(words):
    settings, habits, words = {}, set(), list(words)
    while words:
        word = words.pop(0)
        if word in OPTIONS:
            settings[OPTIONS[word]] = words.pop(0)
        elif not word.startswith("-"):
            habits.add(word)
    return settings, habits


SETTINGS, HABITS = parse(sys.argv[1:])
STATE = {"sleeping": False, "asked": 0}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/die":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.raise_signal(signal.SIGSEGV)  # in this very thread: another one's death would leave time to answer
        if path == "/exit":
            os._exit(9)
        if ("never" in HABITS and path == "/health") or ("loading" in HABITS and STATE["asked"] < 5):
            STATE["asked"] += path == "/health"
            return self.answer(503, {"error": "Loading model"})
        about = {"args": sys.argv[1:], "pid": os.getpid(), "uid": os.geteuid(), "cwd": os.getcwd()}
        env = dict(os.environ)
        return self.answer(200, {"model": env.get("NAME"), **about, **STATE, "env": env})

    def do_POST(self):
        if self.path == "/sleep?level=1":
            STATE["sleeping"] = True
        elif self.path == "/wake_up":
            STATE["sleeping"] = False
        else:
            return self.answer(500, {"error": "no"})
        return self.answer(200, {})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def address_string(self):
        return "client"

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True


class UnixServer(Server):
    address_family = socket.AF_UNIX


def main():
    if "exits" in HABITS:
        sys.exit(7)
    if "deaf" in HABITS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "goodbye" in HABITS:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, say_goodbye)
    if "logs" in HABITS:
        for _ in range(1600):
            os.write(1, b"x" * 65535 + b"\n")
    if "forks" in HABITS:
        subprocess.Popen(SLEEPER)
    if "strays" in HABITS:
        subprocess.Popen(SLEEPER, start_new_session=True, env={})
    if "slow" in HABITS:
        time.sleep(0.3)
    if "port" in SETTINGS:
        if "squats" in HABITS:
            squat(int(SETTINGS["port"]))
        server = Server(("127.0.0.1", int(SETTINGS["port"])), Handler)
    else:
        server = UnixServer(SETTINGS["uds"], Handler)
    server.serve_forever()


def squat(port):
    """Somebody else is faster, the first time: a process that does not belong to us."""
    if not os.path.exists(os.environ["SQUATTED"]):
        with open(os.environ["SQUATTED"], "w") as file:
            file.write(str(port))
        while not os.path.exists(os.environ["SQUATTED"] + ".done"):
            time.sleep(0.01)


def say_goodbye(number, frame):
    with open(os.environ["GOODBYE"], "w") as file:
        file.write(signal.Signals(number).name)
    os._exit(0)


if __name__ == "__main__":
    main()
