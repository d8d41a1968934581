"""A model is told from the same one by its content, and by nothing else."""

import os
import shutil

import pytest

from swapd.core.config import ModelConfig
from swapd.core.errors import CONFIG_INVALID, SwapdError
from swapd.host import fingerprint as module
from swapd.host.fingerprint import fingerprint, weight_files

LARGE = module.SMALL_BYTES + 3 * module.EDGE_BYTES


@pytest.fixture
def root(tmp_path):
    code = tmp_path / "code"
    (code / "pkg").mkdir(parents=True)
    (code / "my_model.py").write_text("app = 1\n")
    (code / "pkg/__init__.py").write_text("")
    (code / "pkg/net.py").write_text("layers = 3\n")
    return tmp_path


def _model(root, **settings):
    return ModelConfig(name="a", app="my_model:app", directory=str(root / "code"), **settings)


def _large(path, byte=b"\0"):
    with path.open("wb") as file:
        file.truncate(LARGE)
        file.seek(LARGE // 2)
        file.write(byte)


def _touch(path):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def test_it_is_16_hex_digits_and_the_same_every_time(root):
    first = fingerprint(_model(root))
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert fingerprint(_model(root)) == first


@pytest.mark.parametrize("name", ["code/my_model.py", "code/pkg/net.py"])
def test_edited_code_changes_it_and_touched_code_does_not(root, name):
    before = fingerprint(_model(root))
    _touch(root / name)
    assert fingerprint(_model(root)) == before
    (root / name).write_text("app = 2\n")
    assert fingerprint(_model(root)) != before


def test_renamed_added_and_removed_code_changes_it(root):
    seen = {fingerprint(_model(root))}
    (root / "code/pkg/net.py").rename(root / "code/pkg/nets.py")
    seen.add(fingerprint(_model(root)))
    (root / "code/more.py").write_text("")
    seen.add(fingerprint(_model(root)))
    (root / "code/pkg/nets.py").unlink()
    seen.add(fingerprint(_model(root)))
    assert len(seen) == 4


def test_a_moved_directory_and_another_order_of_its_entries_do_not_change_it(root, tmp_path, monkeypatch):
    before = fingerprint(_model(root))
    shutil.copytree(root / "code", tmp_path / "elsewhere/code")
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: list(reversed(sorted(listdir(path)))))
    assert fingerprint(_model(tmp_path / "elsewhere")) == before


def test_what_is_no_code_does_not_change_it(root):
    before = fingerprint(_model(root))
    for name in (".git/x.py", "__pycache__/x.py", "node_modules/x.py", "v/lib/x.py", "lib/site-packages/x.py"):
        path = root / "code" / name
        path.parent.mkdir(parents=True)
        path.write_text("x\n")
    (root / "code/v/pyvenv.cfg").write_text("")
    (root / "code/server.log").write_text("a line\n")
    os.mkfifo(root / "code/pipe.py")
    (root / "code/gone.py").symlink_to("nowhere.py")
    (root / "code/loop").symlink_to(root / "code")
    assert fingerprint(_model(root)) == before


def test_weights_beside_the_code_count_without_being_named(root):
    before = fingerprint(_model(root))
    (root / "code/model.onnx").write_bytes(b"1")
    after = fingerprint(_model(root))
    (root / "code/model.onnx").write_bytes(b"2")
    assert len({before, after, fingerprint(_model(root))}) == 3


def test_small_weights_count_by_content_alone(root):
    weights = root / "w.bin"
    weights.write_bytes(b"1" * 1000)
    model = _model(root, weights=(str(weights),))
    before = fingerprint(model)
    _touch(weights)
    assert fingerprint(model) == before
    weights.write_bytes(b"1" * 999 + b"2")
    assert fingerprint(model) != before


@pytest.mark.parametrize("offset", [0, LARGE - 1])
def test_large_weights_count_by_their_edges(root, offset):
    weights = root / "w.safetensors"
    _large(weights)
    status = weights.stat()
    model = _model(root, weights=(str(weights),))
    before = fingerprint(model)
    with weights.open("r+b") as file:
        file.seek(offset)
        file.write(b"x")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(model) != before


def test_large_weights_count_by_size_and_time(root):
    weights = root / "w.safetensors"
    _large(weights)
    model = _model(root, weights=(str(weights),))
    before = fingerprint(model)
    assert fingerprint(model) == before
    _touch(weights)
    assert fingerprint(model) != before


def test_past_the_budget_of_bytes_size_and_time_stand_for_content(root, monkeypatch):
    monkeypatch.setattr(module, "READ_BUDGET_BYTES", 0)
    weights = root / "w.bin"
    weights.write_bytes(b"1")
    model = _model(root, weights=(str(weights),))
    before = fingerprint(model)
    _touch(weights)
    assert fingerprint(model) != before


def test_the_walk_ends_at_its_bound(root, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 20)
    for number in range(30):
        (root / f"code/pkg/m{number}.py").write_text("")
    before = fingerprint(_model(root))
    (root / "code/pkg/m29.py").write_text("x = 1\n")
    assert fingerprint(_model(root)) == before


@pytest.mark.parametrize("value", ["{root}/w.bin", "../w.bin", "{root}/dir", "../dir/../w.bin"])
def test_what_a_variable_names_counts_as_weights(root, value):
    (root / "dir").mkdir()
    for path in (root / "w.bin", root / "dir/w.bin"):
        path.write_bytes(b"1")
    model = _model(root, env={"MODEL_PATH": value.format(root=root)})
    before = fingerprint(model)
    assert [path.name for path in weight_files(model)] == ["w.bin"]
    for path in (root / "w.bin", root / "dir/w.bin"):
        path.write_bytes(b"2")
    assert fingerprint(model) != before


