"""What clients rely on of a model, and whether another can stand in for it.

Duty: an interface as a value, be it declared in the configuration or told by the server itself; the differences that
would break clients, a sentence each; the refusal made of them. What is not known of both sides is not compared. May not
know: how a server is asked (`daemon.contracts`), or whether breaking was allowed.

Sources: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol (names, datatypes, shapes
with -1), https://platform.openai.com/docs/api-reference/models/list; `core.openapi` for OpenAPI.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from swapd.core import errors, openapi
from swapd.core.config import ContractConfig, ModelConfig, TensorConfig
from swapd.core.errors import Problem
from swapd.core.openapi import shown
from swapd.core.tensors import type_name

MAX_DIFFERENCES: Final = 50  # told of one comparison
NAMES: Final = "names"  # the part that `allow_name_mismatch` is about
_IN_MESSAGE: Final = 3
_NAMES_SHOWN: Final = 10
_MAX_TOLD: Final = 4096  # tensors, or models, that a server may name


@dataclass(frozen=True, slots=True)
class Difference:
    """One by which clients would break: in which part of the interface, and a sentence."""

    part: str  # versions | inputs | outputs | endpoints | names | openapi, or "unknown": it could not be read
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """Of one model. None, or nothing: that part is not known."""

    versions: tuple[tuple[str, str], ...] = ()  # ("features", "v7")
    inputs: tuple[TensorConfig, ...] | None = None
    outputs: tuple[TensorConfig, ...] | None = None
    endpoints: tuple[str, ...] | None = None  # "POST /v1/completions"
    names: tuple[str, ...] = ()  # what clients may write as "model", by the configuration; empty: anything
    listed: tuple[str, ...] | None = None  # the models that the server itself tells
    api: Mapping[str, Any] | None = None  # of an OpenAPI document: `openapi.reduce`


UNKNOWN: Final = Interface()


def declared(model: ModelConfig, contract: ContractConfig) -> Interface:
    """What the configuration says of a model. `contract` may be a later one than the model was started with."""
    versions = (("features", contract.features), ("tokenizer", contract.tokenizer))
    return Interface(
        versions=tuple(
            (name, text) for name, text in (*versions, ("preprocessing", contract.preprocessing)) if text is not None
        ),
        inputs=contract.inputs,
        outputs=contract.outputs,
        endpoints=contract.endpoints,
        names=model.names(),
    )


def with_told(said: Interface, told: Interface) -> Interface:
    """What a server tells of itself stands before what is said of it."""
    return replace(
        said,
        inputs=told.inputs if told.inputs is not None else said.inputs,
        outputs=told.outputs if told.outputs is not None else said.outputs,
        listed=told.listed,
        api=told.api,
    )


# --- what a server tells, as JSON that may be anything -----------------------------------------------------------


def read_openapi(body: bytes) -> Interface:
    """Raises ValueError saying what the document is not."""
    return Interface(api=openapi.reduce(_document(body)))


def read_v2(body: bytes) -> Interface:
    """Of KServe's `/v2/models/NAME`. Raises ValueError."""
    document = _document(body)
    if not isinstance(document, Mapping) or "inputs" not in document:
        raise ValueError('is no metadata of a model: it has no "inputs"')
    return Interface(inputs=_tensors(document["inputs"]), outputs=_tensors(document.get("outputs")))


def read_models(body: bytes) -> Interface:
    """Of an OpenAI-style list of models. Raises ValueError."""
    document = _document(body)
    data = document.get("data") if isinstance(document, Mapping) else None
    entries = data[:_MAX_TOLD] if isinstance(data, list) else []
    names = [entry.get("id") if isinstance(entry, Mapping) else None for entry in entries]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError('is no list of models: it has no "data" with an "id" each')
    return Interface(listed=tuple(map(str, names)))


def _document(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None


def _tensors(entries: object) -> tuple[TensorConfig, ...] | None:
    if entries is None:
        return None
    if not isinstance(entries, list) or len(entries) > _MAX_TOLD:
        raise ValueError("has inputs or outputs that are not a list of tensors")
    return tuple(map(_tensor, entries))


def _tensor(entry: object) -> TensorConfig:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not isinstance(name, str):
        raise ValueError("has a tensor without a name")
    shape, kind = entry.get("shape"), entry.get("datatype")
    if isinstance(shape, list) and all(type(size) is int for size in shape):
        return TensorConfig(name=name, type=type_name(kind), shape=tuple(shape))
    return TensorConfig(name=name, type=type_name(kind))


# --- two interfaces ------------------------------------------------------------------------------------------------


def differences(old: Interface, new: Interface) -> tuple[Difference, ...]:
    """What would break clients of `old` who are answered by `new`, MAX_DIFFERENCES at the most."""
    found = [Difference("versions", text) for text in _versions(dict(old.versions), dict(new.versions))]
    found += [Difference("inputs", text) for text in _inputs(old.inputs, new.inputs)]
    found += [Difference("outputs", text) for text in _outputs(old.outputs, new.outputs)]
    found += [Difference("endpoints", f"{shown(name)} is gone") for name in _lost_endpoints(old, new)]
    found += [Difference(NAMES, f"there is no model {shown(name)!r} any more") for name in lost_names(old, new)]
    if old.api is not None and new.api is not None:
        found += _of_apis(old.api, new.api)
    return tuple(found[:MAX_DIFFERENCES])


def lost_names(old: Interface, new: Interface) -> list[str]:
    """By what both servers tell, where they do: a list of models has more than is declared."""
    if old.listed is not None and new.listed is not None:
        return [name for name in old.listed if name not in new.listed]
    return [name for name in old.names if name not in new.names]


def not_allowed(found: Sequence[Difference], *, names: bool, all: bool) -> tuple[Difference, ...]:
    """Those that stand in the way, by what was allowed."""
    return () if all else tuple(each for each in found if each.part != NAMES or not names)


def refusal(service: str, model: str, found: Sequence[Difference], old: Interface, new: Interface) -> Problem:
    """Of differences that nobody has allowed: at least one."""
    if all(each.part == NAMES for each in found):
        return _name_mismatch(service, model, lost_names(old, new), new)
    texts = [each.text for each in found]
    text = (
        f"{model} cannot stand in for what serves {service}: {listed(texts)}. Clients would break; where they are known"
        f" not to, allow it: --allow-breaking (allow_breaking)."
    )
    return Problem(errors.CONTRACT_BROKEN, text, {"differences": texts})


def _name_mismatch(service: str, model: str, lost: list[str], new: Interface) -> Problem:
    answers_to = new.names if new.listed is None else new.listed
    text = (
        f"Clients of {service} who ask for the model {_names(lost)} would get errors: {model} answers to"
        f" {_names(answers_to) or 'no name'}. Give [models.{model}] the same"
        f" served_names, or allow it: --allow-name-mismatch (allow_name_mismatch)."
    )
    return Problem(errors.MODEL_NAME_MISMATCH, text, {"lost": lost, "names": list(answers_to)})


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return " and ".join(repr(shown(name)) for name in names[:_NAMES_SHOWN]) + more


def listed(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _IN_MESSAGE} more" if len(texts) > _IN_MESSAGE else ""
    return "; ".join(texts[:_IN_MESSAGE]) + more


def _versions(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name, version in old.items():
        if new.get(name, version) != version:
            yield f"{name} of {shown(new[name])!r}, and clients send what is made for {shown(version)!r}"


def _inputs(old: Sequence[TensorConfig] | None, new: Sequence[TensorConfig] | None) -> Iterator[str]:
    if old is None or new is None:
        return
    known = {tensor.name: tensor for tensor in new}
    for before in old:
        after = known.pop(before.name, None)
        if after is None:
            yield f"input {shown(before.name)!r} is gone"
        elif before.type and after.type and before.type != after.type:
            yield f"input {shown(before.name)!r} is {shown(after.type)} now, was {shown(before.type)}"
        elif not _goes_into(before.shape, after.shape):
            yield f"input {shown(before.name)!r} takes {_shape(after.shape)} now, was {_shape(before.shape)}"
        elif before.optional and not after.optional:
            yield f"input {shown(before.name)!r} must be sent now"
    for name, added in known.items():
        if not added.optional:
            yield f"input {shown(name)!r} is new, and must be sent"


def _outputs(old: Sequence[TensorConfig] | None, new: Sequence[TensorConfig] | None) -> Iterator[str]:
    if old is None or new is None:
        return
    known = {tensor.name: tensor for tensor in new}
    for before in old:
        after = known.get(before.name)
        if after is None:
            yield f"output {shown(before.name)!r} is gone"
        elif before.type and after.type and before.type != after.type:
            yield f"output {shown(before.name)!r} is {shown(after.type)} now, was {shown(before.type)}"
        elif not _goes_into(after.shape, before.shape):
            yield f"output {shown(before.name)!r} is {_shape(after.shape)} now, was {_shape(before.shape)}"
        elif after.optional and not before.optional:
            yield f"output {shown(before.name)!r} may be missing now"


def _goes_into(given: Sequence[int] | None, taken: Sequence[int] | None) -> bool:
    """Whatever has the one shape also has the other; -1 is any length."""
    if given is None or taken is None:
        return True
    return len(given) == len(taken) and all(most in (-1, size) for size, most in zip(given, taken, strict=True))


def _shape(shape: Sequence[int] | None) -> str:
    return shown(str(list(shape or ())))


def _lost_endpoints(old: Interface, new: Interface) -> Iterable[str]:
    """An OpenAPI document tells endpoints as well; whether it tells them all, nobody knows of the old one."""
    if old.endpoints is None or (new.endpoints is None and new.api is None):
        return ()
    offered = {*map(_endpoint_key, new.endpoints or ()), *(new.api or {}).get("operations", ())}
    return (name for name in old.endpoints if _endpoint_key(name) not in offered)


def _endpoint_key(endpoint: str) -> str:
    method, _, path = endpoint.partition(" ")
    return openapi.operation_key(method, path)


def _of_apis(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    found = []
    try:
        for text in openapi.broken(old, new):
            found.append(Difference("openapi", text))
            if len(found) == MAX_DIFFERENCES:
                break
    except (openapi.TooLarge, RecursionError):
        found.append(Difference("openapi", "its OpenAPI document is too large to be compared"))
    return found
