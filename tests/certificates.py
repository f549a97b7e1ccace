"""Self-signed certificates for tests."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)


@dataclass
class Certificate:
    """PEM files of a certificate and its private key."""

    cert: Path
    key: Path

    def to_settings(self, prefix: str = "GATEWAY") -> dict[str, str]:
        return {f"{prefix}_TLS_CERT_FILE": str(self.cert), f"{prefix}_TLS_KEY_FILE": str(self.key)}


def create_certificate(
    directory: Path, *, name: str = "localhost", days: float = 1, password: str | None = None, rsa_key: bool = False
) -> Certificate:
    """Create a self-signed certificate for `name` and 127.0.0.1.

    It expires in `days` days.
    """
    key = rsa.generate_private_key(65_537, 2048) if rsa_key else ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    expires_at = datetime.now(UTC) + timedelta(days=days)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(expires_at - timedelta(days=30))
        .not_valid_after(expires_at)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    files = Certificate(directory / f"{name}.pem", directory / f"{name}-key.pem")
    files.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return files
