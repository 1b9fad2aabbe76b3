"""The certificate authority that the APIServices name, and the certificates that it signs.

All replicas share the authority, by a Secret; each signs a serving certificate for itself. So none
has to be handed round when it is renewed.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from llm_operator.state import Manifest

AUTHORITY_DAYS = 3650
AUTHORITY_RENEWED_DAYS = 365
"""An authority that ends within so many days is replaced."""
SERVING_DAYS = 90
SERVING_RENEWED_DAYS = 30
SLACK = timedelta(hours=1)
"""How far the clocks of two machines may be apart."""
CERTIFICATE = "tls.crt"
KEY = "tls.key"


@dataclass(frozen=True)
class Signed:
    """A certificate and its key, PEM."""

    certificate: str
    key: str = field(repr=False)

    @property
    def ends(self) -> datetime:
        return x509.load_pem_x509_certificate(self.certificate.encode()).not_valid_after_utc

    @property
    def bundle(self) -> str:
        """As caBundle has it."""
        return base64.b64encode(self.certificate.encode()).decode()

    def secret(self, namespace: str, name: str, labels: dict[str, str]) -> Manifest:
        pair = {CERTIFICATE: self.certificate, KEY: self.key}
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "type": "kubernetes.io/tls",
            "data": {name: base64.b64encode(text.encode()).decode() for name, text in pair.items()},
        }

    @classmethod
    def read(cls, secret: Manifest) -> "Signed":
        """From a Secret. Raises ValueError for one that holds no certificate with its key, of
        an elliptic curve and without a password."""
        try:
            texts = [base64.b64decode(secret["data"][name]).decode() for name in (CERTIFICATE, KEY)]
        except (KeyError, TypeError) as error:
            raise ValueError(f"it has no {error}") from error
        found = cls(*texts)
        certificate = x509.load_pem_x509_certificate(found.certificate.encode())
        try:
            key = serialization.load_pem_private_key(found.key.encode(), None)
        except TypeError as error:
            raise ValueError("the key has a password") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the key is not one of an elliptic curve")
        if certificate.public_key() != key.public_key():
            raise ValueError("the key is not the certificate's")
        return found


def authority(name: str, now: datetime) -> Signed:
    """A new authority, which signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    unsigned = (
        _certificate(subject, subject, key, now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
    )
    return _pem(unsigned.sign(key, hashes.SHA256()), key)


def serving(by: Signed, names: Sequence[str], now: datetime) -> Signed:
    """A certificate for a server of these DNS names."""
    issuer = x509.load_pem_x509_certificate(by.certificate.encode())
    signer = serialization.load_pem_private_key(by.key.encode(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    unsigned = (
        _certificate(subject, issuer.subject, key, now, SERVING_DAYS)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(_usage(signs=False), critical=True)
    )
    return _pem(unsigned.sign(signer, hashes.SHA256()), key)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLACK)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Signed:
    return Signed(
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )
