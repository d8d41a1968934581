"""Servers that swapd has not written: what their tables need, and what is for other engines."""

import pytest
from support.config_tables import parsed, problems_of

LLAMA = {"engine": "llama-server", "weights": "/srv/a.gguf"}
VLLM = {"engine": "vllm", "weights": "/srv/a"}
COMMAND = {"engine": "command", "command": ["srv", "--socket", "{socket}"]}


def tables(model):
    return {"models": {"a": model}, "services": {"chat": {"listen": "127.0.0.1:8000", "model": "a"}}}


RIGHT = [
    LLAMA,
    VLLM,
    COMMAND,
    {"engine": "llama-server", "command": ["/opt/llama-server", "-hf", "ggml-org/x"]},
    {"engine": "llama-server", "command": ["llama-server", "--model=/srv/a.gguf", "--port", "{port}"]},
    {"engine": "vllm", "command": ["vllm", "serve", "/srv/a", "--host", "127.0.0.1", "--port", "{port}"]},
    {"engine": "vllm", "command": ["vllm", "serve", "--config", "/srv/a.yaml"]},
    {**VLLM, "command": ["vllm", "serve", "--chat-template", "{{ messages }}{% x %}"], "sleep": True},
    {**VLLM, "python": "/srv/venv/bin/python"},
    {**COMMAND, "command": ["sh", "-c", "exec srv ${HOME} --port {port} --metrics {port}"]},
    {**COMMAND, "user": "model", "stop_signal": "SIGINT", "stop_timeout": "30s", "served_names": ["chat", "v1/x"]},
]
WRONG = [
    ({"engine": "command"}, "command", 'is missing: write the server\'s command line, such as ["my-server"'),
    ({"engine": "command", "command": ["srv", "--port", "80"]}, "command", "has neither {socket} nor {port}"),
    ({"engine": "command", "command": ["srv", "{socket}", "{port}"]}, "command", "leave the other out"),
    ({**COMMAND, "command": ["srv", "{socket}", "{sokcet}"]}, "command", "has {sokcet}, which is no placeholder"),
    ({**COMMAND, "command": "srv {socket}"}, "command", "expected a list, since no shell reads it"),
    ({**COMMAND, "app": "my_model:app"}, "app", 'is for engine = "asgi", and this is "command"'),
    ({**COMMAND, "stage": True}, "stage", 'is for engine = "asgi"'),
    ({**COMMAND, "python": "/v/bin/python"}, "python", 'the first word of "command"'),
    ({**COMMAND, "sleep": True}, "sleep", 'is for engine = "vllm"'),
    ({**COMMAND, "served_names": ["a b"]}, "served_names[0]", "without spaces and commas"),
    ({**COMMAND, "served_names": ["a", "a"]}, "served_names", "has a name twice"),
    ({**COMMAND, "stop_signal": "TERM"}, "stop_signal", 'write one of "SIGTERM"'),
    ({**COMMAND, "stop_timeout": 5}, "stop_timeout", 'write "5s"'),
    ({"engine": "llama-server"}, "weights", "is missing: write the path of a GGUF file, or name the model"),
    ({"engine": "vllm"}, "weights", "is missing: write the path of the model's directory"),
    ({**LLAMA, "command": ["llama-server", "--port", "80"]}, "command", "has an address of its own, --port 80"),
    ({**LLAMA, "command": ["llama-server", "--host", "0.0.0.0"]}, "command", "has an address of its own, --host 0"),
    ({**VLLM, "command": ["vllm", "serve", "--uds=/run/x"]}, "command", "has an address of its own, --uds /run/x"),
    ({**LLAMA, "command": ["x", "-a", "b"], "served_names": "c"}, "served_names", "stands beside --alias"),
    (
        {**VLLM, "command": ["vllm", "serve", "--served-model-name", "b"], "served_names": "c"},
        "served_names",
        "stands beside --served-model-name",
    ),
    ({"app": "m:app", "command": ["x"]}, "command", 'is for engine = "command", "llama-server" or "vllm"'),
    ({"app": "m:app", "stop_timeout": "5s"}, "stop_timeout", 'is for engine = "command"'),
    ({"app": "m:app", "sleep": True}, "sleep", "an Engine class has park and wake hooks"),
    ({"engine": "asgi"}, "app", 'is missing: write app = "module:attribute"'),
]


@pytest.mark.parametrize("model", RIGHT, ids=str)
def test_a_table_that_is_right_is_taken(model):
    assert parsed(tables(model)).models["a"].engine == model["engine"]


@pytest.mark.parametrize(("model", "key", "words"), WRONG, ids=lambda value: str(value)[:60])
def test_a_mistake_is_named_with_its_cure(model, key, words):
    found = problems_of(tables(model))
    assert [problem.key for problem in found] == [f"models.a.{key}"], [str(problem) for problem in found]
    assert words in found[0].message


def test_the_names_of_a_model_are_those_that_its_server_answers_to():
    def names(**model):
        return parsed(tables(model)).models["a"].names()

    assert names(**LLAMA) == ()  # any name
    assert names(**LLAMA, served_names=["chat", "x"]) == ("chat", "x")
    assert names(**LLAMA, command=["llama-server", "--alias", "chat, x"]) == ("chat", "x")
    assert names(**VLLM) == ("/srv/a",)
    assert names(**VLLM, served_names="chat") == ("chat",)
    assert names(**VLLM, command=["vllm", "serve", "--served_model_name", "chat", "x", "--uds", "{socket}"]) == (
        "chat",
        "x",
    )
    assert names(engine="vllm", command=["vllm", "serve", "org/x"]) == ("org/x",)
    assert names(**COMMAND) == ()
    assert names(app="m:app", served_names="chat") == ("chat",)
