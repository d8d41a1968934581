"""The files of a configuration: found, read, and what is wrong in them named."""

import os
import sys

import pytest

from swapd.core.errors import CONFIG_INVALID
from swapd.host.config_file import WORKER_NEEDS, ConfigError, check, check_paths, load_config, read_env_file
from swapd.worker import launch

SMALL = """
[models.a]
app = "my_model:app"
[services.chat]
listen = "127.0.0.1:8000"
model = "a"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_model.py").write_text("app = None\n")
    (tmp_path / "swapd.toml").write_text(SMALL)
    return tmp_path


def _problems(path) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert error.value.code == CONFIG_INVALID
    assert str(error.value) == "\n".join(str(problem) for problem in error.value.problems)
    return [str(problem) for problem in error.value.problems]


def _env_file(folder, text, mode=0o600):
    path = folder / "a.env"
    path.write_text(text)
    path.chmod(mode)
    (folder / "swapd.toml").write_text(SMALL.replace("[services", 'env_file = "a.env"\n[services'))
    return path


def test_a_small_file_is_loaded_and_checked(folder):
    config = load_config(folder / "swapd.toml")
    assert config.models["a"].directory == str(folder)
    assert check(folder / "swapd.toml") == []


def test_a_relative_name_of_the_file_gives_absolute_paths(folder, monkeypatch):
    monkeypatch.chdir(folder)
    config = load_config(type(folder)("swapd.toml"))
    assert config.file == str(folder / "swapd.toml")
    assert config.models["a"].directory == str(folder)


def test_a_missing_file_is_told_where_to_get_one(tmp_path):
    assert _problems(tmp_path / "no.toml") == [
        f"{tmp_path}/no.toml: does not exist: write one, for instance from the etc/swapd.toml that comes with swapd"
    ]


def test_a_directory_is_not_a_file(tmp_path):
    assert "is a directory" in _problems(tmp_path)[0]


def test_a_fifo_does_not_stop_the_daemon(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert "is not a regular file" in _problems(tmp_path / "fifo")[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_names_the_user(folder):
    (folder / "swapd.toml").chmod(0)
    assert f"cannot be read by the user with id {os.geteuid()}" in _problems(folder / "swapd.toml")[0]


def test_bad_toml_is_named_with_line_and_column(folder):
    (folder / "swapd.toml").write_text("[daemon]\nlog_level = = 3\n")
    (problem,) = _problems(folder / "swapd.toml")
    assert "is not TOML" in problem
    assert "line 2, column 13" in problem


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", "is not UTF-8 at byte 0"),
        (b"a = " + b"[" * 20_000 + b"]" * 20_000, "nested too deep"),
        (b"a = " + b"1" * 5000, "too many digits"),
        (b"#" * (4 * 2**20 + 1), "is larger than 4 MiB"),
    ],
    ids=["encoding", "nesting", "digits", "size"],
)
def test_hostile_toml_is_a_problem_and_no_crash(folder, content, words):
    (folder / "swapd.toml").write_bytes(content)
    if words == "too many digits" and sys.version_info < (3, 10, 7):
        pytest.skip("this Python has no limit on digits")
    assert words in _problems(folder / "swapd.toml")[0]


def test_mistakes_of_the_tables_name_the_file(folder):
    path = folder / "swapd.toml"
    path.write_text(SMALL + "soak = 60\nqueue_limit = 0\n")
    assert [problem.split(": ")[:2] for problem in _problems(path)] == [
        [str(path), "services.chat.soak"],
        [str(path), "services.chat.queue_limit"],
    ]


# --- models.d ----------------------------------------------------------------------------------------------------


def test_models_of_models_d_are_models(folder):
    (folder / "models.d").mkdir()
    (folder / "models.d/b.toml").write_text('[models.b]\napp = "my_model:app"\nweights = "w"\n')
    (folder / "models.d/.hidden.toml").write_text("not TOML")
    (folder / "models.d/README").write_text("not TOML")
    config = load_config(folder / "swapd.toml")
    assert list(config.models) == ["a", "b"]
    assert config.models["b"].weights == (str(folder / "w"),), "relative to swapd.toml, wherever the table lies"


def test_mistakes_in_models_d_name_their_own_file(folder):
    extra = folder / "models.d"
    extra.mkdir()
    (extra / "a.toml").write_text('[models.a]\napp = "x:app"\n')
    (extra / "b.toml").write_text("[models.b]\ngpus = 0\n[daemon]\n")
    (extra / "c.toml").write_text("oops\n")
    (extra / "d.toml").write_text("models = 3\n")
    (extra / "e.toml").write_text('[models.b]\napp = "x:app"\n')
    heads = [problem.split(": ")[:2] for problem in _problems(folder / "swapd.toml")]
    assert heads[0] == [f"{extra}/a.toml", "models.a"]
    assert heads[1] == [f"{extra}/b.toml", "daemon"]
    assert heads[2][0] == f"{extra}/c.toml"
    assert heads[3] == [f"{extra}/d.toml", "models"]
    assert heads[4] == [f"{extra}/e.toml", "models.b"]
    assert sorted(heads[5:]) == [[f"{extra}/b.toml", "models.b.app"], [f"{extra}/b.toml", "models.b.gpus"]]


# --- env_file ----------------------------------------------------------------------------------------------------


def test_an_env_file_is_read_as_systemd_would(folder):
    path = _env_file(folder, "# secrets\n; too\n\nA=b c\nB = \"q'uo#te\" \nC='x'\nD=\nE=$HOME\n")
    expected = {"A": "b c", "B": "q'uo#te", "C": "x", "D": "", "E": "$HOME"}
    assert read_env_file(path) == expected
    model = load_config(folder / "swapd.toml").models["a"]
    assert model.env_file_values == expected
    assert model.environment == expected


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o666])
def test_an_env_file_that_others_reach_is_refused(folder, mode):
    path = _env_file(folder, "A=b\n", mode)
    (problem,) = _problems(folder / "swapd.toml")
    assert f"models.a.env_file: {path}: can be read or written by every user" in problem
    assert f"chmod 600 {path}" in problem


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o660])
def test_an_env_file_of_owner_and_group_is_accepted(folder, mode):
    _env_file(folder, "A=b\n", mode)
    assert load_config(folder / "swapd.toml").models["a"].env_file_values == {"A": "b"}


def test_a_missing_env_file_is_a_problem(folder):
    _env_file(folder, "").unlink()
    (problem,) = _problems(folder / "swapd.toml")
    assert "models.a.env_file" in problem
    assert "a.env: does not exist: create it, and chmod 600 it" in problem


def test_bad_lines_of_an_env_file_are_named_and_never_shown(folder):
    text = "export A=hunter2\nhunter2\nB='hunter2\n1C=hunter2\nD=x\nD=hunter2\nSWAPD_WORKER=hunter2\n"
    path = _env_file(folder, text)
    problems = _problems(folder / "swapd.toml")
    named = [problem.split("a.env, ")[1].split(":")[0] for problem in problems]
    assert named == [f"line {number}" for number in (1, 2, 3, 4, 6, 7)]
    assert "hunter2" not in "".join(problems)
    with pytest.raises(ConfigError) as error:
        read_env_file(path)
    assert len(error.value.problems) == 6
    assert "hunter2" not in str(error.value) + repr(error.value.details)


def test_problems_of_tables_and_env_file_come_in_one_run(folder):
    path = _env_file(folder, "A=b\n", 0o644)
    (folder / "swapd.toml").write_text((folder / "swapd.toml").read_text() + "soak = 60\n")
    problems = "\n".join(_problems(folder / "swapd.toml"))
    assert "services.chat.soak" in problems
    assert str(path) in problems


# --- what is not on this host --------------------------------------------------------------------------------------


def test_paths_that_are_not_there_are_problems_of_the_check_and_not_of_the_start(folder):
    more = """
