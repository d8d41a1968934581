"""Twenty hand-overs to and fro under load: no error, and no answer by a revision whose time was over."""

import asyncio

import pytest
from support.front_load import Load, late_answers
from support.front_process import FrontError, hand_over, introduce, wait_until


def assert_flawless(load, history, at_least):
    assert load.errors == []
    assert len(load.answers) >= at_least
    assert late_answers(load.answers, history) == []


def test_twenty_hand_overs_under_load(pair, listener):
    load = Load(listener.getsockname())

    def swap():
        old, new = pair
        history = [(0.0, old.revision)]
        for epoch in range(2, 22):
            answered = len(load.answers)
            wait_until(lambda floor=answered: len(load.answers) > floor + 30, "the load goes on")
            history.append((hand_over(old, new, epoch)["started_at"], new.revision))
            old, new = new, old
        return history

    history = asyncio.run(load.run(24, swap))
    assert_flawless(load, history, 600)
    assert {revision for _, _, revision in load.answers} == {1, 2}


def test_hand_overs_by_way_of_a_gate_under_load(pair, spawn, listener):
    load = Load(listener.getsockname())
    gate = spawn(kind="gate")

    def swap():
        old, new = pair
        history = [(0.0, old.revision)]
        for epoch in range(2, 14, 2):
            answered = len(load.answers)
            wait_until(lambda floor=answered: len(load.answers) > floor + 30, "the load goes on")
            hand_over(old, gate, epoch)
            assert old.request("drain", deadline_s=10)["cut"] == 0
            wait_until(lambda: gate.stats()["held"] > 3, "clients wait")
            history.append((hand_over(gate, new, epoch + 1)["started_at"], new.revision))
            old, new = new, old
        return history

    history = asyncio.run(load.run(24, swap))
    assert_flawless(load, history, 180)


def test_hand_overs_that_fail_cost_nothing_under_load(pair, listener):
    load = Load(listener.getsockname())

    def fail_repeatedly():
        old, new = pair
        for epoch in range(2, 8):
            answered = len(load.answers)
            wait_until(lambda floor=answered: len(load.answers) > floor + 30, "the load goes on")
            ours, theirs = introduce()
            with ours, theirs:
                new.request("receive", [theirs.fileno()], epoch=epoch)
                new.request("block", seconds=0.4)
                number = old.begin("hand_over", [ours.fileno()], epoch=epoch, deadline_s=0.05)
            with pytest.raises(FrontError, match="HAND_OVER_FAILED"):
                old.result(number)
        return [(0.0, old.revision)]

    history = asyncio.run(load.run(24, fail_repeatedly))
    assert_flawless(load, history, 180)
