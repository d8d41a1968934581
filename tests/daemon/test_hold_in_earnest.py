"""An in-place swap that takes long, with thousands of clients waiting in the gate. With -m real, half a minute long."""

import asyncio
from pathlib import Path

import psutil
import pytest
from support.daemon_host import Daemon, server
from support.waiting_clients import Client, close_all, connected, need_descriptors, until

WAITING = 2000
STREAMS = 20
GONE = 200
BYTES_A_WAITING_CLIENT = 8 * 1024
OPENED_LATER = 2  # descriptors of the gate's own, which it has once it has relayed something
GROWTH_BYTES = 4 << 20  # of the gate, from the second time to the next


class Gate:
    """What its process takes."""

    def __init__(self, daemon):
        [worker] = [w for w in daemon.call("workers") if w["role"] == "gate"]
        self.process = psutil.Process(worker["pid"])
        self.at_first = self.descriptors

    @property
    def descriptors(self):
        return self.process.num_fds()

    @property
    def rss(self):
        return self.process.memory_info().rss


def slow(load_s, name="slow"):
    return server(name, memory="960MiB", LOAD_S=load_s)


async def begin_in_place_swap(daemon, to):
    record = await asyncio.to_thread(daemon.call, "swap", service="chat", to=to, strategy="in-place")
    await until(lambda: daemon.service()["holding"], what="the hold")
    return record["id"]


async def wait_in_hold(daemon, count):
    """So many more clients, each with a request; every second one has a body."""
    clients = await connected(daemon.port, count)
    for number, client in enumerate(clients):
        client.ask(body=b"x" * 1000 if number % 2 else b"")
    return clients


async def check_all_answered(clients, model):
    answers = await asyncio.wait_for(asyncio.gather(*(client.answer() for client in clients)), 60.0)
    assert {answer.status for answer in answers} == {200}
    assert {answer.document["model"] for answer in answers} == {model}
    assert [answer.document["got"] for answer in answers] == [0, 1000] * (len(clients) // 2)


@pytest.mark.parametrize("load_s", [5, pytest.param(30, marks=pytest.mark.real)])
def test_two_thousand_wait_for_a_slow_model_and_everybody_is_answered(load_s):
    need_descriptors(3 * WAITING)

    async def hold(daemon, gate, to, before):
        """What the gate took while they waited."""
        swap = await begin_in_place_swap(daemon, to)
        clients = await wait_in_hold(daemon, WAITING)
        leaving = await wait_in_hold(daemon, GONE)
        await until(lambda: daemon.service()["held"] == WAITING + GONE, what="all of them held")
        taken = gate.rss - before
        print(f"gate: {taken / (WAITING + GONE):.0f} bytes a waiting client, {gate.descriptors} descriptors")
        await close_all(leaving)
        await until(lambda: daemon.service()["held"] == WAITING, what="those who hung up let go")
        await check_all_answered(clients, to)
        [last] = await connected(daemon.port, 1)
        last.ask()
        assert (await last.answer()).document["asked"] == WAITING + 1, "who hung up never reaches the model"
        await close_all([*clients, last])
        record = await asyncio.to_thread(daemon.wait, swap)
        assert (record["cut_requests"], record["refused_requests"]) == (0, 0)
        return taken

    async def scenario(daemon):
        gate = Gate(daemon)
        streams = await connected(daemon.port, STREAMS)
        for stream in streams:
            stream.ask("/stream?n=100&s=0.03")
        until_end = [asyncio.ensure_future(stream.answer()) for stream in streams]
        await until(lambda: daemon.service()["in_flight"] == STREAMS, what="the streams")
        before = gate.rss
        taken = await hold(daemon, gate, "slow", before)
        for answer in await asyncio.gather(*until_end):
            assert (answer.status, answer.body.count(b"data: ")) == (200, 101)
        await close_all(streams)
        after_one = gate.rss
        await hold(daemon, gate, "again", after_one)
        print(f"gate: {before >> 10} KiB before, {after_one >> 10} after one hold, {gate.rss >> 10} after two")
        assert taken / (WAITING + GONE) < BYTES_A_WAITING_CLIENT
        assert gate.rss - after_one < GROWTH_BYTES
        at_most = gate.at_first + OPENED_LATER
        await until(lambda: gate.descriptors <= at_most, what=f"{at_most} descriptors or fewer")

    with Daemon([server("a"), slow(load_s), slow(5, "again")]) as daemon:
        asyncio.run(scenario(daemon))


def test_who_waits_in_vain_gets_a_503_that_arrives_whatever_is_still_to_be_read():
    need_descriptors(2000)

    async def scenario(daemon):
        swap = await begin_in_place_swap(daemon, "slow")
        clients = await connected(daemon.port, 500)
        for client in clients:
            client.ask(body=b"x" * 50_000)
        answers = await asyncio.wait_for(asyncio.gather(*(client.answer() for client in clients)), 60.0)
        for answer in answers:
            assert answer.status == 503
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            error = answer.document["error"]
            assert (error["type"], error["code"], error["param"]) == ("service_unavailable", "hold_timeout", None)
            assert "did not come back in time" in error["message"]
        await close_all(clients)
        record = await asyncio.to_thread(daemon.wait, swap)
        assert (record["phase"], record["refused_requests"]) == ("Soaking", 500)

    with Daemon([server("a"), slow(5)], service='hold_timeout = "1s"') as daemon:
        asyncio.run(scenario(daemon))


def test_more_clients_than_the_listeners_queue_holds_are_answered():
    """While the gate accepts none of them: it is stopped until the kernel turns clients away, who try again."""
    need_descriptors(10_000)
    queue = min(4096, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    count = queue + 500

    async def scenario(daemon):
        await begin_in_place_swap(daemon, "slow")
        gate = Gate(daemon).process
        connecting = [asyncio.ensure_future(Client(daemon.port).connect()) for _ in range(count)]
        gate.suspend()
        try:
            await until(lambda: sum(each.done() for each in connecting) > queue, what="a full queue")
        finally:
            gate.resume()
        clients = await asyncio.wait_for(asyncio.gather(*connecting), 60.0)
        for client in clients:
            client.ask()
        answers = await asyncio.wait_for(asyncio.gather(*(client.answer() for client in clients)), 60.0)
        assert {(answer.status, answer.document["model"]) for answer in answers} == {(200, "slow")}
        await close_all(clients)

    with Daemon([server("a"), slow(4)], service="queue_limit = 10000") as daemon:
        asyncio.run(scenario(daemon))
