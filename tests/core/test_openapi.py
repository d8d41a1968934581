"""What another OpenAPI document breaks of one: by direction, through references and unions, whatever stands in it."""

import copy
import json

import pytest

from swapd.core.openapi import TooLarge, broken, reduce

DOCUMENT = {
    "openapi": "3.1.0",
    "paths": {
        "/v1/completions": {
            "post": {
                "parameters": [{"in": "query", "name": "user", "required": False, "schema": {"type": "string"}}],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Ask"}}},
                },
                "responses": {
                    "200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Answer"}}}},
                    "422": {"description": "wrong"},
                },
            }
        },
        "/items/{item}": {"get": {"responses": {"200": {"description": "no schema is told"}}}},
    },
    "components": {
        "schemas": {
            "Ask": {
                "type": "object",
                "description": "nobody compares this",
                "properties": {
                    "prompt": {"type": "string", "maxLength": 1000},
                    "n": {"type": "integer", "minimum": 1},
                    "temperature": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                    "format": {"enum": ["text", "json"]},
                    "inner": {"$ref": "#/components/schemas/Ask"},
                },
                "required": ["prompt"],
            },
            "Answer": {
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "score": {"type": "number"},
                    "reason": {"enum": ["stop", "length"]},
                    "tokens": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["text", "score"],
            },
        }
    },
}
POST = ("paths", "/v1/completions", "post")
ASK = ("components", "schemas", "Ask")
ANSWER = ("components", "schemas", "Answer")
GONE = object()


def changed(*path, to):
    document = copy.deepcopy(DOCUMENT)
    table = document
    for name in path[:-1]:
        table = table[name]
    if to is GONE:
        del table[path[-1]]
    else:
        table[path[-1]] = to
    return document


def found(old, new):
    return list(broken(reduce(old), reduce(new)))


@pytest.mark.parametrize(
    ("new", "text"),
    [
        (changed(*POST, to=GONE), "POST /v1/completions: is gone"),
        (changed(*POST, "responses", "200", to=GONE), "does not answer 200 any more"),
        (changed(*POST, "responses", "200", "content", to={"text/plain": {}}), "answers no application/json any more"),
        (changed(*POST, "requestBody", "content", to={"text/plain": {}}), "takes no application/json any more"),
        (changed(*POST, "requestBody", to=GONE), "takes no body any more"),
        (changed(*POST, "parameters", 0, "required", to=True), "query user must be sent now"),
        (changed(*POST, "parameters", 0, "schema", "type", to="integer"), "query user / takes integer now, was string"),
        (changed(*ASK, "required", to=["prompt", "n"]), "request /n must be sent now"),
        (changed(*ASK, "required", to=["prompt", "new"]), "request /new must be sent now"),
        (changed(*ASK, "properties", "prompt", "type", to="array"), "request /prompt takes array now, was string"),
        (changed(*ASK, "properties", "prompt", "maxLength", to=10), "/prompt has a maxLength of 10 now, was 1000"),
        (changed(*ASK, "properties", "n", "maximum", to=4), "/n has a maximum of 4 now"),
        (changed(*ASK, "properties", "n", "minimum", to=2), "/n has a minimum of 2 now, was 1"),
        (changed(*ASK, "properties", "format", "enum", to=["text"]), '/format does not take "json" any more'),
        (changed(*ASK, "properties", "temperature", to={"type": "number"}), "/temperature takes number now"),
        (changed(*ANSWER, "properties", "text", to=GONE), "answer /text is gone"),
        (changed(*ANSWER, "properties", "reason", to=GONE), "answer /reason is gone"),
        (changed(*ANSWER, "required", to=["text"]), "answer /score may be missing now"),
        (changed(*ANSWER, "properties", "score", "type", to="string"), "answer /score is string now, was number"),
        (changed(*ANSWER, "properties", "score", "type", to=["number", "null"]), "/score is number or null now"),
        (changed(*ANSWER, "properties", "score", "nullable", to=True), "/score is null or number now, was number"),
        (changed(*ANSWER, "properties", "reason", "enum", to=["stop", "tool"]), '/reason may be "tool" now'),
        (
            changed(*ANSWER, "properties", "tokens", "items", "type", to="string"),
            "/tokens/* is string now, was integer",
        ),
    ],
)
def test_what_breaks_is_named(new, text):
    sentences = found(DOCUMENT, new)
    assert len(sentences) == 1, sentences
    assert text in sentences[0]


