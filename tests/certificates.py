"""Certificates made on the spot."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)


@dataclass
class Certificate:
    """Two files in PEM."""

    cert: Path
    key: Path

    def settings(self, whose: str = "GATEWAY") -> dict[str, str]:
        return {f"{whose}_TLS_CERT_FILE": str(self.cert), f"{whose}_TLS_KEY_FILE": str(self.key)}


def self_signed(
    directory: Path, *, name: str = "localhost", days: float = 1, password: str | None = None
) -> Certificate:
    """For `name` and 127.0.0.1, good until `days` from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    end = datetime.now(UTC) + timedelta(days=days)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=30))
        .not_valid_after(end)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    made = Certificate(directory / f"{name}.pem", directory / f"{name}-key.pem")
    made.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
    how = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    return made
