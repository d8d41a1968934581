"""Whether one model can stand in for another: versions, tensors, endpoints, names; unknown is no difference."""

import json

import pytest

from swapd.core.config import ContractConfig, ModelConfig, TensorConfig
from swapd.core.contract import (
    MAX_DIFFERENCES,
    Interface,
    declared,
    differences,
    read_models,
    read_openapi,
    read_v2,
    refusal,
    with_told,
)
from swapd.core.tensors import type_name


def tensor(name="x", type="FP32", shape=(-1, 4), optional=False):
    return TensorConfig(name=name, type=type, shape=shape, optional=optional)


def inputs(*tensors):
    return Interface(inputs=tensors)


def outputs(*tensors):
    return Interface(outputs=tensors)


def versions(**named):
    return Interface(versions=tuple(named.items()))


@pytest.mark.parametrize(
    ("old", "new", "part", "text"),
    [
        (versions(features="v7"), versions(features="v8"), "versions", "features of 'v8'"),
        (inputs(tensor()), inputs(), "inputs", "input 'x' is gone"),
        (inputs(tensor()), inputs(tensor(type="FP16")), "inputs", "input 'x' is FP16 now, was FP32"),
        (inputs(tensor()), inputs(tensor(shape=(8, 4))), "inputs", "input 'x' takes [8, 4] now, was [-1, 4]"),
        (inputs(tensor()), inputs(tensor(shape=(-1, 4, 1))), "inputs", "takes [-1, 4, 1] now"),
        (inputs(tensor(optional=True)), inputs(tensor()), "inputs", "input 'x' must be sent now"),
        (inputs(tensor()), inputs(tensor(), tensor("y")), "inputs", "input 'y' is new"),
        (outputs(tensor()), outputs(), "outputs", "output 'x' is gone"),
        (outputs(tensor()), outputs(tensor(type="INT8")), "outputs", "output 'x' is INT8 now, was FP32"),
        (outputs(tensor()), outputs(tensor(shape=(-1, -1))), "outputs", "output 'x' is [-1, -1] now, was [-1, 4]"),
        (outputs(tensor()), outputs(tensor(optional=True)), "outputs", "output 'x' may be missing now"),
        (Interface(endpoints=("POST /a", "GET /b")), Interface(endpoints=("POST /a",)), "endpoints", "GET /b is gone"),
        (Interface(names=("chat", "x")), Interface(names=("chat",)), "names", "no model 'x' any more"),
        (Interface(listed=("chat", "x")), Interface(listed=("chat",)), "names", "no model 'x' any more"),
    ],
)
def test_what_clients_would_miss_is_a_difference(old, new, part, text):
    (found,) = differences(old, new)
    assert found.part == part
    assert text in found.text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (versions(features="v7"), versions(tokenizer="t")),
        (inputs(tensor()), Interface()),
        (Interface(), inputs(tensor())),
        (inputs(tensor(shape=(8, 4))), inputs(tensor())),
        (inputs(tensor()), inputs(tensor(shape=None, type=""))),
        (inputs(tensor()), inputs(tensor(), tensor("y", optional=True))),
        (inputs(tensor()), inputs(tensor(optional=True))),
        (outputs(tensor()), outputs(tensor(shape=(1, 4)), tensor("y"))),
        (Interface(endpoints=("GET /b/{id}",)), Interface(endpoints=("GET /b/{name}", "GET /c"))),
        (Interface(endpoints=("GET /b",)), Interface(api={"operations": {"GET /b": {}}, "schemas": {}})),
        (Interface(endpoints=("GET /b",)), Interface()),
        (Interface(names=("chat",)), Interface(names=("x", "chat"))),
        (Interface(names=("chat",), listed=("chat", "lora")), Interface(names=("chat",))),
    ],
)
def test_what_clients_do_not_notice_or_nobody_knows_is_none(old, new):
    assert differences(old, new) == ()


def test_a_server_is_believed_before_what_is_declared_of_it():
    contract = ContractConfig(features="v7", inputs=(tensor("declared"),))
    said = declared(ModelConfig(name="b", served_names=("chat",), contract=contract), contract)
    told = with_told(said, Interface(inputs=(tensor("told"),), listed=("other",)))
    assert (told.versions, told.inputs, told.listed) == ((("features", "v7"),), (tensor("told"),), ("other",))
    assert with_told(said, Interface()) == said


def test_metadata_of_kserve_and_triton_is_read():
    told = read_v2(
        json.dumps(
            {
                "name": "bert",
                "inputs": [{"name": "ids", "datatype": "INT64", "shape": [-1, 128]}],
                "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 2]}],
            }
        ).encode()
    )
    assert told.inputs == (TensorConfig(name="ids", type="INT64", shape=(-1, 128)),)
    assert told.outputs == (TensorConfig(name="logits", type="FP32", shape=(-1, 2)),)
    assert [type_name(n) for n in ("float32", "TYPE_STRING", "torch.float16", None)] == ["FP32", "BYTES", "FP16", ""]


def test_a_list_of_models_is_read():
    assert read_models(b'{"object": "list", "data": [{"id": "chat"}, {"id": "lora-a"}]}').listed == ("chat", "lora-a")


@pytest.mark.parametrize("read", [read_v2, read_models, read_openapi])
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'{"inputs": 3, "data": 3}', b'{"inputs": [3], "data": [3]}', b"[" * 100_000),
        *(b'{"inputs": [{"name": 1}], "data": [{"id": 1}]}', b"\xff\xfe", b'{"data": []}', b'{"data": {"id": "x"}}'),
    ],
)
def test_what_a_server_should_not_have_said_is_an_error(read, body):
    with pytest.raises(ValueError, match=r"is no|is not|has "):
        read(body)


def test_a_refusal_names_the_first_and_lists_all_within_bounds():
    old, new = inputs(*(tensor(f"x{n}") for n in range(200))), inputs()
    found = differences(old, new)
    assert len(found) == MAX_DIFFERENCES
    problem = refusal("chat", "b", found, old, new)
    assert problem.code == "CONTRACT_BROKEN"
    assert "input 'x0' is gone; input 'x1' is gone; input 'x2' is gone; and 47 more" in problem.message
    assert "--allow-breaking" in problem.message
    assert len(problem.details["differences"]) == MAX_DIFFERENCES