directory = "gone"
python = "venv/bin/python"
weights = ["w", "my_model.py"]
warmup = { file = "warm.jsonl" }
[services"""
    path = folder / "swapd.toml"
    path.write_text(SMALL.replace("\n[services", more))
    config = load_config(path)
    assert [problem.key for problem in check_paths(config)] == [
        "models.a.directory",
        "models.a.python",
        "models.a.weights[0]",
        "models.a.warmup.file",
    ]
    assert len(check(path)) == 4


@pytest.mark.parametrize(
    ("app", "found"),
    [
        ("my_model:app", True),
        ("pkg:app", True),
        ("pkg.sub:app", True),
        ("json:loads", True),  # installed for the daemon's own interpreter
        ("my_modle:app", False),
        ("pkg.nope:app", False),
        ("my_model.sub:app", False),
    ],
)
def test_an_app_is_looked_for_without_being_imported(folder, app, found):
    (folder / "pkg").mkdir()
    (folder / "pkg/__init__.py").write_text("raise SystemExit('imported')\n")
    (folder / "pkg/sub.py").write_text("raise SystemExit('imported')\n")
    path = folder / "swapd.toml"
    path.write_text(SMALL.replace("my_model:app", app))
    problems = check(path)
    assert (problems == []) is found, problems
    if not found:
        assert "models.a.app: there is no module" in problems[0]


def _venv(folder, *packages, cfg="include-system-site-packages = false\n"):
    """A virtual environment as far as files go, whose interpreter cannot be started; with its model's file."""
    python = folder / "venv/bin/python"
    site = folder / "venv/lib/python3.99/site-packages"
    python.parent.mkdir(parents=True)
    python.write_text("no program at all")
    python.chmod(0o755)
    site.mkdir(parents=True)
    if cfg is not None:
        (folder / "venv/pyvenv.cfg").write_text(f"home = /usr/bin\n{cfg}")
    for name in packages:
        (site / name).mkdir()
    path = folder / "swapd.toml"
    path.write_text(SMALL.replace("[services", f'python = "{python}"\n[services'))
    return path, site


def _with_app(path, app):
    path.write_text(path.read_text().replace("my_model:app", app))


@pytest.mark.parametrize(
    ("app", "found"),
    [
        ("my_model:app", True),
        ("served:app", True),
        ("served.sub:app", True),
        ("compiled:app", True),
        ("linked:app", True),
        ("json:app", True),
        ("my_modle:app", False),
        ("served.nope:app", False),
        ("pytest:app", False),  # installed for the daemon, not for the model
    ],
)
def test_an_app_is_looked_for_in_the_model_s_own_interpreter(folder, app, found):
    path, site = _venv(folder, *WORKER_NEEDS, "served")
    (site / "served/sub.py").touch()
    (site / "compiled.cpython-399-x86_64-linux-gnu.so").touch()  # for a Python that is not ours
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/linked.py").touch()
    (site / "a.pth").write_text(f"# a comment\n\n{folder}/elsewhere\n")
    (site / "distutils-precedence.pth").write_text("import os; os.environ\n")
    _with_app(path, app)
    problems = check(path)
    assert (problems == []) is found, problems
    if not found:
        assert f'models.a.app: there is no module "{app.partition(":")[0]}" in {folder} or {site}: ' in problems[0]


def test_what_a_worker_needs_is_looked_for_in_the_model_s_own_interpreter(folder):
    path, _ = _venv(folder, "uvicorn")
    (problem,) = check(path)
    python = folder / "venv/bin/python"
    assert f"models.a.python: {python} lacks uvloop, httptools: install with '{python} -m pip install" in problem
    assert WORKER_NEEDS == launch.NEEDED


@pytest.mark.parametrize("why", ["no venv", "system packages", "code in a .pth", "no site-packages"])
def test_where_the_packages_of_an_interpreter_cannot_be_told_nothing_is_said(folder, why):
    cfg = {"no venv": None, "system packages": "include-system-site-packages = True\n"}.get(why, "")
    path, site = _venv(folder, cfg=cfg)
    if why == "code in a .pth":
        (site / "__editable__.served.pth").write_text("import __editable___served_finder\n")
    if why == "no site-packages":
        site.rename(site.with_name("dist-packages"))
    _with_app(path, "served:app")
    assert check(path) == []


def test_a_model_s_python_path_is_searched(folder):
    path, _ = _venv(folder, *WORKER_NEEDS)
    (folder / "lib").mkdir()
    (folder / "lib/served.py").touch()
    _with_app(path, "served:app")
    assert len(check(path)) == 1
    path.write_text(path.read_text().replace("[services", 'env = { PYTHONPATH = "lib" }\n[services'))
    assert check(path) == []


# --- servers of other makes ------------------------------------------------------------------------------------------


def _server(folder, table):
    (folder / "swapd.toml").write_text(SMALL.replace('app = "my_model:app"', table))
    return [line.partition("models.a.")[2] for line in check(folder / "swapd.toml")]


def test_a_server_that_is_there_is_found(folder):
    (folder / "srv").write_text("#!/bin/sh\n")
    (folder / "srv").chmod(0o755)
    assert _server(folder, 'engine = "command"\ncommand = ["./srv", "{socket}"]\nuser = "root"') == []
    assert _server(folder, 'engine = "command"\ncommand = ["sh", "{socket}"]') == []
    path = f'env = {{ PATH = "{folder}" }}'
    assert _server(folder, f'engine = "command"\ncommand = ["srv", "{{socket}}"]\n{path}') == []


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ('engine = "command"\ncommand = ["./srv", "{socket}"]', 'command: "./srv" is not a program'),
        ('engine = "command"\ncommand = ["no-such-server", "{socket}"]', "command: there is no program"),
        ('engine = "llama-server"\nweights = "."\ncommand = ["sh"]', "weights: "),
        ('engine = "vllm"\nweights = "."\npython = "/no/bin/python"', 'python: "/no/bin/vllm" is not a program'),
        ('engine = "vllm"\nweights = "."\nenv = { PATH = "/no" }', "engine: there is no program"),
        ('engine = "command"\ncommand = ["sh", "{socket}"]\nuser = "no-such-user"', "user: there is no user"),
        ('engine = "command"\ncommand = ["sh", "{socket}"]\ndirectory = "no"', "directory: "),
    ],
)
def test_what_a_server_lacks_is_named(folder, table, problem):
    [found] = _server(folder, table)
    assert found.startswith(problem)
