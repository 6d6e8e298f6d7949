"""Keys and signatures, held against the standard library and published vectors."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.data_isolation.core import crypto
from tenancy.data_isolation.core.errors import SettingError

MASTER = crypto.MasterKey(bytes(range(32)))


@given(key=st.binary(min_size=32, max_size=32), message=st.binary(max_size=200))
def test_the_stored_pads_compute_hmac_sha256(key, message):
    inner, outer = crypto.hmac_pads(crypto.BindingKey(1, key))

    by_pads = hashlib.sha256(outer + hashlib.sha256(inner + message).digest()).digest()

    assert by_pads == hmac.digest(key, message, "sha256")


def test_a_binding_spells_what_it_signs():
    key = crypto.BindingKey(3, b"k" * 32)

    binding = crypto.sign_binding(key, 42, 7, 1234)

    message, _, signature = binding.rpartition(".")
    assert message == "3.42.7.1234"
    assert signature == hmac.new(key.secret, message.encode(), "sha256").hexdigest()


def test_each_purpose_has_its_own_key():
    derived = {
        crypto.binding_key(MASTER, "main", "tenancy", 1).secret,
        crypto.binding_key(MASTER, "main", "tenancy", 2).secret,
        crypto.binding_key(MASTER, "main", "other", 1).secret,
        crypto.binding_key(MASTER, "two", "tenancy", 1).secret,
    }
    passwords = {crypto.role_password(MASTER, "main", role) for role in ("a", "b")}

    assert len(derived) == 4
    assert len(passwords) == 2
    assert crypto.role_password(MASTER, "main", "a") == crypto.role_password(MASTER, "main", "a")


def test_the_verifier_has_the_form_of_rfc_5803_and_checks_the_password():
    verifier = crypto.scram_verifier("pencil", b"0123456789abcdef")

    head, keys = verifier.split("$", 1)[0], verifier.split("$", 2)
    iterations, salt = keys[1].split(":")
    stored, server = keys[2].split(":")
    salted = hashlib.pbkdf2_hmac("sha256", b"pencil", base64.b64decode(salt), int(iterations))
    assert head == "SCRAM-SHA-256"
    assert base64.b64decode(server) == hmac.digest(salted, b"Server Key", "sha256")
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    assert base64.b64decode(stored) == hashlib.sha256(client_key).digest()


def test_an_api_key_carries_its_id_and_matches_its_digest():
    key = crypto.new_api_key()

    assert crypto.api_key_id(key.text) == key.key_id
    assert crypto.same_digest(crypto.api_key_digest(key.text), key.digest)
    assert key.text not in repr(key)


@pytest.mark.parametrize("text", ["", "tk", "tk_x_y", "xx_0123456789abcdef_y", "Bearer x"])
def test_other_text_is_no_api_key(text):
    assert crypto.api_key_id(text) is None


@pytest.mark.parametrize("text", ["", "00", "zz" * 32, "00" * 33])
def test_a_master_key_is_32_bytes(text):
    with pytest.raises(SettingError, match="64 hexadecimal digits"):
        crypto.parse_master_key(text)


def test_a_fresh_master_key_can_be_spelled_and_read():
    key = crypto.new_master_key()

    assert crypto.parse_master_key(key.hex()) == key
