"""OpenAPI 3 documents: what of one clients rely on, and what another breaks of it.

Duty: `reduce` a document, which comes from a server and is never taken on trust, to what is compared; `broken` names
what clients of the one could not do with the other. Both directions go by one question: does a taker take everything
that a giver may give? Of a request the clients of the old give, and the new one takes; of an answer the new one gives,
and the clients of the old take. What either does not tell is not compared. May not know: where a document comes from.

Source: https://spec.openapis.org/oas/v3.1.0, with 3.0's `nullable`; JSON Schema, of it what frameworks write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from swapd.core.config_readers import printable

Json = Mapping[str, Any]
Fault = tuple[str, str]  # where below the schema, and what is the matter there

_METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_LOWEST: Final = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_HIGHEST: Final = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_DEPTH: Final = 48  # of one schema without its references
_STEPS: Final = 50_000  # pairs of schemas compared: half a second; alternatives of alternatives have no end
_JSON_KINDS: Final = {'"': "string", "t": "boolean", "f": "boolean", "n": "null", "[": "array", "{": "object"}
_SHOWN: Final = 60  # characters of a name that a server has written
_SENTENCE: Final = 240


class TooLarge(ValueError):
    """Two documents that take too long to be compared."""


# --- one document --------------------------------------------------------------------------------------------------


def reduce(document: object) -> dict[str, Any]:
    """The operations by "POST /path/{}" and the named schemas, without what nobody compares. Raises ValueError."""
    if not isinstance(document, Mapping) or not str(document.get("openapi", "")).startswith("3."):
        raise ValueError('is no OpenAPI 3 document: it has no "openapi" that begins with 3.')
    parts = _table(document.get("components"))
    operations = {
        operation_key(method, str(path)): _operation(_table(item), _table(item)[method], parts)
        for path, item in _table(document.get("paths")).items()
        for method in _METHODS
        if isinstance(_table(item).get(method), Mapping)
    }
    schemas = {str(name): _schema(schema) for name, schema in _table(parts.get("schemas")).items()}
    return {"operations": operations, "schemas": schemas}


def operation_key(method: str, path: str) -> str:
    """What a parameter of the path is called does not matter to clients."""
    return f"{method.upper()} {re.sub(r'{[^{}/]*}', '{}', path)}"


def _operation(item: Json, operation: Json, parts: Json) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for raw in (*_list(item.get("parameters")), *_list(operation.get("parameters"))):
        parameter = _resolved(raw, parts, "parameters")
        where = parameter.get("in")
        if where in ("query", "header", "cookie"):  # those of the path are there by their places
            required = parameter.get("required") is True
            named[f"{where} {parameter.get('name')}"] = {
                "required": required,
                "schema": _schema(parameter.get("schema")),
            }
    body = _resolved(operation.get("requestBody"), parts, "requestBodies")
    answers = {
        str(status): _content(_resolved(answer, parts, "responses"))
        for status, answer in _table(operation.get("responses")).items()
        if str(status).startswith("2")
    }
    reduced: dict[str, Any] = {"parameters": named, "answers": answers}
    if body:
        reduced["body"] = {"required": body.get("required") is True, "content": _content(body)}
    return reduced


def _resolved(value: object, parts: Json, kind: str) -> Json:
    found = _table(value)
    for _ in range(4):
        if not isinstance(found.get("$ref"), str):
            break
        found = _table(_table(parts.get(kind)).get(_name_of(found["$ref"])))
    return found


def _content(owner: Json) -> dict[str, Any]:
    """Media types, without their parameters, to schemas."""
    content = _table(owner.get("content")).items()
    return {
        str(media).partition(";")[0].strip().lower(): _schema(_table(kind).get("schema")) for media, kind in content
    }


def _schema(schema: object, depth: int = _DEPTH) -> dict[str, Any]:
    """{}: it is not told. One that is nested too deep is not told either from there on."""
    if not isinstance(schema, Mapping) or depth == 0:
        return {}
    if isinstance(schema.get("$ref"), str):
        return {"$ref": _name_of(schema["$ref"])}
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("const", "nullable") or key in _LOWEST or key in _HIGHEST:
            kept |= {key: value} if _is_plain(value) else {}
        elif key in ("type", "enum", "required"):
            kept |= {key: value} if all(map(_is_plain, value if isinstance(value, list) else [value])) else {}
        elif key == "items":
            kept[key] = _schema(value, depth - 1)
        elif key == "properties":
            kept[key] = {str(name): _schema(inner, depth - 1) for name, inner in _table(value).items()}
        elif key in ("anyOf", "oneOf", "allOf"):
            kept[key] = [_schema(inner, depth - 1) for inner in _list(value)]
        elif key == "additionalProperties" and value is False:
            kept[key] = False
    return kept


def _name_of(reference: str) -> str:
    return reference.rpartition("/")[2]


# --- two documents -------------------------------------------------------------------------------------------------


def broken(old: Json, new: Json) -> Iterator[str]:
    """What clients of the old one could not rely on any more, a sentence each; both as `reduce` made them. Raises
    TooLarge."""
    asks = _Fit(_table(old.get("schemas")), _table(new.get("schemas")), is_answer=False)
    answers = _Fit(_table(new.get("schemas")), _table(old.get("schemas")), is_answer=True)
    offered = _table(new.get("operations"))
    for key, before in _table(old.get("operations")).items():
        after = offered.get(key)
        texts = ["is gone"] if after is None else [*_asked(before, after, asks), *_answered(before, after, answers)]
        for text in texts:
            yield _cut(printable(f"{shown(key)}: {text[:_SENTENCE]}"), _SENTENCE)


def _asked(old: Json, new: Json, fit: _Fit) -> Iterator[str]:
    known = _table(old.get("parameters"))
    for name, after in _table(new.get("parameters")).items():
        before = _table(known.get(name))
        if after["required"] and not before.get("required"):
            yield f"{shown(name)} must be sent now"
        if before:
            yield from _words(shown(name), fit.faults(before["schema"], after["schema"]))
    before, after = _table(old.get("body")), _table(new.get("body"))
    if before and not after:
        yield "takes no body any more"
    elif after and after["required"] and not before.get("required"):
        yield "a body must be sent now"
    for media, schema in _table(before.get("content")).items() if after else ():
        if media not in after["content"]:
            yield f"takes no {shown(media)} any more"
        else:
            yield from _words("request", fit.faults(schema, after["content"][media]))


def _answered(old: Json, new: Json, fit: _Fit) -> Iterator[str]:
    told = _table(new.get("answers"))
    for status, before in _table(old.get("answers")).items():
        if status not in told:
            yield f"does not answer {shown(status)} any more"
            continue
        for media, schema in before.items():
            if told[status] and media not in told[status]:
                yield f"answers no {shown(media)} any more"
            elif media in told[status]:
                yield from _words("answer", fit.faults(told[status][media], schema))


def _words(what: str, faults: Iterable[Fault]) -> Iterator[str]:
    return (f"{what} {where or '/'} {text}" for where, text in faults)


class _Fit:
    """Whether whoever takes takes all that may be given. Named schemas are compared once a pair, so that one within
    itself has an end."""

    def __init__(self, given: Json, taken: Json, *, is_answer: bool) -> None:
        self._given = given
        self._taken = taken
        self._is_answer = is_answer
        self._known: dict[tuple[Any, Any], list[Fault]] = {}
        self._left = _STEPS

    def faults(self, given: Json, taken: Json) -> list[Fault]:
        self._step()
        pair = (given.get("$ref"), taken.get("$ref"))
        if None in pair:
            return self._between(given, taken)
        if pair not in self._known:
            self._known[pair] = []
            self._known[pair] = self._between(given, taken)
        return self._known[pair]

    def _between(self, given: Json, taken: Json) -> list[Fault]:
        gives, takes = list(self._forms(given, self._given)), list(self._forms(taken, self._taken))
        if any(_kind(form) is None for form in (*gives, *takes)) or not gives or not takes:
            return []
        found: list[Fault] = []
        for form in gives:
            self._step(len(takes))
            fitting = [other for other in takes if _goes_into(_kind(form), _kind(other))]
            if not fitting:
                kinds = [" or ".join(dict.fromkeys(str(_kind(f)) for f in forms)) for forms in (gives, takes)]
                return [("", self._say("is {0} now, was {1}", "takes {1} now, was {0}", *kinds))]
            least: list[Fault] = min([self._of_one_kind(form, other) for other in fitting], key=len)
            found += least
        return found

    def _of_one_kind(self, given: Json, taken: Json) -> list[Fault]:
        found = [*self._values(given, taken), *self._limits(given, taken), *self._properties(given, taken)]
        if isinstance(given.get("items"), Mapping) and isinstance(taken.get("items"), Mapping):
            found += [("/*" + where, text) for where, text in self.faults(given["items"], taken["items"])]
        return found

    def _values(self, given: Json, taken: Json) -> Iterator[Fault]:
        gives, takes = _enum(given), _enum(taken)
        known = frozenset(takes or ())
        if takes is None:
            return
        if gives is None:
            yield "", self._say("may be anything now, was {0}", "takes only {0} now", _listed(takes))
        elif more := list(dict.fromkeys(value for value in gives if value not in known)):
            yield "", self._say("may be {0} now", "does not take {0} any more", _listed(more))

    def _limits(self, given: Json, taken: Json) -> Iterator[Fault]:
        for name in (*_LOWEST, *_HIGHEST):
            limit, before = _number(taken.get(name)), _number(given.get(name))
            sign = 1 if name in _HIGHEST else -1
            if limit is None:
                continue
            if before is None:
                yield "", self._say("has no {0} now, was {1}", "has a {0} of {1} now", name, limit)
            elif before * sign > limit * sign:
                yield (
                    "",
                    self._say("has a {0} of {1} now, was {2}", "has a {0} of {2} now, was {1}", name, before, limit),
                )

    def _properties(self, given: Json, taken: Json) -> Iterator[Fault]:
        gives, takes = _table(given.get("properties")), _table(taken.get("properties"))
        always, needed = set(_names(given.get("required"))), _names(taken.get("required"))
        for name in needed:
            if name not in always and (name in gives or not self._is_answer):
                yield f"/{shown(name)}", self._say("may be missing now", "must be sent now")
        for name, schema in gives.items():
            if name in takes:
                for where, text in self.faults(schema, takes[name]):
                    yield f"/{shown(name)}{where}", text
            elif taken.get("additionalProperties") is False:
                yield f"/{shown(name)}", self._say("is new, where nothing else may be", "is refused now")
        if self._is_answer and gives:
            yield from ((f"/{shown(name)}", "is gone") for name in takes if name not in gives)

    def _forms(self, schema: Json, named: Json, depth: int = _DEPTH) -> Iterator[Json]:
        """The alternatives that a schema is made of, each of one type: a union, a list of types, `nullable`, alike."""
        self._step()
        unions = [*_list(schema.get("anyOf")), *_list(schema.get("oneOf"))]
        types = schema.get("type")
        if schema.get("nullable") is True:
            yield {"type": "null"}
        if depth == 0:
            yield {}
        elif "$ref" in schema:
            yield from self._forms(_table(named.get(schema["$ref"])), named, depth - 1)
        elif unions:
            for each in unions:
                yield from self._forms(_table(each), named, depth - 1)
        elif "allOf" in schema:
            yield self._merged(schema, named, depth)
        else:
            for one in types if isinstance(types, list) else [types]:
                yield {**schema, "type": one}

    def _merged(self, schema: Json, named: Json, depth: int) -> Json:
        """All of `allOf` as one, with the properties of each. One that has a union among them is not told."""
        whole: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        for part in _list(schema["allOf"]):
            forms = list(self._forms(_table(part), named, depth - 1))
            if len(forms) != 1:
                return {}
            properties = {**_table(whole.get("properties")), **_table(forms[0].get("properties"))}
            required = [*_names(whole.get("required")), *_names(forms[0].get("required"))]
            whole |= {key: value for key, value in forms[0].items() if value is not None}
            if properties:
                whole |= {"properties": properties, "required": required}
        return whole

    def _step(self, count: int = 1) -> None:
        self._left -= count
        if self._left < 0:
            raise TooLarge("the two OpenAPI documents are too large to be compared")

    def _say(self, of_answer: str, of_request: str, *words: object) -> str:
        return (of_answer if self._is_answer else of_request).format(*words)


def _kind(form: Json) -> str | None:
    """Its type, where it is told or can be seen; None: it may be anything."""
    if isinstance(form.get("type"), str):
        return str(form["type"])
    if "properties" in form:
        return "object"
    if "items" in form:
        return "array"
    kinds = {_JSON_KINDS.get(text[0]) for text in _enum(form) or ()}
    return kinds.pop() if len(kinds) == 1 else None


def _goes_into(given: str | None, taken: str | None) -> bool:
    return given == taken or (given, taken) == ("integer", "number")


def _enum(form: Json) -> list[str] | None:
    """The only values that it may have, as JSON."""
    values = [form["const"]] if "const" in form else form.get("enum")
    return [json.dumps(value) for value in values] if isinstance(values, list) else None


# --- what stands in a document may be anything ---------------------------------------------------------------------


def _table(value: object) -> Json:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _is_plain(value: object) -> bool:
    """Neither a table nor a list, which could be nested without end."""
    return value is None or isinstance(value, str | int | float)


def _names(value: object) -> list[str]:
    return [name for name in _list(value) if isinstance(name, str)]


def _number(value: object) -> int | float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _listed(values: Sequence[str]) -> str:
    """The first of them, and how many more."""
    words = ", ".join(map(shown, values[:3]))
    return f"{words} and {len(values) - 3} more" if len(values) > 3 else words


def shown(name: str) -> str:
    """A name that a server has written, fit for a sentence."""
    return _cut(printable(name[: _SHOWN + 1]), _SHOWN)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