@pytest.mark.parametrize(
    "new",
    [
        DOCUMENT,
        changed("paths", "/new", to={"get": {"responses": {"200": {}}}}),
        changed("paths", to={**DOCUMENT["paths"], "/items/{id}": DOCUMENT["paths"]["/items/{item}"]}),
        changed(*POST, "parameters", to=[]),
        changed(*POST, "requestBody", "required", to=False),
        changed(*ASK, "required", to=[]),
        changed(*ASK, "properties", "more", to={"type": "string"}),
        changed(*ASK, "properties", "n", "type", to="number"),
        changed(*ASK, "properties", "n", "minimum", to=0),
        changed(*ASK, "properties", "prompt", to={"anyOf": [{"type": "string"}, {"type": "array"}]}),
        changed(*ASK, "properties", "temperature", to={"type": ["number", "null"]}),
        changed(*ASK, "properties", "format", "enum", to=["text", "json", "xml"]),
        changed(*ANSWER, "properties", "score", "type", to="integer"),
        changed(*ANSWER, "properties", "more", to={"type": "string"}),
        changed(*ANSWER, "properties", "reason", "enum", to=["stop"]),
        changed(*POST, "responses", "200", "content", "application/json", "schema", to={}),
        changed(
            *POST,
            *("responses", "200", "content", "application/json", "schema"),
            to={"allOf": [{"$ref": "#/components/schemas/Answer"}, {"type": "object", "properties": {"id": {}}}]},
        ),
    ],
)
def test_what_clients_do_not_notice_is_no_difference(new):
    assert found(DOCUMENT, new) == []


def test_a_property_is_refused_where_nothing_else_may_be_sent():
    closed = changed(*ASK, "additionalProperties", to=False)
    del closed["components"]["schemas"]["Ask"]["properties"]["n"]
    assert found(DOCUMENT, closed) == ["POST /v1/completions: request /n is refused now"]


@pytest.mark.parametrize("document", [None, [], {}, {"swagger": "2.0"}, {"openapi": 3}])
def test_what_is_no_openapi_3_document_is_told(document):
    with pytest.raises(ValueError, match="OpenAPI 3"):
        reduce(document)


@pytest.mark.parametrize("junk", [None, 1, "x", [1], {"$ref": "#/nowhere"}, {"type": 7}, {"anyOf": "x"}, {"enum": 3}])
def test_whatever_stands_in_a_document_nothing_breaks_in_us(junk):
    for path in ((*POST, "parameters"), (*POST, "requestBody"), (*POST, "responses"), ASK, (*ASK, "properties"), POST):
        other = changed(*path, to=junk)
        found(DOCUMENT, other)
        found(other, DOCUMENT)
        json.dumps(reduce(other))


def test_a_schema_nested_without_end_is_cut_and_one_of_unions_of_unions_is_too_large():
    deep = {"type": "string"}
    for _ in range(200):
        deep = {"type": "object", "properties": {"a": deep}}
    nested = changed(*ASK, to=deep)
    assert found(nested, nested) == []
    wide = changed("components", "schemas", to={f"A{i}": {"anyOf": [{"$ref": f"A{i + 1}"}] * 9} for i in range(40)})
    wide["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"] = {"$ref": "A0"}
    with pytest.raises(TooLarge):
        found(wide, wide)


def test_values_that_are_nested_without_end_are_not_kept():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for key in ("enum", "const", "type", "required", "maximum"):
        new = reduce(changed(*ASK, "properties", "format", to={key: [deep]}))
        assert new["schemas"]["Ask"]["properties"]["format"] == {}


def test_what_a_server_has_written_is_shortened_and_printable():
    evil = "a\x1b[31m" + "x" * 5000
    for new in (
        changed(*ASK, "required", to=["prompt", evil]),
        changed(*ANSWER, "properties", "text", "type", to=evil),
    ):
        (sentence,) = found(DOCUMENT, new)
        assert sentence.isprintable()
        assert len(sentence) <= 240
