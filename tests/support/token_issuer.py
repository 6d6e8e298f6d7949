"""An identity provider: signs JSON Web Tokens and publishes its keys in a file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.utils import base64url_encode

ISSUER, AUDIENCE = "https://id.test", "tenancy"


class TokenIssuer:
    """Signs tokens, and publishes its keys in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: dict[str, tuple[str, Any]] = {
            "rsa": ("RS256", rsa.generate_private_key(public_exponent=65537, key_size=2048)),
            "ec": ("ES256", ec.generate_private_key(ec.SECP256R1())),
            "ed": ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
        }
        self.publish()

    def publish(self, **extra: Any) -> None:
        writers = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
        keys = [
            writers[algorithm].to_jwk(key.public_key(), as_dict=True)
            | {"kid": name, "use": "sig", "alg": algorithm}
            for name, (algorithm, key) in self.keys.items()
        ]
        keys += extra.get("more", [])
        self.path.write_text(json.dumps({"keys": keys}))

    def token(
        self, kid: str = "rsa", *, header: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        algorithm, key = self.keys[kid]
        said = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": int(time.time()) + 300,
            "tenant_id": "acme",
        } | claims
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, key, algorithm, headers={"kid": kid} | (header or {}))

    def signed(self, header: bytes, claims: bytes, kid: str = "rsa") -> str:
        """A token of exactly these texts, which a library might not write."""
        algorithm, key = self.keys[kid]
        message = ".".join(base64url_encode(part).decode() for part in (header, claims))
        signature = jwt.get_algorithm_by_name(algorithm).sign(message.encode(), key)
        return f"{message}.{base64url_encode(signature).decode()}"
