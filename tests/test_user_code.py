"""What the code of a user's own function is."""

import hashlib

from hptransfer._user_code import hash_code


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
