"""Sums and signatures: what was changed is named, and what was not is not."""

import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from logramed.hub_cards import integrity
from logramed.hub_cards.integrity import IntegrityError, find_changes, sign, verify_signature, write_sums


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "evaluation").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "evaluation" / "metrics.json").write_text("{}")
    write_sums(folder)
    return folder


@pytest.fixture
def keys(tmp_path):
    return write_keys(tmp_path, "mine")


def write_keys(folder, name):
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}_public.pem"
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return private, public


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_sums_are_those_that_sha256sum_checks(folder):
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0
    (folder / "model.safetensors").write_bytes(b"Weights")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert "model.safetensors: FAILED" in done.stdout


def test_every_change_is_named(folder):
    assert find_changes(folder) == []
    (folder / "model.safetensors").write_bytes(b"Weights")
    (folder / "evaluation" / "metrics.json").unlink()
    (folder / "extra.pt").write_bytes(b"")
    assert find_changes(folder) == [
        "evaluation/metrics.json is missing.",
        "model.safetensors has another content than was published.",
        "extra.pt was not published.",
        "extra.pt may hold a pickle, which runs code.",
    ]


def test_files_of_the_hub_and_of_caches_are_no_change(folder):
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("")
    assert find_changes(folder) == []


def test_a_folder_without_sums_is_not_taken_for_unchanged(folder):
    (folder / "SHA256SUMS").unlink()
    assert "There is no SHA256SUMS" in find_changes(folder)[0]
    (folder / "SHA256SUMS").write_text("not a line of sums\n")
    with pytest.raises(IntegrityError, match="line 1, is no digest and name: 'not a line"):
        find_changes(folder)


def test_a_signature_holds_for_these_files_and_this_key_alone(folder, keys, tmp_path):
    private, public = keys
    sign(folder, private)
    verify_signature(folder, public)
    assert find_changes(folder) == []
    with pytest.raises(IntegrityError, match="is not what the key's owner signed"):
        verify_signature(folder, write_keys(tmp_path, "other")[1])
    (folder / "model.safetensors").write_bytes(b"Weights")
    write_sums(folder)
    with pytest.raises(IntegrityError, match="is not what the key's owner signed"):
        verify_signature(folder, public)


def test_what_is_not_signed_is_not_taken_for_signed(folder, keys):
    with pytest.raises(IntegrityError, match=r"is not signed: there is no model\.sig"):
        verify_signature(folder, keys[1])


def test_the_command_says_what_it_found(folder, keys, capsys):
    sign(folder, keys[0])
    assert integrity.main([str(folder), "--public_key", str(keys[1])]) == 0
    assert "All 2 files are as they were published, and signed by the owner" in capsys.readouterr().out
    (folder / "model.safetensors").write_bytes(b"")
    assert integrity.main([str(folder)]) == 1
    assert "model.safetensors has another content" in capsys.readouterr().out
