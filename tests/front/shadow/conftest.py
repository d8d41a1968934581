import pytest
from support.front_process import wait_until


@pytest.fixture
def shadowing(spawn, listener, engine):
    """A gate with a stable, chat-1, and a shadow, chat-2, which gets a copy of every request, unless told."""

    class Shadowing:
        def __init__(self, stable, candidate, settings):
            self.stable, self.candidate = stable, candidate
            self.gate = spawn(kind="gate")
            self.epoch = 0
            self.point(**settings)
            self.gate.adopt(1, main=listener)

        def point(self, shadow=True, **settings):
            self.epoch += 1
            told = {"worker": "chat-2", "revision": 2, "address": self.candidate.address, "share": 1.0, "noise": 0.0}
            told |= {"compare": {"how": "exact"}, **settings}
            table = {"epoch": self.epoch, "routes": [self.stable.route("chat-1", 1)]}
            self.gate.request("point", **table, **({"shadow": told} if shadow else {}))
            if shadow:
                wait_until(lambda: self.figures["running"], "a process of the shadow's")

        @property
        def figures(self):
            return self.gate.stats()["shadow"]

        def wait(self, **expected):
            """Figures with these values."""

            def matches():
                figures = self.figures
                return figures if all(figures.get(name) == value for name, value in expected.items()) else None

            return wait_until(matches, f"figures {expected}, last {self.figures}")

    def start(stable=None, candidate=None, **settings):
        return Shadowing(stable or engine(), candidate or engine(), settings)

    return start
