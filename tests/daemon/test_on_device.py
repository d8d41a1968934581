"""A model that fell back to the processor in silence is caught before clients reach it."""


def test_a_model_that_holds_next_to_nothing_of_its_gpu_does_not_get_the_clients(gpus):
    with gpus.daemon([gpus.model("a"), gpus.model("b", holds=0, needs=10)]) as daemon:
        record = daemon.swap("b")
        assert (record["phase"], record["error"]["code"]) == ("Failed", "NOT_ON_DEVICE"), record["error"]
        assert "runs on the processor" in record["error"]["message"]
        assert record["error"]["step"] == "verify"
        assert daemon.model() == "a"


def test_one_that_was_asked_nothing_is_not_judged(gpus):
    lazy = gpus.model("b", holds=1, needs=10)
    lazy = lazy[: lazy.index("[[models.b.probes]]")]
    with gpus.daemon([gpus.model("a"), lazy]) as daemon:
        assert daemon.swap("b")["phase"] == "Soaking"
