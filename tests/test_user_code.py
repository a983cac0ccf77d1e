"""What the code of a user's own function is."""

import hashlib
import importlib
import sys
from pathlib import Path

import pytest

from hptransfer._user_code import _find_imports, hash_code, load_function
from hptransfer.errors import ConfigError


def test_code_is_the_files_that_a_function_rests_on(tmp_path):
    """Its own, and what it imports of its folder or package at whatever place, and no others."""
    files = {
        "models.py": "import json\nimport layers\ndef make(width):\n    import late.deep\n",
        "layers.py": "from pack import part\n",
        "late/deep.py": "import models\n",
        "pack/__init__.py": "",
        "pack/part.py": "from . import sister\nfrom .sister import x\nfrom .. import other\n",
        "pack/sister.py": "x = 1\n",
        "other.py": "",
        "unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = hash_code([f"{tmp_path / 'models.py'}:make"])
    assert set(found) == set(files) - {"unused.py"}
    assert found["layers.py"] == hashlib.sha256(files["layers.py"].encode()).hexdigest()
    of_package = hash_code([f"{tmp_path / 'pack' / 'part.py'}:x"])
    assert set(of_package) == {"pack/part.py", "pack/sister.py", "pack/__init__.py", "other.py"}
    # Of an installed package the file alone, by name or by path; of an extension none.
    assert list(hash_code(["torch.nn.functional:relu"])) == ["torch/nn/functional.py"]
    assert hash_code(["math:sqrt"]) == {}


def test_files_of_one_name_in_two_folders_are_both_in_the_code(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my.py").write_text(f"name = {folder!r}\n")
    found = hash_code([f"{tmp_path / folder / 'my.py'}:name" for folder in ("a", "b", "a")])
    assert list(found) == ["my.py", "./my.py"]


def test_the_code_of_a_package_without_an_init_is_its_siblings_too(tmp_path, monkeypatch):
    folder = tmp_path / "spaced" / "models"
    folder.mkdir(parents=True)
    (folder / "llama.py").write_text("from spaced.models.blocks import x\n")
    (folder / "blocks.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = hash_code(["spaced.models.llama:x"])
    assert set(found) == {"spaced/models/llama.py", "spaced/models/blocks.py"}


def test_code_that_python_cannot_read_is_its_bytes(tmp_path):
    """As an import in a ``try`` may be, of a file or of a package above all folders."""
    (tmp_path / "main.py").write_text(
        "try:\n    import broken, binary\n"
        f"    from {'.' * 99} import x\nexcept Exception:\n    pass\n"
    )
    (tmp_path / "broken.py").write_text("def (\n")
    (tmp_path / "binary.py").write_bytes(b"\0\xff")
    found = hash_code([f"{tmp_path / 'main.py'}:x"])
    assert set(found) == {"main.py", "broken.py", "binary.py"}
    # A file of the root has no folder that a file could stand beside.
    assert list(_find_imports(Path("/model.py"), b"import no_such_layers\n", Path("/"))) == []


def test_a_module_that_changed_after_it_was_loaded_is_refused(tmp_path):
    """A function's own file is loaded anew; what it imports is not, unless it is reloaded."""
    main, layers = tmp_path / "main.py", tmp_path / "helping_layers.py"
    main.write_text("import helping_layers\ndef make(width):\n    return width\n")
    layers.write_text("SCALE = 1\n")

    def read():
        load_function("factory", f"{main}:make")
        return hash_code([f"{main}:make"])

    first = read()
    main.write_text(main.read_text() + "# edited\n")
    assert read()["helping_layers.py"] == first["helping_layers.py"]
    layers.write_text("SCALE = 22\n")
    with pytest.raises(ConfigError, match=r"helping_layers\.py has changed since .* restart"):
        read()
    importlib.reload(sys.modules["helping_layers"])
    assert read()["helping_layers.py"] != first["helping_layers.py"]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("import json\nV = 3\ndef make(width):\n    pass\n", "; it has make"),
        ("def modela(width):\n    pass\n", "; did you mean 'modela'?"),
        ("V = 3\n", ""),
    ],
)
def test_a_name_that_is_not_there_is_met_with_those_that_are(tmp_path, text, hint):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_function("model.factory", f"{tmp_path / 'mine.py'}:models")
    assert str(caught.value).endswith(f"has no 'models'{hint}")
