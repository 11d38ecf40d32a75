"""The private key by which the server knows the site."""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from ahfal_app.deployment.doctor.finding import Finding, failure, good


def check_key(path: Path | None) -> Finding:
    """Read the key as Flower does, and see that nobody else can."""
    if path is None:
        return failure(
            "key", "no key: give --private-key, the file supernode.key that the server made for you"
        )
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        return failure("key", f"{path} cannot be read as an OpenSSH key without password: {error}")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return failure("key", f"{path}: Flower needs an elliptic-curve key (ecdsa)")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return failure("key", f"{path}: others can read it (mode {mode:o}); run chmod 600 {path}")
    return good("key", f"{path}, {key.curve.name}")