def test_a_path_in_the_env_file_counts_too(root):
    (root / "w.bin").write_bytes(b"1")
    model = _model(root, env_file_values={"MODEL_PATH": str(root / "w.bin")})
    assert weight_files(model) == (root / "w.bin",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_HOME", "{root}/dir"),
        ("TORCH_CACHE", "{root}/dir"),
        ("LOG_FILE", "{root}/dir/out.log"),
        ("TMPDIR", "{root}/dir"),
        ("PYTHONPATH", "{root}/dir"),
        ("ROOT", "/"),
        ("ANY", "/etc"),
        ("LEVEL", "dir"),
        ("URL", "http://localhost/dir"),
        ("GONE", "{root}/gone"),
        ("LONG", "x/" * 3000),
        ("EMPTY", ""),
    ],
)
def test_a_variable_that_names_a_place_or_nothing_does_not_count(root, name, value):
    (root / "dir").mkdir()
    (root / "dir/out.log").write_text("1")
    (root / "code/dir").mkdir()
    (root / "code/dir/x.bin2").write_text("1")
    model = _model(root, env={name: value.format(root=root)})
    assert weight_files(model) == ()
    assert fingerprint(model) == fingerprint(_model(root))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_of_the_weights_is_named_and_of_a_variable_is_not_insisted_on(root):
    weights = root / "w.bin"
    weights.write_bytes(b"1")
    weights.chmod(0)
    with pytest.raises(SwapdError) as error:
        fingerprint(_model(root, weights=(str(weights),)))
    assert error.value.code == CONFIG_INVALID
    assert str(weights) in error.value.message
    assert len(fingerprint(_model(root, env={"MODEL_PATH": str(weights)}))) == 16


def test_a_file_that_cannot_be_opened_is_named(root, monkeypatch):
    """As above, for a user who can open everything."""
    weights = root / "w.bin"
    weights.write_bytes(b"1")
    opened = os.open

    def deny(path, *arguments, **keywords):
        if str(path) == str(weights):
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(SwapdError) as error:
        fingerprint(_model(root, weights=(str(weights),)))
    assert error.value.code == CONFIG_INVALID
    assert error.value.details == {"path": str(weights), "model": "a"}
    assert str(weights) in error.value.message
    assert len(fingerprint(_model(root, env={"MODEL_PATH": str(weights)}))) == 16


def test_missing_weights_and_a_missing_directory_are_named(root):
    for act in (fingerprint, weight_files):
        with pytest.raises(SwapdError) as error:
            act(_model(root, weights=(str(root / "gone"),)))
        assert error.value.code == CONFIG_INVALID
        assert f"{root}/gone does not exist" in error.value.message
    with pytest.raises(SwapdError) as error:
        fingerprint(_model(root / "gone"))
    assert str(root / "gone/code") in error.value.message


def test_weight_files_are_each_named_once_by_the_name_that_tells_more(root):
    cache = root / "hub"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    (cache / "blobs/0123abcd").write_bytes(b"1")
    (cache / "snapshots/model.safetensors").symlink_to("../blobs/0123abcd")
    (root / "w.gguf").write_bytes(b"2")
    model = _model(root, weights=(str(root / "w.gguf"), str(cache)), env={"MODEL_PATH": str(root / "w.gguf")})
    assert weight_files(model) == (root / "w.gguf", cache / "snapshots/model.safetensors")


# --- servers of other makes ------------------------------------------------------------------------------------------


@pytest.fixture
def server(root):
    program = root / "srv"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (root / "a.gguf").write_bytes(b"weights")
    (root / "template.jinja").write_text("{{ messages }}")

    def of(*command, **settings):
        settings = {"engine": "command", "directory": str(root / "code"), "command": command, **settings}
        return ModelConfig(name="a", **settings)

    return of


def test_a_server_is_its_program_its_weights_and_what_its_arguments_name(root, server):
    model = server(f"{root}/srv", "-m", f"{root}/a.gguf", "--template=../template.jinja", "--port", "{port}")
    for changed in ("srv", "a.gguf", "template.jinja"):
        before = fingerprint(model)
        assert fingerprint(model) == before
        with (root / changed).open("ab") as file:
            file.write(b"#")
        assert fingerprint(model) != before, changed
    before = fingerprint(model)
    (root / "code/my_model.py").write_text("app = 2\n")  # beside it, and none of its business
    assert fingerprint(model) == before
    assert weight_files(model) == (root / "a.gguf", root / "code/../template.jinja")


def test_a_program_is_looked_for_in_the_servers_own_path(root, server):
    assert module.program_of(server("srv", "{port}", env={"PATH": str(root)})) == root / "srv"
    assert module.program_of(server("../srv", "{port}")) == root / "code/../srv"
    assert module.program_of(server("no-such-server", "{port}")) is None
    assert fingerprint(server("no-such-server", "{port}"))
    preset = server(engine="llama-server", weights=(str(root / "a.gguf"),), env={"PATH": str(root)})
    before = fingerprint(preset)
    (root / "llama-server").symlink_to("srv")
    assert fingerprint(preset) != before


def test_a_command_that_names_its_weights_has_them_once(root, server):
    path = f"{root}/a.gguf"
    assert weight_files(server("srv", "-m", path, weights=(path,))) == (root / "a.gguf",)
